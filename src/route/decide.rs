//! Decides whether a request is answered here or elsewhere, by whom elsewhere, or not at all.
//!
//! One function of plain values: what is asked, how busy this machine is, what is known of each target, the
//! bounds, and the time. All of them hold numbers and names only, so they can stand in a record and be
//! decided upon again. The first thing that settles the matter wins, in this order: what must stay, what must
//! go, what this machine cannot do, where the conversation was, whom the policy prefers, what looks too hard,
//! what would be too late. A wish to go that nobody can fulfil yields to the next, and at last to this machine.
//!
//! Nothing here lets text leave: a target that the gate denies is never planned, and the gate is asked again
//! when it counts.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::config::{Config, Then};
use super::hysteresis::Hysteresis;
use super::rules::RuleHit;
use super::sticky::Place;
use crate::generation::{Policy, Reason, Side};

/// A caller's next try when nothing says how long it should wait, in milliseconds.
const RETRY_MS: u64 = 1000;

/// Between two changes between diverting and not, in milliseconds.
const DWELL_MS: u64 = 60_000;

/// The bounds that decisions keep to.
///
/// Units: milliseconds; shares are of 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// Time to the first token that this machine should keep.
    pub slo_ttft_ms: u64,
    /// Share of the time left that an answer made here may take.
    pub deadline_share: f64,
    /// An upstream must be expected to need less than this share of the local time.
    pub remote_gain: f64,
    /// Below this share of the objective for `calm_ms`, diverting ends.
    pub resume_share: f64,
    /// See `resume_share`.
    pub calm_ms: u64,
    /// Between two changes between diverting and not.
    pub dwell_ms: u64,
    /// Age at which the engine's numbers are stale.
    pub stale_after_ms: u64,
    /// Waiting requests above which stale or missing numbers mean overload.
    pub saturated_queue: usize,
    /// Share of the KV cache above which stale or missing numbers mean overload.
    pub saturated_kv: f64,
}

impl Terms {
    pub(super) fn resume_ms(&self) -> f64 {
        self.resume_share * self.slo_ttft_ms as f64
    }
}

impl From<&Config> for Terms {
    fn from(config: &Config) -> Self {
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            slo_ttft_ms: ms(config.slo_ttft),
            deadline_share: config.deadline_share,
            remote_gain: config.remote_gain,
            resume_share: config.resume_share,
            calm_ms: ms(config.calm),
            dwell_ms: DWELL_MS,
            stale_after_ms: ms(config.stale_after),
            saturated_queue: config.saturated_queue,
            saturated_kv: config.saturated_kv,
        }
    }
}

/// What a calibration says of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Hardness {
    /// Probability that the local model's answer would be accepted.
    pub p_accept: f64,
    /// Below it, the request goes elsewhere.
    pub tau: f64,
}

/// What one request asks of routing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Need {
    /// The operator's policy for this key.
    pub policy: Policy,
    /// The caller's.
    pub asked: Option<Policy>,
    /// Whether the caller's may lie to the right of the operator's.
    pub may_widen: bool,
    /// Tokens of the prompt, as this machine counts them.
    pub prompt_tokens: u32,
    /// Most tokens to generate.
    pub max_new_tokens: u32,
    /// Time left until the caller stops caring.
    pub remaining_ms: Option<u64>,
    /// Most nano-USD that the caller would spend.
    pub max_cost_nusd: Option<u64>,
    /// Whether nothing may be degraded.
    pub strict: bool,
    /// The operator's rule that the request meets.
    pub rule: Option<RuleHit>,
    /// Where the conversation was answered before.
    pub sticky: Option<Place>,
    /// What the calibration says, when there is one.
    pub hardness: Option<Hardness>,
}

impl Need {
    /// The policy that holds: the caller's can only tighten, unless its key may widen.
    pub fn effective_policy(&self) -> Policy {
        match self.asked {
            Some(asked) if self.may_widen => asked,
            Some(asked) => asked.min(self.policy),
            None => self.policy,
        }
    }
}

/// What this machine would take, by the engine's own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Until a place in the batch and its memory are free.
    pub wait_ms: u64,
    /// Until the first token.
    pub ttft_ms: u64,
    /// Until the last token.
    pub e2e_ms: u64,
    /// Whether it waits for memory rather than for a place.
    pub kv_bound: bool,
}

