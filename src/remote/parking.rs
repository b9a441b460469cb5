//! Parking: a place that says "not now" is left alone until the time it named.
//!
//! One of these stands for a credential at a provider, not for a target: siblings share the account behind
//! them. The time only ever grows, so a shorter hint that comes later cannot cut a longer one. A parked place
//! is not a broken one; the breaker hears nothing of it.

use std::time::{Duration, Instant};

use super::ParkingConfig;

/// Most that is added to a wait at random.
const JITTER_MAX: Duration = Duration::from_secs(1);
/// The share of a wait that is added at random.
const JITTER_SHARE: f64 = 0.1;

/// Whether, and how long, one credential is left alone at one provider.
#[derive(Debug)]
pub struct Parking {
    config: ParkingConfig,
    until: Option<Instant>,
    /// When the last refusal came; attempts that had begun before are part of it.
    refused_at: Option<Instant>,
    in_a_row: u32,
}

impl Parking {
    /// Not parked.
    pub fn new(config: ParkingConfig) -> Self {
        Self {
            config,
            until: None,
            refused_at: None,
            in_a_row: 0,
        }
    }

    /// An attempt that began at `began` was refused for now, perhaps with a hint.
    ///
    /// Without one, the wait doubles with each refusal in a row; those of one burst count once. `rand` lies
    /// in \[0, 1) and is what is added to the wait.
    pub fn refuse(&mut self, began: Instant, now: Instant, hint: Option<Duration>, rand: f64) {
        if self.refused_at.is_none_or(|at| began > at) {
            self.in_a_row = self.in_a_row.saturating_add(1);
            self.refused_at = Some(now);
        }
        let wait = match hint {
            Some(hint) => hint.min(self.config.hint_max),
            None => {
                let doubled = 2u32.saturating_pow(self.in_a_row.saturating_sub(1));
                self.config
                    .base
                    .saturating_mul(doubled)
                    .min(self.config.max)
            }
        };
        self.park_until(now + wait + jitter(wait, rand));
    }

    /// An answer says that nothing is left of a limit for this long. That may be the time until all of it is back,
    /// so that only the longest wait without a hint is believed. `rand` as with [`Parking::refuse`].
    pub fn exhausted(&mut self, now: Instant, time: Duration, rand: f64) {
        let wait = time.min(self.config.max);
        self.park_until(now + wait + jitter(wait, rand));
    }

    /// Parks at least until then.
    pub fn park_until(&mut self, until: Instant) {
        self.until = Some(self.until.map_or(until, |old| old.max(until)));
    }

    /// An attempt was answered: the next refusal is the first of a new row. One that had begun before the last
    /// refusal says nothing of it.
    pub fn answered(&mut self, began: Instant) {
        if self.refused_at.is_none_or(|at| began > at) {
            self.in_a_row = 0;
        }
    }

    /// The end of the parking, if it lies ahead.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

/// What is added to a wait, so that those who wait do not come back all at once: up to a tenth, up to a second.
pub(super) fn jitter(wait: Duration, rand: f64) -> Duration {
    wait.mul_f64(JITTER_SHARE).min(JITTER_MAX).mul_f64(rand)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn without_hints_the_wait_doubles_and_a_burst_counts_once() {
        let start = Instant::now();
        let mut parking = Parking::new(ParkingConfig::default());
        let mut now = start;
        for expected in [5, 10, 20, 40, 60, 60] {
            for _ in 0..10 {
                parking.refuse(now, now + S, None, 0.0);
            }
            assert_eq!(parking.until(now), Some(now + (expected + 1) * S));
            now += 100 * S;
        }
        parking.answered(now - 200 * S);
        assert_eq!(parking.in_a_row, 6);
        parking.answered(now);
        parking.refuse(now, now, None, 0.0);
        assert_eq!(parking.until(now), Some(now + 5 * S));
    }

    #[test]
    fn a_later_shorter_hint_does_not_cut_a_longer_one() {
        let now = Instant::now();
        let mut parking = Parking::new(ParkingConfig::default());
        parking.refuse(now, now, Some(40 * S), 0.0);
        parking.refuse(now, now + S, Some(2 * S), 0.0);
        assert_eq!(parking.until(now + S), Some(now + 40 * S));
        assert_eq!(parking.until(now + 40 * S), None);
    }

    proptest! {
        #[test]
        fn the_time_only_grows_and_covers_every_hint(
            events in prop::collection::vec((0u64..20_000, prop::option::of(0u64..5_000_000), 0.0..1.0f64), 1..60),
        ) {
            let mut now = Instant::now();
            let mut parking = Parking::new(ParkingConfig::default());
            let mut latest = now;
            for (step, hint, rand) in events {
                now += Duration::from_millis(step);
                let hint = hint.map(Duration::from_millis);
                parking.refuse(now, now, hint, rand);
                let least = now + hint.unwrap_or(5 * S).min(3600 * S);
                latest = latest.max(least);
                prop_assert!(parking.until.is_some_and(|until| until >= latest));
                prop_assert!(parking.until.is_some_and(|until| until <= now + 3601 * S || until <= latest + S));
                latest = latest.max(parking.until.unwrap_or(latest));
            }
        }
    }
}
