//! How many requests a target gets at once: a little more while it copes, much less when it does not.
//!
//! Additive increase, multiplicative decrease. The signs are refusals and late first tokens, not latency
//! itself, which at a language model depends on the tokens more than on the load.

use std::time::Instant;

use super::AdaptiveConfig;

/// The learned limit of one target.
#[derive(Debug)]
pub struct Adaptive {
    config: AdaptiveConfig,
    limit: u32,
    in_a_row: u32,
    decreased_at: Option<Instant>,
}

impl Adaptive {
    /// The starting limit, within the bounds. What the operator knows the upstream to take needs no learning: it
    /// is where the limit starts and the most it becomes.
    pub fn new(mut config: AdaptiveConfig, known: Option<usize>) -> Self {
        if let Some(known) = known {
            config.max = u32::try_from(known).unwrap_or(u32::MAX);
            config.start = config.max;
        }
        config.max = config.max.max(1);
        config.min = config.min.clamp(1, config.max);
        Self {
            config,
            limit: config.start.clamp(config.min, config.max),
            in_a_row: 0,
            decreased_at: None,
        }
    }

    /// Requests it may have at once, at least one.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// An attempt was answered. `saturated`: the target had as many as it may have; `slow`: its first tokens
    /// come too late for it to get more.
    pub fn answered(&mut self, saturated: bool, slow: bool) {
        if !saturated || slow {
            return;
        }
        self.in_a_row += 1;
        if self.in_a_row >= self.limit {
            self.in_a_row = 0;
            self.limit = (self.limit + 1).min(self.config.max);
        }
    }

    /// An attempt showed that it was too much. Those that had begun before the last decrease say nothing new.
    pub fn overloaded(&mut self, began: Instant, now: Instant) {
        self.in_a_row = 0;
        if self.decreased_at.is_some_and(|at| began <= at) {
            return;
        }
        self.decreased_at = Some(now);
        let less = (f64::from(self.limit) * self.config.decrease).floor() as u32;
        self.limit = less.clamp(self.config.min, self.config.max);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_many_successes_as_the_limit_raise_it_and_one_refusal_cuts_it() {
        let now = Instant::now();
        let mut adaptive = Adaptive::new(AdaptiveConfig::default(), None);
        for _ in 0..100 {
            adaptive.answered(false, false);
            adaptive.answered(true, true);
        }
        assert_eq!(adaptive.limit(), 8);
        for _ in 0..8 {
            adaptive.answered(true, false);
        }
        assert_eq!(adaptive.limit(), 9);
        let later = now + Duration::from_secs(1);
        for _ in 0..9 {
            adaptive.overloaded(now, later);
        }
        assert_eq!(adaptive.limit(), 6, "one round trip, one decrease");
        let next = later + Duration::from_millis(1);
        adaptive.overloaded(next, next);
        assert_eq!(adaptive.limit(), 4);
    }

    proptest! {
        #[test]
        fn the_limit_stays_within_its_bounds(
            known in prop::option::of(0usize..200),
            events in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..400),
        ) {
            let mut now = Instant::now();
            let mut adaptive = Adaptive::new(AdaptiveConfig::default(), known);
            let most = known.map_or(64, |most| most.max(1)) as u32;
            prop_assert_eq!(adaptive.limit(), known.map_or(8, |_| most));
            for (good, saturated, slow) in events {
                now += Duration::from_millis(1);
                if good {
                    adaptive.answered(saturated, slow);
                } else {
                    adaptive.overloaded(now, now);
                }
                prop_assert!((1..=most).contains(&adaptive.limit()));
            }
        }
    }
}
