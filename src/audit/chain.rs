//! The file behind the log: appended to, made durable, turned over when it is full, and found as a crash left it.
//!
//! One process writes one log: an advisory lock on the key's file says so, because that file stays while
//! the log's own are turned over. What was not made durable as a whole is taken back before anything else is
//! written, so that a failure leaves a chain that ends where the last success did.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chrono::{SecondsFormat, Utc};
use zeroize::Zeroizing;

use super::hmac::Key;
use super::log::Settings;
use super::record::{Link, Record};

/// Bytes at a file's end that are checked when it is opened; every line is far shorter.
const TAIL: u64 = 1 << 20;

/// An open log.
#[derive(Debug)]
pub(super) struct Chain {
    settings: Settings,
    key: Key,
    /// Holds the lock.
    _lock: File,
    file: File,
    /// Bytes of the file's whole lines.
    len: u64,
    /// The last of them.
    last: Link,
    /// Whether all of them are durable.
    synced: bool,
    /// Whether there may be bytes after `len`.
    torn: bool,
}

/// What a writer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The system has the lines: they outlive the process.
    Written,
    /// The disk has them, and all before them: they outlive the system, too.
    Durable,
}

impl Chain {
    /// Opens a log, or begins one.
    ///
    /// Errors: it cannot be read or written, another process has it, or its last lines are broken.
    pub(super) fn open(settings: Settings) -> io::Result<Self> {
        let (lock, key) = open_key(&settings.path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&settings.path)?;
        drop_double(&settings.path, &file)?;
        let found = tail(&file, &key).map_err(|e| at(&settings.path, &e))?;
        let mut chain = Self {
            last: found.last.clone().unwrap_or_else(Link::start),
            len: found.len,
            torn: found.torn > 0,
            synced: false,
            settings,
            key,
            _lock: lock,
            file,
        };
        let mut first = Vec::new();
        if found.last.is_none()
            && let Some((_, before)) = turned_over(&chain.settings.path)?.pop()
        {
            let old = tail(&File::open(&before)?, &chain.key).map_err(|e| at(&before, &e))?;
            let whole = old.last.filter(|_| old.torn == 0);
            let last = whole.ok_or_else(|| at(&before, &io::Error::other("its end is missing")))?;
            first.push(continued(&before, &last));
            chain.last = last;
        }
        if found.torn > 0 {
            first.push(Record::Recovered { bytes: found.torn });
        }
        sync_folder(&chain.settings.path)?;
        chain.append(first.iter(), Until::Durable)?;
        Ok(chain)
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Writes records, all of them or none, and returns when they are there. Without records it sees to those
    /// before.
    ///
    /// Errors: of the file, or somebody has moved it. The next call tries anew.
    pub(super) fn append<'r>(
        &mut self,
        records: impl Iterator<Item = &'r Record> + Clone,
        until: Until,
    ) -> io::Result<()> {
        self.check_place()?;
        if self.torn {
            self.file.set_len(self.len)?;
            self.torn = false;
        }
        let (mut lines, mut last) = self.render(self.last.clone(), records.clone())?;
        if lines.is_empty() && (self.synced || until == Until::Written) {
            return Ok(());
        }
        let full = self.len + lines.len() as u64 > self.settings.max_bytes;
        if full && self.len > 0 {
            self.turn_over()?;
            (lines, last) = self.render(self.last.clone(), records)?;
        }
        let written = self.file.write_all_at(&lines, self.len);
        let written = written.and_then(|()| match until {
            Until::Durable => self.file.sync_data(),
            Until::Written => Ok(()),
        });
        if let Err(error) = written {
            // Whatever arrived is no part of the chain. If it cannot be taken away now, it is before the next line.
            self.torn = self.file.set_len(self.len).is_err();
            return Err(error);
        }
        self.len += lines.len() as u64;
        self.last = last;
        self.synced = until == Until::Durable;
        Ok(())
    }

    fn render<'r>(
        &self,
        mut last: Link,
        records: impl Iterator<Item = &'r Record>,
    ) -> io::Result<(Vec<u8>, Link)> {
        let ts = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let mut lines = Vec::new();
        for record in records {
            last.push(record, &ts, &self.key, &mut lines)?;
        }
        Ok((lines, last))
    }

    /// Refuses to write where nobody would look: into a file that somebody moved or deleted.
    fn check_place(&self) -> io::Result<()> {
        let place = fs::metadata(&self.settings.path)?;
        let file = self.file.metadata()?;
        if (place.dev(), place.ino()) == (file.dev(), file.ino()) {
            return Ok(());
        }
        Err(io::Error::other(
            "somebody has put another file in its place",
        ))
    }

    /// Gives the full file a name of its own and begins the next one, whose first line names it.
    ///
    /// The new file is whole and durable before it takes the place of the old one in one step: whenever a
    /// crash comes, the log's name stands for a file that can be carried on.
    fn turn_over(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let path = &self.settings.path;
        let old = with_suffix(path, &self.last.seq.to_string());
        let fresh = with_suffix(path, "new");
        let (line, last) = self.render(
            self.last.clone(),
            std::iter::once(&continued(&old, &self.last)),
        )?;
        remove(&fresh)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&line)?;
        file.sync_all()?;
        remove(&old)?;
        fs::hard_link(path, &old)?;
        fs::rename(&fresh, path)?;
        self.file = file;
        self.len = line.len() as u64;
        self.last = last;
        sync_folder(path)?;
        let kept = turned_over(path)?;
        let over = kept.len().saturating_sub(self.settings.keep);
        for (_, name) in &kept[..over] {
            remove(name)?;
        }
        Ok(())
    }
}

