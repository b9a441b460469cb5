//! What a target's speed was lately, and hence what to expect and how long to wait.
//!
//! Times to first token are kept as histograms whose contents fade: one of the last minutes, and a slower one,
//! the baseline, which says what is usual. Both are split by the length of the prompt, since that is what the
//! first token waits for. Before anything was seen the catalogue's figures stand in.

use std::time::{Duration, Instant};

use super::Clocks;

/// Prompt tokens up to which a prompt belongs to each class; longer ones make up one more.
const PROMPTS: [u32; 5] = [256, 1024, 4096, 16_384, 65_536];
/// Classes of prompts.
const CLASSES: usize = PROMPTS.len() + 1;
/// Bins of a histogram: each is a fifth wider than the one before, from 10 ms to some 10 minutes.
const BINS: usize = 64;
/// The upper end of the first bin, in seconds.
const FIRST_BIN: f64 = 0.01;
/// Bins in which the width doubles.
const BINS_PER_DOUBLING: f64 = 4.0;
/// Seconds in which what is recent fades to a half.
const RECENT_HALF_LIFE: f64 = 300.0;
/// The same for what is usual.
const USUAL_HALF_LIFE: f64 = 3600.0;
/// Weight that a histogram of one class of prompts must have to speak for itself.
const ENOUGH: f64 = 5.0;
/// Weight that the baseline must have before anything is slow by it.
const ENOUGH_USUAL: f64 = 20.0;
/// The part of a new sample in the moving average of throughput.
const NEW_SHARE: f64 = 0.2;
/// Before anything is known: seconds to the first token, and tokens a second after it.
const PRIOR: (f64, f64) = (1.0, 30.0);
/// How much later than the median the 95th percentile is taken to be, before it is known.
const PRIOR_SPREAD: f64 = 2.0;

/// A histogram of seconds whose contents fade.
#[derive(Debug, Clone)]
struct Fading {
    bins: [f32; BINS],
    weight: f64,
    half_life: f64,
    at: Instant,
}

impl Fading {
    fn new(half_life: f64, now: Instant) -> Self {
        Self {
            bins: [0.0; BINS],
            weight: 0.0,
            half_life,
            at: now,
        }
    }

    fn add(&mut self, seconds: f64, now: Instant) {
        let aged = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let keep = 0.5f64.powf(aged / self.half_life);
        for bin in &mut self.bins {
            *bin *= keep as f32;
        }
        let place = ((seconds / FIRST_BIN).log2() * BINS_PER_DOUBLING).ceil();
        let place = (place.max(0.0) as usize).min(BINS - 1);
        self.bins[place] += 1.0;
        self.weight = self.weight * keep + 1.0;
    }

    /// The upper end of the bin that holds this share of the weight; none when there is nothing.
    fn quantile(&self, share: f64) -> Option<f64> {
        let all: f64 = self.bins.iter().map(|bin| f64::from(*bin)).sum();
        if all <= 1e-6 {
            return None;
        }
        let mut below = 0.0;
        let place = self.bins.iter().position(|bin| {
            below += f64::from(*bin);
            below >= share * all * (1.0 - 1e-6)
        });
        Some(FIRST_BIN * 2f64.powf(place.unwrap_or(BINS - 1) as f64 / BINS_PER_DOUBLING))
    }
}

/// One target's speed.
#[derive(Debug, Clone)]
pub struct Latency {
    recent: [Fading; CLASSES],
    recent_all: Fading,
    usual: [Fading; CLASSES],
    tokens_per_second: Option<f64>,
    prior: (f64, f64),
}

impl Latency {
    /// Nothing known.
    pub fn new(now: Instant) -> Self {
        Self {
            recent: std::array::from_fn(|_| Fading::new(RECENT_HALF_LIFE, now)),
            recent_all: Fading::new(RECENT_HALF_LIFE, now),
            usual: std::array::from_fn(|_| Fading::new(USUAL_HALF_LIFE, now)),
            tokens_per_second: None,
            prior: PRIOR,
        }
    }

