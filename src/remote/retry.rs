//! What to do after a failed attempt: the same again, the next target, wait, or give up.
//!
//! There is one such loop for a request, and no other retries anywhere. It is pure: it sends nothing and looks
//! at no clock. Nothing is repeated once the caller has seen text; a refusal of the request itself goes back to
//! the caller, and what an operator must mend is told in a sentence that names the upstream, never in the
//! upstream's own words.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cold_start::is_worth_waiting;
use super::parking::jitter;
use super::{Class, Fault, RetryConfig};
use crate::generation::{Error, ErrorKind};

/// How often a request that waits for an endpoint to wake looks again; looking sends nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// One target of a request's chain, as far as the loop cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The target.
    pub target: Arc<str>,
    /// Its upstream.
    pub upstream: Arc<str>,
    /// Which credential it uses; equal numbers are one credential.
    pub credential: usize,
    /// Who runs the model, if it is known beforehand.
    pub provider: Option<Arc<str>>,
    /// Its context in tokens.
    pub context_length: Option<u32>,
    /// Time that must be left for an attempt: its usual time to the first token, or the least there is.
    pub least_left: Duration,
    /// Classes of faults upon which it is taken, by their names; empty means any.
    pub on: BTreeSet<String>,
    /// The variable that holds its credential, as the settings name it.
    pub token_env: Option<Arc<str>>,
}

/// What one request allows.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Tokens of prompt and answer that must fit the context.
    pub tokens: u32,
    /// Fields that may be left out when a target turns out not to know them.
    pub may_drop: BTreeSet<&'static str>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The same target again, after a pause.
    Again {
        /// The pause.
        after: Duration,
    },
    /// The same target again, without this field.
    Without {
        /// The field's name.
        param: String,
    },
    /// This target of the chain, now.
    Hop {
        /// Its place.
        index: usize,
    },
    /// Nothing for a while, then this target of the chain.
    Wait {
        /// How long.
        time: Duration,
        /// Its place.
        then: usize,
    },
    /// The request has failed; [`Loop::error`] says how.
    GiveUp,
}

/// A target that did not answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// Its place in the chain.
    pub index: usize,
    /// Whether anything was sent; otherwise its state spoke against it.
    pub sent: bool,
    /// Why it did not.
    pub fault: Fault,
    /// Before this instant it need not be asked again.
    ready_at: Option<Instant>,
}

/// The attempts of one request.
#[derive(Debug)]
pub struct Loop {
    chain: Vec<Link>,
    config: RetryConfig,
    wait_max: Duration,
    terms: Terms,
    current: usize,
    tried: Vec<Tried>,
    waits: u32,
    dropped: bool,
    local_can: bool,
}

impl Loop {
    /// Begins at the chain's place `first`. `wait_max` is the longest hint that is waited for.
    ///
    /// Panics: later, when `first` is no place of the chain.
    pub fn new(
        chain: Vec<Link>,
        first: usize,
        config: RetryConfig,
        wait_max: Duration,
        terms: Terms,
    ) -> Self {
        Self {
            chain,
            config,
            wait_max,
            terms,
            current: first,
            tried: Vec::new(),
            waits: 0,
            dropped: false,
            local_can: false,
        }
    }

    /// The same where this machine can answer once nobody else does: then nothing is waited for.
    pub fn where_local_can(mut self, local_can: bool) -> Self {
        self.local_can = local_can;
        self
    }

    /// The first attempt, too, needs its time: what to do instead where too little of it is left for the current
    /// target; none where it may begin.
    pub fn too_late(&mut self, now: Instant, deadline: Instant, rand: f64) -> Option<Step> {
        let left = deadline.saturating_duration_since(now);
        if self.chain[self.current].least_left <= left {
            return None;
        }
        let why = Fault::unsent(Class::Deadline, "too little time is left for an answer");
        Some(self.passed_over(why, now, deadline, rand))
    }

    /// The board says when the target at this place may be asked again: what the caller is told of it, where the
    /// upstream itself named no time, or named a shorter one.
    pub fn told(&mut self, index: usize, retry_after: Duration) {
        let Some(target) = self.chain.get(index).map(|link| &link.target) else {
            return;
        };
        let there = |tried: &&mut Tried| {
            is_load(tried.fault.class)
                && self
                    .chain
                    .get(tried.index)
                    .is_some_and(|link| link.target == *target)
        };
        for tried in self.tried.iter_mut().filter(there) {
            let longer = tried.fault.retry_after.unwrap_or_default().max(retry_after);
            tried.fault.retry_after = Some(longer);
        }
    }

    /// The place of the target that is tried now.
    pub fn current(&self) -> usize {
        self.current
    }

    /// Every target that did not answer so far, in order.
    pub fn tried(&self) -> &[Tried] {
        &self.tried
    }

