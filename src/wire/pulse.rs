//! What the page at `/ui/` is told of what happens: events of `GET /ui/events`. Money in US dollars.

use std::collections::BTreeMap;

use serde::Serialize;

/// The first event, `history`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct History {
    /// Who tells.
    pub server: ServerFacts,
    /// One for each second that is remembered, oldest first.
    pub samples: Vec<Sample>,
    /// The newest requests that are over, oldest first.
    pub decisions: Vec<Past>,
}

/// The server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerFacts {
    /// Its version.
    pub version: String,
    /// The model that it serves.
    pub model: String,
    /// When it began to, in milliseconds since 1970.
    pub started_ms: u64,
    /// Whether there is anywhere else to go.
    pub hybrid: bool,
}

/// Each further event, `tick`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tick {
    /// The last second.
    pub sample: Sample,
    /// All requests since the start.
    pub totals: Totals,
    /// Where every target stands.
    pub targets: Vec<super::upstreams::TargetHealth>,
    /// How the budgets stand.
    pub budgets: Vec<super::usage::BudgetStanding>,
    /// Requests that are over since the last event, oldest first.
    pub decisions: Vec<Past>,
}

/// One second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// When it was over, in milliseconds since 1970.
    pub t_ms: u64,
    /// Sequences running.
    pub running: usize,
    /// Sequences waiting.
    pub waiting: usize,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Tokens that the KV cache holds for running sequences.
    pub kv_used: usize,
    /// Tokens that it can hold.
    pub kv_total: usize,
    /// Tokens of prompts, a second.
    pub prefill_tps: f64,
    /// Tokens of answers, a second.
    pub decode_tps: f64,
    /// Requests answered here in it.
    pub local: u32,
    /// Requests answered elsewhere.
    pub remote: u32,
    /// Calls without a whole answer.
    pub failed: u64,
    /// Milliseconds to the first token, over the last minute.
    pub ttft_ms: Option<Percentiles>,
    /// Milliseconds between two tokens, over the last minute.
    pub itl_ms: Option<Percentiles>,
}

/// So many of a hundred are at most this.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// 50.
    pub p50: f64,
    /// 95.
    pub p95: f64,
    /// 99.
    pub p99: f64,
}

/// Calls since the start, by the code of their reason.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Answered here.
    pub local: BTreeMap<String, u64>,
    /// Answered elsewhere.
    pub remote: BTreeMap<String, u64>,
    /// Answered by nobody; those that came to no decision by the name of what was wrong.
    pub refused: BTreeMap<String, u64>,
    /// Begun, and not ended: the caller left, or the answer broke off.
    pub unfinished: BTreeMap<String, u64>,
    /// What they cost.
    pub cost_usd: f64,
    /// What those answered here would have cost elsewhere.
    pub saved_usd: f64,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
}

/// One request that is over.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Past {
    /// Its place among all of them.
    pub seq: u64,
    /// When it was over, in milliseconds since 1970.
    pub at_ms: u64,
    /// Its name in headers, logs and the ledger.
    pub request_id: String,
    /// The name of the caller's key.
    pub key: Option<String>,
    /// The route it came in by.
    pub path: String,
    /// Whether the answer was streamed.
    pub stream: bool,
    /// The model as the caller named it.
    pub model: Option<String>,
    /// `local` or `remote`; null where nobody answered.
    pub side: Option<String>,
    /// The target that answered, or was asked last.
    pub target: Option<String>,
    /// Its upstream.
    pub upstream: Option<String>,
    /// Whose machine it was.
    pub provider: Option<String>,
    /// Why there: a code; null where nothing was decided.
    pub reason: Option<&'static str>,
    /// What the code is about.
    pub reason_detail: Option<String>,
    /// How it ended: a finish reason, or what went wrong.
    pub outcome: String,
    /// Whether there was a whole answer.
    pub ok: bool,
    /// Until the first token.
    pub ttft_ms: Option<f64>,
    /// Until the last.
    pub total_ms: f64,
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub output_tokens: u32,
    /// What it cost.
    pub cost_usd: Option<f64>,
    /// What it would have cost elsewhere.
    pub saved_usd: Option<f64>,
    /// Requests sent to upstreams, in order.
    pub attempts: Vec<Attempt>,
    /// What the answer lacked.
    pub degraded: Vec<String>,
    /// Why it went where it did, in sentences.
    pub explanation: Vec<String>,
}

/// One request sent to an upstream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attempt {
    /// The target.
    pub target: String,
    /// Whose machine it was.
    pub provider: Option<String>,
    /// The class of the failure, if it failed.
    pub class: Option<String>,
    /// The status, if there was one.
    pub status: Option<u16>,
    /// Until its first token.
    pub ttft_ms: Option<u64>,
    /// What it cost.
    pub cost_usd: Option<f64>,
}
