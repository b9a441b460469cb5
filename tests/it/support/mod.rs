//! What several tests need: engines in this process, and servers in their own with bytes to talk to them, and
//! an upstream that does as it is told.

pub mod chat;
pub mod crowd;
pub mod engine;
pub mod golden;
pub mod hub;
pub mod models;
pub mod server;
pub mod upstream;
pub mod wire;

use std::time::{Duration, Instant};

/// How long anything may take before a test gives up; generous, because machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer.
///
/// Panics: there is none after [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        pause(Duration::from_millis(5));
    }
}

/// Lets another process get on.
#[allow(
    clippy::disallowed_methods,
    reason = "the other side is a process, whose clock cannot be set"
)]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
