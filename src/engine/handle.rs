//! The engine's face toward the async world; the last file on this side that knows it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::load::{LoadSnapshot, Unseen};
use super::{Job, Output};

/// Numbers the worker keeps up to date for whoever decides about new work.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) waiting: AtomicUsize,
    pub(super) running: AtomicUsize,
    pub(super) last_step_failed: AtomicBool,
    pub(super) stopped: AtomicBool,
    unseen_jobs: AtomicUsize,
    unseen_prompt_tokens: AtomicUsize,
    unseen_new_tokens: AtomicUsize,
    snapshot: Mutex<LoadSnapshot>,
}

impl Shared {
    pub(super) fn new(snapshot: LoadSnapshot) -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            last_step_failed: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            unseen_jobs: AtomicUsize::new(0),
            unseen_prompt_tokens: AtomicUsize::new(0),
            unseen_new_tokens: AtomicUsize::new(0),
            snapshot: Mutex::new(snapshot),
        }
    }

    /// Hands a new snapshot over for the old one, and takes the jobs in it off those on their way.
    ///
    /// False, and nothing is done, while a reader holds the lock, unless the worker has time to wait for it.
    pub(super) fn publish(&self, fresh: &mut LoadSnapshot, taken: Unseen, wait: bool) -> bool {
        let mut snapshot = match self.snapshot.try_lock() {
            Ok(snapshot) => snapshot,
            Err(_) if wait => self.snapshot.lock().unwrap_or_else(PoisonError::into_inner),
            Err(_) => return false,
        };
        std::mem::swap(&mut *snapshot, fresh);
        self.forget(taken);
        true
    }

    fn expect(&self, unseen: Unseen) {
        self.unseen_jobs.fetch_add(unseen.jobs, Ordering::Relaxed);
        self.unseen_prompt_tokens
            .fetch_add(unseen.prompt_tokens, Ordering::Relaxed);
        self.unseen_new_tokens
            .fetch_add(unseen.new_tokens, Ordering::Relaxed);
    }

    fn forget(&self, unseen: Unseen) {
        self.unseen_jobs.fetch_sub(unseen.jobs, Ordering::Relaxed);
        self.unseen_prompt_tokens
            .fetch_sub(unseen.prompt_tokens, Ordering::Relaxed);
        self.unseen_new_tokens
            .fetch_sub(unseen.new_tokens, Ordering::Relaxed);
    }

    fn snapshot(&self) -> LoadSnapshot {
        let snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let mut copy = snapshot.clone();
        // Read under the lock: a job stands in the line or among those on their way, never in both.
        copy.unseen = Unseen {
            jobs: self.unseen_jobs.load(Ordering::Relaxed),
            prompt_tokens: self.unseen_prompt_tokens.load(Ordering::Relaxed),
            new_tokens: self.unseen_new_tokens.load(Ordering::Relaxed),
        };
        copy
    }
}

/// The engine's state as seen from outside, a moment old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Sequences waiting.
    pub waiting: usize,
    /// Sequences running.
    pub running: usize,
    /// Whether the last step failed.
    pub last_step_failed: bool,
    /// Whether the engine's thread has ended.
    pub stopped: bool,
}

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full.
    #[error("the engine's queue is full")]
    Full,
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

/// A running engine. Clones share it; when the last one is dropped, the engine ends after its last step.
#[derive(Debug, Clone)]
pub struct Engine {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
}

impl Engine {
    pub(super) fn new(jobs: SyncSender<Job>, shared: Arc<Shared>) -> Self {
        Self { jobs, shared }
    }

    /// Hands a job over without waiting; `job` makes it from the sending end of its output channel.
    ///
    /// Returns the receiving end; dropping it cancels the job.
    /// Errors: [`SubmitError::Full`] when too many jobs wait unnoticed, [`SubmitError::Stopped`].
    pub fn submit(
        &self,
        job: impl FnOnce(tokio::sync::mpsc::UnboundedSender<Output>) -> Job,
    ) -> Result<UnboundedReceiver<Output>, SubmitError> {
        let (output, receiver) = unbounded_channel();
        let job = job(output);
        let unseen = Unseen::of(&job);
        // Counted before it is sent, so that the worker never takes off what is not there yet.
        self.shared.expect(unseen);
        self.jobs.try_send(job).map_err(|e| {
            self.shared.forget(unseen);
            match e {
                TrySendError::Full(_) => SubmitError::Full,
                TrySendError::Disconnected(_) => SubmitError::Stopped,
            }
        })?;
        Ok(receiver)
    }

    /// Who runs, who waits, and how long steps take: what a forecast needs.
    ///
    /// Cost: a copy of both lines.
    pub fn snapshot(&self) -> LoadSnapshot {
        self.shared.snapshot()
    }

    /// What the engine is doing.
    pub fn load(&self) -> Load {
        Load {
            waiting: self.shared.waiting.load(Ordering::Relaxed),
            running: self.shared.running.load(Ordering::Relaxed),
            last_step_failed: self.shared.last_step_failed.load(Ordering::Relaxed),
            stopped: self.shared.stopped.load(Ordering::Relaxed),
        }
    }
}
