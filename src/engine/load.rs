//! What the engine tells about its load: who runs, who waits, and how long steps take.
//!
//! Whoever decides where a request goes plays these numbers forward. They are handed over at most once in a
//! few milliseconds, through a lock that is held for a swap, so that no step waits for a reader.
//!
//! How long a step takes is learned in two ways. Steps without prompt tokens are kept by batch size, since
//! kernels do not grow evenly with it. What prompt tokens add is fitted: a chunked step computes prompt tokens
//! and rows of answers together, so dividing its time among them takes an equation,
//! `time = step + p * prompt_token + d * row`, solved by least squares over the latest steps with no term
//! below zero. Errors count relative to a step's time: a long step weighs no more than a short one. Steps with
//! and without prompt tokens fade apart from each other, so long answers do not wash out what prompts cost.

use std::time::{Duration, Instant};

use super::handle::Shared;
use super::scheduler::{Scheduler, Share};
use super::sequence::SequenceId;
use super::{Config, Job};
use crate::model::BLOCK_TOKENS;

/// Batch sizes for which the time of a step without prompt tokens is kept.
pub const BUCKETS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Steps before which nothing is said about their times.
const LEAST_STEPS: u64 = 3;

/// The newest step's share in the mean of its batch size.
const ALPHA: f64 = 0.2;

/// What a step still weighs after the next one of its sort.
const FADE: f64 = 1.0 - 1.0 / 64.0;

/// Between two reports, when nobody came or went.
const REPORT_EVERY: Duration = Duration::from_millis(20);

/// Between two reports, whoever came or went.
const REPORT_AT_MOST_EVERY: Duration = Duration::from_millis(5);

/// How long steps take.
///
/// Units: seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTimes {
    /// Of any step.
    pub step: f64,
    /// More for each prompt token.
    pub prompt_token: f64,
    /// More for each row of an answer.
    pub row: f64,
    /// Of a step without prompt tokens, by [`BUCKETS`]; none where none was seen.
    pub decode: [Option<f64>; BUCKETS.len()],
}

impl StepTimes {
    /// Prompt tokens a second in steps that compute so many of them and nothing else.
    pub fn prefill_tokens_per_second(&self, chunk: usize) -> f64 {
        chunk as f64 / (self.step + chunk as f64 * self.prompt_token)
    }

    /// Tokens a second of each sequence, by [`BUCKETS`].
    pub fn decode_tokens_per_second(&self) -> [Option<f64>; BUCKETS.len()] {
        self.decode.map(|time| time.map(|time| 1.0 / time))
    }
}

/// One sequence's share of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SequenceLoad {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens still to be computed before the next one of the answer.
    pub left: u32,
    /// Tokens of the answer so far.
    pub generated: u32,
    /// Most tokens of the answer.
    pub max_new: u32,
}

/// Jobs that were handed over and do not stand in a line yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unseen {
    /// How many.
    pub jobs: usize,
    /// Tokens of their prompts.
    pub prompt_tokens: usize,
    /// Most tokens of their answers.
    pub new_tokens: usize,
}

impl Unseen {
    pub(super) fn of(job: &Job) -> Self {
        Self {
            jobs: 1,
            prompt_tokens: job.prompt.len(),
            new_tokens: job.max_new_tokens,
        }
    }

    fn add(&mut self, more: Self) {
        self.jobs += more.jobs;
        self.prompt_tokens += more.prompt_tokens;
        self.new_tokens += more.new_tokens;
    }
}

/// The engine's load, a moment ago.
#[derive(Debug, Clone)]
pub struct LoadSnapshot {
    /// When it was true.
    pub taken_at: Instant,
    /// Sequences running, oldest first.
    pub running: Vec<SequenceLoad>,
    /// Sequences waiting, in order.
    pub waiting: Vec<SequenceLoad>,
    /// Jobs on their way into the waiting line, as of now.
    pub unseen: Unseen,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Most tokens that a step computes.
    pub step_tokens: usize,
    /// Tokens of a KV block.
    pub block_tokens: usize,
    /// Blocks of the KV cache.
    pub kv_total: usize,
    /// Blocks that nobody holds; those with cached beginnings are among them, since they are taken like others.
    pub kv_free: usize,
    /// How long steps take; none before a few were seen.
    pub times: Option<StepTimes>,
}