/// What this machine can do for the request, and how busy it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LocalView {
    /// Whether the local model serves the name that was asked for.
    pub served: bool,
    /// What this machine cannot do, if anything: `tools`, `image`, `grammar`.
    pub unsupported: Option<String>,
    /// Whether prompt and answer can never fit.
    pub too_long: bool,
    /// Whether the engine has ended.
    pub stopped: bool,
    /// Whether admission would refuse the request now.
    pub queue_full: bool,
    /// Age of the numbers; 0 for an engine with nothing to do.
    pub age_ms: u64,
    /// Sequences waiting.
    pub waiting: usize,
    /// Sequences running.
    pub running: usize,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Blocks of the KV cache.
    pub kv_total: usize,
    /// Blocks that nobody holds, those of the prefix cache included.
    pub kv_free: usize,
    /// Blocks that the request needs.
    pub kv_needed: usize,
    /// What the request would take; none when not enough was seen yet.
    pub forecast: Option<Forecast>,
    /// What nearly all first tokens stay within, as a multiple of their forecasts; none means 1.
    #[serde(default)]
    pub lateness: Option<f64>,
    /// Whether the model is spilling over.
    pub hysteresis: Hysteresis,
}

impl LocalView {
    /// Why this machine can never answer, if so.
    fn cannot(&self) -> Option<Reason> {
        if !self.served {
            Some(Reason::UnsupportedLocal("model".to_owned()))
        } else if self.too_long {
            Some(Reason::ContextOverflow)
        } else if let Some(what) = &self.unsupported {
            Some(Reason::UnsupportedLocal(what.clone()))
        } else if self.stopped {
            Some(Reason::LocalFailure)
        } else {
            None
        }
    }

    /// Whether a place and memory are free at once.
    fn has_room(&self) -> bool {
        !self.queue_full
            && self.waiting == 0
            && self.running < self.max_running
            && self.kv_needed <= self.kv_free
    }

    /// The coarse sign of overload, for when there is no forecast.
    fn is_saturated(&self, terms: &Terms) -> bool {
        let used = self.kv_total.saturating_sub(self.kv_free) as f64;
        self.waiting > terms.saturated_queue && used > terms.saturated_kv * self.kv_total as f64
    }

    fn fresh_forecast(&self, terms: &Terms) -> Option<&Forecast> {
        let forecast = self.forecast.as_ref();
        forecast.filter(|_| self.age_ms <= terms.stale_after_ms)
    }

    fn misses_deadline(&self, need: &Need, terms: &Terms) -> bool {
        let (Some(forecast), Some(remaining)) = (self.fresh_forecast(terms), need.remaining_ms)
        else {
            return false;
        };
        forecast.e2e_ms as f64 > terms.deadline_share * remaining as f64
    }

    /// Why this machine would be too late, if so.
    fn too_late(&self, need: &Need, terms: &Terms, hysteresis: &Hysteresis) -> Option<Reason> {
        if self.queue_full {
            return Some(Reason::QueueOverflow);
        }
        let Some(forecast) = self.fresh_forecast(terms) else {
            return self.is_saturated(terms).then_some(Reason::QueueOverflow);
        };
        // What has room here stays while the objective holds, whatever went elsewhere before and however wrong
        // forecasts were.
        let ttft_ms = forecast.ttft_ms as f64;
        let objective_ms = terms.slo_ttft_ms as f64;
        let in_time = if self.has_room() {
            ttft_ms <= objective_ms
        } else {
            let lateness = self.lateness.unwrap_or(1.0).max(1.0);
            ttft_ms <= hysteresis.bar_ms(terms) && ttft_ms * lateness <= objective_ms
        };
        if self.misses_deadline(need, terms) {
            Some(Reason::Deadline)
        } else if in_time {
            None
        } else if forecast.kv_bound {
            Some(Reason::KvOverflow)
        } else {
            Some(Reason::QueueOverflow)
        }
    }
}

