//! The engine's face toward the async world; the last file on this side that knows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{Job, Output};

/// Numbers the worker keeps up to date for whoever decides about new work.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) waiting: AtomicUsize,
    pub(super) running: AtomicUsize,
    pub(super) last_step_failed: AtomicBool,
    pub(super) stopped: AtomicBool,
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
        self.jobs.try_send(job(output)).map_err(|e| match e {
            TrySendError::Full(_) => SubmitError::Full,
            TrySendError::Disconnected(_) => SubmitError::Stopped,
        })?;
        Ok(receiver)
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