impl LoadSnapshot {
    pub(super) fn idle(config: &Config, now: Instant) -> Self {
        Self {
            taken_at: now,
            running: Vec::new(),
            waiting: Vec::new(),
            unseen: Unseen::default(),
            max_running: config.max_running.get(),
            step_tokens: config.max_batched_tokens.get(),
            block_tokens: BLOCK_TOKENS,
            kv_total: config.num_blocks,
            kv_free: config.num_blocks,
            times: None,
        }
    }

    /// Whether there is nothing to do; such numbers do not age.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.unseen.jobs == 0
    }

    /// How old the numbers are.
    pub fn age(&self, now: Instant) -> Duration {
        if self.is_idle() {
            Duration::ZERO
        } else {
            now.saturating_duration_since(self.taken_at)
        }
    }

    /// Everyone who waits, jobs on their way included; of those only the mean is known.
    pub fn line(&self) -> Vec<SequenceLoad> {
        let Unseen {
            jobs,
            prompt_tokens,
            new_tokens,
        } = self.unseen;
        let mean = |sum: usize| u32::try_from(sum.div_ceil(jobs.max(1))).unwrap_or(u32::MAX);
        let one = SequenceLoad {
            prompt: mean(prompt_tokens),
            left: mean(prompt_tokens),
            generated: 0,
            max_new: mean(new_tokens),
        };
        let mut line = self.waiting.clone();
        line.resize(line.len() + jobs, one);
        line
    }

    /// Takes over the scheduler's state.
    fn refill(&mut self, scheduler: &Scheduler, times: Option<StepTimes>, now: Instant) {
        let load = |id: SequenceId| {
            let sequence = scheduler.sequence(id);
            let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            SequenceLoad {
                prompt: small(sequence.prompt_len()),
                left: small(sequence.tokens().len() - sequence.computed()),
                generated: small(sequence.generated().len()),
                max_new: small(sequence.max_new_tokens()),
            }
        };
        self.taken_at = now;
        self.running.clear();
        self.running
            .extend(scheduler.running().iter().map(|&id| load(id)));
        self.waiting.clear();
        self.waiting.extend(scheduler.waiting().map(load));
        self.kv_free = scheduler.num_free_blocks();
        self.times = times;
    }
}

/// Learns how long steps take, and says when the load is worth another report.
#[derive(Debug)]
pub(super) struct Reporter {
    fit: StepFit,
    /// Filled beside the lock, then swapped in.
    spare: LoadSnapshot,
    /// Jobs taken in since the last report.
    taken: Unseen,
    /// Whether anybody came or went since the last report.
    changed: bool,
    reported_at: Option<Instant>,
}

impl Reporter {
    pub(super) fn new(config: &Config, now: Instant) -> Self {
        Self {
            fit: StepFit::default(),
            spare: LoadSnapshot::idle(config, now),
            taken: Unseen::default(),
            changed: false,
            reported_at: None,
        }
    }

    /// Notes a step that was carried out.
    pub(super) fn stepped(&mut self, shares: &[Share], took: Duration) {
        let (mut prompt_tokens, mut rows) = (0, 0);
        for share in shares {
            if share.count == 1 && share.samples && share.start > 0 {
                rows += 1;
            } else {
                prompt_tokens += share.count;
            }
        }
        self.fit.note(prompt_tokens, rows, took.as_secs_f64());
    }

    /// Notes a job that was taken in.
    pub(super) fn took_in(&mut self, job: &Job) {
        self.taken.add(Unseen::of(job));
        self.changed = true;
    }

    /// Notes that somebody began, was put back or left.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// Hands the load over, if it is time.
    ///
    /// An engine that is about to fall idle is always worth a report: nobody would correct the last one.
    pub(super) fn report(&mut self, scheduler: &Scheduler, shared: &Shared, now: Instant) {
        let since = self
            .reported_at
            .map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        let due = since >= REPORT_EVERY
            || self.changed && (since >= REPORT_AT_MOST_EVERY || scheduler.is_idle());
        if !due {
            return;
        }
        self.spare.refill(scheduler, self.fit.times(), now);
        if shared.publish(&mut self.spare, self.taken, scheduler.is_idle()) {
            self.reported_at = Some(now);
            self.changed = false;
            self.taken = Unseen::default();
        }
    }
}