/// What keeps a target from being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockedBy {
    /// Its breaker is open.
    Breaker,
    /// It said "not now".
    Parked,
    /// As many requests as it takes are under way.
    Full,
    /// It is being woken.
    Waking,
    /// Its account has no credit or quota left.
    Quota,
    /// Its credentials are missing or refused.
    Credentials,
    /// The operator paused it.
    Paused,
    /// It does not serve the model any more.
    NotServed,
    /// It cannot be used as it is configured.
    Misconfigured,
}

impl BlockedBy {
    /// Whether waiting helps.
    pub fn is_load(self) -> bool {
        match self {
            Self::Breaker | Self::Parked | Self::Full | Self::Waking => true,
            Self::Quota
            | Self::Credentials
            | Self::Paused
            | Self::NotServed
            | Self::Misconfigured => false,
        }
    }

    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Breaker => "it has failed too often lately",
            Self::Parked => "it asked to be left alone for a while",
            Self::Full => "it has as many requests as it takes",
            Self::Waking => "it is being woken",
            Self::Quota => "its quota or credit is used up",
            Self::Credentials => "its credentials are missing or refused",
            Self::Paused => "it is paused",
            Self::NotServed => "it does not serve the model",
            Self::Misconfigured => {
                "it cannot be used as configured; GET /health/upstreams says why"
            }
        }
    }
}

/// Whether a target may be asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetState {
    /// It may.
    Usable,
    /// It may, a few times, to see whether it works again.
    HalfOpen,
    /// It may not.
    Blocked {
        /// Why.
        by: BlockedBy,
        /// When another try may help.
        retry_after_ms: Option<u64>,
    },
}

/// What a target is expected to take, waking and parking included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Until the first token.
    pub ttft_ms: u64,
    /// Until the last token.
    pub e2e_ms: u64,
}

/// What becomes of a request for which a budget does not suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExceed {
    /// The next target is looked at.
    Next,
    /// No further target is: this machine answers if it can.
    Local,
    /// It is refused, whoever could answer.
    Refuse,
}

/// A hard budget that does not cover a request's worst case at a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverBudget {
    /// What then.
    pub then: OnExceed,
    /// Which one, and when it begins anew, as a sentence for the caller.
    pub text: String,
    /// When it begins anew.
    pub resets_after_ms: u64,
}

/// What is known of one hop of the model's chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetView {
    /// The target's name.
    pub target: String,
    /// The upstream's name.
    pub upstream: String,
    /// The model's name there.
    pub model: String,
    /// Who runs it, where that is known.
    pub provider: Option<String>,
    /// Whether it may be asked now.
    pub state: TargetState,
    /// How long it would take; none when nothing is known.
    pub expected: Option<Expected>,
    /// Most nano-USD that the request can cost there; none when nobody knows.
    pub worst_cost_nusd: Option<u64>,
    /// Nano-USD that the tightest budget leaves; none without one.
    pub money_left_nusd: Option<u64>,
    /// The budget that does not cover the worst case.
    #[serde(default)]
    pub over_budget: Option<OverBudget>,
    /// What the answer would lack there, or the field that the target cannot honour.
    pub eligible: Result<Vec<String>, String>,
    /// Whether the gate would let the text go there, or the code of what denies it.
    pub egress: Result<(), String>,
    /// Reasons and failure classes upon which the hop is taken; empty means any.
    pub on: BTreeSet<String>,
    /// Most nano-USD that the operator lets one request cost there.
    pub max_cost_nusd: Option<u64>,
}

/// Why a target is not in the plan, from the first check that fails to the last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// A rule names another one.
    NotNamed,
    /// The gate denies it; the code of what denies it.
    Egress(String),
    /// It cannot honour this field.
    NotEligible(String),
    /// Nobody knows what it would cost.
    PriceUnknown,
    /// The request might cost more there than the caller or the operator allows for one.
    TooDear,
    /// A budget does not cover it.
    Budget,
    /// It may not be asked now; the code of [`BlockedBy`].
    Blocked(String),
    /// Its hop is not for this reason.
    Condition,
    /// It would not be enough faster than this machine.
    NoGain,
}

