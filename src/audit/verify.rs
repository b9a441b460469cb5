//! Reads a log's files from end to end and says whether the chain holds, and whether a given text was sent.
//!
//! It changes nothing and needs no lock: a log in use can be checked, up to a line that is being written.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::chain::key_path;
use super::hmac::Key;
use super::record::{Link, Read, Record};

/// A chain that holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The files, oldest first: those that were named, and those before them that are still there.
    pub files: Vec<PathBuf>,
    /// Lines in all.
    pub lines: u64,
    /// When the first one was written.
    pub first: Option<String>,
    /// When the last one was written.
    pub last: Option<String>,
    /// The last line's number in the chain, and its SHA-256.
    pub end: Option<(u64, String)>,
    /// The file that the first one carries on from, which is no longer there.
    pub begins_after: Option<String>,
    /// Whether a key was at hand, so that seals were looked at.
    pub sealed: bool,
    /// Where the text stands that was asked for.
    pub found: Vec<Found>,
}

/// One request that carried the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// When.
    pub ts: String,
    /// The request's name.
    pub request: String,
    /// Where to.
    pub host: String,
    /// The model there.
    pub model: String,
}

/// A chain that does not hold, or cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Broken {
    /// The file.
    pub file: PathBuf,
    /// The first line that is wrong, counted from 1; 0 for the file as such.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what } = self;
        match line {
            0 => write!(f, "{}: {what}", file.display()),
            _ => write!(f, "{}:{line}: {what}", file.display()),
        }
    }
}

/// Checks files of one log, oldest first, and looks for texts by their HMAC (see [`Key::of_text`]).
///
/// Errors: the first line that breaks the chain. Without a key only the chain is checked, which whoever
/// rewrites all of it can make anew.
pub fn verify(
    files: &[PathBuf],
    key: Option<&Key>,
    texts: &BTreeSet<String>,
) -> Result<Report, Broken> {
    let mut report = Report {
        files: with_earlier(files),
        sealed: key.is_some(),
        ..Report::default()
    };
    let mut link: Option<Link> = None;
    for path in report.files.clone() {
        let broken = |line, what: String| Broken {
            file: path.clone(),
            line,
            what,
        };
        let mut reader = BufReader::new(File::open(&path).map_err(|e| broken(0, e.to_string()))?);
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            let got = reader.read_until(b'\n', &mut bytes);
            if got.map_err(|e| broken(number, e.to_string()))? == 0 {
                break;
            }
            if bytes.pop() != Some(b'\n') {
                let torn = "the line has no end: it is being written, or a crash has torn it, which the \
                            server mends when it opens the log";
                return Err(broken(number, torn.to_owned()));
            }
            let (next, read) =
                Link::follow(link.as_ref(), &bytes, key).map_err(|what| broken(number, what))?;
            if link.is_none()
                && let Record::Continued { file, .. } = &read.record
            {
                report.begins_after = Some(file.clone());
            }
            link = Some(next);
            report.take(read, texts);
        }
    }
    report.end = link.map(|link| (link.seq, link.hash));
    Ok(report)
}

impl Report {
    fn take(&mut self, read: Read, texts: &BTreeSet<String>) {
        self.lines += 1;
        if let Record::Send(sent) = read.record
            && (texts.contains(&sent.hmac) || sent.texts.iter().any(|text| texts.contains(text)))
        {
            self.found.push(Found {
                ts: read.ts.clone(),
                request: sent.request,
                host: sent.host,
                model: sent.model,
            });
        }
        self.first.get_or_insert_with(|| read.ts.clone());
        self.last = Some(read.ts);
    }
}

impl Key {
    /// The key beside a log, or beside the log that a full file belonged to; none if there is no file.
    ///
    /// Errors: the file cannot be read, or holds no key.
    pub fn beside(log: &Path) -> io::Result<Option<Self>> {
        let full = log
            .extension()
            .is_some_and(|suffix| suffix.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        let log = if full {
            log.with_extension("")
        } else {
            log.to_owned()
        };
        let path = key_path(&log);
        if !path.try_exists()? {
            return Ok(None);
        }
        Self::read(&path).map(Some)
    }

    /// Reads a key's file. Errors: it cannot be read, or holds no key.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = zeroize::Zeroizing::new(std::fs::read_to_string(path)?);
        Self::parse(&text).ok_or_else(|| {
            let problem = "this is no key of an audit log: 64 hexadecimal digits";
            io::Error::other(format!("{}: {problem}", path.display()))
        })
    }
}

/// The files, and before the first one those that it carries on from, for as far as they are there.
fn with_earlier(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = files.to_vec();
    while let Some(before) = all.first().and_then(|first| before(first))
        && !all.contains(&before)
    {
        all.insert(0, before);
    }
    all
}

/// The file beside this one that its first line names, if it is there.
fn before(path: &Path) -> Option<PathBuf> {
    let mut line = String::new();
    BufReader::new(File::open(path).ok()?)
        .read_line(&mut line)
        .ok()?;
    let read: Read = serde_json::from_str(&line).ok()?;
    let Record::Continued { file, .. } = read.record else {
        return None;
    };
    // A name, not a path: a log that somebody changed leads nowhere else.
    let name = Path::new(Path::new(&file).file_name()?);
    let before = path.with_file_name(name);
    before.is_file().then_some(before)
}
