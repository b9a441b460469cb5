//! The circuit breaker: whether a place that failed lately is asked again.
//!
//! Closed, open, half open. It opens upon failures in a row, a share of failures, or a share of slow answers
//! within a sliding window; each time it stays open longer. When its time is up it lets single trial requests
//! through, and closes when they are answered. It is a pure state machine: the time and the random number come
//! in as arguments. It never sees a request, and a caller who left is no failure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::BreakerConfig;

/// Parts that the sliding window is cut into.
const BUCKETS: u32 = 10;

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Requests pass.
    Closed,
    /// Nothing passes before this instant.
    Open {
        /// The end of it.
        until: Instant,
    },
    /// One trial request at a time passes.
    HalfOpen,
}

/// What one attempt says about the place it was sent to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// It answered.
    Success {
        /// Whether its first token came much later than usual.
        slow: bool,
    },
    /// It failed; 1 is a whole failure.
    Failure {
        /// How much it counts.
        weight: f64,
    },
    /// Nothing can be said.
    Neutral,
}

/// The right to make one attempt; it goes back with [`Breaker::record`], once.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    epoch: u64,
    probe: bool,
}

impl Permit {
    /// Whether the attempt is a trial.
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

/// Why an attempt may not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The breaker is open.
    Open {
        /// Until then.
        until: Instant,
    },
    /// A trial is under way, or this request has nowhere else to go and is not risked on one.
    HalfOpen,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { begun: u32, flying: u32, good: u32 },
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    slot: u128,
    attempts: u32,
    failed: f64,
    slow: u32,
}

/// One breaker.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    origin: Instant,
    state: State,
    /// Changes with each opening and closing, so that late verdicts on an older state are known as such.
    epoch: u64,
    in_a_row: f64,
    window: VecDeque<Bucket>,
    openings: u32,
    closed_since: Instant,
    last_trial: Option<Instant>,
}

impl Breaker {
    /// A closed one.
    pub fn new(config: BreakerConfig, now: Instant) -> Self {
        Self {
            config,
            origin: now,
            state: State::Closed,
            epoch: 0,
            in_a_row: 0.0,
            window: VecDeque::new(),
            openings: 0,
            closed_since: now,
            last_trial: None,
        }
    }