impl Why {
    fn reason(&self) -> Reason {
        match self {
            Self::Egress(code) => Reason::EgressDenied(code.clone()),
            Self::NotEligible(field) => Reason::NotEligible(field.clone()),
            Self::PriceUnknown => Reason::PriceUnknown,
            Self::TooDear | Self::Budget => Reason::BudgetExhausted,
            Self::NotNamed | Self::Blocked(_) | Self::Condition => Reason::RemoteUnavailable,
            Self::NoGain => Reason::LocalOk,
        }
    }
}

/// A target that is not in the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// The target's name.
    pub target: String,
    /// Why not.
    pub why: Why,
}

/// A target that is tried, in its turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedHop {
    /// The target's name.
    pub target: String,
    /// Failure classes of the hop before upon which this one is taken; empty means any.
    pub on: BTreeSet<String>,
    /// Most nano-USD that the request can cost there.
    pub worst_cost_nusd: u64,
    /// What the answer would lack.
    pub degraded: Vec<String>,
}

/// What sort of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// Everyone who could is busy; waiting helps.
    Overloaded,
    /// Nobody who may can do what is asked.
    Unsupported,
    /// Nobody who may has so long a context.
    TooLong,
    /// Nobody is there for a reason other than load.
    NoTarget,
    /// The money does not suffice.
    Budget,
}

/// Why nobody answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What sort.
    pub kind: RefusalKind,
    /// When another try may help.
    pub retry_after_ms: Option<u64>,
    /// A sentence for the caller.
    pub text: String,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// This machine.
    Local,
    /// The plan's targets, in turn.
    Remote,
    /// Nobody.
    Refuse(Refusal),
}

/// What is decided, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Who answers.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// Targets in the order they are tried; empty unless the outcome is remote.
    pub plan: Vec<PlannedHop>,
    /// Whether this machine answers when the plan comes to nothing.
    pub fallback_local: bool,
    /// Targets that are not tried.
    pub excluded: Vec<Excluded>,
    /// The model's state from now on.
    pub diverting_after: Hysteresis,
}

impl Decision {
    /// Where the answer is made, if anywhere.
    pub fn side(&self) -> Option<Side> {
        match self.outcome {
            Outcome::Local => Some(Side::Local),
            Outcome::Remote => Some(Side::Remote),
            Outcome::Refuse(_) => None,
        }
    }
}

/// A wish to go elsewhere.
struct Wish {
    reason: Reason,
    /// The only target that will do, or the one to begin with.
    target: Option<String>,
    /// Whether no other target will do.
    pinned: bool,
    /// Whether only targets will do that are enough faster than this machine.
    gain: bool,
}

impl Wish {
    fn of(reason: Reason) -> Self {
        Self {
            reason,
            target: None,
            pinned: false,
            gain: false,
        }
    }
}

/// Decides who answers.
///
/// Pure: equal inputs give equal decisions. Caller and operator are asked in the order of this file's header.
/// Invariants: a target that the gate denies is never planned; neither the policy `local-only` nor a rule for
/// this machine ever yields a remote outcome; with a free place, free memory and a forecast within the
/// objective and the deadline, overload is never a reason; a faster forecast never moves a request away.
///
/// Units: `now_ms` is on the clock of `local.hysteresis`.
pub fn decide(
    need: &Need,
    local: &LocalView,
    targets: &[TargetView],
    terms: &Terms,
    now_ms: u64,
) -> Decision {
    let policy = need.effective_policy();
    let forecast = local.fresh_forecast(terms);
    let hysteresis = local
        .hysteresis
        .seen(forecast.map(|f| f.ttft_ms), terms, now_ms);
    let case = Case {
        need,
        local,
        targets,
        terms,
        policy,
        hysteresis,
        now_ms,
    };
    if let Some(reason) = case.must_stay() {
        return case.stay(reason);
    }
    let wishes = match case.wishes() {
        Ok(wishes) => wishes,
        Err(reason) => return case.here(reason, Vec::new()),
    };
    let mut failed: Option<(Reason, Vec<Excluded>)> = None;
    for wish in wishes {
        match case.fulfil(&wish) {
            Ok(decision) => return decision,
            Err(excluded) => {
                failed.get_or_insert((wish.reason, excluded));
            }
        }
    }
    match failed {
        None => case.here(Reason::LocalOk, Vec::new()),
        Some((wanted, excluded)) => case.settle(wanted, excluded),
    }
}