    /// Requests sent so far.
    pub fn attempts(&self) -> u32 {
        count(self.tried.iter().filter(|tried| tried.sent))
    }

    /// An attempt at the current target failed before the caller saw anything, or it was a
    /// [`Class::MidStream`].
    ///
    /// `spend` takes a retry out of an upstream's budget and says whether there was one; it is asked once for
    /// each way that is about to be taken. `rand` lies in \[0, 1).
    pub fn next(
        &mut self,
        fault: Fault,
        now: Instant,
        deadline: Instant,
        spend: &mut dyn FnMut(&str) -> bool,
        rand: f64,
    ) -> Step {
        let sent = fault.class != Class::LocalPressure;
        let class = fault.class;
        self.push(fault, sent, now);
        let left = deadline.saturating_duration_since(now);
        let step = match class {
            Class::MidStream | Class::ClientGone | Class::Deadline => None,
            Class::BadRequest => self.without(left, spend),
            Class::Transport | Class::ServerError if !self.is_poisoned() => self
                .again(self.full_jitter(rand), left, spend)
                .or_else(|| self.hop(left, spend))
                .or_else(|| self.wait(now, left, spend, rand)),
            Class::Transport | Class::ServerError => None,
            Class::Overloaded if self.last_hint().is_none() => self
                .again(self.equal_jitter(rand), left, spend)
                .or_else(|| self.hop(left, spend))
                .or_else(|| self.wait(now, left, spend, rand)),
            Class::ContextOverflow
            | Class::ToolCall
            | Class::SchemaViolation
            | Class::ContentFilter => self.hop(left, spend),
            Class::Timeout
            | Class::Overloaded
            | Class::RateLimited
            | Class::ColdStart
            | Class::Paused
            | Class::NotServed
            | Class::Unstreamed
            | Class::AuthFailed
            | Class::QuotaExhausted
            | Class::LocalPressure
            | Class::Misconfigured => self
                .hop(left, spend)
                .or_else(|| self.wait(now, left, spend, rand)),
        };
        self.take(step)
    }

    /// The current target was not asked, because its state or what it can do speaks against it.
    ///
    /// `why` says so in the words of a fault, with the time until it may be asked where that is known.
    pub fn passed_over(&mut self, why: Fault, now: Instant, deadline: Instant, rand: f64) -> Step {
        self.push(why, false, now);
        let left = deadline.saturating_duration_since(now);
        // Nothing was sent yet, or the retry is paid for already: moving on is free.
        let mut free = |_: &str| true;
        let step = self
            .hop(left, &mut free)
            .or_else(|| self.wait(now, left, &mut free, rand));
        self.take(step)
    }

    /// The fault that tells most about why the request failed, and where it was.
    ///
    /// A wrong request before what an operator must mend, before what time will mend; the first of equals. A
    /// target that was passed over for its operator to mend hides no other that only has too much to do.
    pub fn verdict(&self) -> Option<(&Link, &Fault)> {
        let any_load = self.tried.iter().any(|tried| is_load(tried.fault.class));
        let told = self
            .tried
            .iter()
            .filter(|tried| tried.sent || !any_load || is_load(tried.fault.class));
        let best = told.min_by_key(|tried| rank(tried.fault.class))?;
        Some((self.chain.get(best.index)?, &best.fault))
    }

    /// What the caller is told, with the earliest time at which another try may help.
    pub fn error(&self) -> Error {
        let Some((link, fault)) = self.verdict() else {
            return Error::overloaded(Duration::from_secs(1));
        };
        let mut told = fault.clone();
        if is_load(fault.class) {
            let loads = self.tried.iter().filter(|tried| is_load(tried.fault.class));
            told.retry_after = loads.filter_map(|tried| tried.fault.retry_after).min();
        }
        match (&link.token_env, told.class) {
            (Some(variable), Class::AuthFailed) => Error::generation(format!(
                "upstream `{}` refuses its credential; check the token in `{variable}`, and its permissions",
                link.upstream
            )),
            _ => caller_error(&told, &link.upstream),
        }
    }

    fn push(&mut self, fault: Fault, sent: bool, now: Instant) {
        let soon = matches!(fault.class, Class::RateLimited | Class::Overloaded);
        let hint = fault.retry_after.filter(|_| soon);
        // What it says now stands for what it said before.
        for before in &mut self.tried {
            if before.index == self.current {
                before.ready_at = None;
            }
        }
        self.tried.push(Tried {
            index: self.current,
            sent,
            fault,
            ready_at: hint.and_then(|hint| now.checked_add(hint)),
        });
    }

    fn take(&mut self, step: Option<Step>) -> Step {
        let step = step.unwrap_or(Step::GiveUp);
        match step {
            Step::Hop { index } => self.current = index,
            Step::Wait { then, .. } => self.current = then,
            Step::Again { .. } | Step::Without { .. } | Step::GiveUp => {}
        }
        step
    }