    /// What a catalogue says, used until requests tell more.
    pub fn set_prior(&mut self, first_token: Option<Duration>, tokens_per_second: Option<f64>) {
        let usable = |x: &f64| x.is_finite() && *x > 0.0;
        self.prior = (
            first_token
                .map(|time| time.as_secs_f64())
                .filter(usable)
                .unwrap_or(PRIOR.0),
            tokens_per_second.filter(usable).unwrap_or(PRIOR.1),
        );
    }

    /// A first token came after so long.
    pub fn first_token(&mut self, prompt_tokens: u32, time: Duration, now: Instant) {
        let (class, seconds) = (class(prompt_tokens), time.as_secs_f64());
        self.recent[class].add(seconds, now);
        self.recent_all.add(seconds, now);
        self.usual[class].add(seconds, now);
    }

    /// So many tokens came in the time after the first one.
    pub fn wrote(&mut self, tokens: u32, time: Duration) {
        if tokens < 2 || time.is_zero() {
            return;
        }
        let rate = f64::from(tokens - 1) / time.as_secs_f64();
        self.tokens_per_second = Some(match self.tokens_per_second {
            Some(old) => old + NEW_SHARE * (rate - old),
            None => rate,
        });
    }

    /// The time to the first token that half of the requests with such a prompt need at most.
    pub fn p50(&self, prompt_tokens: u32) -> Duration {
        self.estimate(prompt_tokens, 0.5, self.prior.0)
    }

    /// The same for 95 of a hundred.
    pub fn p95(&self, prompt_tokens: u32) -> Duration {
        self.estimate(prompt_tokens, 0.95, self.prior.0 * PRIOR_SPREAD)
    }

    /// Tokens a second after the first one.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens_per_second.unwrap_or(self.prior.1)
    }

    /// What to expect of a request: the time to its first token, and to its last.
    pub fn expected(&self, prompt_tokens: u32, output_tokens: u32) -> (Duration, Duration) {
        let first = self.p50(prompt_tokens);
        let rest = f64::from(output_tokens) / self.tokens_per_second().max(0.01);
        (first, first + Duration::from_secs_f64(rest))
    }

    /// Whether a first token that came after so long came this many times later than usual (95th percentile).
    pub fn is_slow(&self, prompt_tokens: u32, time: Duration, factor: f64) -> bool {
        self.usual(prompt_tokens, 0.95)
            .is_some_and(|usual| time.as_secs_f64() > factor * usual)
    }

    /// Whether first tokens lately come this many times later than usual (median).
    pub fn is_strained(&self, prompt_tokens: u32, factor: f64) -> bool {
        let recent = self.recent[class(prompt_tokens)].quantile(0.5);
        let usual = self.usual(prompt_tokens, 0.5);
        recent
            .zip(usual)
            .is_some_and(|(recent, usual)| recent > factor * usual)
    }

    /// How long to wait for the first token of a request before it counts as lost.
    pub fn first_token_clock(
        &self,
        prompt_tokens: u32,
        may_reason: bool,
        clocks: &Clocks,
    ) -> Duration {
        if may_reason {
            return clocks.first_token_reasoning;
        }
        let p95 = self
            .recent_all
            .quantile(0.95)
            .unwrap_or(self.prior.0 * PRIOR_SPREAD);
        let reading = f64::from(prompt_tokens) / clocks.prompt_tokens_per_second.max(1e-3);
        let seconds = clocks.first_token_factor * p95 + reading;
        let most = clocks.first_token_max.as_secs_f64();
        Duration::from_secs_f64(seconds.clamp(0.0, most)).max(clocks.first_token_min)
    }

    fn estimate(&self, prompt_tokens: u32, share: f64, prior: f64) -> Duration {
        let own = &self.recent[class(prompt_tokens)];
        let source = if own.weight >= ENOUGH {
            own
        } else {
            &self.recent_all
        };
        Duration::from_secs_f64(source.quantile(share).unwrap_or(prior))
    }

    fn usual(&self, prompt_tokens: u32, share: f64) -> Option<f64> {
        let usual = &self.usual[class(prompt_tokens)];
        (usual.weight >= ENOUGH_USUAL)
            .then(|| usual.quantile(share))
            .flatten()
    }
}

