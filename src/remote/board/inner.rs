//! The state behind the board, and the one place where an attempt's end changes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;
use sha2::{Digest, Sha256};

use super::queue::Queue;
use super::status::{NotNow, TargetState, TargetStatus, not_now, state_of};
use super::{Expected, MONTH, Outcome, RETRIAL, Ticket, Turn};
use crate::remote::breaker::{Breaker, BreakerState, Verdict};
use crate::remote::budget::{HedgeBudget, Rate, RetryBudget};
use crate::remote::cold_start::ColdStart;
use crate::remote::latency::Latency;
use crate::remote::parking::Parking;
use crate::remote::{
    Adaptive, BreakerConfig, Class, Clocks, Config, ParkingConfig, RetryConfig, Secret,
    UpstreamConfig, UpstreamKind,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    AuthFailed,
    Quota,
    Paused,
    Misconfigured(String),
}

/// A state that lasts until somebody mends its cause, but for single trials.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) why: Why,
    pub(super) since: Instant,
    pub(super) every: Duration,
    pub(super) next_trial: Instant,
    /// Whether a trial is under way.
    pub(super) flying: bool,
    /// When it is over by itself.
    pub(super) ends: Option<Instant>,
}

impl Bar {
    pub(super) fn new(why: Why, every: Duration, ends: Option<Instant>, now: Instant) -> Self {
        Self {
            why,
            since: now,
            every,
            next_trial: now + every,
            flying: false,
            ends,
        }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| now >= ends)
    }

    pub(super) fn admits(&self, now: Instant) -> bool {
        self.is_over(now) || !self.flying && now >= self.next_trial
    }

    pub(super) fn not_now(&self) -> NotNow {
        match &self.why {
            Why::AuthFailed => NotNow::AuthFailed,
            Why::Quota => NotNow::Quota,
            Why::Paused => NotNow::Paused,
            Why::Misconfigured(why) => NotNow::Misconfigured(why.clone()),
        }
    }
}

#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: Arc<str>,
    pub(super) upstream: usize,
    pub(super) model: Arc<str>,
    pub(super) provider: Option<Arc<str>>,
    pub(super) context_length: Option<u32>,
    pub(super) account: usize,
    pub(super) breaker: Breaker,
    pub(super) adaptive: Adaptive,
    pub(super) latency: Latency,
    pub(super) inflight: u32,
    pub(super) bar: Option<Bar>,
    pub(super) schema_violations: u64,
}

#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) name: Arc<str>,
    pub(super) kind: UpstreamKind,
    pub(super) provider: Option<Arc<str>>,
    pub(super) disabled: Option<String>,
    pub(super) token_env: Option<String>,
    pub(super) max_concurrency: u32,
    pub(super) rpm: Option<u32>,
    pub(super) tpm: Option<u32>,
    pub(super) has_control: bool,
    pub(super) credential: usize,
    pub(super) breaker: Breaker,
    pub(super) inflight: u32,
    pub(super) bar: Option<Bar>,
    pub(super) cold: ColdStart,
    /// When a request last showed whether the endpoint serves.
    pub(super) heard: Option<Instant>,
    /// Whether a request wanted the endpoint while it did not serve.
    pub(super) wanted: bool,
    pub(super) retries: RetryBudget,
    pub(super) hedges: HedgeBudget,
}

#[derive(Debug)]
pub(super) struct Credential {
    pub(super) fingerprint: String,
    /// Attempts that began before say nothing about it.
    pub(super) since: Instant,
    pub(super) bar: Option<Bar>,
}

