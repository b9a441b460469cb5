//! What the ledger keeps of a request and of each time it left: names and numbers, never a text of anybody.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::budget::{Amount, Spender};
use crate::generation::{Side, Usage, UsageSource};

/// The name of callers without a key.
pub const ANONYMOUS: &str = "anonymous";

/// Milliseconds since 1970 (UTC).
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

/// Who asks for what, as it is known when a request is admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// The request's name in headers, logs and records.
    pub request_id: Arc<str>,
    /// The key's name; [`ANONYMOUS`] without one.
    pub key: Arc<str>,
    /// Whose prefix cache it shares.
    pub tenant: Arc<str>,
    /// The route it came in by.
    pub path: Arc<str>,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// The model's public name.
    pub model: Arc<str>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Closing {
    /// Where it was answered, if anywhere.
    pub side: Option<Side>,
    /// The target that gave the answer.
    pub target: Option<String>,
    /// Its upstream.
    pub upstream: Option<String>,
    /// The name of the model that answered; the public one without it.
    pub model: Option<String>,
    /// Who ran it.
    pub provider: Option<String>,
    /// Why it was answered there.
    pub reason: Option<String>,
    /// What was read and written.
    pub usage: Option<Usage>,
    /// What an answer made here would have cost elsewhere, in nano-USD, and at which target.
    pub saved: Option<(u64, String)>,
    /// Milliseconds to the first token.
    pub ttft_ms: Option<u64>,
    /// Milliseconds in all.
    pub total_ms: u64,
    /// How it ended, in one word.
    pub outcome: String,
}

/// Bytes that are about to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Why they leave: `request`, `retry`.
    pub purpose: &'static str,
    /// Why elsewhere.
    pub reason: String,
    /// The target's name.
    pub target: Arc<str>,
    /// Who spends, and where.
    pub spender: Spender,
    /// Most they may come to.
    pub worst: Amount,
    /// Where the price comes from.
    pub basis: Arc<str>,
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// Who answered; none where nobody said anything else than expected.
    pub provider: Option<Arc<str>>,
    /// What is counted.
    pub amount: Amount,
    /// What was read and written; none where nothing was.
    pub usage: Option<Usage>,
    /// Where the price comes from: `catalog@…`, `override`, `provider_reported`.
    pub basis: Arc<str>,
    /// Milliseconds to the first token.
    pub ttft_ms: Option<u64>,
    /// How it ended, in one word.
    pub outcome: String,
    /// The upstream's own name for it, to compare bills by.
    pub request_id_upstream: Option<String>,
}

impl Bill {
    /// Nothing was sent, so that nothing is owed.
    pub fn void(outcome: &str) -> Self {
        Self {
            provider: None,
            amount: Amount::default(),
            usage: None,
            basis: "void".into(),
            ttft_ms: None,
            outcome: outcome.to_owned(),
            request_id_upstream: None,
        }
    }
}

/// An entry as it is written.
#[derive(Debug, Clone)]
pub(super) struct EntryRow {
    pub(super) id: i64,
    pub(super) opened_ms: i64,
    pub(super) closed_ms: Option<i64>,
    pub(super) who: Who,
    pub(super) attempts: u32,
    pub(super) closing: Closing,
}

/// An attempt as it is written.
#[derive(Debug, Clone)]
pub(super) struct AttemptRow {
    pub(super) id: i64,
    pub(super) entry: i64,
    pub(super) who: Who,
    pub(super) attempt: Attempt,
    pub(super) reserved_ms: i64,
    pub(super) settled: Option<(i64, Bill)>,
}

/// The name of who counted, in the ledger.
pub(super) fn source_name(source: UsageSource) -> &'static str {
    match source {
        UsageSource::Reported => "reported",
        UsageSource::Estimated => "estimated",
    }
}