fn class(prompt_tokens: u32) -> usize {
    PROMPTS.partition_point(|most| *most < prompt_tokens)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn near(time: Duration, seconds: f64) -> bool {
        (time.as_secs_f64() / seconds).ln().abs() < 0.2
    }

    #[test]
    fn quantiles_follow_the_last_minutes_and_the_class_of_the_prompt() {
        let now = Instant::now();
        let mut latency = Latency::new(now);
        assert_eq!(latency.p50(10), S);
        latency.set_prior(Some(S / 2), None);
        assert_eq!(latency.p50(10), S / 2);
        for _ in 0..90 {
            latency.first_token(100, S, now);
        }
        for _ in 0..10 {
            latency.first_token(100, 8 * S, now);
            latency.first_token(30_000, 20 * S, now);
        }
        assert!(near(latency.p50(100), 1.0), "{:?}", latency.p50(100));
        assert!(near(latency.p95(100), 8.0));
        assert!(near(latency.p50(30_000), 20.0));
        assert!(near(latency.p50(3000), 1.0), "none of its own");
        for _ in 0..20 {
            latency.first_token(100, 3 * S, now + 3000 * S);
        }
        assert!(near(latency.p50(100), 3.0));
    }

    #[test]
    fn the_clock_is_four_times_the_p95_and_the_prompt_within_its_bounds() {
        let now = Instant::now();
        let clocks = Clocks::default();
        let mut latency = Latency::new(now);
        assert_eq!(latency.first_token_clock(0, false, &clocks), 8 * S);
        assert_eq!(latency.first_token_clock(5000, false, &clocks), 18 * S);
        assert_eq!(latency.first_token_clock(1_000_000, false, &clocks), 60 * S);
        assert_eq!(latency.first_token_clock(0, true, &clocks), 120 * S);
        latency.set_prior(Some(S / 10), None);
        assert_eq!(latency.first_token_clock(0, false, &clocks), 5 * S);
    }

    #[test]
    fn slow_is_measured_against_what_is_usual() {
        let mut now = Instant::now();
        let mut latency = Latency::new(now);
        assert!(!latency.is_slow(100, 60 * S, 3.0), "nothing is usual yet");
        for _ in 0..60 {
            now += 60 * S;
            latency.first_token(100, S, now);
        }
        assert!(latency.is_slow(100, 4 * S, 3.0));
        assert!(!latency.is_slow(100, 2 * S, 3.0));
        assert!(!latency.is_strained(100, 2.0));
        for _ in 0..8 {
            latency.first_token(100, 4 * S, now);
        }
        assert!(latency.is_strained(100, 2.0));
        assert!(!latency.is_strained(30_000, 2.0));
    }

    #[test]
    fn throughput_is_a_moving_average() {
        let now = Instant::now();
        let mut latency = Latency::new(now);
        assert_eq!(latency.expected(10, 60), (S, 3 * S));
        latency.wrote(101, S);
        assert_eq!(latency.tokens_per_second(), 100.0);
        latency.wrote(1, 5 * S);
        latency.wrote(51, S);
        assert_eq!(latency.tokens_per_second(), 90.0);
    }

    proptest! {
        #[test]
        fn quantiles_lie_among_the_samples_and_clocks_within_their_bounds(
            samples in prop::collection::vec((0u64..700_000, 0u32..200_000, 0u64..10_000), 1..80),
            prompt in any::<u32>(),
        ) {
            let mut now = Instant::now();
            let mut latency = Latency::new(now);
            let (mut least, mut most) = (f64::MAX, 0.01f64);
            for (ms, tokens, step) in samples {
                now += Duration::from_millis(step);
                latency.first_token(tokens, Duration::from_millis(ms), now);
                least = least.min(ms as f64 / 1000.0);
                most = most.max(ms as f64 / 1000.0);
            }
            let (p50, p95) = (latency.p50(prompt).as_secs_f64(), latency.p95(prompt).as_secs_f64());
            prop_assert!(p50 <= p95);
            prop_assert!(p95 <= most * 1.2);
            prop_assert!(p50 >= least.min(500.0) * 0.99);
            let clock = latency.first_token_clock(prompt, false, &Clocks::default());
            prop_assert!((5 * S..=60 * S).contains(&clock));
        }
    }
}