    /// Where it stands.
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until } if now < until => BreakerState::Open { until },
            State::Open { .. } | State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether [`Breaker::admit`] would let a request through.
    ///
    /// Errors: why it would not.
    pub fn would_admit(&self, now: Instant, has_alternative: bool) -> Result<(), Refused> {
        match self.state {
            State::Closed => Ok(()),
            State::Open { until } if now < until => Err(Refused::Open { until }),
            State::Open { .. } if has_alternative => Ok(()),
            State::HalfOpen { begun, flying, .. }
                if has_alternative && flying == 0 && begun < self.config.probes.max(1) =>
            {
                Ok(())
            }
            State::Open { .. } | State::HalfOpen { .. } => Err(Refused::HalfOpen),
        }
    }

    /// Lets a request through, or says why not.
    ///
    /// A trial is risked only with a request that has somewhere else to go, `has_alternative`.
    ///
    /// Errors: as [`Breaker::would_admit`].
    pub fn admit(&mut self, now: Instant, has_alternative: bool) -> Result<Permit, Refused> {
        self.would_admit(now, has_alternative)?;
        Ok(match self.state {
            State::Closed => self.permit(false),
            State::Open { .. } | State::HalfOpen { .. } => self.probe(),
        })
    }

    /// Whether a request may pass although the breaker is not closed, because nothing else is left: one in
    /// `panic_interval`, none while a trial is under way.
    pub fn would_try(&self, now: Instant) -> bool {
        let idle = !matches!(self.state, State::HalfOpen { flying, .. } if flying > 0);
        let due = self
            .last_trial
            .is_none_or(|last| now.saturating_duration_since(last) >= self.config.panic_interval);
        idle && due
    }

    /// Lets such a request through. Nothing where [`Breaker::would_try`] says no.
    pub fn trial(&mut self, now: Instant) -> Option<Permit> {
        if !self.would_try(now) {
            return None;
        }
        self.last_trial = Some(now);
        Some(match self.state {
            State::Closed => self.permit(false),
            State::Open { .. } | State::HalfOpen { .. } => self.probe(),
        })
    }

    /// A first token came within its time: a trial has succeeded.
    ///
    /// What becomes of the rest of its answer counts like that of any request.
    pub fn first_token(&mut self, permit: &mut Permit, now: Instant) {
        if !permit.probe || permit.epoch != self.epoch {
            return;
        }
        permit.probe = false;
        self.probe_succeeded(now);
        permit.epoch = self.epoch;
    }

    /// Takes a permit back together with what the attempt says.
    ///
    /// `rand` lies in \[0, 1) and spreads the time the breaker stays open.
    pub fn record(&mut self, permit: Permit, verdict: Verdict, now: Instant, rand: f64) {
        if permit.epoch != self.epoch {
            return;
        }
        match self.state {
            State::Closed => self.count(verdict, now, rand),
            State::Open { .. } => {}
            State::HalfOpen { .. } => match (permit.probe, verdict) {
                (_, Verdict::Failure { .. }) => self.open(now, rand),
                (true, Verdict::Success { .. }) => self.probe_succeeded(now),
                (true, Verdict::Neutral) => self.abandon(&permit),
                (false, _) => {}
            },
        }
    }

    /// Takes back the permit of an attempt about which nothing will be known: the caller left.
    pub fn abandon(&mut self, permit: &Permit) {
        if !permit.probe || permit.epoch != self.epoch {
            return;
        }
        if let State::HalfOpen { begun, flying, .. } = &mut self.state {
            *flying = flying.saturating_sub(1);
            *begun = begun.saturating_sub(1);
        }
    }

    /// Opens it for a given time, whatever was counted.
    pub fn open_for(&mut self, time: Duration, now: Instant) {
        self.openings = self.openings.saturating_add(1);
        self.turn(State::Open { until: now + time });
    }

    fn permit(&self, probe: bool) -> Permit {
        Permit {
            epoch: self.epoch,
            probe,
        }
    }

    fn probe(&mut self) -> Permit {
        match &mut self.state {
            State::HalfOpen { begun, flying, .. } => {
                *begun += 1;
                *flying += 1;
            }
            State::Closed | State::Open { .. } => self.turn(State::HalfOpen {
                begun: 1,
                flying: 1,
                good: 0,
            }),
        }
        self.permit(true)
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
        self.in_a_row = 0.0;
        self.window.clear();
    }

    fn probe_succeeded(&mut self, now: Instant) {
        let State::HalfOpen {
            begun,
            flying,
            good,
        } = &mut self.state
        else {
            return;
        };
        *flying = flying.saturating_sub(1);
        *good += 1;
        // Trials that all succeeded are enough, even where the settings ask for more than they allow.
        let enough = *good >= self.config.successes_to_close || *begun >= self.config.probes.max(1);
        if enough {
            self.turn(State::Closed);
            self.closed_since = now;
        }
    }

    fn open(&mut self, now: Instant, rand: f64) {
        self.openings = self.openings.saturating_add(1);
        let time = open_time(&self.config, self.openings, rand);
        self.turn(State::Open { until: now + time });
    }

    fn count(&mut self, verdict: Verdict, now: Instant, rand: f64) {
        let slot = self.slot(now);
        self.window
            .retain(|bucket| bucket.slot + u128::from(BUCKETS) > slot);
        if matches!(verdict, Verdict::Neutral) {
            return;
        }
        if self.window.back().is_none_or(|bucket| bucket.slot < slot) {
            self.window.push_back(Bucket {
                slot,
                ..Bucket::default()
            });
        }
        if let Some(bucket) = self.window.back_mut() {
            bucket.attempts += 1;
            match verdict {
                Verdict::Success { slow } => {
                    bucket.slow += u32::from(slow);
                    self.in_a_row = 0.0;
                }
                Verdict::Failure { weight } => {
                    bucket.failed += weight;
                    self.in_a_row += weight;
                }
                Verdict::Neutral => {}
            }
        }
        if self.is_broken() {
            if now.saturating_duration_since(self.closed_since) >= self.config.calm {
                self.openings = 0;
            }
            self.open(now, rand);
        }
    }

    fn is_broken(&self) -> bool {
        let attempts: u32 = self.window.iter().map(|bucket| bucket.attempts).sum();
        let failed: f64 = self.window.iter().map(|bucket| bucket.failed).sum();
        let slow: u32 = self.window.iter().map(|bucket| bucket.slow).sum();
        let all = f64::from(attempts);
        self.in_a_row >= f64::from(self.config.consecutive_failures)
            || attempts >= self.config.min_attempts
                && (failed >= self.config.failure_rate * all
                    || f64::from(slow) >= self.config.slow_rate * all)
    }

    fn slot(&self, now: Instant) -> u128 {
        let bucket = (self.config.window / BUCKETS).as_nanos().max(1);
        now.saturating_duration_since(self.origin).as_nanos() / bucket
    }
}

