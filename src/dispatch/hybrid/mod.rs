//! Here or elsewhere: the seam between the engine's own queue and everybody else's machines.
//!
//! A request is looked at (`case.rs`), decided upon (`route`, pure), carried out with whatever failures meet it
//! (`carrier.rs`), and accounted for once (`account.rs`). Without upstreams none of this exists.

mod account;
mod attempt;
mod carrier;
mod case;
mod room;
mod seam;
mod shape;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::Inner;
use super::admission::{self, Permit};
use super::local::Local;
use crate::egress::{Destination, Gate, egress_sentence};
use crate::generation::{Error, EventStream, Policy, Reason, Request, RouteAsk, RouteNote, Side};
use crate::ledger::{self, ANONYMOUS, Amount, Exceeded, Ledger, Period, Spender, Standing};
use crate::remote::catalog::Facts;
use crate::remote::{self, Fidelity, Known, Outgoing, Remote, TargetStatus, TranslateSettings};
use crate::route::{
    self, Calibration, Decision, DecisionLog, Features, Hardness, Hysteresis, Lateness, LocalView,
    MidStream, ModelRoute, Need, OnExceed, Outcome, OutputHistory, OverBudget, RefusalKind,
    Sessions, Terms, Then,
};
use case::Case;

/// Conversations that are remembered.
const SESSIONS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// Callers and routes whose answers' lengths are remembered.
const HISTORIES: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");

/// One target as operators see it.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamHealth {
    /// The target.
    pub target: String,
    /// Its upstream.
    pub upstream: String,
    /// Who runs the model, if that is known.
    pub provider: Option<String>,
    /// Where it stands, in one word.
    pub state: &'static str,
    /// The same as a sentence that says what to do.
    pub sentence: String,
    /// When it may be asked again.
    pub retry_after: Option<Duration>,
    /// Requests under way.
    pub inflight: u32,
    /// Requests it may have at once.
    pub limit: u32,
    /// Half of all first tokens come within this time.
    pub ttft_p50: Duration,
    /// 95 of a hundred do.
    pub ttft_p95: Duration,
    /// Spent or held at its upstream today, in nano-USD.
    pub spent_today_nusd: u64,
    /// What may be; none where budgets over all upstreams say so.
    pub max_nusd_per_day: Option<u64>,
    /// The day of the catalogue in use, where its upstream has one.
    pub catalog_day: Option<String>,
}

/// Where requests are written down.
#[derive(Debug)]
pub struct Kept {
    /// What they cost.
    pub ledger: Ledger,
    /// Why they went where they did, where somebody wants to know.
    pub log: Option<DecisionLog>,
}

/// What hybrid serving is made of.
#[derive(Debug)]
pub struct Hybrid {
    remote: Remote,
    gate: Gate,
    ledger: Ledger,
    route: route::Config,
    terms: Terms,
    /// Other names that mean the default model.
    default_names: Vec<String>,
    /// By public name and alias.
    models: BTreeMap<String, Arc<ModelRoute>>,
    sessions: Mutex<Sessions>,
    hysteresis: Mutex<HashMap<String, Hysteresis>>,
    outputs: Mutex<OutputHistory>,
    lateness: Mutex<Lateness>,
    permits: Arc<Semaphore>,
    as_configured: TranslateSettings,
    /// The same for a caller who wants nothing degraded.
    strictly: TranslateSettings,
    calibration: Option<Calibration>,
    /// Names the settings in records.
    config_rev: String,
    /// Where decisions are written down.
    log: Option<DecisionLog>,
    /// Where the clock of decisions begins.
    origin: Instant,
}

impl Hybrid {
    /// Puts it together; `served` is the name of the local model, if there is one.
    pub fn new(
        remote: Remote,
        gate: Gate,
        kept: Kept,
        route: route::Config,
        served: &str,
        local: Option<&Local>,
        calibration: Option<Calibration>,
    ) -> Self {
        let Kept { ledger, log } = kept;
        let mut models = BTreeMap::new();
        for (name, model) in &route.models {
            let model = Arc::new(model.clone());
            for alias in &model.aliases {
                models.insert(alias.clone(), Arc::clone(&model));
            }
            models.insert(name.clone(), model);
        }
        let config = remote.config();
        let as_configured = TranslateSettings {
            fidelity: config.fidelity,
            default_max_tokens: config.default_max_tokens,
            image_hosts: config.image_hosts.clone(),
            bos: local.and_then(|local| local.bos.clone()),
        };
        let default_names = ["", "default", "dummy", "tgi", served].map(str::to_owned);
        Self {
            permits: Arc::new(Semaphore::new(remote.config().max_concurrent_requests)),
            terms: Terms::from(&route),
            sessions: Mutex::new(Sessions::new(SESSIONS, route.sticky)),
            hysteresis: Mutex::default(),
            outputs: Mutex::new(OutputHistory::new(HISTORIES)),
            lateness: Mutex::default(),
            origin: Instant::now(),
            config_rev: revision(&route),
            strictly: TranslateSettings {
                fidelity: Fidelity::Strict,
                ..as_configured.clone()
            },
            as_configured,
            calibration,
            log,
            default_names: default_names.into(),
            models,
            remote,
            gate,
            ledger,
            route,
        }
    }

