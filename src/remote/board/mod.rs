//! The board: what is known of every target's health, and the one place where attempts report to.
//!
//! It puts the small state machines together by what they stand for: a breaker and a limit for each target, a
//! breaker for each upstream's network, a bar for each credential that is refused or has no money, a parking
//! for each credential at a provider. An attempt begins with a [`Ticket`] and reports through it exactly once;
//! a ticket that is dropped is a caller who left, which counts against nobody. A request for which there is no
//! room may wait for it with a [`Turn`]. The board sends nothing, reads no file and looks at no clock.

mod inner;
mod queue;
mod saved;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use tokio::sync::Notify;

use super::breaker::{Breaker, Permit};
use super::latency::Latency;
use super::retry::Link;
use super::{Adaptive, Class, Config, Fault, ProviderChoice, Secret};
use inner::{Bar, Inner, Target, Upstream, Why, begin_trial, fingerprint};
use queue::Queue;
pub use queue::Waiter;
use status::{SATURATED, not_now};

pub use saved::Saved;
pub use status::{NotNow, TargetState, TargetStatus};

/// How often a target that an operator must mend is tried, in case it was mended.
const RETRIAL: Duration = Duration::from_secs(600);
/// What is wrong with an endpoint that its control plane says failed.
const START_FAILED: &str = "its control plane says that the endpoint failed; look at its logs";
/// The longest that a state waits for a month to begin.
const MONTH: Duration = Duration::from_secs(31 * 86_400);

/// What an attempt is expected to need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expected {
    /// Tokens of the prompt, at most.
    pub prompt_tokens: u32,
    /// Tokens of the answer, at most.
    pub output_tokens: u32,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With a whole answer.
    Answered {
        /// Tokens written.
        output_tokens: u32,
        /// Tokens read and written, if the upstream counted them.
        used_tokens: Option<u32>,
    },
    /// Without one.
    Failed {
        /// How.
        class: Class,
        /// When the upstream wants to be asked again.
        retry_after: Option<Duration>,
    },
}

impl Outcome {
    /// Of an attempt that failed.
    pub fn failed(fault: &Fault) -> Self {
        Self::Failed {
            class: fault.class,
            retry_after: fault.retry_after,
        }
    }
}

/// What a control plane says of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// It answers.
    Running,
    /// It sleeps; a request wakes it.
    ScaledToZero,
    /// It is about to answer.
    Waking,
    /// It is paused.
    Paused,
    /// It will not answer before somebody mends it.
    Failed,
}

/// The board. Clones share it.
#[derive(Debug, Clone)]
pub struct Board(Arc<Mutex<Inner>>);

/// What a request wants of a target.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who shall answer: limits are counted by credential and provider. None means the target's usual one.
    pub provider: Option<&'a Arc<str>>,
    /// Whether the request could be answered elsewhere, here included, should this attempt fail; only such requests
    /// are trials of a breaker.
    pub has_alternative: bool,
    /// What it needs.
    pub expected: Expected,
    /// Its place among those who wait for room; it is given up where the attempt begins.
    pub turn: Option<&'a Turn>,
}

/// A request that waits for room. Dropping it leaves the queue.
#[derive(Debug)]
pub struct Turn {
    board: Board,
    id: u64,
    bell: Arc<Notify>,
}

/// One attempt under way. Dropping it unfinished means that the caller left.
#[derive(Debug)]
#[must_use = "an attempt reports through its ticket"]
pub struct Ticket {
    board: Board,
    target: usize,
    account: usize,
    began: Instant,
    expected: Expected,
    permits: Option<(Permit, Permit)>,
    first_token: Option<Instant>,
    slow: bool,
    waker: bool,
    /// Whether the attempt is the trial of a bar: the target's, the upstream's, the credential's.
    trials: [bool; 3],
    saturated: bool,
}