/// How long the `nth` opening lasts: doubled each time up to the cap, then spread by the jitter.
fn open_time(config: &BreakerConfig, nth: u32, rand: f64) -> Duration {
    let doubled = 2f64.powi(
        i32::try_from(nth.saturating_sub(1))
            .unwrap_or(i32::MAX)
            .min(64),
    );
    let plain = (config.open_base.as_secs_f64() * doubled).min(config.open_max.as_secs_f64());
    let spread = 1.0 + config.open_jitter * (2.0 * rand - 1.0);
    Duration::from_secs_f64((plain * spread).max(0.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn failing(breaker: &mut Breaker, now: Instant, weight: f64) {
        let permit = breaker.admit(now, true).expect("closed or due");
        breaker.record(permit, Verdict::Failure { weight }, now, 0.5);
    }

    fn answering(breaker: &mut Breaker, now: Instant, slow: bool) {
        let permit = breaker.admit(now, true).expect("closed or due");
        breaker.record(permit, Verdict::Success { slow }, now, 0.5);
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_half_failures_count_half() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerConfig::default(), now);
        for _ in 0..4 {
            failing(&mut breaker, now, 1.0);
        }
        assert_eq!(breaker.state(now), BreakerState::Closed);
        answering(&mut breaker, now, false);
        for _ in 0..8 {
            failing(&mut breaker, now + 40 * S, 0.5);
        }
        assert_eq!(breaker.state(now + 40 * S), BreakerState::Closed);
        failing(&mut breaker, now + 40 * S, 0.5);
        failing(&mut breaker, now + 40 * S, 0.5);
        let until = now + 45 * S;
        assert_eq!(
            breaker.state(now + 40 * S),
            BreakerState::Open { until },
            "rand 0.5 is no jitter"
        );
        assert_eq!(
            breaker.admit(now + 41 * S, true),
            Err(Refused::Open { until })
        );
    }

    #[test]
    fn half_of_ten_attempts_open_it_and_so_do_eight_slow_ones() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerConfig::default(), now);
        for _ in 0..4 {
            failing(&mut breaker, now, 1.0);
            answering(&mut breaker, now, false);
        }
        answering(&mut breaker, now, false);
        assert_eq!(breaker.state(now), BreakerState::Closed);
        failing(&mut breaker, now, 1.0);
        assert!(matches!(breaker.state(now), BreakerState::Open { .. }));

        let mut breaker = Breaker::new(BreakerConfig::default(), now);
        for slow in [true, true, true, true, false, true, true, true, false] {
            answering(&mut breaker, now, slow);
        }
        assert_eq!(breaker.state(now), BreakerState::Closed);
        answering(&mut breaker, now, true);
        assert!(matches!(breaker.state(now), BreakerState::Open { .. }));
    }

    #[test]
    fn old_failures_leave_the_window() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerConfig::default(), now);
        for _ in 0..4 {
            failing(&mut breaker, now, 1.0);
            answering(&mut breaker, now, false);
        }
        for _ in 0..2 {
            answering(&mut breaker, now + 31 * S, false);
            failing(&mut breaker, now + 31 * S, 1.0);
        }
        assert_eq!(breaker.state(now + 31 * S), BreakerState::Closed);
    }

    #[test]
    fn trials_are_single_risked_only_with_an_alternative_and_two_successes_close() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerConfig::default(), now);
        for _ in 0..5 {
            failing(&mut breaker, now, 1.0);
        }
        let later = now + 5 * S;
        assert_eq!(breaker.admit(later, false), Err(Refused::HalfOpen));
        let mut first = breaker.admit(later, true).expect("a trial");
        assert!(first.is_probe());
        assert_eq!(breaker.admit(later, true), Err(Refused::HalfOpen));
        breaker.first_token(&mut first, later);
        let second = breaker.admit(later, true).expect("the next trial");
        breaker.record(second, Verdict::Success { slow: false }, later, 0.5);
        assert_eq!(breaker.state(later), BreakerState::Closed);
        breaker.record(first, Verdict::Failure { weight: 1.0 }, later, 0.5);
        assert_eq!(
            breaker.state(later),
            BreakerState::Closed,
            "one late failure"
        );
    }

    #[test]
    fn each_failed_trial_doubles_the_time_up_to_the_cap_and_calm_begins_anew() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(BreakerConfig::default(), now);
        for _ in 0..4 {
            failing(&mut breaker, now, 1.0);
        }
        for expected in [5, 10, 20, 40, 80, 160, 300, 300] {
            failing(&mut breaker, now, 1.0);
            let until = now + expected * S;
            assert_eq!(breaker.state(now), BreakerState::Open { until });
            now = until;
        }
        answering(&mut breaker, now, false);
        answering(&mut breaker, now, false);
        now += 600 * S;
        for _ in 0..5 {
            failing(&mut breaker, now, 1.0);
        }
        assert_eq!(
            breaker.state(now),
            BreakerState::Open { until: now + 5 * S }
        );
    }

    #[test]
    fn when_nothing_else_is_left_one_request_in_five_seconds_passes() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerConfig::default(), now);
        breaker.open_for(300 * S, now);
        let permit = breaker.trial(now + S).expect("the first");
        assert!(breaker.trial(now + 10 * S).is_none(), "one is under way");
        breaker.record(permit, Verdict::Failure { weight: 1.0 }, now + 2 * S, 0.5);
        assert!(breaker.trial(now + 5 * S).is_none(), "too soon");
        assert!(breaker.trial(now + 6 * S).is_some());
    }

    #[test]
    fn a_trial_whose_caller_left_gives_its_place_back() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerConfig::default(), now);
        breaker.open_for(S, now);
        for _ in 0..10 {
            let permit = breaker.admit(now + S, true).expect("a trial");
            breaker.abandon(&permit);
        }
        assert_eq!(breaker.state(now + S), BreakerState::HalfOpen);
    }

    /// The same rules, slow and obvious: every verdict since the last change of state is kept and looked through.
    struct Reference {
        config: BreakerConfig,
        origin: Instant,
        open_until: Option<Instant>,
        good_trials: u32,
        half_open: bool,
        seen: Vec<(u128, f64, bool)>,
        openings: u32,
        closed_since: Instant,
    }

    impl Reference {
        fn admits(&self, now: Instant, alternative: bool) -> bool {
            match self.open_until {
                Some(until) => now >= until && alternative,
                None => !self.half_open || alternative,
            }
        }

        fn open(&mut self, now: Instant) {
            self.openings += 1;
            let seconds = (5u64 << (self.openings - 1).min(10)).min(300);
            self.open_until = Some(now + Duration::from_secs(seconds));
            self.half_open = false;
            self.good_trials = 0;
            self.seen.clear();
        }

        fn record(&mut self, verdict: Verdict, now: Instant) {
            if self.open_until.take().is_some() {
                self.half_open = true;
            }
            if self.half_open {
                match verdict {
                    Verdict::Failure { .. } => self.open(now),
                    Verdict::Success { .. } => {
                        self.good_trials += 1;
                        if self.good_trials == 2 {
                            self.half_open = false;
                            self.good_trials = 0;
                            self.closed_since = now;
                        }
                    }
                    Verdict::Neutral => {}
                }
                return;
            }
            let slot = now.duration_since(self.origin).as_millis() / 3000;
            match verdict {
                Verdict::Failure { weight } => self.seen.push((slot, weight, false)),
                Verdict::Success { slow } => self.seen.push((slot, 0.0, slow)),
                Verdict::Neutral => return,
            }
            let run: f64 = self
                .seen
                .iter()
                .rev()
                .take_while(|(_, weight, _)| *weight > 0.0)
                .map(|(_, weight, _)| weight)
                .sum();
            let recent: Vec<_> = self.seen.iter().filter(|(s, ..)| s + 10 > slot).collect();
            let all = recent.len() as f64;
            let failed: f64 = recent.iter().map(|(_, weight, _)| weight).sum();
            let slow = recent.iter().filter(|(.., slow)| *slow).count() as f64;
            let many = recent.len() >= self.config.min_attempts as usize;
            if run >= 5.0 || many && (failed / all >= 0.5 || slow / all >= 0.8) {
                if now.duration_since(self.closed_since) >= self.config.calm {
                    self.openings = 0;
                }
                self.open(now);
            }
        }
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            3 => any::<bool>().prop_map(|slow| Verdict::Success { slow }),
            2 => Just(Verdict::Failure { weight: 1.0 }),
            1 => Just(Verdict::Failure { weight: 0.5 }),
            1 => Just(Verdict::Neutral),
        ]
    }

    proptest! {
        #[test]
        fn it_does_what_the_reference_does(
            events in prop::collection::vec((0u64..9_000, any::<bool>(), verdict()), 1..400),
            pause in prop::collection::vec(0usize..400, 0..4),
        ) {
            let config = BreakerConfig::default();
            let mut now = Instant::now();
            let mut breaker = Breaker::new(config, now);
            let mut reference = Reference {
                config, origin: now, open_until: None, good_trials: 0, half_open: false,
                seen: Vec::new(), openings: 0, closed_since: now,
            };
            for (place, (step, alternative, verdict)) in events.into_iter().enumerate() {
                now += Duration::from_millis(step / 3);
                if pause.contains(&place) {
                    now += Duration::from_secs(700);
                }
                let permit = breaker.admit(now, alternative);
                prop_assert_eq!(permit.is_ok(), reference.admits(now, alternative));
                if let Ok(permit) = permit {
                    breaker.record(permit, verdict, now, 0.5);
                    reference.record(verdict, now);
                }
                let until = match breaker.state(now) {
                    BreakerState::Open { until } => Some(until),
                    BreakerState::Closed | BreakerState::HalfOpen => None,
                };
                prop_assert_eq!(until, reference.open_until.filter(|until| *until > now));
            }
        }

        #[test]
        fn it_is_never_stuck(
            events in prop::collection::vec((0u8..6, 0u64..4_000, verdict()), 1..200),
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(BreakerConfig::default(), now);
            let mut held = Vec::new();
            for (what, step, verdict) in events {
                now += Duration::from_millis(step);
                match what {
                    0 | 1 => held.extend(breaker.admit(now, true)),
                    2 => held.extend(breaker.trial(now)),
                    3 => if let Some(permit) = held.pop() { breaker.abandon(&permit) },
                    4 => if let Some(permit) = held.last_mut() { breaker.first_token(permit, now) },
                    _ => if !held.is_empty() {
                        breaker.record(held.remove(0), verdict, now, 0.9);
                    },
                }
            }
            for permit in held {
                breaker.abandon(&permit);
            }
            now += Duration::from_secs(361);
            let mut left = 0;
            while breaker.state(now) != BreakerState::Closed {
                answering(&mut breaker, now, false);
                left += 1;
                prop_assert!(left <= 3);
            }
        }
    }
}
