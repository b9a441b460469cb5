//! Carries one file into the cache: goes on where a cut download ended, hashes what arrives, and makes the file visible
//! only when its content is what the hub says it is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::{Cache, Lock, beside, is_same, make_parent};
use super::client::{Arriving, Client, FileFacts, Refusal};
use super::error::HubError;
use super::progress::{Bar, Progress};

/// One file of a model.
pub(super) struct Wanted<'a> {
    pub(super) repo: &'a str,
    pub(super) commit: &'a str,
    pub(super) file: &'a str,
    pub(super) facts: &'a FileFacts,
}

/// Failures in a row, none of which brought a single byte, after which a download is given up.
const DOWNLOAD_ATTEMPTS: u32 = 5;
/// A question is given up sooner: somebody may be waiting for what the cache has.
const QUESTION_ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A hub that wants more peace than this gets it, but nobody waits for it.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const LOCK_POLL: Duration = Duration::from_millis(200);

/// Pauses between attempts, longer with each failure.
#[derive(Debug)]
struct Attempts {
    most: u32,
    failures: u32,
}

impl Attempts {
    fn of(most: u32) -> Self {
        Self { most, failures: 0 }
    }

    /// Waits before the next attempt.
    ///
    /// Errors: the last failure, if there were too many or the wait would be too long.
    async fn after(&mut self, error: HubError, wait: Option<Duration>) -> Result<(), HubError> {
        self.failures += 1;
        let pause = wait.unwrap_or(FIRST_PAUSE * 2u32.pow(self.failures.min(5) - 1));
        if self.failures >= self.most || pause > LONGEST_WAIT {
            return Err(error);
        }
        tracing::warn!("{error}; trying again in {} s", pause.as_secs());
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn forget(&mut self) {
        self.failures = 0;
    }
}

/// Repeats a question until it is answered or hopeless.
pub(super) async fn patiently<T>(
    mut ask: impl AsyncFnMut() -> Result<T, Refusal>,
) -> Result<T, HubError> {
    let mut attempts = Attempts::of(QUESTION_ATTEMPTS);
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(Refusal::Never(error)) => return Err(error),
            Err(Refusal::Later(error, wait)) => attempts.after(error, wait).await?,
        }
    }
}

/// Puts a file's content into the cache, unless it is there; the file itself is placed by the caller.
///
/// Errors: it cannot be had, cannot be written, or is not what the hub says it is. What has arrived is kept for the
/// next attempt, unless it is wrong.
pub(super) async fn fetch(
    client: &Client,
    cache: &Cache,
    wanted: &Wanted<'_>,
    try_xet: bool,
    progress: &Progress,
) -> Result<(), HubError> {
    let Wanted { repo, facts, .. } = wanted;
    let blob = cache.blob(repo, &facts.etag);
    if is_there(&blob, facts.size) {
        return Ok(());
    }
    let lock = wait_for_lock(cache, wanted, progress).await?;
    if is_there(&blob, facts.size) {
        return Ok(());
    }
    let path = if lock.shared {
        beside(&blob)
    } else {
        cache.partial(repo, &facts.etag)
    };
    let bar = progress.file("downloading", wanted.file, facts.size);
    let mut try_xet = try_xet && facts.xet_hash.is_some();
    let mut damaged = false;
    loop {
        let mut partial = tokio::task::block_in_place(|| Partial::open(&path, facts))?;
        bar.begin_at(partial.have);
        fill(client, wanted, &mut partial, &mut try_xet, &bar).await?;
        match partial.check(facts) {
            Ok(()) => return tokio::task::block_in_place(|| partial.keep(&blob)),
            Err(problem) => {
                drop(partial);
                fs::remove_file(&path).map_err(HubError::io(&path))?;
                if damaged {
                    return Err(HubError::Damaged {
                        repo: (*repo).to_owned(),
                        file: wanted.file.to_owned(),
                        problem,
                    });
                }
                tracing::warn!(
                    "{} of `{repo}` arrived damaged ({problem}); fetching it once more from its beginning",
                    wanted.file
                );
                damaged = true;
                try_xet = false;
            }
        }
    }
}

/// Whether a content is there. One of another size is no content of that name, whoever put it there.
pub(super) fn is_there(blob: &Path, size: u64) -> bool {
    fs::metadata(blob).is_ok_and(|there| there.len() == size)
}