    fn last(&self) -> Option<&Fault> {
        self.tried.last().map(|tried| &tried.fault)
    }

    fn last_hint(&self) -> Option<Duration> {
        self.last().and_then(|fault| fault.retry_after)
    }

    /// Attempts that count, which waiting for an endpoint to wake does not.
    fn counted(&self) -> u32 {
        count(self.tried.iter().filter(|tried| counts(tried)))
    }

    fn at_target(&self, target: &str) -> u32 {
        let there = |tried: &&Tried| counts(tried) && &*self.chain[tried.index].target == target;
        count(self.tried.iter().filter(there))
    }

    fn seen(&self, class: Class) -> u32 {
        count(self.tried.iter().filter(|tried| tried.fault.class == class))
    }

    /// Whether two targets failed at this request in the way that a request does which no target survives. A
    /// gateway's 502 says nothing about the request.
    fn is_poisoned(&self) -> bool {
        let failed: BTreeSet<&str> = self
            .tried
            .iter()
            .filter(|tried| tried.fault.class == Class::ServerError)
            .filter(|tried| tried.fault.status != Some(502))
            .map(|tried| &*self.chain[tried.index].target)
            .collect();
        failed.len() >= 2
    }

    /// Whether another attempt at this place is within the counts and the time.
    fn has_room(&self, index: usize, after: Duration, left: Duration) -> bool {
        let link = &self.chain[index];
        self.counted() < self.config.max_attempts
            && self.at_target(&link.target) < self.config.max_per_target
            && after.saturating_add(link.least_left) <= left
    }

    fn again(
        &self,
        after: Duration,
        left: Duration,
        spend: &mut dyn FnMut(&str) -> bool,
    ) -> Option<Step> {
        (self.has_room(self.current, after, left) && spend(&self.chain[self.current].upstream))
            .then_some(Step::Again { after })
    }

    fn without(&mut self, left: Duration, spend: &mut dyn FnMut(&str) -> bool) -> Option<Step> {
        let param = self.last()?.unknown_field()?.to_owned();
        let may = !self.dropped
            && self.terms.may_drop.contains(&*param)
            && self.has_room(self.current, Duration::ZERO, left);
        if !may || !spend(&self.chain[self.current].upstream) {
            return None;
        }
        self.dropped = true;
        Some(Step::Without { param })
    }

    /// The first target of the chain that was not tried yet and may be upon the last fault.
    fn hop(&self, left: Duration, spend: &mut dyn FnMut(&str) -> bool) -> Option<Step> {
        let fault = self.last()?;
        let once = matches!(
            fault.class,
            Class::ContextOverflow | Class::ToolCall | Class::SchemaViolation
        );
        if once && self.seen(fault.class) > 1 {
            return None;
        }
        let targets: BTreeSet<&str> = self
            .tried
            .iter()
            .filter(|tried| tried.sent)
            .map(|tried| &*self.chain[tried.index].target)
            .collect();
        if targets.len() >= self.config.max_hops as usize {
            return None;
        }
        (0..self.chain.len())
            .filter(|index| self.may_hop(*index, fault))
            .filter(|index| self.has_room(*index, Duration::ZERO, left))
            .find(|index| self.pays(*index, spend))
            .map(|index| Step::Hop { index })
    }

    /// A hop is charged to the upstream that failed. Where the next one was not asked yet, it is taken whether or
    /// not that can pay: a first attempt adds nothing to the load of whoever failed.
    fn pays(&self, index: usize, spend: &mut dyn FnMut(&str) -> bool) -> bool {
        let to = &self.chain[index].upstream;
        let asked = |tried: &Tried| tried.sent && self.chain[tried.index].upstream == *to;
        let paid = spend(&self.chain[self.current].upstream);
        paid || !self.tried.iter().any(asked)
    }

    fn may_hop(&self, index: usize, fault: &Fault) -> bool {
        let (from, to) = (&self.chain[self.current], &self.chain[index]);
        let fresh = self
            .tried
            .iter()
            .all(|tried| self.chain[tried.index].target != to.target);
        let wanted = to.on.is_empty() && fault.class != Class::ContentFilter
            || to.on.contains(fault.class.name());
        let helps = match fault.class {
            Class::ContextOverflow => {
                let known = fault.context_length.or(from.context_length).unwrap_or(0);
                to.context_length
                    .is_some_and(|length| length > known && length >= self.terms.tokens)
            }
            Class::ToolCall => (&from.upstream, &from.provider) != (&to.upstream, &to.provider),
            _ => true,
        };
        fresh && wanted && helps && self.tried.iter().all(|tried| self.leaves_open(tried, to))
    }