impl Board {
    /// A board on which nothing is known; targets of upstreams that are not there are left out. `seed` feeds the jitter; `now` and `wall` are the same moment.
    pub fn new(config: &Config, seed: u64, now: Instant, wall: SystemTime) -> Self {
        let mut inner = Inner {
            targets: Vec::new(),
            names: BTreeMap::new(),
            upstreams: Vec::new(),
            credentials: Vec::new(),
            accounts: Vec::new(),
            queue: Queue::default(),
            breaker: config.breaker,
            parking: config.parking,
            retry: config.retry,
            clocks: config.clocks,
            hold_factor: config.adaptive.hold_factor,
            random: ChaCha8Rng::seed_from_u64(seed),
            origin: now,
            origin_wall: wall,
        };
        for upstream in &config.upstreams {
            inner.add_upstream(upstream, config, now);
        }
        for target in &config.targets {
            let found = inner
                .upstreams
                .iter()
                .position(|up| up.name == target.upstream);
            let Some(upstream) = found else { continue };
            let provider = match &target.provider {
                ProviderChoice::Pinned(provider) => Some(provider.clone()),
                ProviderChoice::Whoever => inner.upstreams[upstream].provider.clone(),
                ProviderChoice::Policy(_) | ProviderChoice::Auto(_) => None,
            };
            let account = inner.account(upstream, provider.as_ref(), now);
            let known = config.upstreams[upstream].max_concurrency;
            inner.names.insert(target.name.clone(), inner.targets.len());
            inner.targets.push(Target {
                name: target.name.clone(),
                upstream,
                model: target.model.clone(),
                provider,
                context_length: target.context_length,
                account,
                breaker: Breaker::new(config.breaker, now),
                adaptive: Adaptive::new(config.adaptive, known),
                latency: Latency::new(now),
                inflight: 0,
                bar: None,
                schema_violations: 0,
            });
        }
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Begins an attempt.
    ///
    /// Errors: why the target may not be asked now. Nothing has changed then.
    pub fn begin(&self, target: &str, now: Instant, ask: Ask<'_>) -> Result<Ticket, NotNow> {
        let Ask {
            provider,
            has_alternative,
            expected,
            turn,
        } = ask;
        let mut inner = self.lock();
        let place = inner.place(target).ok_or(NotNow::Unknown)?;
        let upstream = inner.targets[place].upstream;
        let account = match provider {
            Some(provider) => inner.account(upstream, Some(provider), now),
            None => inner.targets[place].account,
        };
        inner.give_up_waking(place, now);
        let called = turn.is_some_and(|turn| inner.queue.is_called(turn.id, place));
        if let Err(obstacle) = inner.obstacle((place, account), now, expected, called) {
            if matches!(obstacle, NotNow::Paused | NotNow::Waking(_)) {
                inner.upstreams[upstream].wanted = true;
            }
            return Err(obstacle);
        }
        inner.would_admit(place, now, has_alternative)?;
        let refused = |refused| not_now(refused, now);
        let whole = inner.upstreams[upstream]
            .breaker
            .admit(now, has_alternative);
        let whole = whole.map_err(refused)?;
        let own = match inner.targets[place].breaker.admit(now, has_alternative) {
            Ok(own) => own,
            Err(error) => {
                inner.upstreams[upstream].breaker.abandon(&whole);
                return Err(refused(error));
            }
        };
        let ticket = self.issue(&mut inner, (place, account), (own, whole), now, expected);
        inner.serve(turn);
        Ok(ticket)
    }

    /// Waits for room at any of these targets: keys share it, and of a key's requests the earliest deadline comes
    /// first. None where as many wait as may.
    pub fn queue<T: AsRef<str>>(&self, targets: &[T], waiter: Waiter) -> Option<Turn> {
        let mut inner = self.lock();
        let most = inner.parking.max_waiting;
        let places = targets
            .iter()
            .filter_map(|target| inner.place(target.as_ref()));
        let places = places.collect();
        let (id, bell) = inner.queue.join(places, waiter, most)?;
        inner.call();
        Some(Turn {
            board: self.clone(),
            id,
            bell,
        })
    }

    /// Begins an attempt although breakers are open, because no target of the model is left: one in
    /// `panic_interval` for all of them together.
    ///
    /// Errors: why none may be asked; the time to wait is the shortest of theirs. [`NotNow::HalfOpen`] where
    /// a target is not broken, so that [`Board::begin`] is the way.
    pub fn trial(
        &self,
        targets: &[Arc<str>],
        now: Instant,
        expected: Expected,
        turn: Option<&Turn>,
    ) -> Result<Ticket, NotNow> {
        let mut inner = self.lock();
        let mut candidates = Vec::new();
        let mut least: Option<Duration> = None;
        let mut other = NotNow::Unknown;
        for place in targets.iter().filter_map(|name| inner.place(name)) {
            let account = inner.targets[place].account;
            match inner.obstacle((place, account), now, expected, false) {
                Ok(()) if inner.is_closed(place, now) => return Err(NotNow::HalfOpen),
                Ok(()) => candidates.push(place),
                Err(error) => other = error,
            }
            if let Err(NotNow::Open(wait)) = inner.would_admit(place, now, true) {
                least = Some(least.map_or(wait, |least| least.min(wait)));
            }
        }
        let Some(place) = candidates.first().copied() else {
            return Err(other);
        };
        let places = targets.iter().filter_map(|name| inner.place(name));
        let due = places.into_iter().all(|place| {
            let target = &inner.targets[place];
            target.breaker.would_try(now) && inner.upstreams[target.upstream].breaker.would_try(now)
        });
        let later = || NotNow::Open(least.unwrap_or(SATURATED).min(inner.breaker.panic_interval));
        if !due {
            return Err(later());
        }
        let upstream = inner.targets[place].upstream;
        let whole = inner.upstreams[upstream].breaker.trial(now);
        let own = inner.targets[place].breaker.trial(now);
        match own.zip(whole) {
            Some(permits) => {
                let account = inner.targets[place].account;
                let ticket = self.issue(&mut inner, (place, account), permits, now, expected);
                inner.serve(turn);
                Ok(ticket)
            }
            None => Err(NotNow::HalfOpen),
        }
    }

    /// Every target as it stands, in the order of the settings.
    pub fn views(&self, now: Instant) -> Vec<TargetStatus> {
        self.views_for(now, None)
    }

    /// The same as a request sees it that waits, or does not.
    pub fn views_for(&self, now: Instant, turn: Option<&Turn>) -> Vec<TargetStatus> {
        let mut inner = self.lock();
        (0..inner.targets.len())
            .map(|place| {
                let called = turn.is_some_and(|turn| inner.queue.is_called(turn.id, place));
                inner.give_up_waking(place, now);
                inner.view(place, now, called)
            })
            .collect()
    }

    /// One target as it stands.
    pub fn view(&self, target: &str, now: Instant) -> Option<TargetStatus> {
        let inner = self.lock();
        let place = inner.place(target)?;
        Some(inner.view(place, now, false))
    }

    /// A target as the retry loop sees it; `on` is the chain's condition. None where there is no such target.
    pub fn link(&self, target: &str, on: BTreeSet<String>) -> Option<Link> {
        let inner = self.lock();
        let target = &inner.targets[inner.place(target)?];
        let upstream = &inner.upstreams[target.upstream];
        Some(Link {
            target: target.name.clone(),
            upstream: upstream.name.clone(),
            credential: upstream.credential,
            provider: target.provider.clone(),
            context_length: target.context_length,
            least_left: inner.clocks.least_left.max(target.latency.p50(0)),
            on,
            token_env: upstream.token_env.as_deref().map(Arc::from),
        })
    }

    /// A first attempt goes to an upstream: its share of retries and of hedges is paid in.
    pub fn first_attempt(&self, upstream: &str, now: Instant) {
        self.with_upstream(upstream, |upstream| {
            upstream.retries.deposit(now);
            upstream.hedges.deposit();
        });
    }

    /// Takes a retry out of an upstream's budget; false when there is none.
    pub fn may_retry(&self, upstream: &str, now: Instant) -> bool {
        self.with_upstream(upstream, |upstream| upstream.retries.withdraw(now))
            .unwrap_or(false)
    }

    /// Takes a hedge out of an upstream's budgets, of hedges and of retries; false when there is none.
    pub fn may_hedge(&self, upstream: &str, now: Instant) -> bool {
        if !self.lock().retry.hedge {
            return false;
        }
        self.with_upstream(upstream, |upstream| {
            upstream.hedges.withdraw() && upstream.retries.withdraw(now)
        })
        .unwrap_or(false)
    }

    /// How long a request waits for its first token before a second attempt may begin beside it.
    pub fn hedge_after(&self, target: &str, prompt_tokens: u32) -> Option<Duration> {
        let inner = self.lock();
        let target = &inner.targets[inner.place(target)?];
        let p95 = target.latency.p95(prompt_tokens);
        Some(p95.max(inner.retry.hedge_after_min))
    }

    /// How long an attempt waits for its first token before it counts as lost.
    pub fn first_token_clock(
        &self,
        target: &str,
        prompt_tokens: u32,
        may_reason: bool,
    ) -> Option<Duration> {
        let inner = self.lock();
        let latency = &inner.targets[inner.place(target)?].latency;
        Some(latency.first_token_clock(prompt_tokens, may_reason, &inner.clocks))
    }

    /// The catalogue says who runs a target's model, and how fast and how long that is.
    pub fn set_catalogued(
        &self,
        target: &str,
        provider: Option<Arc<str>>,
        context_length: Option<u32>,
        first_token: Option<Duration>,
        tokens_per_second: Option<f64>,
        now: Instant,
    ) {
        let mut inner = self.lock();
        let Some(place) = inner.place(target) else {
            return;
        };
        let upstream = inner.targets[place].upstream;
        let account = inner.account(upstream, provider.as_ref(), now);
        let target = &mut inner.targets[place];
        target.provider = provider;
        target.account = account;
        target.context_length = context_length;
        target.latency.set_prior(first_token, tokens_per_second);
    }

    /// An upstream's catalogue was read anew: `served` says of each of its targets whether it is listed there
    /// as live; it must not ask the board. What was thought not to be served may be tried again, and what is not
    /// listed is tried once in a while.
    pub fn catalogue_read(&self, upstream: &str, served: impl Fn(&str) -> bool, now: Instant) {
        let mut inner = self.lock();
        for place in 0..inner.targets.len() {
            if &*inner.upstreams[inner.targets[place].upstream].name != upstream {
                continue;
            }
            if served(&inner.targets[place].name) {
                inner.targets[place].bar = None;
            } else if inner.targets[place].bar.is_none() {
                inner.bar_target(place, now);
            }
        }
    }

    /// An upstream's control plane was asked `at` that moment. What requests have shown since counts for more than
    /// its answer, and an answer that says nothing new changes nothing.
    pub fn endpoint(&self, upstream: &str, state: EndpointState, at: Instant) {
        self.with_upstream(upstream, |upstream| {
            if upstream.heard.is_some_and(|heard| at <= heard) {
                return;
            }
            let why = match state {
                EndpointState::Paused => Some(Why::Paused),
                EndpointState::Failed => Some(Why::Misconfigured(START_FAILED.to_owned())),
                _ => None,
            };
            let theirs = |bar: &Bar| match &bar.why {
                Why::Paused => true,
                Why::Misconfigured(why) => why == START_FAILED,
                Why::AuthFailed | Why::Quota => false,
            };
            let stays = |bar: &Bar| !theirs(bar) || why.as_ref() == Some(&bar.why);
            upstream.bar = upstream.bar.take().filter(stays);
            if let Some(why) = why {
                let bar = || Bar::new(why, RETRIAL, None, at);
                upstream.bar.get_or_insert_with(bar);
            }
            match state {
                EndpointState::Running => upstream.cold.awake(at),
                EndpointState::Waking => upstream.cold.asleep(at),
                // Asleep is no trouble yet: the next request wakes it, and says so by its own answer.
                EndpointState::ScaledToZero => upstream.cold.still_asleep(),
                EndpointState::Paused | EndpointState::Failed => {}
            }
        });
    }

    /// A request would have gone to this target, had its endpoint not been paused or asleep.
    pub fn want(&self, target: &str) {
        let mut inner = self.lock();
        if let Some(place) = inner.place(target) {
            let upstream = inner.targets[place].upstream;
            inner.upstreams[upstream].wanted = true;
        }
    }

    /// Whether a request has wanted an upstream's endpoint since this was last asked, and it did not serve.
    pub fn take_wanted(&self, upstream: &str) -> bool {
        self.with_upstream(upstream, |upstream| std::mem::take(&mut upstream.wanted))
            .unwrap_or(false)
    }

    /// Whether an upstream's endpoint is waking, so that its control plane is worth asking often.
    pub fn is_waking(&self, upstream: &str, now: Instant) -> bool {
        self.with_upstream(upstream, |upstream| upstream.cold.eta(now).is_some())
            .unwrap_or(false)
    }

    /// The credential of an upstream was changed: what was said of the old one no longer holds for it.
    pub fn credential_changed(&self, upstream: &str, token: Option<&Secret>, now: Instant) {
        let mut inner = self.lock();
        let Some(place) = inner.upstreams.iter().position(|up| &*up.name == upstream) else {
            return;
        };
        let credential = inner.credential(fingerprint(token, upstream));
        inner.credentials[credential].bar = None;
        inner.credentials[credential].since = now;
        inner.upstreams[place].credential = credential;
        inner.upstreams[place].bar = None;
        for target in 0..inner.targets.len() {
            if inner.targets[target].upstream == place {
                let provider = inner.targets[target].provider.clone();
                let account = inner.account(place, provider.as_ref(), now);
                inner.targets[target].account = account;
            }
        }
    }

    fn issue(
        &self,
        inner: &mut Inner,
        (place, account): (usize, usize),
        permits: (Permit, Permit),
        now: Instant,
        expected: Expected,
    ) -> Ticket {
        let upstream = inner.targets[place].upstream;
        let credential = inner.upstreams[upstream].credential;
        let tokens = expected
            .prompt_tokens
            .saturating_add(expected.output_tokens);
        if let Some(rate) = &mut inner.accounts[account].requests {
            rate.take(1, now);
        }
        if let Some(rate) = &mut inner.accounts[account].tokens {
            rate.take(tokens, now);
        }
        let waker = inner.upstreams[upstream].cold.eta(now).is_some();
        if waker {
            inner.upstreams[upstream].cold.send_waker(now);
        }
        let trials = [
            begin_trial(&mut inner.targets[place].bar, now),
            begin_trial(&mut inner.upstreams[upstream].bar, now),
            begin_trial(&mut inner.credentials[credential].bar, now),
        ];
        inner.upstreams[upstream].inflight += 1;
        let target = &mut inner.targets[place];
        target.inflight += 1;
        Ticket {
            board: self.clone(),
            target: place,
            account,
            began: now,
            expected,
            permits: Some(permits),
            first_token: None,
            slow: false,
            waker,
            trials,
            saturated: target.inflight >= target.adaptive.limit(),
        }
    }

    fn with_upstream<T>(&self, name: &str, act: impl FnOnce(&mut Upstream) -> T) -> Option<T> {
        let mut inner = self.lock();
        let found = inner.upstreams.iter_mut().find(|up| &*up.name == name);
        found.map(act)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// The time for which the endpoint's proxy should hold this attempt while the endpoint wakes, for the
    /// header `X-Scale-Up-Timeout`. None where it is awake, or the request has not so much time `left`.
    pub fn scale_up_timeout(&self, left: Duration, now: Instant) -> Option<Duration> {
        let inner = self.board.lock();
        let upstream = inner.targets[self.target].upstream;
        self.waker
            .then(|| inner.upstreams[upstream].cold.hold(left, now))
            .flatten()
    }

    /// The upstream has said with its answer that nothing is left of a limit for this long: what is sent until
    /// then would be refused.
    pub fn exhausted(&mut self, time: Duration, now: Instant) {
        let mut inner = self.board.lock();
        let rand = inner.rand();
        let parking = &mut inner.accounts[self.account].parking;
        parking.exhausted(now, time, rand);
    }

    /// The first token came. Only the first call counts.
    pub fn first_token(&mut self, now: Instant) {
        if self.first_token.is_some() {
            return;
        }
        self.first_token = Some(now);
        let board = self.board.clone();
        let mut inner = board.lock();
        let took = now.saturating_duration_since(self.began);
        let prompt = self.expected.prompt_tokens;
        let factor = inner.breaker.slow_factor;
        // A waker's first token tells how long waking takes, not how fast the target is.
        if !self.waker {
            let latency = &mut inner.targets[self.target].latency;
            self.slow = latency.is_slow(prompt, took, factor);
            latency.first_token(prompt, took, now);
        }
        let upstream = inner.targets[self.target].upstream;
        if let Some((own, whole)) = &mut self.permits {
            inner.targets[self.target].breaker.first_token(own, now);
            inner.upstreams[upstream].breaker.first_token(whole, now);
        }
        inner.lives(self, now);
    }

    /// Nothing was sent after all: what the attempt took of its account's rates goes back, too.
    pub fn give_back(mut self) {
        let board = self.board.clone();
        let mut inner = board.lock();
        if self.permits.is_some() {
            inner.used(&self, 0);
            if let Some(rate) = &mut inner.accounts[self.account].requests {
                rate.settle(1, 0);
            }
        }
        inner.abandon(&mut self);
        inner.call();
    }

    /// The attempt ended.
    pub fn finish(mut self, outcome: Outcome, now: Instant) {
        let board = self.board.clone();
        let mut inner = board.lock();
        match outcome {
            Outcome::Failed {
                class: Class::ClientGone,
                ..
            } => inner.abandon(&mut self),
            outcome => inner.settle(&mut self, outcome, now),
        }
        inner.call();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.permits.is_some() {
            let board = self.board.clone();
            let mut inner = board.lock();
            inner.abandon(self);
            inner.call();
        }
    }
}

impl Turn {
    /// Waits until there is room, as far as the board knows.
    pub async fn called(&self) {
        self.bell.notified().await;
    }

    /// There was none after all: the request waits again. The answer is whether it does: its place may have gone
    /// to a key that had fewer waiting.
    pub fn missed(&self) -> bool {
        let mut inner = self.board.lock();
        inner.queue.missed(self.id)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut inner = self.board.lock();
        inner.queue.leave(self.id);
        inner.call();
    }
}
