//! The operator's wishes about routing, resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::policies::Policies;
use crate::generation::Policy;

/// One step of a model's chain of targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The target's name.
    pub target: String,
    /// Reasons and failure classes upon which this hop is taken, by their names; empty means any.
    pub on: BTreeSet<String>,
    /// Most nano-USD a request may cost there at worst.
    pub max_cost_nusd: Option<u64>,
}

/// A name that callers may use, and where it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRoute {
    /// Whether the local model serves it.
    pub local: bool,
    /// Where else, in this order.
    pub hops: Vec<Hop>,
    /// Other names for it.
    pub aliases: Vec<String>,
}

/// What a rule looks at; every condition that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct When {
    /// The model as the caller named it is one of these.
    pub model: BTreeSet<String>,
    /// The caller's key is one of these.
    pub key: BTreeSet<String>,
    /// The route is one of these.
    pub route: BTreeSet<String>,
    /// The prompt has at least so many tokens.
    pub min_prompt_tokens: Option<u32>,
    /// The prompt has at most so many tokens.
    pub max_prompt_tokens: Option<u32>,
    /// A text of the request matches.
    pub pattern: Option<regex::Regex>,
    /// Headers, by lower-case name, match.
    pub headers: BTreeMap<String, regex::Regex>,
    /// Tools are offered, or not.
    pub tools: Option<bool>,
    /// The answer is streamed, or not.
    pub stream: Option<bool>,
}

/// Where a rule sends a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// It is answered here or not at all.
    Local,
    /// It is answered by the model's chain.
    Remote,
    /// It is answered by this target.
    Target(String),
}

/// An operator's rule; the first that matches decides.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its name in headers and records.
    pub name: String,
    /// When it applies.
    pub when: When,
    /// What it does.
    pub then: Then,
}

/// What becomes of an answer that breaks off after the caller has seen some of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MidStream {
    /// The caller is told.
    #[default]
    Error,
    /// It goes on elsewhere where that is exact: plain text, by the same weights.
    Continue,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who should answer when nobody says otherwise.
    pub policy: Policy,
    /// Both as last read: keys may be read again while the server runs.
    pub policies: Policies,
    /// Time to the first token that this machine should keep.
    pub slo_ttft: Duration,
    /// Share of the time left that an answer made here may take.
    pub deadline_share: f64,
    /// An upstream must be expected to need less than this share of the local time.
    pub remote_gain: f64,
    /// Below this share of the SLO for `calm`, diverting ends.
    pub resume_share: f64,
    /// See `resume_share`.
    pub calm: Duration,
    /// Age at which the engine's numbers are stale.
    pub stale_after: Duration,
    /// Waiting requests above which stale numbers mean overload.
    pub saturated_queue: usize,
    /// Share of the KV cache above which stale numbers mean overload.
    pub saturated_kv: f64,
    /// What becomes of an answer that breaks off.
    pub mid_stream: MidStream,
    /// How often waiting requests are looked at again.
    pub reconsider: Duration,
    /// How long a conversation stays where it was.
    pub sticky: Duration,
    /// By the name callers use; the default model stands under the empty name.
    pub models: BTreeMap<String, ModelRoute>,
    /// In order.
    pub rules: Vec<Rule>,
    /// The hardness calibration, if there is one.
    pub calibration: Option<PathBuf>,
    /// Where decisions are written, one JSON line each; none writes none.
    pub decision_log: Option<PathBuf>,
    /// Bytes after which that file is rotated.
    pub decision_log_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::PreferLocal,
            policies: Policies::default(),
            slo_ttft: Duration::from_secs(10),
            deadline_share: 0.9,
            remote_gain: 0.8,
            resume_share: 0.7,
            calm: Duration::from_secs(5),
            stale_after: Duration::from_secs(1),
            saturated_queue: 5,
            saturated_kv: 0.8,
            mid_stream: MidStream::Error,
            reconsider: Duration::from_millis(250),
            sticky: Duration::from_secs(600),
            models: BTreeMap::new(),
            rules: Vec::new(),
            calibration: None,
            decision_log: None,
            decision_log_bytes: 64 << 20,
        }
    }
}