    /// Whether one target's fault leaves another one worth trying: a credential that is refused is refused
    /// everywhere, and siblings share their account's limits.
    fn leaves_open(&self, tried: &Tried, to: &Link) -> bool {
        let from = &self.chain[tried.index];
        match tried.fault.class {
            Class::AuthFailed | Class::QuotaExhausted => from.credential != to.credential,
            Class::RateLimited => {
                from.credential != to.credential
                    || (&from.upstream, &from.provider) != (&to.upstream, &to.provider)
            }
            _ => true,
        }
    }

    /// With nowhere else to go: the target that is ready first, if that is soon.
    fn wait(
        &mut self,
        now: Instant,
        left: Duration,
        spend: &mut dyn FnMut(&str) -> bool,
        rand: f64,
    ) -> Option<Step> {
        let last = self.tried.last()?;
        if self.local_can {
            return None;
        }
        if last.fault.class == Class::ColdStart {
            let eta = last.fault.retry_after.unwrap_or(LOOK_AGAIN);
            let time = eta.min(LOOK_AGAIN);
            let then = last.index;
            let worth = is_worth_waiting(eta, left) && self.has_room(then, time, left);
            return worth.then_some(Step::Wait { time, then });
        }
        if self.waits >= self.config.max_attempts {
            return None;
        }
        let most = self.wait_max.min(left / 4);
        let ready = |tried: &&Tried| tried.ready_at.is_some();
        let soonest = self
            .tried
            .iter()
            .filter(ready)
            .min_by_key(|tried| tried.ready_at)?;
        let hint = soonest.ready_at?.saturating_duration_since(now);
        if hint > most {
            return None;
        }
        // Behind the jitter that its parking has, and spread once more.
        let time = hint + jitter(hint, 1.0) + jitter(hint, rand);
        let then = soonest.index;
        let room = self.has_room(then, time, left);
        if !room || !spend(&self.chain[then].upstream) {
            return None;
        }
        self.waits += 1;
        Some(Step::Wait { time, then })
    }

    /// `uniform(0, min(max, base × 2^n))`.
    fn full_jitter(&self, rand: f64) -> Duration {
        self.backoff().mul_f64(rand)
    }

    /// Half of it fixed, so that a target with too much to do is never asked at once.
    fn equal_jitter(&self, rand: f64) -> Duration {
        self.backoff().mul_f64(0.5 + rand / 2.0)
    }

    fn backoff(&self) -> Duration {
        let doubled = 2u32.saturating_pow(self.counted().saturating_sub(1));
        self.config
            .backoff_base
            .saturating_mul(doubled)
            .min(self.config.backoff_max)
    }
}

fn count(of: impl Iterator) -> u32 {
    u32::try_from(of.count()).unwrap_or(u32::MAX)
}

fn counts(tried: &Tried) -> bool {
    tried.sent && tried.fault.class != Class::ColdStart
}

/// Whether time alone mends it.
fn is_load(class: Class) -> bool {
    matches!(
        class,
        Class::RateLimited | Class::Overloaded | Class::ColdStart | Class::LocalPressure
    )
}

/// How much a class tells a caller, least first.
fn rank(class: Class) -> u8 {
    match class {
        Class::ClientGone => 0,
        Class::Deadline => 1,
        Class::MidStream => 2,
        Class::BadRequest => 3,
        Class::ContextOverflow => 4,
        Class::ContentFilter => 5,
        Class::ToolCall => 6,
        Class::SchemaViolation => 7,
        Class::AuthFailed => 8,
        Class::QuotaExhausted => 9,
        Class::Paused => 10,
        Class::Misconfigured => 11,
        Class::NotServed => 12,
        Class::Unstreamed => 13,
        Class::RateLimited => 14,
        Class::ColdStart => 15,
        Class::Overloaded => 16,
        Class::Timeout => 17,
        Class::ServerError => 18,
        Class::Transport => 19,
        Class::LocalPressure => 20,
    }
}

