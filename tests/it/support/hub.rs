//! A hub on loopback: the routes of huggingface.co that downloads use, with its redirect of large files to a storage
//! of another address, and with every fault that a test asks for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::engine::case;
use super::server::Sconce;
use super::upstream::{Reply, Request, Upstream};

/// The commit of every repository here.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// What callers of this hub are given to show, and nobody else may see.
pub const TOKEN: &str = "hf_TestTokenTestTokenTestTokenTest";
/// Files of at least so many bytes lie in the storage.
const LARGE: usize = 64 << 10;

/// Files of a repository by their path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Changes a reply, or makes another one.
pub type Fault = dyn Fn(&Request, Reply) -> Reply + Send + Sync;

/// A running hub with its storage.
pub struct Hub {
    pub hub: Upstream,
    pub storage: Upstream,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    hub: Mutex<Option<Box<Fault>>>,
    storage: Mutex<Option<Box<Fault>>>,
}

impl Hub {
    /// Holds repositories by their names.
    pub fn start(repos: &[(&str, Files)]) -> Self {
        let faults = Arc::<Faults>::default();
        let repos: BTreeMap<String, Files> = repos
            .iter()
            .map(|(name, files)| ((*name).to_owned(), files.clone()))
            .collect();
        let contents = repos
            .values()
            .flat_map(BTreeMap::values)
            .map(|bytes| (sha256(bytes), bytes.clone()))
            .collect();
        let storage = Upstream::start({
            let faults = faults.clone();
            move |request| with(&faults.storage, request, stored(&contents, request))
        });
        let storage_url = storage.url();
        let hub = Upstream::start({
            let faults = faults.clone();
            move |request| with(&faults.hub, request, answer(&repos, &storage_url, request))
        });
        Self {
            hub,
            storage,
            faults,
        }
    }

    /// A hub with one frozen model, as `org/tiny`.
    pub fn tiny() -> Self {
        Self::start(&[("org/tiny", model_files("llama-tied"))])
    }

    /// Sends every reply of the hub through a fault.
    pub fn fault(&self, fault: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) {
        *self.faults.hub.lock().expect("no test fails within") = Some(Box::new(fault));
    }

    /// Sends every reply of the storage through a fault.
    pub fn storage_fault(&self, fault: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) {
        *self.faults.storage.lock().expect("no test fails within") = Some(Box::new(fault));
    }

    /// Answers well again.
    pub fn heal(&self) {
        *self.faults.hub.lock().expect("no test fails within") = None;
        *self.faults.storage.lock().expect("no test fails within") = None;
    }

    /// The binary with this hub and a cache of its own, without a token.
    pub fn sconce(&self, home: &Path) -> Sconce {
        Sconce::new()
            .env("HF_ENDPOINT", &self.hub.url())
            .env("HF_HOME", &home.display().to_string())
    }
}

fn with(fault: &Mutex<Option<Box<Fault>>>, request: &Request, reply: Reply) -> Reply {
    let fault = fault.lock().expect("no test fails within");
    let reply = match &*fault {
        Some(fault) => fault(request, reply),
        None => reply,
    };
    // The answer to HEAD tells the body's length and leaves the body out.
    if request.method == "HEAD" {
        reply.close_after(0)
    } else {
        reply
    }
}

fn answer(repos: &BTreeMap<String, Files>, storage: &str, request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default();
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let (repo, revision) = rest.split_once("/revision/").unwrap_or((rest, "main"));
        let Some(files) = repos.get(repo) else {
            return refusal(404, "RepoNotFound", "Repository not found");
        };
        if revision != "main" && revision != COMMIT && revision != "feature%2Fx" {
            return refusal(404, "RevisionNotFound", "Invalid rev id");
        }
        let siblings: Vec<_> = files
            .keys()
            .map(|path| json!({"rfilename": path}))
            .collect();
        return Reply::json(
            200,
            &json!({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": false, "tags": []}),
        );
    }
    let found = path
        .trim_start_matches('/')
        .split_once("/resolve/")
        .and_then(|(repo, rest)| {
            let (_, file) = rest.split_once('/')?;
            repos.get(repo)?.get(file)
        });
    let Some(bytes) = found else {
        return refusal(404, "EntryNotFound", "Entry not found");
    };
    let reply = if bytes.len() >= LARGE {
        let sha = sha256(bytes);
        let reply = Reply::redirect(&format!("{storage}/{sha}?X-Amz-Signature=signed"));
        reply
            .status(302)
            .header("x-linked-etag", &format!("\"{sha}\""))
            .header("x-linked-size", &bytes.len().to_string())
    } else {
        ranged(request, bytes).header("etag", &format!("\"{}\"", git_hash(bytes)))
    };
    reply.header("x-repo-commit", COMMIT)
}

fn stored(contents: &BTreeMap<String, Vec<u8>>, request: &Request) -> Reply {
    let sha = request
        .path
        .trim_start_matches('/')
        .split('?')
        .next()
        .unwrap_or_default();
    match contents.get(sha) {
        // Storages have names of their own for what they hold.
        Some(bytes) => ranged(request, bytes).header("etag", "\"an-etag-of-the-storage\""),
        None => Reply::body(
            403,
            "application/xml",
            "<Error><Code>AccessDenied</Code></Error>",
        ),
    }
}

fn ranged(request: &Request, bytes: &[u8]) -> Reply {
    let kind = "application/octet-stream";
    let Some(range) = request.header("range") else {
        return Reply::body(200, kind, bytes);
    };
    let from: usize = range
        .trim_start_matches("bytes=")
        .trim_end_matches('-')
        .parse()
        .expect("an open range");
    if from >= bytes.len() {
        return Reply::body(416, "text/plain", "")
            .header("content-range", &format!("bytes */{}", bytes.len()));
    }
    let told = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
    Reply::body(206, kind, &bytes[from..]).header("content-range", &told)
}

/// An error as the hub words it.
pub fn refusal(status: u16, code: &str, message: &str) -> Reply {
    let reply = Reply::json(status, &json!({"error": message}));
    reply
        .header("x-error-code", code)
        .header("x-error-message", message)
}

/// The files of a frozen case that a repository would hold, and some that no server needs.
pub fn model_files(name: &str) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(case(name)).expect("a frozen case") {
        let path = entry.expect("a readable entry").path();
        let file = path
            .file_name()
            .expect("a file's name")
            .to_string_lossy()
            .into_owned();
        if file != "expected.json" {
            files.insert(file, fs::read(&path).expect("a readable file"));
        }
    }
    files.insert("README.md".to_owned(), b"# A model\n".to_vec());
    files.insert("onnx/model.onnx".to_owned(), b"not needed".to_vec());
    files
}

/// Bytes without a pattern, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8))
        .flat_map(|_| next())
        .take(length)
        .collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn git_hash(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