/// The sums of a least-squares fit over steps, fading.
///
/// A step is the row `(1, p / 128, d / 16) / time`, and 1 is what it should come to.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    squares: [[f64; 3]; 3],
    goals: [f64; 3],
}

/// What makes the three terms of a fit of one size: prompt tokens and rows of a usual step.
const UNITS: [f64; 3] = [1.0, 128.0, 16.0];

impl Sums {
    fn note(&mut self, step: [f64; 3]) {
        for (i, &x) in step.iter().enumerate() {
            for (j, &y) in step.iter().enumerate() {
                self.squares[i][j] = self.squares[i][j] * FADE + x * y;
            }
            self.goals[i] = self.goals[i] * FADE + x;
        }
    }

    fn plus(mut self, other: &Self) -> Self {
        for i in 0..3 {
            for j in 0..3 {
                self.squares[i][j] += other.squares[i][j];
            }
            self.goals[i] += other.goals[i];
        }
        self
    }

    /// The terms of least error among those that are nowhere below zero: each choice of terms is tried.
    fn solve(&self) -> [f64; 3] {
        let (mut best, mut least) = ([0.0; 3], f64::INFINITY);
        for choice in 1..8usize {
            let Some(terms) = self.solve_for(choice) else {
                continue;
            };
            let mut error = 0.0;
            for i in 0..3 {
                error -= 2.0 * self.goals[i] * terms[i];
                for j in 0..3 {
                    error += terms[i] * self.squares[i][j] * terms[j];
                }
            }
            if error < least {
                (best, least) = (terms, error);
            }
        }
        best
    }

    /// The terms whose bits are set in `choice`, by elimination; none when one of them is below zero.
    #[expect(
        clippy::needless_range_loop,
        reason = "elimination reads best by rows and columns"
    )]
    fn solve_for(&self, choice: usize) -> Option<[f64; 3]> {
        let mut rows = [[0.0; 4]; 3];
        for i in 0..3 {
            let chosen = choice >> i & 1 == 1;
            for j in 0..3 {
                if chosen && choice >> j & 1 == 1 {
                    rows[i][j] = self.squares[i][j];
                }
            }
            // A little weight at zero, so that steps that are all alike have a solution.
            rows[i][i] += if chosen {
                1e-6 * self.squares[i][i]
            } else {
                1.0
            };
            rows[i][i] = rows[i][i].max(f64::MIN_POSITIVE);
            rows[i][3] = if chosen { self.goals[i] } else { 0.0 };
        }
        for i in 0..3 {
            for below in i + 1..3 {
                let factor = rows[below][i] / rows[i][i];
                for column in i..4 {
                    rows[below][column] -= factor * rows[i][column];
                }
            }
        }
        let mut terms = [0.0; 3];
        for i in (0..3).rev() {
            let known: f64 = (i + 1..3).map(|j| rows[i][j] * terms[j]).sum();
            terms[i] = (rows[i][3] - known) / rows[i][i];
        }
        let sound = terms.iter().all(|term| term.is_finite() && *term >= 0.0);
        sound.then_some(terms)
    }
}

/// How long steps took.
#[derive(Debug, Default)]
struct StepFit {
    steps: u64,
    with_prompts: Sums,
    without: Sums,
    decode: [Option<f64>; BUCKETS.len()],
}

impl StepFit {
    /// Notes a step of `prompt_tokens` and `rows` that took `time` seconds.
    fn note(&mut self, prompt_tokens: usize, rows: usize, time: f64) {
        if time <= 0.0 || prompt_tokens + rows == 0 {
            return;
        }
        self.steps += 1;
        let sizes = [1.0, prompt_tokens as f64, rows as f64];
        let step = std::array::from_fn(|i| sizes[i] / UNITS[i] / time);
        if prompt_tokens > 0 {
            self.with_prompts.note(step);
            return;
        }
        self.without.note(step);
        // A size between two buckets counts for the nearer one, measured as a factor.
        let near = |bucket: usize| {
            let factor = rows as f64 / bucket as f64;
            (std::f64::consts::FRAC_1_SQRT_2..std::f64::consts::SQRT_2).contains(&factor)
        };
        if let Some(i) = BUCKETS.iter().position(|&bucket| near(bucket)) {
            let mean = self.decode[i].get_or_insert(time);
            *mean += ALPHA * (time - *mean);
        }
    }

