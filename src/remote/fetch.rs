//! Questions to upstreams that carry no text of anybody's: names, prices, states.
//!
//! The drivers of this floor ask through a function they are given, so that whatever leaves takes the same way
//! through the gate as a request does. No more than two questions are under way at once, whatever the number of
//! upstreams. Nothing here knows how to send.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use tokio::sync::Semaphore;

use super::fault::Fault;

/// Questions under way at once.
const AT_ONCE: usize = 2;

/// Which of an upstream's addresses is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plane {
    /// The one that answers requests; its token is the upstream's.
    Data,
    /// The control plane; its token is its own.
    Control,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// Which address.
    pub plane: Plane,
    /// Whether it changes something (POST, without a body) or only reads (GET).
    pub post: bool,
    /// The path, from the slash on.
    pub path: String,
    /// What the last answer was marked with, sent as `If-None-Match`.
    pub etag: Option<String>,
}

impl Question {
    /// Reads a path of the address that answers requests.
    pub fn data(upstream: &Arc<str>, path: impl Into<String>) -> Self {
        Self {
            upstream: Arc::clone(upstream),
            plane: Plane::Data,
            post: false,
            path: path.into(),
            etag: None,
        }
    }

    /// Reads a path of the control plane.
    pub fn control(upstream: &Arc<str>, path: impl Into<String>) -> Self {
        Self {
            plane: Plane::Control,
            ..Self::data(upstream, path)
        }
    }
}

/// What came back, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fetched {
    /// The status.
    pub status: u16,
    /// What marks this answer.
    pub etag: Option<String>,
    /// The body; of what is no success, as much as was read.
    pub body: Bytes,
}

type Ask = dyn Fn(Question) -> BoxFuture<'static, Result<Fetched, Fault>> + Send + Sync;

/// The way to ask. Clones share the bound on questions at once.
#[derive(Clone)]
pub struct Fetch {
    ask: Arc<Ask>,
    turns: Arc<Semaphore>,
}

impl Fetch {
    /// Asks by this function. An answer of any status is an `Ok`; a fault means that there was none.
    pub fn new<F, A>(ask: F) -> Self
    where
        F: Fn(Question) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Fetched, Fault>> + Send + 'static,
    {
        Self {
            ask: Arc::new(move |question| ask(question).boxed()),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Asks, when it is this question's turn.
    ///
    /// Errors: no answer came.
    pub async fn ask(&self, question: Question) -> Result<Fetched, Fault> {
        // Nobody closes the semaphore, so that the turn is always given.
        let _turn = self.turns.acquire().await;
        (self.ask)(question).await
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fetch(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_questions_at_most_are_under_way() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (here, peak) = (Arc::clone(&now), Arc::clone(&most));
        let fetch = Fetch::new(move |_| {
            let (here, peak) = (Arc::clone(&here), Arc::clone(&peak));
            async move {
                let n = here.fetch_add(1, Ordering::SeqCst) + 1;
                peak.fetch_max(n, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
                here.fetch_sub(1, Ordering::SeqCst);
                Ok(Fetched::default())
            }
        });
        let name: Arc<str> = "x".into();
        let all = (0..9).map(|_| fetch.ask(Question::data(&name, "/v1/models")));
        assert!(
            futures::future::join_all(all)
                .await
                .iter()
                .all(Result::is_ok)
        );
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }
}
