//! What was used and what it cost, as operators read it. Money in US dollars; JSON's numbers hold them to the
//! nano-dollar up to nine million.

use serde::Serialize;
use utoipa::ToSchema;

/// Answer of `GET /usage`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct UsageReport {
    /// The first day that counts.
    pub from: String,
    /// The last day that counts.
    pub to: String,
    /// The calendar that days are counted by.
    pub time_zone: String,
    /// The oldest day that the ledger knows of; none where it is empty.
    #[schema(required)]
    pub known_since: Option<String>,
    /// One line for each combination of what was asked for by `by`.
    pub lines: Vec<UsageLine>,
    /// All lines together.
    pub total: UsageLine,
    /// How the budgets stand at this moment.
    pub budgets: Vec<BudgetStanding>,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Default, Serialize, ToSchema)]
pub struct UsageLine {
    /// The day, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    /// The key's name, where asked for; `anonymous` for callers without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The model that answered, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Who ran it, where asked for; `local` for this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Requests answered here.
    pub local: u64,
    /// Requests answered elsewhere.
    pub remote: u64,
    /// Requests that nobody answered in the end.
    pub failed: u64,
    /// Times that bytes left, retries included.
    pub attempts: u64,
    /// Tokens read, cached ones among them.
    pub prompt_tokens: u64,
    /// Tokens read that were cached elsewhere.
    pub cached_tokens: u64,
    /// Tokens written, reasoning among them.
    pub output_tokens: u64,
    /// Tokens written that were reasoning.
    pub reasoning_tokens: u64,
    /// What was spent.
    pub cost_usd: f64,
    /// The part of it that is an upper bound, because nobody said what it came to: after a crash, above all.
    pub bound_usd: f64,
    /// What is held for requests under way.
    pub held_usd: f64,
    /// What the answers made here would have cost elsewhere.
    pub saved_usd: f64,
}

/// One budget.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct BudgetStanding {
    /// Its name, and whom it is counted for.
    pub name: String,
    /// `hour`, `day` or `month`.
    pub period: String,
    /// `hard` or `soft`.
    pub kind: String,
    /// `usd` or `tokens`.
    pub unit: String,
    /// What it holds; none where other budgets bound it.
    #[schema(required)]
    pub limit: Option<f64>,
    /// What is spent or held of it.
    pub used: f64,
    /// When it begins anew, as a time in UTC.
    pub resets: String,
}