    /// What may leave this machine, to where, for whom.
    pub fn sentence(&self, egress: &crate::egress::Config) -> String {
        egress_sentence(egress, &self.remote.destinations())
    }

    /// The model that was asked for, if it is known here: whatever else a caller writes is no name.
    fn known_model(&self, ask: &RouteAsk) -> Option<Arc<str>> {
        let model = ask.model.as_ref()?;
        let known = self.models.contains_key(&**model)
            || self.default_names.iter().any(|name| **name == **model);
        known.then(|| Arc::clone(model))
    }

    /// Names that callers may use beside the default model's.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let named = self.models.keys().map(String::as_str);
        named.filter(|name| !name.is_empty())
    }

    /// Whether no request is with an upstream.
    pub(super) fn is_idle(&self) -> bool {
        self.permits.available_permits() == self.remote.config().max_concurrent_requests
    }

    /// Room for requests that others answer.
    pub(super) fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }

    /// Room for one request on this side.
    fn room(&self, inner: &Inner, side: Side) -> Option<Permit> {
        let permits = match side {
            Side::Local => &inner.permits,
            Side::Remote => &self.permits,
        };
        admission::admit(permits, 1, side)
    }

    /// Every target's state, for operators.
    pub(super) fn statuses(&self) -> Vec<UpstreamHealth> {
        let now = Instant::now();
        let standings = self.ledger.standings();
        let spent_today = |upstream: &str| {
            let counts = |standing: &&Standing| {
                let budget = &*standing.name;
                standing.period == Period::Day && budget == daily_budget(upstream)
            };
            let standing = standings.iter().find(counts);
            standing.map_or(0, |standing| standing.used)
        };
        let of = |status: TargetStatus| {
            let upstream = self.remote.upstream(&status.upstream);
            UpstreamHealth {
                target: status.target.to_string(),
                upstream: status.upstream.to_string(),
                provider: status.provider.as_deref().map(str::to_owned),
                state: status.state.name(),
                sentence: status.sentence(),
                retry_after: status.retry_after(),
                inflight: status.inflight,
                limit: status.limit,
                ttft_p50: status.ttft_p50,
                ttft_p95: status.ttft_p95,
                spent_today_nusd: spent_today(&status.upstream),
                max_nusd_per_day: upstream.map_or(Some(0), |upstream| upstream.max_nusd_per_day),
                catalog_day: self.remote.catalogue().day(&status.upstream),
            }
        };
        self.remote.board().views(now).into_iter().map(of).collect()
    }

    fn model_of(&self, asked: Option<&str>) -> (String, Arc<ModelRoute>) {
        let asked = asked.unwrap_or_default();
        let named = self.models.get(asked).filter(|_| !asked.is_empty());
        let is_default = self.default_names.iter().any(|name| name == asked);
        let model = match named {
            Some(model) if !is_default => return (asked.to_owned(), Arc::clone(model)),
            // A name that nobody configured means the model served here, and never leads elsewhere.
            None if !is_default => None,
            _ => self.models.get(""),
        };
        let here = || {
            Arc::new(ModelRoute {
                local: true,
                hops: Vec::new(),
                aliases: Vec::new(),
            })
        };
        (String::new(), model.cloned().unwrap_or_else(here))
    }

    /// Whether a call is never answered here, so that nothing need be prepared for it.
    pub(super) fn is_for_others(&self, route: &RouteAsk) -> bool {
        let (_, model) = self.model_of(route.model.as_deref());
        let need = Need {
            policy: self.policy_of(route.key.as_deref()),
            asked: route.policy,
            may_widen: self.may_widen(route.key.as_deref()),
            ..Need::default()
        };
        let kept = self.route.rules.iter().any(|rule| rule.then == Then::Local);
        !model.local || (need.effective_policy() == Policy::RemoteOnly && !kept)
    }

    fn policy_of(&self, key: Option<&str>) -> Policy {
        let own = self.route.policies.policy_of(key);
        own.unwrap_or(self.route.policy)
    }

    fn may_widen(&self, key: Option<&str>) -> bool {
        self.route.policies.may_widen(key)
    }

    /// What budgets leave to a request at a place, and the one that does not cover its worst case.
    fn money(
        &self,
        request: &Request,
        to: &Destination,
        worst: Option<Amount>,
    ) -> (Option<u64>, Option<OverBudget>) {
        let key = request.route.key.clone();
        let spender = Spender {
            key: key.unwrap_or_else(|| ANONYMOUS.into()),
            tenant: Arc::clone(&request.tenant.0),
            model: Arc::clone(&to.model),
            provider: to.provider.clone(),
            upstream: Arc::clone(&to.upstream),
        };
        let over = worst.and_then(|worst| self.ledger.look(&spender, worst));
        (self.ledger.left(&spender).nusd, over.map(over_budget))
    }

    /// What becomes of what a target cannot do exactly.
    fn fidelity(&self, strict: bool) -> Fidelity {
        self.translation(strict).fidelity
    }

    fn translation(&self, strict: bool) -> &TranslateSettings {
        if strict {
            &self.strictly
        } else {
            &self.as_configured
        }
    }

    fn translate(
        &self,
        facts: &Facts,
        request: &Request,
        known: &Known,
        strict: bool,
    ) -> Result<Outgoing, remote::Ineligible> {
        remote::outgoing_known(&facts.target, request, self.translation(strict), known)
    }

    fn now_ms(&self) -> u64 {
        self.origin.elapsed().as_millis() as u64
    }

    fn wants_features(&self) -> bool {
        self.log.is_some() || self.calibration.is_some()
    }

    fn hardness(&self, features: &Features) -> Option<Hardness> {
        self.calibration.as_ref()?.score(features)
    }

    fn lock_sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_outputs(&self) -> MutexGuard<'_, OutputHistory> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_lateness(&self) -> MutexGuard<'_, Lateness> {
        self.lateness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_hysteresis(&self) -> MutexGuard<'_, HashMap<String, Hysteresis>> {
        self.hysteresis
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens that an answer is expected to have, by what answers on this caller's route came to.
    fn expected_tokens(&self, need: &Need, request: &Request) -> u32 {
        let key = request.route.key.as_deref().unwrap_or_default();
        let ratio = self.lock_outputs().ratio(key, &request.route.path);
        route::expected_tokens(need.max_new_tokens, ratio)
    }

    /// What this machine would take for a request.
    fn look_here(&self, local: &Local, need: &Need, expected: u32, view: &mut LocalView) {
        let snapshot = local.engine.snapshot();
        let engine = case::engine_view(&snapshot);
        let newcomer = case::newcomer(need, expected);
        let lengths = self.lock_outputs().lengths_of_all();
        view.stopped = local.engine.load().stopped;
        view.age_ms = snapshot.age(Instant::now()).as_millis() as u64;
        view.waiting = engine.waiting.len();
        view.running = engine.running.len();
        view.max_running = engine.max_running;
        view.kv_total = engine.kv_total;
        view.kv_free = engine.kv_free;
        let tokens = need.prompt_tokens as usize + expected as usize;
        view.kv_needed = engine.blocks(tokens);
        view.forecast = route::forecast(&engine, &newcomer, &lengths);
        view.lateness = Some(self.lock_lateness().factor());
    }

    /// Whether shown text is kept, because it may have to be continued.
    fn keeps_text(&self) -> bool {
        self.route.mid_stream == MidStream::Continue
    }

    /// Decides upon what is seen now; the model's state goes on from there.
    fn decide(&self, inner: &Inner, case: &mut Case) -> Decision {
        let now = self.now_ms();
        case.local.hysteresis = self.state_of(&case.name);
        if !route::stays(&case.need, &case.local, &self.terms, now) {
            case.look_elsewhere(inner, self);
        }
        let mut decision = self.decided(case, now);
        // Another request may have changed the state since: then it is looked at once more.
        if case.views.is_empty() && !route::stays(&case.need, &case.local, &self.terms, now) {
            case.look_elsewhere(inner, self);
            decision = self.decided(case, now);
        }
        case.upon = (case.local.clone(), now);
        decision
    }

    fn state_of(&self, model: &str) -> Hysteresis {
        let states = self.lock_hysteresis();
        states.get(model).copied().unwrap_or_default()
    }

    /// Reads the model's state, decides, and lets the state go on, under one lock.
    fn decided(&self, case: &mut Case, now: u64) -> Decision {
        let mut states = self.lock_hysteresis();
        let state = states.entry(case.name.clone()).or_default();
        case.local.hysteresis = *state;
        let decision = route::decide(&case.need, &case.local, &case.views, &self.terms, now);
        *state = decision.diverting_after;
        decision
    }

    /// Decides once more with this view of this machine; none unless an upstream takes the request.
    fn decide_again(&self, inner: &Inner, case: &mut Case, local: LocalView) -> Option<Decision> {
        case.look_away();
        case.look_elsewhere(inner, self);
        let now = self.now_ms();
        let before = std::mem::replace(&mut case.local, local);
        let decision = self.decided(case, now);
        let goes = decision.outcome == Outcome::Remote;
        if goes {
            case.upon = (case.local.clone(), now);
        } else {
            case.local = before;
        }
        goes.then_some(decision)
    }

    /// Decides once more about a request that has waited here for so long, and still waits.
    ///
    /// Whoever would come now would wait behind it, so that a newcomer's forecast is rather too long for it: what
    /// keeps a request here then would have kept it anyway.
    fn reconsider(&self, inner: &Inner, case: &mut Case, waited: Duration) -> Option<Decision> {
        let local = inner.local.as_ref()?;
        let mut view = case.local.clone();
        self.look_here(local, &case.need, case.expected_tokens, &mut view);
        // It is one of those who wait.
        view.waiting = view.waiting.max(1);
        // What has passed is certain: it is not multiplied by how late forecasts are.
        let waited = waited.as_millis() as f64 / view.lateness.unwrap_or(1.0);
        let waited = waited as u64;
        if let Some(forecast) = &mut view.forecast {
            forecast.ttft_ms = forecast.ttft_ms.saturating_add(waited);
        }
        self.decide_again(inner, case, view)
    }
}

