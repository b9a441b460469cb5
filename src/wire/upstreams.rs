//! What operators and curious callers are told of routing: where every target stands, and how one answer came
//! about.

use serde::Serialize;
use utoipa::ToSchema;

/// Answer of `GET /health/upstreams`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct UpstreamsHealth {
    /// Every target; empty where there is nowhere else to go.
    pub upstreams: Vec<TargetHealth>,
}

/// Where one target stands.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TargetHealth {
    /// The target's name.
    pub target: String,
    /// Its upstream's name.
    pub upstream: String,
    /// Who runs the model, if that is known.
    #[schema(required)]
    pub provider: Option<String>,
    /// Where it stands, in one word.
    pub state: String,
    /// The same as a sentence that says what to do.
    pub sentence: String,
    /// Seconds after which it may be asked again.
    #[schema(required)]
    pub retry_after_s: Option<u64>,
    /// Requests under way.
    pub inflight: u32,
    /// Requests it may have at once.
    pub limit: u32,
    /// Time to its first token.
    pub ttft_ms: Quantiles,
    /// Spent at its upstream today, or held for what is under way.
    pub spent_today_usd: f64,
    /// What may be; none where budgets over all upstreams say so.
    #[schema(required)]
    pub max_usd_per_day: Option<f64>,
    /// The day of the price list in use, where its upstream has one.
    #[schema(required)]
    pub catalog_day: Option<String>,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Quantiles {
    /// Half of all are at most so many.
    pub p50: u64,
    /// 95 of a hundred are.
    pub p95: u64,
}

/// How an answer came about, for callers that ask with `?route_details=1`. Parts of a call that went different
/// ways are listed as in the headers.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct RouteDetails {
    /// `local` or `remote`.
    pub target: String,
    /// The upstream's name.
    #[schema(required)]
    pub upstream: Option<String>,
    /// The model's name there.
    #[schema(required)]
    pub model: Option<String>,
    /// Whose machine it is.
    #[schema(required)]
    pub provider: Option<String>,
    /// Why there.
    pub reason: String,
    /// Requests sent to upstreams.
    pub attempts: u32,
    /// What the answer lacks of what was asked for.
    pub degraded: Vec<String>,
    /// What it cost, as far as that is known; null where no upstream answered.
    #[schema(required)]
    pub cost_usd: Option<f64>,
    /// What an answer made here would have cost elsewhere; null where that is not known.
    #[schema(required)]
    pub saved_usd: Option<f64>,
}