async fn wait_for_lock(
    cache: &Cache,
    wanted: &Wanted<'_>,
    progress: &Progress,
) -> Result<Lock, HubError> {
    let mut said = false;
    loop {
        if let Some(lock) = cache.try_lock(wanted.repo, &wanted.facts.etag)? {
            return Ok(lock);
        }
        if !said {
            progress.say(&format!(
                "waiting for another process that fetches {}",
                wanted.file
            ));
            said = true;
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

/// Fetches what is missing, in as many attempts as bring something.
async fn fill(
    client: &Client,
    wanted: &Wanted<'_>,
    partial: &mut Partial,
    try_xet: &mut bool,
    bar: &Bar,
) -> Result<(), HubError> {
    let Wanted {
        commit,
        file,
        facts,
        ..
    } = wanted;
    let mut attempts = Attempts::of(DOWNLOAD_ATTEMPTS);
    let mut most = partial.have;
    while partial.have < facts.size || (facts.size == 0 && !partial.begun) {
        let answer = if *try_xet {
            match client.xet_bytes(commit, facts, partial.have).await {
                Ok(arriving) => Ok(Some(arriving)),
                Err(problem) => {
                    tracing::info!(
                        "{file} out of Xet storage: {problem}; going on over plain HTTP"
                    );
                    *try_xet = false;
                    continue;
                }
            }
        } else {
            client.bytes(commit, file, facts, partial.have).await
        };
        let ended = match answer {
            Ok(Some(arriving)) => receive(arriving, partial, facts, bar).await?,
            Ok(None) => {
                partial.clear()?;
                let problem = format!("another part of {file} than it was asked for");
                attempts
                    .after(
                        HubError::Strange {
                            host: "the hub".to_owned(),
                            problem,
                        },
                        Some(Duration::ZERO),
                    )
                    .await?;
                continue;
            }
            Err(Refusal::Never(error)) => return Err(error),
            Err(Refusal::Later(error, wait)) => {
                attempts.after(error, wait).await?;
                continue;
            }
        };
        if let Err(problem) = ended {
            if *try_xet {
                tracing::info!("{file} out of Xet storage: {problem}; going on over plain HTTP");
                *try_xet = false;
                continue;
            }
            // Only what goes beyond all that has been there is progress.
            if partial.have > most {
                most = partial.have;
                attempts.forget();
            }
            let error = HubError::Unreachable {
                host: "the hub".to_owned(),
                problem: format!(
                    "{file} was cut off after {} of {} bytes: {problem}",
                    partial.have, facts.size
                ),
            };
            attempts.after(error, None).await?;
        }
    }
    Ok(())
}

/// Writes what arrives. `Ok(Err(…))`: it ended too early, or holds too much.
async fn receive(
    arriving: Arriving,
    partial: &mut Partial,
    facts: &FileFacts,
    bar: &Bar,
) -> Result<Result<(), String>, HubError> {
    let Arriving { from, mut bytes } = arriving;
    if from != partial.have {
        partial.clear()?;
    }
    partial.begun = true;
    while let Some(part) = bytes.next().await {
        let part = match part {
            Ok(part) => part,
            Err(problem) => return Ok(Err(problem)),
        };
        if partial.have + part.len() as u64 > facts.size {
            partial.clear()?;
            return Ok(Err("there is more of it than the hub says".to_owned()));
        }
        partial.write(&part, facts)?;
        bar.at(partial.have);
    }
    let whole = partial.have == facts.size;
    Ok(if whole {
        Ok(())
    } else {
        Err("it ended".to_owned())
    })
}

/// A file that is on its way, with the hash of what is there.
struct Partial {
    path: PathBuf,
    file: File,
    have: u64,
    hash: ContentHash,
    begun: bool,
}

impl Partial {
    /// Goes on with what is there.
    fn open(path: &Path, facts: &FileFacts) -> Result<Self, HubError> {
        make_parent(path)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path);
        let mut partial = Self {
            path: path.to_owned(),
            file: file.map_err(HubError::io(path))?,
            have: 0,
            hash: ContentHash::of(&facts.etag, facts.size),
            begun: false,
        };
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = partial.file.read(&mut buffer).map_err(HubError::io(path))?;
            if count == 0 {
                break;
            }
            partial.hash.update(&buffer[..count]);
            partial.have += count as u64;
        }
        // What cannot be checked in the end is not put together from pieces.
        if partial.have > facts.size || matches!(partial.hash.kind, Kind::Unknown) {
            partial.clear()?;
        }
        Ok(partial)
    }

    fn write(&mut self, bytes: &[u8], facts: &FileFacts) -> Result<(), HubError> {
        self.file
            .write_all(bytes)
            .map_err(|source| match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    disk_full(&self.path, facts.size - self.have)
                }
                _ => HubError::Io {
                    path: self.path.clone(),
                    source,
                },
            })?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), HubError> {
        let emptied = self
            .file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(HubError::io(&self.path))?;
        self.hash.reset();
        self.have = 0;
        Ok(())
    }

    /// Errors: how the content differs from what it is called.
    fn check(&mut self, facts: &FileFacts) -> Result<(), String> {
        if self.have != facts.size {
            return Err(format!("{} bytes instead of {}", self.have, facts.size));
        }
        self.hash.check(&facts.etag)
    }

    /// Makes it a blob: whole, or not at all, also after a power cut.
    fn keep(self, blob: &Path) -> Result<(), HubError> {
        self.file.sync_all().map_err(HubError::io(&self.path))?;
        if !is_same(&self.file, &self.path) {
            let gone = io::Error::other("somebody else has replaced it while it was written");
            return Err(HubError::io(&self.path)(gone));
        }
        fs::rename(&self.path, blob).map_err(HubError::io(blob))
    }
}

