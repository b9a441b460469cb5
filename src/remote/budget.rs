//! Budgets of requests: retries as a share of first attempts, hedges as a share of requests, and what an
//! account allows in a minute.
//!
//! A count of retries multiplies the load of a storm; a share of it cannot (linkerd and Finagle do the same).
//! Money is another floor's business.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Parts that a deposit's life is cut into: it lives its time, less up to one part.
const PARTS: u32 = 10;
/// Hedges that may be saved up.
const HEDGES_SAVED: f64 = 5.0;

/// Retries of one upstream: each first attempt pays in a share, each retry takes one out.
#[derive(Debug)]
pub struct RetryBudget {
    ratio: f64,
    part: Duration,
    floor_per_second: f64,
    origin: Instant,
    /// Slot of time and what was paid in during it, oldest first.
    deposits: VecDeque<(u128, f64)>,
    floor: f64,
    floor_at: Instant,
}

impl RetryBudget {
    /// With nothing but the floor in it.
    pub fn new(ratio: f64, ttl: Duration, floor_per_second: f64, now: Instant) -> Self {
        Self {
            ratio,
            part: ttl / PARTS,
            floor_per_second,
            origin: now,
            deposits: VecDeque::new(),
            floor: floor_cap(floor_per_second),
            floor_at: now,
        }
    }

    /// A first attempt begins.
    pub fn deposit(&mut self, now: Instant) {
        let slot = self.expire(now);
        match self.deposits.back_mut() {
            Some((last, amount)) if *last == slot => *amount += self.ratio,
            _ => self.deposits.push_back((slot, self.ratio)),
        }
    }

    /// Takes one retry out; false when there is none.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        self.expire(now);
        let paid: f64 = self.deposits.iter().map(|(_, amount)| amount).sum();
        // Fifths do not add up to one exactly.
        if self.floor + paid < 1.0 - 1e-9 {
            return false;
        }
        let mut wanted = 1.0 - self.floor.min(1.0);
        self.floor -= self.floor.min(1.0);
        while wanted > 1e-9
            && let Some((_, amount)) = self.deposits.front_mut()
        {
            let taken = amount.min(wanted);
            *amount -= taken;
            wanted -= taken;
            if *amount <= 1e-9 {
                self.deposits.pop_front();
            }
        }
        true
    }

    /// Drops what is too old, lets the floor grow, and gives the slot of now.
    fn expire(&mut self, now: Instant) -> u128 {
        let since = now.saturating_duration_since(self.origin).as_nanos();
        let slot = since / self.part.as_nanos().max(1);
        self.deposits
            .retain(|(then, _)| then + u128::from(PARTS) > slot);
        let grown =
            now.saturating_duration_since(self.floor_at).as_secs_f64() * self.floor_per_second;
        self.floor = (self.floor + grown).min(floor_cap(self.floor_per_second));
        self.floor_at = self.floor_at.max(now);
        slot
    }
}

fn floor_cap(per_second: f64) -> f64 {
    if per_second > 0.0 {
        per_second.max(1.0)
    } else {
        0.0
    }
}

/// Hedges: each request pays in a share, each hedge takes one out.
#[derive(Debug)]
pub struct HedgeBudget {
    ratio: f64,
    saved: f64,
}

impl HedgeBudget {
    /// Empty.
    pub fn new(ratio: f64) -> Self {
        Self { ratio, saved: 0.0 }
    }

    /// A request begins.
    pub fn deposit(&mut self) {
        self.saved = (self.saved + self.ratio).min(HEDGES_SAVED);
    }

    /// Takes one hedge out; false when there is none.
    pub fn withdraw(&mut self) -> bool {
        let enough = self.saved >= 1.0 - 1e-9;
        if enough {
            self.saved -= 1.0;
        }
        enough
    }
}

/// So many of something a minute: a bucket that refills evenly and holds a minute's worth.
#[derive(Debug)]
pub struct Rate {
    per_minute: f64,
    level: f64,
    at: Instant,
}