/// A credential at a provider: what limits are counted by.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) credential: usize,
    pub(super) provider: Arc<str>,
    pub(super) parking: Parking,
    pub(super) requests: Option<Rate>,
    pub(super) tokens: Option<Rate>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) targets: Vec<Target>,
    pub(super) names: BTreeMap<Arc<str>, usize>,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) credentials: Vec<Credential>,
    pub(super) accounts: Vec<Account>,
    pub(super) queue: Queue,
    pub(super) breaker: BreakerConfig,
    pub(super) parking: ParkingConfig,
    pub(super) retry: RetryConfig,
    pub(super) clocks: Clocks,
    pub(super) hold_factor: f64,
    pub(super) random: ChaCha8Rng,
    pub(super) origin: Instant,
    pub(super) origin_wall: SystemTime,
}

impl Inner {
    pub(super) fn add_upstream(
        &mut self,
        upstream: &UpstreamConfig,
        config: &Config,
        now: Instant,
    ) {
        let fingerprint = fingerprint(upstream.token.as_ref(), &upstream.name);
        let credential = self.credential(fingerprint);
        let most = upstream.max_concurrency.unwrap_or(usize::MAX);
        let retry = &config.retry;
        self.upstreams.push(Upstream {
            name: upstream.name.clone(),
            kind: upstream.kind,
            provider: upstream.provider.clone(),
            disabled: upstream.disabled.clone(),
            token_env: upstream.token_env.clone(),
            max_concurrency: u32::try_from(most).unwrap_or(u32::MAX).max(1),
            rpm: upstream.rpm,
            tpm: upstream.tpm,
            has_control: upstream.control.is_some(),
            credential,
            breaker: Breaker::new(config.breaker, now),
            inflight: 0,
            bar: None,
            cold: ColdStart::new(config.cold_start),
            heard: None,
            wanted: false,
            retries: RetryBudget::new(
                retry.budget_ratio,
                retry.budget_ttl,
                retry.budget_floor_per_second,
                now,
            ),
            hedges: HedgeBudget::new(retry.hedge_ratio),
        });
    }

    /// The credential of this fingerprint, made where it is new.
    pub(super) fn credential(&mut self, fingerprint: String) -> usize {
        let known = |found: &Credential| found.fingerprint == fingerprint;
        self.credentials.iter().position(known).unwrap_or_else(|| {
            self.credentials.push(Credential {
                fingerprint: fingerprint.clone(),
                since: self.origin,
                bar: None,
            });
            self.credentials.len() - 1
        })
    }

    /// The account of a provider at an upstream, made where it is new.
    ///
    /// Behind a router the provider is what limits; a machine of its own is limited by itself, whoever else
    /// shares the token.
    pub(super) fn account(
        &mut self,
        upstream: usize,
        provider: Option<&Arc<str>>,
        now: Instant,
    ) -> usize {
        let up = &self.upstreams[upstream];
        let provider: Arc<str> = match (provider, up.kind) {
            (Some(provider), _) => provider.clone(),
            (None, UpstreamKind::HfRouter) => "".into(),
            (None, _) => format!("={}", up.name).into(),
        };
        let (credential, rpm, tpm) = (up.credential, up.rpm, up.tpm);
        let known = |found: &Account| found.credential == credential && found.provider == provider;
        self.accounts.iter().position(known).unwrap_or_else(|| {
            self.accounts.push(Account {
                credential,
                provider: provider.clone(),
                parking: Parking::new(self.parking),
                requests: rpm.map(|rpm| Rate::new(rpm, now)),
                tokens: tpm.map(|tpm| Rate::new(tpm, now)),
            });
            self.accounts.len() - 1
        })
    }

    pub(super) fn place(&self, target: &str) -> Option<usize> {
        self.names.get(target).copied()
    }

    /// How many more requests a target may have.
    fn room(&self, place: usize) -> u32 {
        let target = &self.targets[place];
        let upstream = &self.upstreams[target.upstream];
        let own = target.adaptive.limit().saturating_sub(target.inflight);
        own.min(upstream.max_concurrency.saturating_sub(upstream.inflight))
    }

