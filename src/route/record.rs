//! What was decided and what became of it: one JSON line for each request, those answered here too.
//!
//! A record holds everything the decision looked at, so that it can be decided again, elsewhere and later, and
//! must come out the same. It holds numbers and names, never a text of a prompt or an answer. Records are
//! written by a thread of their own: a request hands its line over and goes on, and a line for which there is
//! no room is counted and lost.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::decide::{Decision, LocalView, Need, TargetView, Terms, decide};
use super::features::Features;
use crate::generation::Side;

/// The form of the lines; raised when a field changes its meaning.
const VERSION: u32 = 1;

/// Records that may wait for the disk.
const WAITING_RECORDS: usize = 1024;

/// Bytes that are written in one go, at least.
const BATCH: usize = 64 << 10;

/// How long the writer lets records gather.
const PAUSE: Duration = Duration::from_millis(20);

/// One request sent to an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AttemptNote {
    /// The target's name.
    pub target: String,
    /// Whose machine it was.
    pub provider: Option<String>,
    /// The class of the failure, if it failed.
    pub class: Option<String>,
    /// The status, if there was one.
    pub status: Option<u16>,
    /// Until its first token.
    pub ttft_ms: Option<u64>,
    /// Tokens read.
    pub tokens_in: Option<u32>,
    /// Tokens written.
    pub tokens_out: Option<u32>,
    /// Tokens read that were cached there.
    pub cached_in: Option<u32>,
    /// What it cost.
    pub cost_nusd: Option<u64>,
    /// Where that number is from.
    pub cost_basis: Option<String>,
    /// The upstream's own name for the request.
    pub request_id_upstream: Option<String>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Aftermath {
    /// Where the answer was made in the end; none when nobody made one.
    pub side: Option<Side>,
    /// How it ended: a finish reason, or what went wrong.
    pub outcome: String,
    /// Requests sent to upstreams, in order.
    pub attempts: Vec<AttemptNote>,
    /// What the answer lacked.
    pub degraded: Vec<String>,
    /// Until its first token.
    pub ttft_ms: Option<u64>,
    /// Until its last.
    pub e2e_ms: Option<u64>,
    /// Tokens of the answer.
    pub tokens: Option<u32>,
    /// What it cost in all.
    pub cost_nusd: Option<u64>,
}

/// Everything about one request's way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The form of the line.
    pub version: u32,
    /// When it was decided, in milliseconds since 1970.
    pub ts_ms: u64,
    /// The same on the clock that decisions keep; what the decision was given.
    pub now_ms: u64,
    /// The request's name.
    pub request_id: String,
    /// The name of the caller's key.
    pub key: Option<String>,
    /// The route it came in by.
    pub route: String,
    /// Interactive or batch.
    pub lane: String,
    /// The model as the caller named it.
    pub model: String,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// What the prompt looked like.
    pub features: Features,
    /// What was asked.
    pub need: Need,
    /// How busy this machine was.
    pub local: LocalView,
    /// What was known of the targets.
    pub targets: Vec<TargetView>,
    /// The bounds.
    pub terms: Terms,
    /// What was decided.
    pub decision: Decision,
    /// What became of it.
    pub aftermath: Aftermath,
    /// Names the settings.
    pub config_rev: String,
    /// Names the calibration, if there is one.
    pub calib_rev: Option<String>,
}

/// What a record says of a request beside the decision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct About {
    /// When it is decided, in milliseconds since 1970.
    pub ts_ms: u64,
    /// The request's name.
    pub request_id: String,
    /// The name of the caller's key.
    pub key: Option<String>,
    /// The route it came in by.
    pub route: String,
    /// Interactive or batch.
    pub lane: String,
    /// The model as the caller named it.
    pub model: String,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// What the prompt looks like.
    pub features: Features,
    /// Names the settings.
    pub config_rev: String,
    /// Names the calibration, if there is one.
    pub calib_rev: Option<String>,
}

impl Record {
    /// Decides, and keeps all that was decided upon.
    pub fn decide(
        about: About,
        need: Need,
        local: LocalView,
        targets: Vec<TargetView>,
        terms: Terms,
        now_ms: u64,
    ) -> Self {
        let decision = decide(&need, &local, &targets, &terms, now_ms);
        let About {
            ts_ms,
            request_id,
            key,
            route,
            lane,
            model,
            stream,
            features,
            config_rev,
            calib_rev,
        } = about;
        Self {
            version: VERSION,
            ts_ms,
            now_ms,
            request_id,
            key,
            route,
            lane,
            model,
            stream,
            features,
            need,
            local,
            targets,
            terms,
            decision,
            aftermath: Aftermath::default(),
            config_rev,
            calib_rev,
        }
    }

    /// Reads a record from its line.
    ///
    /// Errors: the line is no record of this version's form.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }

    /// The record as one line of JSON, without the line break.
    ///
    /// Errors: a number in it is not finite in a way that JSON cannot hold; no record made by
    /// [`Record::decide`] from finite numbers has one.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// Decides once more from what a record holds.
pub fn replay(record: &Record) -> Decision {
    decide(
        &record.need,
        &record.local,
        &record.targets,
        &record.terms,
        record.now_ms,
    )
}

/// Where records go. Clones share it; when the last one is dropped, what waits is still written.
#[derive(Debug, Clone)]
pub struct DecisionLog {
    records: SyncSender<Box<Record>>,
    dropped: Arc<AtomicU64>,
}

/// The thread that writes; joining it waits for the last line, once every [`DecisionLog`] is gone.
#[derive(Debug)]
pub struct LogThread(JoinHandle<()>);

impl LogThread {
    /// Waits until everything is written.
    pub fn join(self) {
        // A panic there has been told by the thread itself, and there is nothing left to write.
        let _ = self.0.join();
    }
}

impl DecisionLog {
    /// Opens the file, readable by its owner only, and starts the thread that writes to it.
    ///
    /// After `max_bytes` the file is renamed to the same name with `.1`, replacing the one before.
    /// Errors: the file cannot be opened, or there is no thread to be had.
    pub fn start(path: &Path, max_bytes: u64) -> std::io::Result<(Self, LogThread)> {
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer::open(path, max_bytes, Arc::clone(&dropped))?;
        let (records, waiting) = sync_channel(WAITING_RECORDS);
        let thread = std::thread::Builder::new()
            .name("decisions".to_owned())
            .spawn(move || writer.run(&waiting))?;
        Ok((Self { records, dropped }, LogThread(thread)))
    }

    /// Hands a record over; never waits.
    pub fn write(&self, record: Record) {
        if self.records.try_send(Box::new(record)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that were lost: too many waited, or the disk refused them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The file, and how far it has grown.
struct Writer {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    fn open(path: &Path, max_bytes: u64, dropped: Arc<AtomicU64>) -> std::io::Result<Self> {
        let file = open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            max_bytes,
            dropped,
        })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a thread of its own, in which no task runs"
    )]
    fn run(mut self, records: &Receiver<Box<Record>>) {
        let mut batch = String::new();
        while let Ok(record) = records.recv() {
            let mut next = Some(record);
            // What has come meanwhile is written in one go.
            while next.is_some() {
                self.write_some(&mut next, records, &mut batch);
            }
            // Whoever hands a record over wakes a thread that waits for it, and does not wake one that sleeps.
            std::thread::sleep(PAUSE);
        }
    }

    /// Writes records until none waits or they fill a batch; `next` is the one to begin with, and becomes the one
    /// to go on with.
    fn write_some(
        &mut self,
        next: &mut Option<Box<Record>>,
        records: &Receiver<Box<Record>>,
        batch: &mut String,
    ) {
        batch.clear();
        let mut many = 0;
        while batch.len() < BATCH
            && let Some(record) = next.take()
        {
            match record.line() {
                Ok(line) => {
                    batch.push_str(&line);
                    batch.push('\n');
                    many += 1;
                }
                Err(_) => _ = self.dropped.fetch_add(1, Ordering::Relaxed),
            }
            *next = records.try_recv().ok();
        }
        if self.write(batch).is_err() {
            self.dropped.fetch_add(many, Ordering::Relaxed);
        }
    }

    fn write(&mut self, batch: &str) -> std::io::Result<()> {
        let bytes = batch.len() as u64;
        if self.bytes > 0 && self.bytes + bytes > self.max_bytes {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            self.file = open(&self.path)?;
            self.bytes = 0;
        }
        self.file.write_all(batch.as_bytes())?;
        self.bytes += bytes;
        Ok(())
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    // A file that was there before keeps its own mode otherwise.
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Config;
    use super::super::decide::tests::{any_local, any_need, any_targets};
    use super::*;

    fn record() -> Record {
        let about = About {
            request_id: "r".to_owned(),
            ..About::default()
        };
        let terms = Terms::from(&Config::default());
        Record::decide(
            about,
            Need::default(),
            LocalView::default(),
            Vec::new(),
            terms,
            0,
        )
    }

    #[test]
    fn records_are_written_to_a_file_of_the_owners_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("decisions.jsonl");
        std::fs::write(&path, "").expect("a file that was there before");
        let (log, thread) = DecisionLog::start(&path, 1 << 20).expect("a log");
        for _ in 0..10 {
            log.write(record());
        }
        assert_eq!(log.dropped(), 0);
        drop(log);
        thread.join();
        let text = std::fs::read_to_string(&path).expect("a file");
        let read: Vec<Record> = text
            .lines()
            .map(|line| Record::parse(line).expect("a record"))
            .collect();
        assert_eq!(read, vec![record(); 10]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&path)
                .expect("a file")
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_file_that_is_full_is_put_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("decisions.jsonl");
        let dropped = Arc::new(AtomicU64::new(0));
        let mut writer = Writer::open(&path, 10, dropped).expect("a file");
        for line in ["one-one\n", "two-two\n", "three-three-three\n"] {
            writer.write(line).expect("a disk");
        }
        let read = |path: &Path| std::fs::read_to_string(path).expect("a file");
        assert_eq!(read(&path), "three-three-three\n");
        assert_eq!(read(&folder.path().join("decisions.jsonl.1")), "two-two\n");
    }

    #[test]
    fn a_log_whose_thread_is_behind_loses_records_and_counts_them() {
        let (records, waiting) = sync_channel(1);
        let log = DecisionLog {
            records,
            dropped: Arc::default(),
        };
        for _ in 0..3 {
            log.write(record());
        }
        assert_eq!(log.dropped(), 2);
        drop(waiting);
        log.write(record());
        assert_eq!(log.dropped(), 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn a_record_read_from_its_line_decides_the_same(
            need in any_need(), local in any_local(), targets in any_targets(), now in 0..20_000u64,
        ) {
            let terms = Terms::from(&Config::default());
            let made = Record::decide(About::default(), need, local, targets, terms, now);
            let line = made.line().expect("plain JSON");
            prop_assert!(!line.contains('\n'));
            let read = Record::parse(&line).expect("its own line");
            prop_assert_eq!(&read, &made);
            prop_assert_eq!(replay(&read), made.decision);
        }
    }
}