/// What the caller of a request is told of a fault.
///
/// What time mends is an overload with whole seconds to wait, at least one. What an operator must mend names the
/// upstream and the remedy. The upstream's own message is passed on only where it speaks of the request.
pub fn caller_error(fault: &Fault, upstream: &str) -> Error {
    let overloaded = |what: &str| {
        let retry_after = whole_seconds(fault.retry_after.unwrap_or(Duration::ZERO));
        Error {
            kind: ErrorKind::Overloaded { retry_after },
            message: format!(
                "Model is overloaded: upstream `{upstream}` {what}; try again in {} s",
                retry_after.as_secs()
            ),
        }
    };
    let failed = |what: &str| Error::generation(format!("upstream `{upstream}` {what}"));
    match fault.class {
        Class::RateLimited => overloaded("limits requests"),
        Class::Overloaded => overloaded("has too much to do"),
        Class::ColdStart => overloaded("is waking up"),
        Class::LocalPressure => overloaded("cannot be reached over another connection just now"),
        Class::BadRequest => {
            let about = fault.param.as_ref().map(|param| format!(" (`{param}`)"));
            Error::invalid(format!(
                "upstream `{upstream}` refuses the request{}: {}",
                about.unwrap_or_default(),
                fault.message
            ))
        }
        Class::ContextOverflow => Error::too_long(match fault.context_length {
            Some(limit) => format!(
                "prompt and answer do not fit the {limit} tokens of context at upstream `{upstream}`"
            ),
            None => format!("prompt and answer do not fit the context at upstream `{upstream}`"),
        }),
        Class::ContentFilter => failed("does not say it: upstream content filter"),
        Class::Timeout => failed("did not answer in time"),
        Class::ServerError => failed("failed"),
        Class::Transport => failed("cannot be reached"),
        Class::ToolCall => failed("could not form a tool call"),
        Class::SchemaViolation => failed("gave an answer that does not match the schema"),
        Class::Paused => failed("is paused; resume the endpoint to use it"),
        Class::NotServed => failed(
            "does not serve the model; check the target's model and provider, and that the provider is enabled there",
        ),
        Class::AuthFailed => failed(
            "refuses its credential; check the token in the variable that `token_env` names, and its permissions",
        ),
        Class::QuotaExhausted => failed(
            "has no credit left for its credential; buy credit or raise the spending limit there",
        ),
        Class::Misconfigured | Class::Unstreamed => {
            failed("cannot be used as configured; GET /health/upstreams says why")
        }
        Class::MidStream => Error::incomplete(),
        Class::Deadline => Error::deadline_exceeded(),
        Class::ClientGone => Error::generation("the caller left"),
    }
}