    /// An attempt has begun: whoever waited for it no longer does, and room elsewhere that was kept for it is free.
    pub(super) fn serve(&mut self, turn: Option<&Turn>) {
        if let Some(turn) = turn {
            self.queue.served(turn.id);
            self.call();
        }
    }

    /// Calls those who wait for room that is there.
    pub(super) fn call(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.call(|place| self.room(place));
        self.queue = queue;
    }

    /// What speaks against an attempt on this account, breakers apart. Room is for those who are `called` where
    /// somebody waits for it.
    pub(super) fn obstacle(
        &self,
        (place, account): (usize, usize),
        now: Instant,
        expected: Expected,
        called: bool,
    ) -> Result<(), NotNow> {
        let target = &self.targets[place];
        let upstream = &self.upstreams[target.upstream];
        if let Some(why) = &upstream.disabled {
            return Err(NotNow::Disabled(why.clone()));
        }
        let credential = &self.credentials[upstream.credential];
        for bar in [&credential.bar, &upstream.bar, &target.bar]
            .into_iter()
            .flatten()
        {
            if !bar.admits(now) {
                return Err(bar.not_now());
            }
        }
        let account = &self.accounts[account];
        if let Some(until) = account.parking.until(now) {
            return Err(NotNow::Parked(until.saturating_duration_since(now)));
        }
        if let Some(eta) = upstream.cold.eta(now)
            && !upstream.cold.wants_waker(now, upstream.has_control)
        {
            return Err(NotNow::Waking(eta));
        }
        let tokens = expected
            .prompt_tokens
            .saturating_add(expected.output_tokens);
        let wait = |rate: &Option<Rate>, amount| {
            rate.as_ref()
                .map_or(Duration::ZERO, |rate| rate.wait(amount, now))
        };
        let wait = wait(&account.requests, 1).max(wait(&account.tokens, tokens));
        if !wait.is_zero() {
            return Err(NotNow::Parked(wait));
        }
        if self.room(place) == 0 || !called && self.queue.wants(place) {
            return Err(NotNow::Saturated);
        }
        Ok(())
    }

    pub(super) fn would_admit(
        &self,
        place: usize,
        now: Instant,
        has_alternative: bool,
    ) -> Result<(), NotNow> {
        let target = &self.targets[place];
        let whole = &self.upstreams[target.upstream].breaker;
        let both = whole
            .would_admit(now, has_alternative)
            .and_then(|()| target.breaker.would_admit(now, has_alternative));
        both.map_err(|refused| not_now(refused, now))
    }

    pub(super) fn is_closed(&self, place: usize, now: Instant) -> bool {
        let target = &self.targets[place];
        let whole = self.upstreams[target.upstream].breaker.state(now);
        (target.breaker.state(now), whole) == (BreakerState::Closed, BreakerState::Closed)
    }

    pub(super) fn view(&self, place: usize, now: Instant, called: bool) -> TargetStatus {
        let target = &self.targets[place];
        let upstream = &self.upstreams[target.upstream];
        let least = Expected {
            prompt_tokens: 1,
            output_tokens: 0,
        };
        let admitted = self
            .obstacle((place, target.account), now, least, called)
            .and_then(|()| self.would_admit(place, now, true));
        let admits = admitted.is_ok();
        let credential = &self.credentials[upstream.credential];
        let barred = [&credential.bar, &upstream.bar, &target.bar]
            .into_iter()
            .flatten()
            .find(|bar| !bar.is_over(now));
        let state = match (admitted, barred) {
            // Open to a trial, but not mended.
            (Ok(()), Some(bar)) => state_of(bar.not_now(), now),
            (Ok(()), None) if self.is_closed(place, now) => match upstream.cold.eta(now) {
                Some(eta) => TargetState::Waking { eta },
                None => TargetState::Closed,
            },
            (Ok(()), None) => TargetState::HalfOpen,
            (Err(error), _) => state_of(error, now),
        };
        TargetStatus {
            target: target.name.clone(),
            upstream: upstream.name.clone(),
            provider: target.provider.clone(),
            state,
            admits,
            inflight: target.inflight,
            limit: target.adaptive.limit().min(upstream.max_concurrency),
            ttft_p50: target.latency.p50(0),
            ttft_p95: target.latency.p95(0),
            schema_violations: target.schema_violations,
            latency: target.latency.clone(),
            token_env: upstream.token_env.clone(),
            now,
        }
    }

