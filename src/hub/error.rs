//! What can go wrong on the way to a model's files, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ModelName;

/// Why a model's files are not here.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The text names no repository.
    #[error(
        "`{text}` is neither a file or folder on this machine nor the name of a model: {problem}"
    )]
    Name {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is no place to keep files.
    #[error(
        "there is no place to keep models, because neither HF_HUB_CACHE, HF_HOME nor HOME is set: set HF_HOME to a folder"
    )]
    NoCache,
    /// The hub's address cannot be used.
    #[error("HF_ENDPOINT `{endpoint}` cannot be used: {problem}")]
    Endpoint {
        /// The address, without what might be a secret in it.
        endpoint: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It would have to be downloaded, and nothing may be.
    #[error(
        "`{model}` is not complete in {} ({missing}), and this machine is offline (--offline, SCONCE_OFFLINE or HF_HUB_OFFLINE): fetch it with `sconce pull {model}` where there is a network, or carry it here with `sconce bundle`",
        .cache.display()
    )]
    Offline {
        /// The model.
        model: ModelName,
        /// The cache that was searched.
        cache: PathBuf,
        /// What it lacks.
        missing: String,
    },
    /// No model of the catalogue will do.
    #[error("{0}")]
    NoneFits(String),
    /// It is not in the cache at all.
    #[error("`{model}` is not in {}; `sconce list` says what is", .cache.display())]
    NotHere {
        /// The model.
        model: ModelName,
        /// The cache that was searched.
        cache: PathBuf,
    },
    /// It is not in the cache, and only the cache was asked.
    #[error("`{model}` is not complete in {} ({missing}): fetch it with `sconce pull {model}`", .cache.display())]
    NotCached {
        /// The model.
        model: ModelName,
        /// The cache that was searched.
        cache: PathBuf,
        /// What it lacks.
        missing: String,
    },
    /// There is no such repository, or it hides from strangers.
    #[error(
        "{endpoint} knows no model `{repo}`{}",
        if *.with_token { ": check the spelling, and that the account of HF_TOKEN may see it" } else { ": check the spelling; if it is private, set HF_TOKEN to a token of an account that may see it" }
    )]
    NoSuchModel {
        /// The repository.
        repo: String,
        /// The hub.
        endpoint: String,
        /// Whether a token was shown.
        with_token: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error(
        "`{repo}` has no revision `{revision}`, or is not there at all: give a branch, a tag or a commit that {endpoint}/{repo} lists, or leave --revision out"
    )]
    NoSuchRevision {
        /// The repository.
        repo: String,
        /// What was asked for.
        revision: String,
        /// The hub.
        endpoint: String,
    },
    /// Its owner lets only some in.
    #[error(
        "`{repo}` is gated: ask for access at {endpoint}/{repo}, then set HF_TOKEN to a token of the account that has it{}",
        if *.with_token { " (the account of the present HF_TOKEN has none, or the token may not read gated models)" } else { "" }
    )]
    Gated {
        /// The repository.
        repo: String,
        /// The hub.
        endpoint: String,
        /// Whether a token was shown.
        with_token: bool,
    },
    /// The token is no good.
    #[error(
        "{endpoint} refuses the token{} for `{repo}` (status {status}): make a new one at {endpoint}/settings/tokens and set HF_TOKEN",
        if *.with_token { " in HF_TOKEN" } else { ", as there is none," }
    )]
    Token {
        /// The repository.
        repo: String,
        /// The hub.
        endpoint: String,
        /// What it answered.
        status: u16,
        /// Whether a token was shown.
        with_token: bool,
    },
    /// Too many requests.
    #[error(
        "{endpoint} limits how often it may be asked and wants {} s of peace: try again then{}",
        .wait.as_secs(),
        if *.with_token { "" } else { "; with HF_TOKEN set the limit is higher" }
    )]
    RateLimited {
        /// The hub.
        endpoint: String,
        /// How long it wants to be left alone.
        wait: Duration,
        /// Whether a token was shown.
        with_token: bool,
    },
    /// It cannot answer at present.
    #[error(
        "{host} cannot answer at present (status {status}): try again {}, or use a model that is cached (`sconce list`)",
        if .wait.is_zero() { "in a while".to_owned() } else { format!("in {} s", .wait.as_secs()) }
    )]
    Busy {
        /// Who was asked.
        host: String,
        /// What it answered.
        status: u16,
        /// How long it wants to be left alone, if it says.
        wait: Duration,
    },
    /// Nobody answers.
    #[error(
        "cannot reach {host}: {problem}; check the network and HF_ENDPOINT, or use a model that is cached (`sconce list`)"
    )]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What happened.
        problem: String,
    },
    /// An answer that no hub gives.
    #[error("{host} answered what no hub answers: {problem}; check HF_ENDPOINT")]
    Strange {
        /// Who was asked.
        host: String,
        /// What it answered.
        problem: String,
    },
    /// Nothing in the repository can be served.
    #[error("`{repo}` holds nothing that can be served: {problem}")]
    NothingToServe {
        /// The repository.
        repo: String,
        /// What it holds instead.
        problem: String,
    },
    /// No file has the tag.
    #[error("`{repo}` has no GGUF file `{tag}`; it has {}", list(.available))]
    NoSuchFile {
        /// The repository.
        repo: String,
        /// What was asked for.
        tag: String,
        /// What there is.
        available: Vec<String>,
    },
    /// What arrived is not what the hub says it is.
    #[error(
        "{file} of `{repo}` arrived damaged twice ({problem}), and nothing of it was kept: try again, and if it stays so, ask whoever runs the hub or the mirror"
    )]
    Damaged {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// How it is wrong.
        problem: String,
    },
    /// No room.
    #[error(
        "no room in {}: {} are needed, {} are free; free some (`sconce list`, `sconce rm`) or set HF_HOME to another disk; what has arrived is kept",
        .folder.display(), size(*.needed), size(*.free)
    )]
    DiskFull {
        /// Where.
        folder: PathBuf,
        /// Bytes that are missing from the model.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The file system refuses.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's word.
        source: io::Error,
    },
    /// Another process is at work on it.
    #[error("another process is fetching {file} of `{repo}`: wait for it, or stop it first")]
    InUse {
        /// The repository.
        repo: String,
        /// What is being written.
        file: String,
    },
    /// A bundle cannot be read.
    #[error("{}: {problem}; nothing was imported", .path.display())]
    Bundle {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A cached file is not what its name says.
    #[error("{} is damaged ({problem}): remove the model with `sconce rm {model}` and fetch it again", .path.display())]
    Spoiled {
        /// The file.
        path: PathBuf,
        /// How it is wrong.
        problem: String,
        /// The model.
        model: ModelName,
    },
}

impl HubError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "no GGUF file at all".to_owned()
    } else {
        names.join(", ")
    }
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