/// Whole seconds, rounded up, at least one.
pub fn whole_seconds(time: Duration) -> Duration {
    let up = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    Duration::from_secs(up.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn link(name: &str, credential: usize) -> Link {
        Link {
            target: name.into(),
            upstream: format!("up-{name}").into(),
            credential,
            provider: None,
            context_length: Some(8192),
            least_left: 2 * S,
            on: BTreeSet::new(),
            token_env: None,
        }
    }

    fn sibling(name: &str, of: &Link) -> Link {
        Link {
            target: name.into(),
            ..of.clone()
        }
    }

    fn looped(chain: Vec<Link>) -> Loop {
        Loop::new(chain, 0, RetryConfig::default(), 5 * S, Terms::default())
    }

    fn after(run: &mut Loop, class: Class) -> Step {
        after_fault(run, Fault::new(class, "it said"))
    }

    fn after_fault(run: &mut Loop, fault: Fault) -> Step {
        let now = Instant::now();
        run.next(fault, now, now + 600 * S, &mut |_| true, 0.5)
    }

    fn hinted(class: Class, hint: Duration) -> Fault {
        Fault {
            retry_after: Some(hint),
            ..Fault::new(class, "it said")
        }
    }

    /// For each class: the first step with another target to go to, and the first step without one.
    #[test]
    fn every_row_of_the_table_of_classes() {
        let hop = Step::Hop { index: 1 };
        let quarter = Step::Again {
            after: Duration::from_millis(125),
        };
        let half = Step::Again {
            after: Duration::from_micros(187_500),
        };
        let look = Step::Wait {
            time: 5 * S,
            then: 0,
        };
        for class in Class::ALL {
            let (with_other, alone) = match class {
                Class::Transport | Class::ServerError => (quarter.clone(), quarter.clone()),
                Class::Overloaded => (half.clone(), half.clone()),
                Class::Timeout
                | Class::RateLimited
                | Class::Paused
                | Class::NotServed
                | Class::Unstreamed
                | Class::AuthFailed
                | Class::QuotaExhausted
                | Class::ToolCall
                | Class::SchemaViolation
                | Class::LocalPressure
                | Class::Misconfigured => (hop.clone(), Step::GiveUp),
                Class::ColdStart => (hop.clone(), look.clone()),
                Class::BadRequest
                | Class::ContextOverflow
                | Class::ContentFilter
                | Class::MidStream
                | Class::ClientGone
                | Class::Deadline => (Step::GiveUp, Step::GiveUp),
            };
            let mut run = looped(vec![link("a", 0), link("b", 1)]);
            assert_eq!(after(&mut run, class), with_other, "{class:?} with another");
            let mut run = looped(vec![link("a", 0)]);
            assert_eq!(after(&mut run, class), alone, "{class:?} alone");
        }
    }

    #[test]
    fn one_retry_on_the_same_target_then_the_next_then_no_more() {
        let mut run = looped(vec![link("a", 0), link("b", 1), link("c", 2)]);
        assert!(matches!(
            after(&mut run, Class::Transport),
            Step::Again { .. }
        ));
        assert_eq!(after(&mut run, Class::Transport), Step::Hop { index: 1 });
        assert_eq!(after(&mut run, Class::Transport), Step::GiveUp);
        assert_eq!(run.attempts(), 3);
    }

    #[test]
    fn a_request_that_fails_two_targets_stops() {
        let mut run = looped(vec![link("a", 0), link("b", 1), link("c", 2)]);
        run.config.max_attempts = 9;
        assert!(matches!(
            after(&mut run, Class::ServerError),
            Step::Again { .. }
        ));
        assert_eq!(after(&mut run, Class::ServerError), Step::Hop { index: 1 });
        assert_eq!(after(&mut run, Class::ServerError), Step::GiveUp);
        let gateway = Fault {
            status: Some(502),
            ..Fault::new(Class::ServerError, "Bad Gateway")
        };
        let mut run = looped(vec![link("a", 0), link("b", 1), link("c", 2)]);
        run.config.max_attempts = 9;
        for _ in 0..3 {
            assert_ne!(after_fault(&mut run, gateway.clone()), Step::GiveUp);
        }
    }

    #[test]
    fn a_refused_credential_is_not_tried_elsewhere_and_siblings_share_a_limit() {
        let (a, other) = (link("a", 0), link("c", 1));
        let chain = vec![a.clone(), sibling("b", &a), other];
        for class in [Class::AuthFailed, Class::QuotaExhausted, Class::RateLimited] {
            let mut run = looped(chain.clone());
            assert_eq!(after(&mut run, class), Step::Hop { index: 2 }, "{class:?}");
        }
        let mut elsewhere = sibling("b", &a);
        elsewhere.provider = Some("groq".into());
        let mut run = looped(vec![a.clone(), elsewhere.clone()]);
        assert_eq!(after(&mut run, Class::RateLimited), Step::Hop { index: 1 });
        let mut run = looped(vec![a, elsewhere]);
        assert_eq!(after(&mut run, Class::AuthFailed), Step::GiveUp);
    }

    #[test]
    fn a_short_hint_is_waited_for_only_where_nothing_else_is_left() {
        let mut run = looped(vec![link("a", 0), link("b", 1)]);
        let step = after_fault(&mut run, hinted(Class::RateLimited, 2 * S));
        assert_eq!(step, Step::Hop { index: 1 });
        let step = after_fault(&mut run, hinted(Class::RateLimited, 60 * S));
        let Step::Wait { time, then: 0 } = step else {
            panic!("the first is ready first: {step:?}");
        };
        assert!(time >= 2 * S && time < 3 * S);
        let mut run = looped(vec![link("a", 0)]);
        let step = after_fault(&mut run, hinted(Class::RateLimited, 6 * S));
        assert_eq!(step, Step::GiveUp);
        assert_eq!(
            run.error().kind,
            ErrorKind::Overloaded { retry_after: 6 * S }
        );
        let now = Instant::now();
        let mut run = looped(vec![link("a", 0)]);
        let hint = hinted(Class::Overloaded, 4 * S);
        let step = run.next(hint, now, now + 12 * S, &mut |_| true, 0.0);
        assert_eq!(step, Step::GiveUp, "more than a quarter of what is left");
    }

    #[test]
    fn exceptions_of_a_wrong_request_are_made_once() {
        let (small, mut large) = (link("a", 0), link("c", 1));
        large.context_length = Some(100_000);
        let chain = vec![small.clone(), link("b", 1), large];
        let mut run = looped(chain);
        assert_eq!(
            after(&mut run, Class::ContextOverflow),
            Step::Hop { index: 2 }
        );
        assert_eq!(after(&mut run, Class::ContextOverflow), Step::GiveUp);

        let mut run = looped(vec![small.clone(), sibling("b", &small), link("c", 0)]);
        assert_eq!(after(&mut run, Class::ToolCall), Step::Hop { index: 2 });
        assert_eq!(after(&mut run, Class::ToolCall), Step::GiveUp);

        let unknown = Fault {
            param: Some("min_p".into()),
            ..Fault::new(Class::BadRequest, "Unsupported parameter: min_p")
        };
        let mut strict = looped(vec![small.clone(), link("b", 1)]);
        assert_eq!(after_fault(&mut strict, unknown.clone()), Step::GiveUp);
        let mut lenient = looped(vec![small]);
        lenient.terms.may_drop.insert("min_p");
        let param = "min_p".to_owned();
        assert_eq!(
            after_fault(&mut lenient, unknown.clone()),
            Step::Without { param }
        );
        assert_eq!(after_fault(&mut lenient, unknown), Step::GiveUp);
    }

    #[test]
    fn hops_are_taken_on_their_conditions() {
        let mut picky = link("b", 1);
        picky.on.insert("content_filter".to_owned());
        let mut run = looped(vec![link("a", 0), picky.clone(), link("c", 2)]);
        assert_eq!(after(&mut run, Class::Timeout), Step::Hop { index: 2 });
        let mut run = looped(vec![link("a", 0), picky, link("c", 2)]);
        assert_eq!(
            after(&mut run, Class::ContentFilter),
            Step::Hop { index: 1 }
        );
    }

    #[test]
    fn without_budget_or_time_it_fails_fast() {
        let now = Instant::now();
        let fault = || Fault::new(Class::Transport, "reset");
        let mut run = looped(vec![link("a", 0), link("b", 1)]);
        let step = run.next(fault(), now, now + S, &mut |_| true, 0.5);
        assert_eq!(step, Step::GiveUp);
        let a = link("a", 0);
        let mut run = looped(vec![a.clone(), sibling("b", &a)]);
        let step = run.next(fault(), now, now + 60 * S, &mut |_| false, 0.5);
        assert_eq!(step, Step::GiveUp);
        let mut run = looped(vec![link("a", 0), link("b", 1)]);
        assert!(run.too_late(now, now + 2 * S, 0.5).is_none());
        assert_eq!(run.too_late(now, now + S, 0.5), Some(Step::GiveUp));
        assert_eq!(run.error().kind, ErrorKind::DeadlineExceeded);
        let mut quick = link("b", 1);
        quick.least_left = S / 2;
        let mut run = looped(vec![link("a", 0), quick]);
        let step = run.too_late(now, now + S, 0.5);
        assert_eq!(step, Some(Step::Hop { index: 1 }));
        assert_eq!(run.attempts(), 0);
    }

    #[test]
    fn a_hop_is_charged_once_to_whoever_failed_and_taken_even_if_that_cannot_pay() {
        let now = Instant::now();
        let mut run = looped(vec![link("a", 0), link("b", 1), link("c", 2)]);
        let mut charged = Vec::new();
        let mut spend = |upstream: &str| {
            charged.push(upstream.to_owned());
            false
        };
        let mut next = |run: &mut Loop, class| {
            run.next(Fault::new(class, ""), now, now + 60 * S, &mut spend, 0.5)
        };
        assert_eq!(next(&mut run, Class::Timeout), Step::Hop { index: 1 });
        assert_eq!(next(&mut run, Class::Timeout), Step::Hop { index: 2 });
        assert_eq!(charged, ["up-a", "up-b"]);
    }

    #[test]
    fn nothing_is_waited_for_where_this_machine_can_answer() {
        for class in [Class::ColdStart, Class::RateLimited] {
            let mut run = looped(vec![link("a", 0)]);
            let step = after_fault(&mut run, hinted(class, 2 * S));
            assert!(matches!(step, Step::Wait { .. }), "{class:?}");
            let mut run = looped(vec![link("a", 0)]).where_local_can(true);
            assert_eq!(after_fault(&mut run, hinted(class, 2 * S)), Step::GiveUp);
        }
    }

    #[test]
    fn the_boards_time_and_the_variables_name_are_told() {
        let mut run = looped(vec![link("a", 0)]);
        assert_eq!(after(&mut run, Class::RateLimited), Step::GiveUp);
        run.told(0, 5 * S);
        let retry_after = 5 * S;
        assert_eq!(run.error().kind, ErrorKind::Overloaded { retry_after });
        run.told(0, S);
        assert_eq!(run.error().kind, ErrorKind::Overloaded { retry_after });
        let mut named = link("a", 0);
        named.token_env = Some("THE_TOKEN".into());
        let mut run = looped(vec![named]);
        after(&mut run, Class::AuthFailed);
        assert!(run.error().message.contains("`THE_TOKEN`"));
    }

    #[test]
    fn a_sleeping_endpoint_is_waited_for_as_long_as_the_deadline_allows() {
        let start = Instant::now();
        let deadline = start + 120 * S;
        let mut run = looped(vec![link("a", 0)]);
        let mut now = start;
        loop {
            let eta = (start + 100 * S).saturating_duration_since(now).max(S);
            let step = run.next(
                hinted(Class::ColdStart, eta),
                now,
                deadline,
                &mut |_| true,
                0.5,
            );
            match step {
                Step::Wait { time, then: 0 } => now += time,
                step => {
                    assert_eq!(step, Step::GiveUp);
                    break;
                }
            }
        }
        assert!(now > start + 110 * S && now < deadline);
        let mut run = looped(vec![link("a", 0)]);
        let step = after_fault(&mut run, hinted(Class::ColdStart, 700 * S));
        assert_eq!(step, Step::GiveUp);
        let retry_after = 700 * S;
        assert_eq!(run.error().kind, ErrorKind::Overloaded { retry_after });
    }

    #[test]
    fn the_most_telling_fault_is_told() {
        let order = [
            Class::BadRequest,
            Class::AuthFailed,
            Class::QuotaExhausted,
            Class::NotServed,
            Class::RateLimited,
            Class::Timeout,
            Class::ServerError,
            Class::Transport,
        ];
        for (place, better) in order.into_iter().enumerate() {
            for worse in &order[place + 1..] {
                for pair in [[better, *worse], [*worse, better]] {
                    let mut run = looped(vec![link("a", 0), link("b", 1)]);
                    for class in pair {
                        after(&mut run, class);
                    }
                    let told = run.verdict().map(|(_, fault)| fault.class);
                    assert_eq!(told, Some(better), "{pair:?}");
                    assert_eq!(run.tried().len(), 2);
                }
            }
        }
    }

    #[test]
    fn a_target_that_was_waited_for_is_waited_for_as_long_as_it_says_now() {
        let now = Instant::now();
        let mut run = looped(vec![link("a", 0)]);
        let parked = || Fault {
            retry_after: Some(S),
            ..Fault::unsent(Class::RateLimited, "parked")
        };
        for round in 0..3 {
            let step = run.passed_over(parked(), now + 2 * round * S, now + 60 * S, 0.0);
            assert!(
                matches!(step, Step::Wait { time, then: 0 } if time >= S),
                "{round}: {step:?}"
            );
        }
    }

    #[test]
    fn a_target_passed_over_hides_no_load() {
        let now = Instant::now();
        let mut run = looped(vec![link("a", 0), link("b", 1)]);
        let refused = Fault::new(Class::AuthFailed, "");
        let step = run.passed_over(refused, now, now + 60 * S, 0.5);
        assert_eq!(step, Step::Hop { index: 1 });
        after_fault(&mut run, hinted(Class::RateLimited, 42 * S));
        assert_eq!(run.attempts(), 1);
        let retry_after = 42 * S;
        assert_eq!(run.error().kind, ErrorKind::Overloaded { retry_after });
    }

    #[test]
    fn callers_read_a_kind_and_a_sentence_and_no_upstream_body() {
        let secret = "You are hf_abcdefghij";
        for class in Class::ALL {
            let fault = Fault {
                retry_after: Some(Duration::from_millis(2100)),
                ..Fault::new(class, secret)
            };
            let error = caller_error(&fault, "router");
            let kind = match class {
                Class::RateLimited
                | Class::Overloaded
                | Class::ColdStart
                | Class::LocalPressure => ErrorKind::Overloaded { retry_after: 3 * S },
                Class::BadRequest => ErrorKind::Invalid,
                Class::ContextOverflow => ErrorKind::TooLong,
                Class::MidStream => ErrorKind::Incomplete,
                Class::Deadline => ErrorKind::DeadlineExceeded,
                _ => ErrorKind::Generation,
            };
            assert_eq!(error.kind, kind, "{class:?}");
            assert_eq!(error.message.contains(secret), class == Class::BadRequest);
            let ours = matches!(
                class,
                Class::MidStream | Class::Deadline | Class::ClientGone
            );
            assert_eq!(error.message.contains("`router`"), !ours, "{class:?}");
        }
        let unhinted = caller_error(&Fault::new(Class::RateLimited, ""), "router");
        assert_eq!(unhinted.kind, ErrorKind::Overloaded { retry_after: S });
    }

    proptest! {
        #[test]
        fn counts_time_and_budget_are_kept(
            faults in prop::collection::vec(
                (0usize..20, prop::option::of(0u64..8_000), any::<bool>(), 0.0..1.0f64), 1..60),
            targets in 1usize..6,
            seconds in 1u64..700,
            budget in 0u32..6,
        ) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let chain: Vec<_> = names[..targets].iter().enumerate().map(|(i, n)| link(n, i % 3)).collect();
            let mut run = looped(chain.clone());
            let mut now = Instant::now();
            let deadline = now + Duration::from_secs(seconds);
            let mut money = budget;
            let mut counted = vec![0u32; targets];
            for (class, hint, sent, rand) in faults {
                let class = Class::ALL[class];
                let fault = Fault { retry_after: hint.map(Duration::from_millis), ..Fault::new(class, "unknown") };
                let mut spend = |_: &str| { let some = money > 0; money -= u32::from(some); some };
                let at = run.current();
                let step = if sent {
                    counted[at] += u32::from(!matches!(class, Class::ColdStart | Class::LocalPressure));
                    run.next(fault, now, deadline, &mut spend, rand)
                } else {
                    run.passed_over(fault, now, deadline, rand)
                };
                match step {
                    Step::GiveUp => break,
                    Step::Again { after } => now += after,
                    Step::Wait { time, .. } => now += time,
                    Step::Hop { .. } | Step::Without { .. } => {}
                }
                prop_assert!(counted.iter().sum::<u32>() < 3, "room for the next");
                prop_assert!(counted[run.current()] < 2);
                prop_assert!(now + 2 * S <= deadline);
            }
            prop_assert!(counted.iter().sum::<u32>() <= 3);
            prop_assert!(!run.error().message.is_empty());
        }
    }
}