    pub(super) fn give_up_waking(&mut self, place: usize, now: Instant) {
        let time = self.breaker.open_max;
        let upstream = &mut self.upstreams[self.targets[place].upstream];
        if upstream.cold.gave_up(now) {
            upstream.breaker.open_for(time, now);
        }
    }

    /// An attempt got a first token or an answer: whatever barred its target when it began is over.
    pub(super) fn lives(&mut self, ticket: &Ticket, now: Instant) {
        let upstream = self.targets[ticket.target].upstream;
        let credential = self.upstreams[upstream].credential;
        for bar in [
            &mut self.targets[ticket.target].bar,
            &mut self.upstreams[upstream].bar,
            &mut self.credentials[credential].bar,
        ] {
            if bar.as_ref().is_some_and(|bar| ticket.began >= bar.since) {
                *bar = None;
            }
        }
        self.upstreams[upstream].cold.awake(now);
        self.upstreams[upstream].heard = Some(now);
        self.accounts[ticket.account].parking.answered(ticket.began);
    }

    /// Takes back what an attempt held, and says nothing about its target.
    pub(super) fn abandon(&mut self, ticket: &mut Ticket) {
        let Some((own, whole)) = ticket.permits.take() else {
            return;
        };
        let upstream = self.targets[ticket.target].upstream;
        self.targets[ticket.target].breaker.abandon(&own);
        self.upstreams[upstream].breaker.abandon(&whole);
        self.release(ticket);
    }

    pub(super) fn release(&mut self, ticket: &Ticket) {
        let target = &mut self.targets[ticket.target];
        target.inflight = target.inflight.saturating_sub(1);
        let upstream = &mut self.upstreams[target.upstream];
        upstream.inflight = upstream.inflight.saturating_sub(1);
        if ticket.waker {
            upstream.cold.waker_done();
        }
        let credential = &mut self.credentials[upstream.credential];
        let bars = [&mut target.bar, &mut upstream.bar, &mut credential.bar];
        for (bar, tried) in bars.into_iter().zip(ticket.trials) {
            if let Some(bar) = bar.as_mut().filter(|_| tried) {
                bar.flying = false;
            }
        }
    }

    /// The one place where an attempt's end changes anything.
    pub(super) fn settle(&mut self, ticket: &mut Ticket, outcome: Outcome, now: Instant) {
        let Some((own, whole)) = ticket.permits.take() else {
            return;
        };
        self.release(ticket);
        self.next_trials(ticket, now);
        let place = ticket.target;
        let upstream = self.targets[place].upstream;
        let (for_target, for_upstream) = verdicts(outcome, ticket.slow);
        let rand = self.rand();
        self.targets[place]
            .breaker
            .record(own, for_target, now, rand);
        self.upstreams[upstream]
            .breaker
            .record(whole, for_upstream, now, rand);
        match outcome {
            Outcome::Answered {
                output_tokens,
                used_tokens,
            } => {
                self.lives(ticket, now);
                let prompt = ticket.expected.prompt_tokens;
                let hold_factor = self.hold_factor;
                let target = &mut self.targets[place];
                if let Some(first) = ticket.first_token {
                    let rest = now.saturating_duration_since(first);
                    target.latency.wrote(output_tokens, rest);
                }
                let strained = target.latency.is_strained(prompt, hold_factor);
                target.adaptive.answered(ticket.saturated, strained);
                if let Some(used) = used_tokens {
                    self.used(ticket, used);
                }
            }
            Outcome::Failed { class, retry_after } => self.failed(ticket, class, retry_after, now),
        }
    }