/// Whether this machine answers whatever may be known of targets, so that none of them need be looked at.
///
/// Then, [`decide`] comes to the same with any targets as with none.
pub fn stays(need: &Need, local: &LocalView, terms: &Terms, now_ms: u64) -> bool {
    let policy = need.effective_policy();
    let forecast = local.fresh_forecast(terms);
    let case = Case {
        need,
        local,
        targets: &[],
        terms,
        policy,
        hysteresis: local
            .hysteresis
            .seen(forecast.map(|f| f.ttft_ms), terms, now_ms),
        now_ms,
    };
    if case.must_stay().is_some() {
        return true;
    }
    let was_elsewhere = need
        .sticky
        .as_ref()
        .is_some_and(|place| place.side == Side::Remote);
    match case.wishes() {
        Err(_) => true,
        Ok(wishes) => wishes.is_empty() && !was_elsewhere && policy != Policy::Fastest,
    }
}

/// What is decided upon, once the policy and the state are known.
struct Case<'a> {
    need: &'a Need,
    local: &'a LocalView,
    targets: &'a [TargetView],
    terms: &'a Terms,
    policy: Policy,
    hysteresis: Hysteresis,
    now_ms: u64,
}

impl Case<'_> {
    fn decided(&self, outcome: Outcome, reason: Reason, excluded: Vec<Excluded>) -> Decision {
        Decision {
            outcome,
            reason,
            plan: Vec::new(),
            fallback_local: false,
            excluded,
            diverting_after: self.hysteresis,
        }
    }

    fn here(&self, reason: Reason, excluded: Vec<Excluded>) -> Decision {
        self.decided(Outcome::Local, reason, excluded)
    }

    fn refuse(
        &self,
        reason: Reason,
        excluded: Vec<Excluded>,
        kind: RefusalKind,
        text: String,
    ) -> Decision {
        let retry_after_ms = None;
        let refusal = Refusal {
            kind,
            retry_after_ms,
            text,
        };
        self.decided(Outcome::Refuse(refusal), reason, excluded)
    }

    fn overloaded(&self, reason: Reason, excluded: Vec<Excluded>, retry_after_ms: u64) -> Decision {
        let refusal = Refusal {
            kind: RefusalKind::Overloaded,
            retry_after_ms: Some(retry_after_ms),
            text: "Model is overloaded".to_owned(),
        };
        self.decided(Outcome::Refuse(refusal), reason, excluded)
    }

    /// When this machine should have room again.
    fn local_retry_ms(&self) -> u64 {
        let wait = self.local.fresh_forecast(self.terms).map(|f| f.wait_ms);
        wait.unwrap_or(RETRY_MS).max(RETRY_MS)
    }

    fn must_stay(&self) -> Option<Reason> {
        if self.policy == Policy::LocalOnly {
            return Some(Reason::PolicyLocal);
        }
        let rule = self.need.rule.as_ref()?;
        (rule.then == Then::Local).then(|| Reason::RuleLocal(rule.name.clone()))
    }

    fn stay(&self, reason: Reason) -> Decision {
        match self.local.cannot() {
            Some(cannot) => {
                let (kind, text) = self.incapable(&cannot, "and may not go elsewhere");
                self.refuse(cannot, Vec::new(), kind, text)
            }
            None if self.local.queue_full => {
                self.overloaded(reason, Vec::new(), self.local_retry_ms())
            }
            None => self.here(reason, Vec::new()),
        }
    }

    /// What speaks for going elsewhere, strongest first; or the reason to stay before any of it counts.
    fn wishes(&self) -> Result<Vec<Wish>, Reason> {
        let mut wishes = Vec::new();
        if let Some(rule) = &self.need.rule {
            let mut wish = Wish::of(Reason::RuleRemote(rule.name.clone()));
            if let Then::Target(target) = &rule.then {
                wish.target = Some(target.clone());
                wish.pinned = true;
            }
            // A request that a rule pins to one target is never handed to another.
            return Ok(vec![wish]);
        }
        // A conversation begins where its caches are, whatever sends it elsewhere.
        let warm = |reason: Reason| {
            let place = self.need.sticky.as_ref();
            let mut wish = Wish::of(reason);
            wish.target = place
                .and_then(|place| place.target.clone())
                .filter(|target| {
                    let mut known = self.targets.iter().filter(|view| view.target == *target);
                    known.any(|view| self.obstacle(view).is_none())
                });
            wish
        };
        if self.policy == Policy::RemoteOnly {
            return Ok(vec![warm(Reason::PolicyRemote)]);
        }
        if let Some(cannot) = self.local.cannot() {
            return Ok(vec![warm(cannot)]);
        }
        match &self.need.sticky {
            Some(place) if place.side == Side::Local => {
                let full = self.local.queue_full;
                let in_time = !self.local.misses_deadline(self.need, self.terms);
                if in_time && !full {
                    return Err(Reason::Sticky);
                }
            }
            Some(place) => {
                let target = place.target.as_ref();
                let known = self
                    .targets
                    .iter()
                    .find(|view| Some(&view.target) == target);
                if known.is_some_and(|view| view.state == TargetState::Usable) {
                    let mut wish = Wish::of(Reason::Sticky);
                    wish.target = target.cloned();
                    wishes.push(wish);
                }
            }
            None => {}
        }
        if self.policy == Policy::PreferRemote || self.is_faster_elsewhere() {
            wishes.push(Wish::of(Reason::PolicyRemote));
        }
        if self
            .need
            .hardness
            .is_some_and(|hardness| hardness.p_accept < hardness.tau)
        {
            wishes.push(Wish::of(Reason::HardPre));
        }
        if let Some(reason) = self.local.too_late(self.need, self.terms, &self.hysteresis) {
            let mut wish = Wish::of(reason);
            wish.gain = !self.local.queue_full;
            wishes.push(wish);
        }
        Ok(wishes)
    }

    fn is_faster_elsewhere(&self) -> bool {
        let Some(here) = self.local.fresh_forecast(self.terms) else {
            return false;
        };
        self.policy == Policy::Fastest
            && self.targets.iter().any(|view| {
                self.obstacle(view).is_none()
                    && view
                        .expected
                        .is_some_and(|there| there.e2e_ms < here.e2e_ms)
            })
    }

    /// What speaks against a target, whatever the reason to go.
    fn obstacle(&self, view: &TargetView) -> Option<Why> {
        if let Err(code) = &view.egress {
            return Some(Why::Egress(code.clone()));
        }
        match &view.eligible {
            Err(field) => return Some(Why::NotEligible(field.clone())),
            Ok(degraded) => {
                if let Some(field) = degraded.first().filter(|_| self.need.strict) {
                    return Some(Why::NotEligible(field.clone()));
                }
            }
        }
        let Some(cost) = view.worst_cost_nusd else {
            return Some(Why::PriceUnknown);
        };
        let caps = [self.need.max_cost_nusd, view.max_cost_nusd];
        if caps.into_iter().flatten().any(|most| cost > most) {
            return Some(Why::TooDear);
        }
        if view.over_budget.is_some() || view.money_left_nusd.is_some_and(|left| cost > left) {
            return Some(Why::Budget);
        }
        match view.state {
            TargetState::Blocked { by, .. } => Some(Why::Blocked(code_of(by))),
            TargetState::Usable | TargetState::HalfOpen => None,
        }
    }

    /// Whether a target would be enough faster than this machine; one that was never tried counts as faster,
    /// since only trying makes it known.
    fn gains(&self, view: &TargetView) -> bool {
        match (self.local.fresh_forecast(self.terms), view.expected) {
            (Some(here), Some(there)) => {
                (there.e2e_ms as f64) < self.terms.remote_gain * here.e2e_ms as f64
            }
            _ => true,
        }
    }

    fn fulfil(&self, wish: &Wish) -> Result<Decision, Vec<Excluded>> {
        let mut excluded = Vec::new();
        let mut fit: Vec<&TargetView> = Vec::new();
        let mut stop = None;
        for view in self.targets {
            let is_named = wish.target.as_ref() == Some(&view.target);
            let why = if wish.pinned && !is_named {
                Some(Why::NotNamed)
            } else {
                self.obstacle(view)
                    .or_else(|| (wish.gain && !self.gains(view)).then_some(Why::NoGain))
            };
            let wanted = view.on.is_empty() || view.on.contains(wish.reason.code());
            if why == Some(Why::Budget) && wanted && fit.is_empty() {
                let over = view.over_budget.as_ref();
                stop = stop.or(over.filter(|over| over.then != OnExceed::Next));
            }
            match why {
                None => fit.push(view),
                Some(why) => excluded.push(Excluded {
                    target: view.target.clone(),
                    why,
                }),
            }
        }
        match stop.map(|over| (over.then, over)) {
            Some((OnExceed::Refuse, over)) => return Ok(self.over_budget(over, excluded)),
            Some((OnExceed::Local, _)) => return Err(excluded),
            Some((OnExceed::Next, _)) | None => {}
        }
        match self.policy {
            Policy::Cheapest => fit.sort_by_key(|view| view.worst_cost_nusd),
            Policy::Fastest => {
                fit.sort_by_key(|view| view.expected.map_or(u64::MAX, |there| there.e2e_ms));
            }
            _ => {}
        }
        let code = wish.reason.code();
        let accepts = |view: &&TargetView| {
            // A pin and a conversation name their target themselves; a hop's conditions are for the rest.
            match &wish.target {
                Some(target) => *target == view.target,
                None => view.on.is_empty() || view.on.contains(code),
            }
        };
        let Some(first) = fit.iter().position(accepts) else {
            excluded.extend(fit.iter().map(|view| Excluded {
                target: view.target.clone(),
                why: Why::Condition,
            }));
            return Err(excluded);
        };
        let first = fit.remove(first);
        fit.insert(0, first);
        let plan = fit.iter().filter_map(|view| {
            Some(PlannedHop {
                target: view.target.clone(),
                on: view.on.clone(),
                worst_cost_nusd: view.worst_cost_nusd?,
                degraded: view.eligible.clone().unwrap_or_default(),
            })
        });
        let plan = plan.collect();
        let overflow = matches!(wish.reason, Reason::QueueOverflow | Reason::KvOverflow);
        let mut decision = self.decided(Outcome::Remote, wish.reason.clone(), excluded);
        decision.plan = plan;
        decision.fallback_local = self.policy != Policy::RemoteOnly
            && self.local.cannot().is_none()
            && !self.local.queue_full;
        if overflow {
            decision.diverting_after = self.hysteresis.diverted(self.terms, self.now_ms);
        }
        Ok(decision)
    }

    /// Somewhere else was wanted, and nobody there can: this machine if it can, else a refusal.
    fn settle(&self, wanted: Reason, excluded: Vec<Excluded>) -> Decision {
        let cannot = self.local.cannot();
        // The target that came furthest tells what stands in the way.
        let furthest = excluded.iter().map(|e| &e.why).max().cloned();
        let reason = match (&furthest, self.local.queue_full) {
            (Some(Why::NoGain) | None, true) => wanted.clone(),
            (Some(why), _) => why.reason(),
            (None, false) if cannot.is_some() => wanted.clone(),
            (None, false) if matches!(wanted, Reason::RuleRemote(_) | Reason::PolicyRemote) => {
                Reason::RemoteUnavailable
            }
            (None, false) => Reason::LocalOk,
        };
        let may_stay = self.policy != Policy::RemoteOnly && cannot.is_none();
        if may_stay && !self.local.queue_full {
            return self.here(reason, excluded);
        }
        let hint = self
            .load_hint_ms(&excluded)
            .into_iter()
            .chain(may_stay.then(|| self.local_retry_ms()))
            .min();
        if let Some(retry_after_ms) = hint {
            return self.overloaded(reason, excluded, retry_after_ms);
        }
        let (kind, text) = match (furthest, &cannot) {
            (Some(Why::Egress(code)), Some(cannot)) => self.incapable(
                cannot,
                &format!("and the text may not leave it (`{code}`)"),
            ),
            (Some(Why::Egress(code)), None) => (
                RefusalKind::Unsupported,
                format!("an upstream was asked for, and the text may not leave this machine (`{code}`)"),
            ),
            (Some(Why::NotEligible(field)), _) => (
                RefusalKind::Unsupported,
                format!("`{field}` can be honoured by no place that may answer"),
            ),
            (Some(Why::PriceUnknown), _) => (
                RefusalKind::NoTarget,
                "no upstream may answer, since the price is not known; give it in the target's `price`".to_owned(),
            ),
            (Some(Why::TooDear), _) => (
                RefusalKind::Budget,
                "the answer might cost more than is allowed for one request".to_owned(),
            ),
            (Some(Why::Budget), _) => match self.first_over_budget() {
                Some(over) => return self.over_budget(over, excluded),
                None => (
                    RefusalKind::Budget,
                    "the money for upstreams does not cover this request's worst case".to_owned(),
                ),
            },
            (Some(Why::Blocked(_)), _) => (RefusalKind::NoTarget, self.blocked_sentence(&excluded)),
            (Some(Why::NotNamed | Why::Condition | Why::NoGain), _) => (
                RefusalKind::NoTarget,
                "no target's conditions allow this request".to_owned(),
            ),
            (None, Some(cannot)) => self.incapable(cannot, "and no upstream is configured for it"),
            (None, None) => (
                RefusalKind::NoTarget,
                "no upstream is configured for this model".to_owned(),
            ),
        };
        self.refuse(reason, excluded, kind, text)
    }

    fn first_over_budget(&self) -> Option<&OverBudget> {
        let mut over = self.targets.iter();
        over.find_map(|view| view.over_budget.as_ref())
    }

    fn over_budget(&self, over: &OverBudget, excluded: Vec<Excluded>) -> Decision {
        let refusal = Refusal {
            kind: RefusalKind::Budget,
            retry_after_ms: Some(over.resets_after_ms),
            text: over.text.clone(),
        };
        self.decided(Outcome::Refuse(refusal), Reason::BudgetExhausted, excluded)
    }

    /// The shortest time after which a target that is merely busy may be tried again.
    fn load_hint_ms(&self, excluded: &[Excluded]) -> Option<u64> {
        let hints = self.targets.iter().filter_map(|view| match view.state {
            TargetState::Blocked { by, retry_after_ms } if by.is_load() => {
                let stands =
                    |e: &Excluded| e.target == view.target && matches!(e.why, Why::Blocked(_));
                let counts = excluded.iter().any(stands);
                counts.then(|| retry_after_ms.unwrap_or(RETRY_MS))
            }
            _ => None,
        });
        hints.min()
    }

    fn blocked_sentence(&self, excluded: &[Excluded]) -> String {
        let sentences = self.targets.iter().filter_map(|view| match view.state {
            TargetState::Blocked { by, .. }
                if excluded
                    .iter()
                    .any(|e| e.target == view.target && matches!(e.why, Why::Blocked(_))) =>
            {
                Some(format!("target `{}`: {}", view.target, by.sentence()))
            }
            _ => None,
        });
        let sentences: Vec<String> = sentences.collect();
        format!("no upstream can answer: {}", sentences.join("; "))
    }

    fn incapable(&self, cannot: &Reason, and: &str) -> (RefusalKind, String) {
        match cannot {
            Reason::ContextOverflow => (
                RefusalKind::TooLong,
                format!(
                    "{} prompt tokens and {} new tokens do not fit this machine's context, {and}",
                    self.need.prompt_tokens, self.need.max_new_tokens
                ),
            ),
            Reason::LocalFailure => (
                RefusalKind::NoTarget,
                format!("this machine's engine has stopped, {and}"),
            ),
            Reason::UnsupportedLocal(what) => (
                RefusalKind::Unsupported,
                format!("this machine cannot serve `{what}`, {and}"),
            ),
            other => (
                RefusalKind::Unsupported,
                format!("this machine cannot serve it ({other}), {and}"),
            ),
        }
    }
}

fn code_of(by: BlockedBy) -> String {
    match by {
        BlockedBy::Breaker => "breaker",
        BlockedBy::Parked => "parked",
        BlockedBy::Full => "full",
        BlockedBy::Waking => "waking",
        BlockedBy::Quota => "quota",
        BlockedBy::Credentials => "credentials",
        BlockedBy::Misconfigured => "misconfigured",
        BlockedBy::Paused => "paused",
        BlockedBy::NotServed => "not_served",
    }
    .to_owned()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
pub(crate) mod tests;