/// The name of the budget that `max_usd_per_day` of an upstream is.
pub fn daily_budget(upstream: &str) -> String {
    format!("max_usd_per_day of upstream {upstream}")
}

/// A budget that does not suffice, in the words of routing.
fn over_budget(exceeded: Exceeded) -> OverBudget {
    OverBudget {
        then: match exceeded.on_exceed {
            ledger::OnExceed::Next => OnExceed::Next,
            ledger::OnExceed::Local => OnExceed::Local,
            ledger::OnExceed::Refuse => OnExceed::Refuse,
        },
        resets_after_ms: until_ms(&exceeded),
        text: exceeded.to_string(),
    }
}

/// Milliseconds until a budget begins anew.
fn until_ms(exceeded: &Exceeded) -> u64 {
    let wait = exceeded.resets_ms.saturating_sub(ledger::now_ms());
    u64::try_from(wait).unwrap_or(0)
}

/// Names settings: the same ones have the same name.
fn revision(route: &route::Config) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("{route:?}"));
    digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Answers a request, here or elsewhere.
///
/// Errors: what is wrong with it, or why nobody answers.
pub(super) async fn answer(
    inner: &Arc<Inner>,
    hybrid: &Arc<Hybrid>,
    request: Request,
    mut permit: Permit,
) -> Result<EventStream, Error> {
    let deadline = request.deadline;
    let note = request.note.clone();
    let asked = (
        request.route.clone(),
        request.accepted_at,
        request.accounted,
    );
    let opened = Case::open(inner, hybrid, request, permit.side());
    let opened = super::lifecycle::in_time(deadline, opened).await;
    let mut case = match opened.and_then(|case| case) {
        Ok(case) => case,
        Err(error) => {
            account::not_opened(inner, hybrid, asked, &error);
            return Err(error);
        }
    };
    let decision = hybrid.decide(inner, &mut case);
    let mut decision = room::wait(inner, hybrid, &mut case, decision).await;
    inner.metrics.count_decision(decision.reason.code());
    note.update(|note| *note = RouteNote::refused(decision.reason.clone()));
    let side = match &decision.outcome {
        Outcome::Local => Side::Local,
        Outcome::Remote => Side::Remote,
        Outcome::Refuse(refusal) => {
            let error = refused(refusal, &case);
            account::refused(inner, hybrid, case, &decision, &error);
            return Err(error);
        }
    };
    if permit.side() != side {
        match hybrid.room(inner, side) {
            Some(room) => permit = room,
            // There is room here already, and this machine would do as well.
            None if side == Side::Remote && decision.fallback_local => {
                decision.outcome = Outcome::Local;
                decision.reason = Reason::RemoteUnavailable;
            }
            None => {
                let error = Error::overloaded(inner.pace.expected_wait());
                account::refused(inner, hybrid, case, &decision, &error);
                return Err(error);
            }
        }
    }
    Ok(carrier::begin(inner, hybrid, case, decision, permit))
}

/// What the caller is told when nobody answers.
fn refused(refusal: &route::Refusal, case: &Case) -> Error {
    let text = refusal.text.clone();
    match refusal.kind {
        RefusalKind::Overloaded => {
            let wait = refusal.retry_after_ms.unwrap_or(1000);
            Error::overloaded(Duration::from_millis(wait.max(1000)))
        }
        RefusalKind::Unsupported | RefusalKind::TooLong => {
            let kind = match refusal.kind {
                RefusalKind::TooLong => Error::too_long(text),
                _ => Error::invalid(text),
            };
            case.refusal.clone().unwrap_or(kind)
        }
        RefusalKind::NoTarget => Error::no_target(text),
        RefusalKind::Budget => {
            Error::budget(text, refusal.retry_after_ms.map(Duration::from_millis))
        }
    }
}