    pub(super) fn failed(
        &mut self,
        ticket: &Ticket,
        class: Class,
        retry_after: Option<Duration>,
        now: Instant,
    ) {
        let place = ticket.target;
        let upstream = self.targets[place].upstream;
        let credential = self.upstreams[upstream].credential;
        if !may_have_run(class) {
            self.used(ticket, 0);
        }
        if matches!(
            class,
            Class::RateLimited | Class::Overloaded | Class::Timeout
        ) {
            self.targets[place].adaptive.overloaded(ticket.began, now);
        }
        let rand = self.rand();
        let parking = &mut self.accounts[ticket.account].parking;
        match class {
            Class::RateLimited => parking.refuse(ticket.began, now, retry_after, rand),
            // A machine with too much to do that names a time is left alone until then as well.
            Class::Overloaded if retry_after.is_some() => {
                parking.refuse(ticket.began, now, retry_after, rand);
            }
            Class::ColdStart => {
                let upstream = &mut self.upstreams[upstream];
                upstream.cold.asleep(now);
                upstream.heard = Some(now);
            }
            Class::Paused => {
                let bar = Bar::new(Why::Paused, RETRIAL, None, now);
                let upstream = &mut self.upstreams[upstream];
                upstream.bar = Some(bar);
                upstream.heard = Some(now);
                upstream.wanted = true;
            }
            Class::NotServed => self.bar_target(place, now),
            Class::Unstreamed => {
                let why = "it answers whole where events are asked for; set `streaming = false` among its `capabilities`, or run `sconce probe-upstream`";
                let bar = Bar::new(Why::Misconfigured(why.to_owned()), RETRIAL, None, now);
                self.targets[place].bar = Some(bar);
            }
            Class::AuthFailed | Class::QuotaExhausted
                if ticket.began < self.credentials[credential].since => {}
            Class::AuthFailed => {
                let bar = Bar::new(Why::AuthFailed, RETRIAL, None, now);
                self.credentials[credential].bar = Some(bar);
            }
            Class::QuotaExhausted => {
                let ends = self.month_ends(now);
                let bar = Bar::new(Why::Quota, self.parking.quota_recheck, Some(ends), now);
                self.credentials[credential].bar = Some(bar);
            }
            Class::Misconfigured => {
                let why = "it answered with a redirect or a certificate that is not trusted; check `base_url` and `ca_file`";
                let bar = Bar::new(Why::Misconfigured(why.to_owned()), RETRIAL, None, now);
                self.upstreams[upstream].bar = Some(bar);
            }
            Class::SchemaViolation => self.targets[place].schema_violations += 1,
            Class::Overloaded
            | Class::Transport
            | Class::Timeout
            | Class::ServerError
            | Class::BadRequest
            | Class::ContextOverflow
            | Class::ToolCall
            | Class::ContentFilter
            | Class::MidStream
            | Class::ClientGone
            | Class::Deadline
            | Class::LocalPressure => {}
        }
    }

    pub(super) fn bar_target(&mut self, place: usize, now: Instant) {
        let target = &mut self.targets[place];
        let why = format!(
            "upstream `{}` does not serve model `{}`{}; check the names, and that the provider is enabled for the credential",
            self.upstreams[target.upstream].name,
            target.model,
            target
                .provider
                .as_ref()
                .map_or_else(String::new, |provider| format!(" by provider `{provider}`")),
        );
        target.bar = Some(Bar::new(Why::Misconfigured(why), RETRIAL, None, now));
    }

    /// Trials that did not end their bar are repeated after its pause.
    pub(super) fn next_trials(&mut self, ticket: &Ticket, now: Instant) {
        let target = &mut self.targets[ticket.target];
        let upstream = &mut self.upstreams[target.upstream];
        let credential = &mut self.credentials[upstream.credential];
        let bars = [&mut target.bar, &mut upstream.bar, &mut credential.bar];
        for (bar, tried) in bars.into_iter().zip(ticket.trials) {
            if let Some(bar) = bar.as_mut().filter(|_| tried) {
                bar.next_trial = now + bar.every;
            }
        }
    }

