//! The log as the rest of the house sees it: hand a record over, and be told when it is durable.
//!
//! One thread owns the file. It takes what waits, writes it and syncs once for all of it, so that the more
//! callers there are the more of them share a sync, and a single one waits for nobody. No timer is involved.
//! What nobody waits for is written at once, but becomes durable with the next sync, or when the system writes
//! its cache back: a sync of its own would stand in the way of the next one that somebody waits for.
//! The way to the thread is bounded: when the disk is slow, callers wait. A record is never dropped silently.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::chain::{Chain, Until};
use super::hmac::{Fingerprint, Key};
use super::record::Record;

/// Records on the way to the thread.
const WAITING: usize = 1024;

/// Records that share a sync at most, which bounds a group's bytes.
const GROUP: usize = 256;

/// Where the log is, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The file; its key stands beside it, with `.key` after the name.
    pub path: PathBuf,
    /// Bytes after which a new file is begun.
    pub max_bytes: u64,
    /// Full files that are kept beside the one in use.
    pub keep: usize,
    /// Whether a record is durable before its writer goes on, so that it outlives a failure of the system; it
    /// outlives one of the process in any case.
    pub sync: bool,
}

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("audit log {path}: {problem}", path = path.display())]
pub struct OpenError {
    path: PathBuf,
    problem: std::io::Error,
}

/// A record is not in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the audit log cannot be written: {0}")]
pub struct WriteError(Arc<str>);

/// An open audit log. Clones are the same log; the last one that is dropped lets it end.
#[derive(Clone)]
pub struct Log {
    to: mpsc::Sender<Entry>,
    key: Arc<Key>,
}

struct Entry {
    /// None asks only for what came before to be durable.
    record: Option<Record>,
    reply: Option<oneshot::Sender<Result<(), WriteError>>>,
}

impl Log {
    /// Opens a log, or begins one, and starts its thread.
    ///
    /// Errors: the file cannot be read or written, another process writes it, or its last lines are broken.
    pub fn open(settings: Settings) -> Result<Self, OpenError> {
        let path = settings.path.clone();
        let sync = settings.sync;
        let failed = |problem| OpenError { path, problem };
        let (to, entries) = mpsc::channel(WAITING);
        let opened = Chain::open(settings).and_then(|chain| {
            let key = Arc::new(chain.key().clone());
            std::thread::Builder::new()
                .name("audit".to_owned())
                .spawn(move || write_all(chain, sync, entries))?;
            Ok(key)
        });
        opened.map(|key| Self { to, key }).map_err(failed)
    }

    /// Writes a record; it is durable when this returns, unless the settings ask for less.
    ///
    /// Errors: it is not in the log, and what it announces must not happen.
    pub async fn write(&self, record: Record) -> Result<(), WriteError> {
        self.hand_over(Some(record.bounded())).await
    }

    /// Waits until everything handed over before is as durable as [`Self::write`] makes it, or was reported as lost.
    ///
    /// Errors: the log's thread has ended.
    pub async fn flush(&self) -> Result<(), WriteError> {
        self.hand_over(None).await
    }

    async fn hand_over(&self, record: Option<Record>) -> Result<(), WriteError> {
        let ended = || WriteError("its thread has ended".into());
        let (reply, answer) = oneshot::channel();
        let entry = Entry {
            record,
            reply: Some(reply),
        };
        self.to.send(entry).await.map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Writes a record that nothing waits for. If it is lost, the process's log says so.
    pub fn note(&self, record: Record) {
        let entry = Entry {
            record: Some(record.bounded()),
            reply: None,
        };
        if let Err(error) = self.to.try_send(entry) {
            let (mpsc::error::TrySendError::Full(entry) | mpsc::error::TrySendError::Closed(entry)) =
                error;
            let problem = WriteError("too much waits for it".into());
            report(&entry, &problem);
        }
    }

    /// What the texts of a request leave in the log.
    pub fn fingerprint(&self, texts: &[&str]) -> Fingerprint {
        self.key.fingerprint(texts)
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log(…)")
    }
}

/// The thread: takes what waits, writes it, tells everybody.
fn write_all(mut chain: Chain, sync: bool, mut entries: mpsc::Receiver<Entry>) {
    let mut group = Vec::with_capacity(GROUP);
    while let Some(first) = entries.blocking_recv() {
        group.push(first);
        while group.len() < GROUP
            && let Ok(next) = entries.try_recv()
        {
            group.push(next);
        }
        let records = group.iter().filter_map(|entry| entry.record.as_ref());
        let waited_for = group.iter().any(|entry| entry.reply.is_some());
        let until = match sync && waited_for {
            true => Until::Durable,
            false => Until::Written,
        };
        let outcome = chain
            .append(records, until)
            .map_err(|error| WriteError(error.to_string().into()));
        for mut entry in group.drain(..) {
            match (entry.reply.take(), &outcome) {
                // Who no longer waits has not sent anything either.
                (Some(reply), _) => drop(reply.send(outcome.clone())),
                (None, Err(problem)) => report(&entry, problem),
                (None, Ok(())) => {}
            }
        }
    }
    if let Err(problem) = chain.append(std::iter::empty(), Until::Durable) {
        tracing::error!(%problem, "the audit log's last lines may be lost if the system fails");
    }
}

fn report(entry: &Entry, problem: &WriteError) {
    let record = entry.record.as_ref();
    tracing::error!(%problem, ?record, "a record is missing from the audit log");
}