impl Rate {
    /// A full one.
    pub fn new(per_minute: u32, now: Instant) -> Self {
        let per_minute = f64::from(per_minute.max(1));
        Self {
            per_minute,
            level: per_minute,
            at: now,
        }
    }

    /// How long until so many can be taken; zero when they can be now. More than a minute's worth can be
    /// taken from a full bucket, which is then empty for longer.
    pub fn wait(&self, amount: u32, now: Instant) -> Duration {
        let missing = f64::from(amount).min(self.per_minute) - self.level_at(now);
        if missing <= 1e-6 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(missing * 60.0 / self.per_minute)
    }

    /// Takes so many.
    pub fn take(&mut self, amount: u32, now: Instant) {
        self.level = self.level_at(now) - f64::from(amount);
        self.at = self.at.max(now);
    }

    /// Gives back what was taken and not used, or takes what was used beyond it.
    pub fn settle(&mut self, taken: u32, used: u32) {
        self.level = (self.level + f64::from(taken) - f64::from(used)).min(self.per_minute);
    }

    fn level_at(&self, now: Instant) -> f64 {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * self.per_minute / 60.0;
        (self.level + grown).min(self.per_minute)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn five_first_attempts_pay_for_one_retry_for_ten_seconds() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(0.2, 10 * S, 0.0, now);
        for _ in 0..4 {
            budget.deposit(now);
        }
        assert!(!budget.withdraw(now));
        budget.deposit(now);
        assert!(budget.withdraw(now));
        assert!(!budget.withdraw(now));
        for _ in 0..5 {
            budget.deposit(now);
        }
        assert!(!budget.withdraw(now + 10 * S), "too old");
    }

    #[test]
    fn one_retry_a_second_is_always_allowed() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(0.2, 10 * S, 1.0, now);
        assert!(budget.withdraw(now));
        assert!(!budget.withdraw(now + S / 2));
        assert!(budget.withdraw(now + S));
        assert!(budget.withdraw(now + 60 * S));
        assert!(!budget.withdraw(now + 60 * S), "nothing is saved up");
    }

    #[test]
    fn one_request_in_fifty_is_hedged() {
        let mut budget = HedgeBudget::new(0.02);
        let hedged = (0..1000)
            .filter(|_| {
                budget.deposit();
                budget.withdraw()
            })
            .count();
        assert_eq!(hedged, 20);
    }

    #[test]
    fn a_minutes_worth_passes_and_the_unused_comes_back() {
        let now = Instant::now();
        let mut rate = Rate::new(600, now);
        rate.take(600, now);
        assert_eq!(rate.wait(10, now), S);
        rate.settle(600, 590);
        assert_eq!(rate.wait(10, now), Duration::ZERO);
        rate.take(10, now);
        let huge = rate.wait(100_000, now);
        assert_eq!(huge, 60 * S, "only a full bucket lets it pass");
    }

    proptest! {
        #[test]
        fn retries_never_exceed_their_share_and_the_floor(
            events in prop::collection::vec((0u64..500, any::<bool>()), 1..300),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut budget = RetryBudget::new(0.2, 10 * S, 1.0, now);
            let (mut first, mut retries) = (0.0, 0.0);
            for (step, retry) in events {
                now += Duration::from_millis(step);
                if retry {
                    retries += f64::from(u8::from(budget.withdraw(now)));
                } else {
                    budget.deposit(now);
                    first += 1.0;
                }
                let seconds = now.duration_since(start).as_secs_f64();
                prop_assert!(retries <= first * 0.2 + 1.0 + seconds + 1e-6);
            }
        }

        #[test]
        fn no_minute_lets_more_through_than_two_bucketfuls(
            events in prop::collection::vec((0u64..3_000, 1u32..50), 1..200),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut rate = Rate::new(100, now);
            let mut taken = 0.0;
            for (step, amount) in events {
                now += Duration::from_millis(step);
                if rate.wait(amount, now).is_zero() {
                    rate.take(amount, now);
                    taken += f64::from(amount);
                }
                let minutes = now.duration_since(start).as_secs_f64() / 60.0;
                prop_assert!(taken <= 100.0 * (1.0 + minutes) + 0.1);
            }
        }
    }
}