    pub(super) fn used(&mut self, ticket: &Ticket, used: u32) {
        let expected = &ticket.expected;
        let taken = expected
            .prompt_tokens
            .saturating_add(expected.output_tokens);
        if let Some(rate) = &mut self.accounts[ticket.account].tokens {
            rate.settle(taken, used);
        }
    }

    /// A number in \[0, 1).
    pub(super) fn rand(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn wall(&self, then: Instant) -> SystemTime {
        self.origin_wall + then.saturating_duration_since(self.origin)
    }

    pub(super) fn unix_ms(&self, then: Instant) -> u64 {
        let since = self.wall(then).duration_since(UNIX_EPOCH);
        since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
    }

    /// When the month (UTC) is over.
    pub(super) fn month_ends(&self, now: Instant) -> Instant {
        let wall = DateTime::<Utc>::from(self.wall(now));
        let (year, month) = match wall.month() {
            12 => (wall.year() + 1, 1),
            month => (wall.year(), month + 1),
        };
        let first =
            NaiveDate::from_ymd_opt(year, month, 1).and_then(|day| day.and_hms_opt(0, 0, 0));
        let left = first.and_then(|first| (first.and_utc() - wall).to_std().ok());
        now + left.unwrap_or(MONTH)
    }
}

/// What an attempt's end says of its target, and of the way to its upstream.
fn verdicts(outcome: Outcome, slow: bool) -> (Verdict, Verdict) {
    let reached = Verdict::Success { slow: false };
    let failure = Verdict::Failure { weight: 1.0 };
    let class = match outcome {
        Outcome::Answered { .. } => return (Verdict::Success { slow }, reached),
        Outcome::Failed { class, .. } => class,
    };
    match class {
        Class::Transport => (failure, failure),
        Class::Timeout | Class::MidStream => (failure, Verdict::Neutral),
        Class::ServerError => (failure, reached),
        Class::Overloaded => (Verdict::Failure { weight: 0.5 }, reached),
        Class::RateLimited
        | Class::ColdStart
        | Class::Paused
        | Class::NotServed
        | Class::Unstreamed
        | Class::AuthFailed
        | Class::QuotaExhausted
        | Class::BadRequest
        | Class::ContextOverflow
        | Class::ToolCall
        | Class::SchemaViolation
        | Class::ContentFilter => (Verdict::Neutral, reached),
        Class::ClientGone | Class::Deadline | Class::LocalPressure | Class::Misconfigured => {
            (Verdict::Neutral, Verdict::Neutral)
        }
    }
}

/// Whether a failed attempt may have used tokens of its account's rate.
fn may_have_run(class: Class) -> bool {
    matches!(
        class,
        Class::Timeout
            | Class::ServerError
            | Class::ToolCall
            | Class::SchemaViolation
            | Class::ContentFilter
            | Class::MidStream
            | Class::Deadline
            | Class::ClientGone
    )
}

pub(super) fn begin_trial(bar: &mut Option<Bar>, now: Instant) -> bool {
    if bar.as_ref().is_some_and(|bar| bar.is_over(now)) {
        *bar = None;
    }
    match bar {
        Some(bar) => {
            bar.flying = true;
            true
        }
        None => false,
    }
}

/// What tells credentials apart without telling them; an upstream without one is its own.
pub(super) fn fingerprint(token: Option<&Secret>, upstream: &str) -> String {
    let Some(token) = token else {
        return format!("none:{upstream}");
    };
    let digest = Sha256::new()
        .chain_update(b"sconce credential\0")
        .chain_update(token.expose())
        .finalize();
    digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