/// The key's file beside a log.
pub(super) fn key_path(log: &Path) -> PathBuf {
    with_suffix(log, "key")
}

/// The first line of the file after this one.
fn continued(file: &Path, last: &Link) -> Record {
    let name = file.file_name().unwrap_or_default();
    Record::Continued {
        file: name.to_string_lossy().into_owned(),
        hash: last.hash.clone(),
    }
}

/// Reads the key, or makes it; keeps other processes out until the file is dropped.
fn open_key(log: &Path) -> io::Result<(File, Key)> {
    let path = key_path(log);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| at(&path, &e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(io::Error::other(
                "another process writes this audit log; give each server a log of its own",
            ));
        }
        Err(TryLockError::Error(error)) => return Err(at(&path, &error)),
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(|e| at(&path, &e))?;
    if text.is_empty() {
        let key = Key::generate()?;
        let line = Zeroizing::new(format!("{}\n", *key.to_text()));
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        return Ok((file, key));
    }
    let key = Key::parse(&text).ok_or_else(|| {
        let problem = io::Error::other("this is no key of an audit log: 64 hexadecimal digits");
        at(&path, &problem)
    })?;
    Ok((file, key))
}

/// What stands at the end of a file.
struct Tail {
    /// Bytes up to the end of the last whole line.
    len: u64,
    /// The last whole line; none if there is none.
    last: Option<Link>,
    /// Bytes after it.
    torn: u64,
}

/// Finds the last whole line, and checks it and what stands before it for as far as the tail reaches.
fn tail(file: &File, key: &Key) -> io::Result<Tail> {
    let size = file.metadata()?.len();
    let from = size.saturating_sub(TAIL);
    let mut bytes = vec![0; usize::try_from(size - from).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, from)?;
    let end = bytes
        .iter()
        .rposition(|&b| b == b'\n')
        .map_or(0, |at| at + 1);
    let torn = (bytes.len() - end) as u64;
    let mut lines = bytes[..end].split_inclusive(|&b| b == b'\n');
    let mut last = None;
    if from > 0 {
        // The first one is cut, and what it says of the one before it cannot be checked.
        lines.next();
        let broken = || io::Error::other("its last line is longer than any line of a log");
        let first = lines.next().ok_or_else(broken)?;
        last = Some(Link::anywhere(&first[..first.len() - 1], key).map_err(io::Error::other)?);
    }
    for line in lines {
        let line = &line[..line.len() - 1];
        let read = Link::follow(last.as_ref(), line, Some(key));
        let (link, _) = read.map_err(|problem| {
            io::Error::other(format!(
                "a line among the last is broken ({problem}); look with `sconce audit verify`, \
                 then move the file away to begin a new one"
            ))
        })?;
        last = Some(link);
    }
    Ok(Tail {
        len: size - torn,
        last,
        torn,
    })
}

/// Files that were turned over, oldest first, with the number of their last line.
fn turned_over(log: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let name = log
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir(folder(log))? {
        let path = entry?.path();
        let other = path.file_name().unwrap_or_default().to_string_lossy();
        let number = other
            .strip_prefix(name.as_str())
            .and_then(|rest| rest.strip_prefix('.'))
            .filter(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|rest| rest.parse().ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Takes away the second name that a crash in the middle of turning over has left on the log itself.
fn drop_double(log: &Path, file: &File) -> io::Result<()> {
    let own = file.metadata()?;
    for (_, path) in turned_over(log)? {
        let other = fs::metadata(&path)?;
        if (own.dev(), own.ino()) == (other.dev(), other.ino()) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// A new name is durable only when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_is_told_taken_back_and_tried_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        let note = |text: &str| Record::Admin {
            text: text.to_owned(),
        };
        let mut chain = Chain::open(Settings {
            path: path.clone(),
            max_bytes: 1 << 30,
            keep: 1,
            sync: true,
        })
        .expect("a log");
        chain
            .append([note("one")].iter(), Until::Durable)
            .expect("a line");
        // A disk that takes half a line and then nothing, not even its removal.
        let len = chain.len;
        chain.file.write_all_at(b"{\"seq\":2,", len).expect("bytes");
        let closed = File::open(&path).expect("a file");
        let good = std::mem::replace(&mut chain.file, closed);
        for _ in 0..2 {
            assert!(chain.append([note("lost")].iter(), Until::Durable).is_err());
            assert!(chain.torn);
        }
        chain.file = good;
        chain
            .append([note("two")].iter(), Until::Durable)
            .expect("a line");
        let report = crate::audit::verify(&[path], Some(&chain.key), &[].into());
        assert_eq!(report.map(|r| r.lines), Ok(2));
    }
}