/// The hash by which the hub calls a content, as far as it calls it by one.
pub(super) struct ContentHash {
    kind: Kind,
    size: u64,
}

enum Kind {
    /// Large files: the content's SHA-256.
    Sha256(Sha256),
    /// Small ones: git's name of it, SHA-1 over a head and the content.
    Git(Sha1),
    /// A mirror's own invention: nothing can be checked but the size.
    Unknown,
}

impl ContentHash {
    /// The hash that a name of this length is.
    pub(super) fn of(etag: &str, size: u64) -> Self {
        let hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
        let kind = match etag.len() {
            64 if hex => Kind::Sha256(Sha256::new()),
            40 if hex => Kind::Git(git_head(size)),
            _ => Kind::Unknown,
        };
        Self { kind, size }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.kind {
            Kind::Sha256(hash) => hash.update(bytes),
            Kind::Git(hash) => hash.update(bytes),
            Kind::Unknown => {}
        }
    }

    fn reset(&mut self) {
        match &mut self.kind {
            Kind::Sha256(hash) => hash.reset(),
            Kind::Git(hash) => *hash = git_head(self.size),
            Kind::Unknown => {}
        }
    }

    /// Errors: the content has another name.
    pub(super) fn check(&self, etag: &str) -> Result<(), String> {
        let (kind, found) = match &self.kind {
            Kind::Sha256(hash) => ("SHA-256", hex(&hash.clone().finalize())),
            Kind::Git(hash) => ("git hash", hex(&hash.clone().finalize())),
            Kind::Unknown => return Ok(()),
        };
        if found.eq_ignore_ascii_case(etag) {
            Ok(())
        } else {
            Err(format!("its {kind} is {found} instead of {etag}"))
        }
    }
}

fn git_head(size: u64) -> Sha1 {
    let mut hash = Sha1::new();
    hash.update(format!("blob {size}\0"));
    hash
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that can still be written where a path is; `None` where the system does not say.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let facts = rustix::fs::statvfs(existing).ok()?;
    Some(facts.f_bavail.saturating_mul(facts.f_frsize))
}

pub(super) fn disk_full(path: &Path, needed: u64) -> HubError {
    let folder = path.parent().unwrap_or(path).to_owned();
    HubError::DiskFull {
        needed,
        free: free_bytes(&folder).unwrap_or(0),
        folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_checked_by_the_hash_that_their_name_is() {
        let text = b"hello\n";
        let names = [
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
            "ce013625030ba8dba906f756967f9e9ca394464a",
        ];
        for name in names {
            let mut hash = ContentHash::of(name, text.len() as u64);
            hash.update(b"something else");
            assert!(hash.check(name).is_err());
            hash.reset();
            hash.update(text);
            assert_eq!(hash.check(name), Ok(()));
            let wrong = name.replace('5', "6");
            assert!(hash.check(&wrong).expect_err("another name").contains(name));
        }
        assert_eq!(
            ContentHash::of("a-mirrors-own", 6).check("a-mirrors-own"),
            Ok(())
        );
    }
}
