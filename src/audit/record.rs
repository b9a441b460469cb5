//! One line of the log: what it says, how it is written, and how one is read and checked.
//!
//! `{"seq":…,"ts":…,"prev":…,"kind":…, …,"mac":…}`: the number, the time, the SHA-256 of the line before, the
//! record, and the seal of every byte before it. Nothing here opens a file.

use serde::{Deserialize, Serialize};

use super::hmac::{Key, digest};

/// `prev` of the first line of all.
const NOTHING_BEFORE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Bytes of a field that a caller or an upstream has a say in.
const MOST_OF_A_FIELD: usize = 512;

/// What was written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Something is about to leave.
    Send(Box<Sent>),
    /// What left was answered, or was not.
    Done(Done),
    /// An operator, or this server by itself, changed what may leave.
    Admin {
        /// What was done, in words.
        text: String,
    },
    /// The first line of a file that carries on where another ends.
    Continued {
        /// The other file's name.
        file: String,
        /// SHA-256 of its last line.
        hash: String,
    },
    /// A crash had torn the line after this one's predecessor; nothing had been sent for it.
    Recovered {
        /// Its bytes, which were taken away.
        bytes: u64,
    },
}

/// What is about to leave, to where, for whom, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The request's name.
    pub request: String,
    /// The caller's key, by name.
    pub key: Option<String>,
    /// How far that key's texts may go; none where no caller's text leaves.
    pub level: Option<String>,
    /// Host and port.
    pub host: String,
    /// The upstream's name.
    pub upstream: String,
    /// The target's name.
    pub target: String,
    /// Who runs the model there, if that is settled.
    pub provider: Option<String>,
    /// The model's name there.
    pub model: String,
    /// What for.
    pub purpose: String,
    /// Bytes of the body.
    pub bytes: u64,
    /// [`Fingerprint::whole`](super::Fingerprint::whole).
    pub hmac: String,
    /// [`Fingerprint::texts`](super::Fingerprint::texts).
    pub texts: Vec<String>,
    /// Why it was wanted.
    pub reason: String,
    /// Most it may cost, in nano-USD.
    pub worst_cost_nusd: u64,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The request's name.
    pub request: String,
    /// The target's name.
    pub target: String,
    /// The status, or the class of the failure.
    pub status: String,
    /// Bytes of the answer.
    pub bytes_in: u64,
    /// What it cost in nano-USD, if that is known.
    pub cost_nusd: Option<u64>,
}

impl Record {
    /// The record with every text of strangers cut to a length that keeps lines short.
    pub(super) fn bounded(mut self) -> Self {
        let cut = |text: &mut String| {
            text.truncate(text.floor_char_boundary(MOST_OF_A_FIELD));
        };
        match &mut self {
            Self::Send(sent) => {
                cut(&mut sent.request);
                cut(&mut sent.reason);
            }
            Self::Done(done) => {
                cut(&mut done.request);
                cut(&mut done.status);
            }
            Self::Admin { text } => cut(text),
            Self::Continued { .. } | Self::Recovered { .. } => {}
        }
        self
    }
}

/// Where a chain stands: the number and the SHA-256 of its last line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) hash: String,
}

impl Link {
    /// Before the first line.
    pub(super) fn start() -> Self {
        Self {
            seq: 0,
            hash: NOTHING_BEFORE.to_owned(),
        }
    }

    /// Appends the next line to a buffer, its end included, and moves on.
    ///
    /// Errors: the record cannot be written as JSON.
    pub(super) fn push(
        &mut self,
        record: &Record,
        ts: &str,
        key: &Key,
        buffer: &mut Vec<u8>,
    ) -> serde_json::Result<()> {
        let written = Written {
            seq: self.seq + 1,
            ts,
            prev: &self.hash,
            record,
        };
        let mut line = serde_json::to_vec(&written)?;
        line.pop();
        let seal = seal(&line, key);
        line.extend_from_slice(seal.as_bytes());
        self.seq += 1;
        self.hash = digest(&line);
        buffer.extend_from_slice(&line);
        buffer.push(b'\n');
        Ok(())
    }

    /// Reads a line without knowing the one before it.
    ///
    /// Errors: what is wrong with the line by itself.
    pub(super) fn anywhere(line: &[u8], key: &Key) -> Result<Self, String> {
        let read = Read::parse(line)?;
        check_seal(line, key)?;
        Ok(Self {
            seq: read.seq,
            hash: digest(line),
        })
    }

    /// Reads the next line and moves on; from none, any line that a file may begin with, which is the first
    /// of all or one that names the file before it.
    ///
    /// Errors: what is wrong with the line. Without a key, seals are not looked at.
    pub(super) fn follow(
        from: Option<&Self>,
        line: &[u8],
        key: Option<&Key>,
    ) -> Result<(Self, Read), String> {
        let read = Read::parse(line)?;
        let start = Self::start();
        let from = match (from, &read.record) {
            (Some(from), _) => Some(from),
            (None, Record::Continued { hash, .. }) if *hash == read.prev => None,
            (None, _) => Some(&start),
        };
        if let Some(from) = from {
            if read.seq != from.seq + 1 {
                return Err(format!(
                    "this is line {} of the chain where {} should stand: lines are missing, doubled or out of order",
                    read.seq,
                    from.seq + 1
                ));
            }
            if read.prev != from.hash {
                return Err(
                    "the line before it is not the one that it was written after".to_owned(),
                );
            }
        }
        if let Some(key) = key {
            check_seal(line, key)?;
        }
        let link = Self {
            seq: read.seq,
            hash: digest(line),
        };
        Ok((link, read))
    }
}

/// The end of a line, for the bytes before it.
fn seal(line: &[u8], key: &Key) -> String {
    format!(",\"mac\":\"{}\"}}", key.seal(line))
}

fn check_seal(line: &[u8], key: &Key) -> Result<(), String> {
    let sealed = line
        .len()
        .checked_sub(seal(b"", key).len())
        .is_some_and(|at| line[at..] == *seal(&line[..at], key).as_bytes());
    if sealed {
        return Ok(());
    }
    Err("its seal is wrong: the line was changed, or written with another key".to_owned())
}

#[derive(Serialize)]
struct Written<'a> {
    seq: u64,
    ts: &'a str,
    prev: &'a str,
    #[serde(flatten)]
    record: &'a Record,
}

/// A line as it was read.
#[derive(Debug, Deserialize)]
pub(super) struct Read {
    pub(super) seq: u64,
    pub(super) ts: String,
    pub(super) prev: String,
    #[serde(flatten)]
    pub(super) record: Record,
}

impl Read {
    fn parse(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|e| format!("this is no line of the log: {e}"))
    }
}
