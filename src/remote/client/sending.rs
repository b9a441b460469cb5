//! A request's body on its way out, and how far it has come.
//!
//! The body goes in pieces, so that the clock of sending can see that pieces are taken; they share the
//! request's bytes, nothing is copied.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Bytes of one piece.
const PIECE: usize = 64 << 10;

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits for a connection.
    Waiting,
    /// Its body is being sent.
    Sending,
    /// It has been handed over in full.
    Sent,
}

/// The phase and when it began; wakes whoever waits for the next one.
#[derive(Debug)]
pub(super) struct Progress {
    at: Mutex<(Phase, Instant)>,
    pub(super) changed: Notify,
}

impl Progress {
    pub(super) fn new(phase: Phase, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            at: Mutex::new((phase, now)),
            changed: Notify::new(),
        })
    }

    pub(super) fn get(&self) -> (Phase, Instant) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if at.0 != phase {
            *at = (phase, Instant::now());
            self.changed.notify_one();
        }
    }
}

/// The body.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) rest: Bytes,
    pub(super) progress: Arc<Progress>,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        self.progress.enter(if self.rest.is_empty() {
            Phase::Sent
        } else {
            Phase::Sending
        });
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
