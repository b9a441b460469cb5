//! How much later than forecast first tokens come here, so that an objective can be kept by most requests and
//! not only by the one in the middle.
//!
//! Nobody knows how long the answers before one get, so that forecasts are right in the middle and wrong by some
//! tens of percent at either side. What nineteen of twenty stay within is learned from what became of them.

/// The share of requests whose lateness is to be covered.
const SHARE: f64 = 0.95;

/// How far one request moves what is learned.
const STEP: f64 = 0.02;

/// Most that is allowed for; worse is no error of forecasts that a margin could mend.
const MOST: f64 = 2.0;

/// Forecasts below this are of the order of what the wire and the clock take, and say nothing of longer ones.
const LEAST_MS: u64 = 50;

/// What actual times to the first token stay within, as a multiple of their forecasts.
///
/// A quantile followed by small steps: up by 19 of them for a request that was later, down by one for one that was
/// not, so that it rests where one in twenty is later.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lateness(f64);

impl Default for Lateness {
    fn default() -> Self {
        Self(1.0)
    }
}

impl Lateness {
    /// A first token came after `actual_ms` that was forecast to come after `forecast_ms`.
    pub fn note(&mut self, forecast_ms: u64, actual_ms: u64) {
        if forecast_ms < LEAST_MS {
            return;
        }
        let later = actual_ms as f64 > self.0 * forecast_ms as f64;
        let step = if later { SHARE } else { SHARE - 1.0 };
        self.0 = (self.0 + STEP * step).clamp(1.0, MOST);
    }

    /// The multiple, at least 1.
    pub fn factor(self) -> f64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};

    use super::*;

    #[test]
    fn it_comes_to_rest_where_one_in_twenty_is_later() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut even = || f64::from(random.next_u32()) / f64::from(u32::MAX);
        let mut lateness = Lateness::default();
        let mut later = 0;
        for i in 0..4000 {
            // Between 0.7 and 1.3 times the forecast: 19 of 20 are below 1.27.
            let actual = 1000.0 * (0.7 + 0.6 * even());
            if i >= 2000 && actual > 1000.0 * lateness.factor() {
                later += 1;
            }
            lateness.note(1000, actual as u64);
        }
        assert!((70..=130).contains(&later), "{later} of 2000");
        assert!(
            (1.2..1.32).contains(&lateness.factor()),
            "{}",
            lateness.factor()
        );
    }

    #[test]
    fn it_stays_within_bounds_and_learns_nothing_from_short_ones() {
        let mut lateness = Lateness::default();
        for _ in 0..1000 {
            lateness.note(1000, 0);
            lateness.note(LEAST_MS - 1, 100_000);
        }
        assert_eq!(lateness, Lateness::default());
        for _ in 0..1000 {
            lateness.note(1000, 100_000);
        }
        assert!((lateness.factor() - MOST).abs() < 1e-9);
    }
}