    fn times(&self) -> Option<StepTimes> {
        if self.steps < LEAST_STEPS {
            return None;
        }
        let terms = self.with_prompts.plus(&self.without).solve();
        Some(StepTimes {
            step: terms[0],
            prompt_token: terms[1] / UNITS[1],
            row: terms[2] / UNITS[2],
            decode: self.decode,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn true_time(prompt_tokens: usize, rows: usize) -> f64 {
        0.004 + prompt_tokens as f64 * 0.0005 + rows as f64 * 0.001
    }

    /// Steps of a server with its prompts and answers mixed, each up to 20 % off.
    fn mixed(steps: usize) -> StepFit {
        let mut fit = StepFit::default();
        let mut noise = 1u64;
        for i in 0..steps {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let off = 0.8 + 0.4 * (noise >> 33) as f64 / f64::from(1u32 << 31);
            let rows = i % 9;
            let prompt_tokens = match i % 3 {
                0 => 128 - rows,
                1 => i % 40,
                _ => 0,
            };
            fit.note(prompt_tokens, rows, true_time(prompt_tokens, rows) * off);
        }
        fit
    }

    #[test]
    fn nothing_is_said_before_three_steps() {
        let mut fit = StepFit::default();
        fit.note(10, 0, 0.01);
        fit.note(0, 1, 0.01);
        assert!(fit.times().is_none());
        fit.note(0, 1, 0.01);
        assert!(fit.times().is_some());
    }

    #[test]
    fn prompts_and_answers_of_mixed_steps_are_told_apart() {
        let times = mixed(600).times().expect("enough steps");
        let ratio =
            |found: f64, real: f64| assert!((0.8..1.25).contains(&(found / real)), "{times:?}");
        ratio(times.prompt_token, 0.0005);
        ratio(times.step + 4.0 * times.row, true_time(0, 4));
        ratio(
            times.prefill_tokens_per_second(128),
            128.0 / true_time(128, 0),
        );
        ratio(times.decode[3].expect("seen"), true_time(0, 8));
    }

    #[test]
    fn long_answers_do_not_wash_out_what_prompts_cost() {
        let mut fit = mixed(600);
        for _ in 0..5_000 {
            fit.note(0, 1, true_time(0, 1));
        }
        let times = fit.times().expect("enough steps");
        assert!(
            (0.7..1.4).contains(&(times.prompt_token / 0.0005)),
            "{times:?}"
        );
    }

    #[test]
    fn a_machine_that_slows_down_is_followed() {
        let mut fit = mixed(600);
        for i in 0..300 {
            let rows = i % 9;
            fit.note(100, rows, 3.0 * true_time(100, rows));
            fit.note(20, rows, 3.0 * true_time(20, rows));
        }
        let times = fit.times().expect("enough steps");
        assert!(
            (0.8..1.25).contains(&(times.prompt_token / 0.0015)),
            "{times:?}"
        );
    }

    #[test]
    fn steps_that_are_all_alike_still_have_a_time() {
        let mut fit = StepFit::default();
        for _ in 0..50 {
            fit.note(64, 0, 0.032);
        }
        let times = fit.times().expect("enough steps");
        let took = times.step + 64.0 * times.prompt_token;
        assert!((took - 0.032).abs() < 1e-3, "{times:?}");
        assert!(times.row >= 0.0 && times.step >= 0.0);
    }

    #[test]
    fn jobs_on_their_way_stand_at_the_end_of_the_line() {
        let one = std::num::NonZeroUsize::MIN;
        let config = Config {
            max_batched_tokens: one,
            max_running: one,
            max_queued: one,
            num_blocks: 1,
        };
        let now = Instant::now();
        let mut load = LoadSnapshot::idle(&config, now);
        let later = now + Duration::from_secs(9);
        assert_eq!(load.age(later), Duration::ZERO);
        load.unseen = Unseen {
            jobs: 2,
            prompt_tokens: 30,
            new_tokens: 8,
        };
        assert_eq!(load.age(later), Duration::from_secs(9));
        let expected = SequenceLoad {
            prompt: 15,
            left: 15,
            generated: 0,
            max_new: 4,
        };
        assert_eq!(load.line(), [expected; 2]);
    }
}
