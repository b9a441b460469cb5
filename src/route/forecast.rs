//! Forecasts when this machine would answer, from the engine's own numbers.
//!
//! The running and the waiting line are played forward in time, step by step but many equal steps at once:
//! between two events, which are the end of a prompt and the end of an answer, every step computes the same
//! number of prompt tokens and rows and so takes the same time. What nobody can know, how long answers get,
//! is taken from what answers to the same caller on the same route came to so far.
//!
//! Pure: the numbers come in, times come out.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::num::NonZeroUsize;

use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::decide::Forecast;

/// Sequences up to which the lines are played forward; beyond, the closed form must do.
const MAX_SIMULATED: usize = 512;

/// Batch sizes for which the time of a step is kept.
pub const BUCKETS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// How long the engine's steps take.
///
/// Units: seconds. A step of `p` prompt tokens and `d` rows of answers takes about
/// `step + p * prompt_token + d * row`; one without prompt tokens what was seen for its batch size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
    /// The time of one step.
    ///
    /// Between two batch sizes that were seen it lies on the line between them; beyond, each row adds
    /// `row`. Prompt tokens never make a step shorter.
    pub fn of(&self, prompt_tokens: usize, rows: usize) -> f64 {
        let fitted =
            |p: usize, d: usize| self.step + p as f64 * self.prompt_token + d as f64 * self.row;
        let decode = self.decode_step(rows);
        if prompt_tokens == 0 {
            decode.unwrap_or_else(|| fitted(0, rows))
        } else {
            fitted(prompt_tokens, rows).max(decode.unwrap_or(0.0))
        }
    }

    fn decode_step(&self, rows: usize) -> Option<f64> {
        if rows == 0 {
            return None;
        }
        let seen = BUCKETS
            .iter()
            .zip(self.decode)
            .filter_map(|(&b, t)| Some((b, t?)));
        let below = seen.clone().rfind(|(b, _)| *b <= rows);
        let above = seen.clone().find(|(b, _)| *b >= rows);
        let beyond = |(b, t): (usize, f64)| t + (rows as f64 - b as f64) * self.row;
        match (below, above) {
            (Some((low, a)), Some((high, b))) if low < high => {
                Some(a + (b - a) * (rows - low) as f64 / (high - low) as f64)
            }
            (Some((_, a)), Some(_)) => Some(a),
            (Some(edge), None) => Some(beyond(edge)),
            // Rows that are not there shorten a step no further than to nothing beside the rest of it.
            (None, Some(edge)) => Some(beyond(edge).max(edge.1 * rows as f64 / edge.0 as f64)),
            (None, None) => None,
        }
    }
}

/// One sequence that is ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens still to be computed before the next one of the answer.
    pub left: u32,
    /// Tokens of the answer so far.
    pub generated: u32,
    /// Most tokens of the answer.
    pub max_new: u32,
}

/// The engine, a moment ago.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EngineView {
    /// Sequences running, oldest first.
    pub running: Vec<Work>,
    /// Sequences waiting, in order.
    pub waiting: Vec<Work>,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Most tokens that a step computes.
    pub step_tokens: usize,
    /// Tokens of a KV block.
    pub block_tokens: usize,
    /// Blocks of the KV cache.
    pub kv_total: usize,
    /// Blocks that nobody holds, those of the prefix cache included.
    pub kv_free: usize,
    /// How long steps take; none when too few were seen.
    pub times: Option<StepTimes>,
}

impl EngineView {
    /// Blocks for so many tokens.
    pub fn blocks(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens.max(1))
    }

    /// Whether prompt and longest answer can never be held.
    pub fn never_fits(&self, newcomer: &Newcomer) -> bool {
        self.blocks(newcomer.prompt as usize + newcomer.max_new as usize) > self.kv_total
    }
}

/// The request that would join the end of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newcomer {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Those among them that the prefix cache does not hold.
    pub uncached: u32,
    /// Most tokens of the answer.
    pub max_new: u32,
    /// Tokens that the answer is expected to have.
    pub expected: u32,
}

/// Tokens that an answer of at most `max_new` is expected to have, when answers come to this share of what
/// they may.
pub fn expected_tokens(max_new: u32, ratio: f64) -> u32 {
    let expected = (ratio.clamp(0.0, 1.0) * f64::from(max_new)).ceil() as u32;
    expected.max(16).min(max_new.max(1))
}

/// Tokens still expected of an answer: the mean over those that came to more than it has by now. What has run for
/// long has most often more left than the mean of all says, because long answers are the ones that run for long.
fn remaining_tokens(work: &Work, lengths: &Lengths) -> u64 {
    let most = work.max_new.saturating_sub(work.generated).max(1);
    let expected = if work.generated == 0 {
        expected_tokens(work.max_new, lengths.mean)
    } else {
        let max_new = f64::from(work.max_new.max(1));
        let share = lengths.mean_beyond(f64::from(work.generated) / max_new);
        let whole = (share * max_new).ceil() as u32;
        whole.saturating_sub(work.generated).max(8)
    };
    u64::from(expected.clamp(1, most))
}

/// What answers come to, as shares of what they may.
#[derive(Debug, Clone, PartialEq)]
pub struct Lengths {
    /// From, to, and the weight of what lies evenly between them; in order.
    pieces: Vec<(f64, f64, f64)>,
    mean: f64,
}

impl Lengths {
    fn new(pieces: Vec<(f64, f64, f64)>) -> Self {
        let weight: f64 = pieces.iter().map(|(_, _, weight)| weight).sum();
        let pieces_mean = |(from, to, weight): &(f64, f64, f64)| (from + to) / 2.0 * weight;
        let mean = pieces.iter().map(pieces_mean).sum::<f64>() / weight.max(f64::MIN_POSITIVE);
        Self { pieces, mean }
    }

    /// The mean of those that come to more than this; the share itself where none is known to.
    fn mean_beyond(&self, share: f64) -> f64 {
        let (mut sum, mut weights) = (0.0, 0.0);
        for &(from, to, weight) in self.pieces.iter().rev() {
            if to <= share {
                break;
            }
            let (begin, part) = if from < share {
                (share, weight * (to - share) / (to - from))
            } else {
                (from, weight)
            };
            sum += (begin + to) / 2.0 * part;
            weights += part;
        }
        if weights > 0.0 { sum / weights } else { share }
    }
}

/// Forecasts when the newcomer would be answered; none when the engine's steps are not known.
///
/// `lengths` says what the answers of those ahead are expected to come to. Memory is promised to a sequence for its
/// whole expected length, as if nobody were preempted.
///
/// Cost: O(n log n) for up to 512 sequences, O(n) beyond.
pub fn forecast(view: &EngineView, newcomer: &Newcomer, lengths: &Lengths) -> Option<Forecast> {
    let times = view.times.as_ref()?;
    let ahead = view.running.len() + view.waiting.len();
    let arrival = Work {
        prompt: newcomer.prompt,
        left: newcomer.uncached.clamp(1, newcomer.prompt.max(1)),
        generated: 0,
        max_new: newcomer.max_new,
    };
    let (start, first, kv_bound) = if ahead > MAX_SIMULATED {
        closed_form(view, times, newcomer, lengths)
    } else {
        let mut line = Line::new(view, times, lengths);
        line.join(arrival, u64::from(newcomer.expected.max(1)));
        let last = view.waiting.len();
        line.play(last);
        let seen = line.seen[last];
        (seen.start, seen.first, seen.kv_bound)
    };
    // Those who run beside it at its first token are taken to stay until its last.
    let rows = (ahead + 1).min(view.max_running.max(1));
    let rest = f64::from(newcomer.expected.saturating_sub(1)) * times.of(0, rows);
    Some(Forecast {
        wait_ms: to_ms(start),
        ttft_ms: to_ms(first),
        e2e_ms: to_ms(first + rest),
        kv_bound,
    })
}

fn to_ms(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1000.0).round() as u64
}

/// When memory is not what is short: the tokens ahead by the rate at which a full batch makes them.
fn closed_form(
    view: &EngineView,
    times: &StepTimes,
    newcomer: &Newcomer,
    lengths: &Lengths,
) -> (f64, f64, bool) {
    let all = || view.running.iter().chain(&view.waiting);
    let slots = view.max_running.max(1);
    let answers: u64 = all().map(|work| remaining_tokens(work, lengths)).sum();
    let prompts: u64 = all().map(|work| u64::from(work.left)).sum();
    let chunk = view.step_tokens.saturating_sub(slots).max(1);
    let decode = times.of(0, slots) / slots as f64;
    let prompt_token = (times.of(chunk, slots) - times.of(0, slots)).max(0.0) / chunk as f64;
    // A place is free at once when the batch is not full.
    let beyond = (view.running.len() + view.waiting.len() + 1).saturating_sub(slots) as f64;
    let share = beyond / (view.running.len() + view.waiting.len()).max(1) as f64;
    let start = answers as f64 * share.min(1.0) * decode + prompts as f64 * prompt_token;
    let own = f64::from(newcomer.uncached.max(1)) * prompt_token + times.of(0, slots);
    (start, start + own, false)
}

/// What was seen of one waiting sequence.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    start: f64,
    first: f64,
    kv_bound: bool,
}

/// A sequence in the batch whose prompt is being computed.
struct Filling {
    left: u64,
    answer: u64,
    blocks: usize,
    /// Its place in the waiting line, if it came from there.
    place: Option<usize>,
}

/// Both lines, played forward.
struct Line<'a> {
    times: &'a StepTimes,
    step_tokens: u64,
    max_running: usize,
    block_tokens: usize,
    now: f64,
    step: u64,
    free: i64,
    filling: VecDeque<Filling>,
    /// By the step after which they end, with their blocks.
    answering: BinaryHeap<Reverse<(u64, usize)>>,
    waiting: VecDeque<(u64, u64, usize)>,
    next: usize,
    kv_bound: bool,
    seen: Vec<Seen>,
}

impl<'a> Line<'a> {
    fn new(view: &EngineView, times: &'a StepTimes, lengths: &Lengths) -> Self {
        let mut line = Self {
            times,
            step_tokens: view.step_tokens.max(1) as u64,
            max_running: view.max_running.max(1),
            block_tokens: view.block_tokens.max(1),
            now: 0.0,
            step: 0,
            free: view.kv_free as i64,
            filling: VecDeque::new(),
            answering: BinaryHeap::new(),
            waiting: VecDeque::new(),
            next: 0,
            kv_bound: false,
            seen: Vec::new(),
        };
        for work in &view.running {
            let answer = remaining_tokens(work, lengths);
            let owned = work.prompt as usize + work.generated as usize;
            let blocks = view.blocks(owned + answer as usize);
            let held = view.blocks(owned.saturating_sub(work.left as usize));
            line.free -= blocks.saturating_sub(held) as i64;
            if work.left <= 1 && work.generated > 0 {
                line.answering.push(Reverse((answer, blocks)));
            } else {
                line.filling.push_back(Filling {
                    left: u64::from(work.left.max(1)),
                    answer,
                    blocks,
                    place: None,
                });
            }
        }
        for work in &view.waiting {
            line.join(*work, remaining_tokens(work, lengths));
        }
        line
    }

    fn join(&mut self, work: Work, answer: u64) {
        let tokens = work.prompt as usize + work.generated as usize + answer as usize;
        let blocks = tokens.div_ceil(self.block_tokens);
        self.waiting
            .push_back((u64::from(work.left.max(1)), answer, blocks));
        self.seen.push(Seen::default());
    }

    fn play(&mut self, until: usize) {
        while self.next <= until || self.filling.iter().any(|f| f.place == Some(until)) {
            self.admit();
            self.advance();
        }
    }

    fn running(&self) -> usize {
        self.filling.len() + self.answering.len()
    }

    /// Lets in who has a place, memory, and tokens left in the next step.
    fn admit(&mut self) {
        let rows = self.answering.len() as u64;
        let mut backlog: u64 = self.filling.iter().map(|f| f.left).sum();
        while let Some(&(left, answer, blocks)) = self.waiting.front() {
            if self.running() >= self.max_running
                || backlog + rows >= self.step_tokens.max(rows + 1)
            {
                return;
            }
            // Alone, everyone fits: the engine refuses the others.
            if blocks as i64 > self.free && self.running() > 0 {
                self.kv_bound = true;
                return;
            }
            self.waiting.pop_front();
            self.free -= blocks as i64;
            self.seen[self.next].start = self.now;
            self.seen[self.next].kv_bound = std::mem::take(&mut self.kv_bound);
            self.filling.push_back(Filling {
                left,
                answer,
                blocks,
                place: Some(self.next),
            });
            backlog += left;
            self.next += 1;
        }
    }

    /// Computes steps until something changes.
    fn advance(&mut self) {
        let rows = self.answering.len();
        // Prompts advance by one token at least, so that time cannot stand still.
        let chunk = self.step_tokens.saturating_sub(rows as u64).max(1);
        let ends = self
            .answering
            .peek()
            .map(|Reverse((end, _))| end - self.step);
        let Some(first) = self.filling.front() else {
            let Some(steps) = ends else { return };
            self.pass(steps.max(1), 0, rows);
            return;
        };
        // Whole steps that the first prompt fills alone.
        let whole = first.left.div_ceil(chunk) - 1;
        let steps = ends.map_or(whole, |ends| whole.min(ends));
        if steps > 0 {
            self.filling[0].left -= steps * chunk;
            self.pass(steps, chunk, rows);
            return;
        }
        let mut budget = chunk;
        let mut done = 0;
        for filling in &mut self.filling {
            let count = filling.left.min(budget);
            filling.left -= count;
            budget -= count;
            if filling.left > 0 {
                break;
            }
            done += 1;
        }
        self.pass(1, chunk - budget, rows);
        for filling in self.filling.drain(..done) {
            if let Some(place) = filling.place {
                self.seen[place].first = self.now;
            }
            // The step that ends the prompt makes the first token.
            if filling.answer > 1 {
                let end = self.step + filling.answer - 1;
                self.answering.push(Reverse((end, filling.blocks)));
            } else {
                self.free += filling.blocks as i64;
            }
        }
    }

    fn pass(&mut self, steps: u64, prompt_tokens: u64, rows: usize) {
        self.now += steps as f64 * self.times.of(prompt_tokens as usize, rows);
        self.step += steps;
        while let Some(&Reverse((end, blocks))) = self.answering.peek() {
            if end > self.step {
                break;
            }
            self.answering.pop();
            self.free += blocks as i64;
        }
    }
}

/// What answers came to so far, as a share of what they could have had, by the caller's key and the route.
///
/// Old answers count less and less. A key and route that were never seen are taken to be like all others, and
/// the first of all to come to one half.
#[derive(Debug)]
pub struct OutputHistory {
    seen: LruCache<(String, String), Shares>,
    all: Shares,
}

/// A histogram of shares whose weights fade.
#[derive(Debug, Clone)]
struct Shares {
    weights: [f64; Self::BINS],
}

impl Shares {
    const BINS: usize = 20;
    /// What an older answer weighs beside the next one.
    const FADE: f64 = 0.98;
    /// The weight of the first guess.
    const PRIOR: f64 = 4.0;

    fn new() -> Self {
        let mut weights = [0.0; Self::BINS];
        // The bin that ends at one half.
        weights[Self::BINS / 2 - 1] = Self::PRIOR;
        Self { weights }
    }

    fn note(&mut self, share: f64) {
        for weight in &mut self.weights {
            *weight *= Self::FADE;
        }
        let bin = (share.clamp(0.0, 1.0) * Self::BINS as f64).ceil() as usize;
        self.weights[bin.clamp(1, Self::BINS) - 1] += 1.0;
    }

    /// The same with each bin's weight evenly within it.
    fn lengths(&self) -> Lengths {
        let edge = |bin: usize| bin as f64 / Self::BINS as f64;
        let bins = self.weights.iter().enumerate();
        Lengths::new(
            bins.map(|(bin, weight)| (edge(bin), edge(bin + 1), *weight))
                .collect(),
        )
    }

    /// The upper end of the bin that holds the 75th percentile.
    fn p75(&self) -> f64 {
        let goal = 0.75 * self.weights.iter().sum::<f64>();
        let mut sum = 0.0;
        for (bin, weight) in self.weights.iter().enumerate() {
            sum += weight;
            if sum >= goal {
                return (bin + 1) as f64 / Self::BINS as f64;
            }
        }
        1.0
    }
}

impl OutputHistory {
    /// Remembers at most `capacity` pairs of key and route, the latest used ones.
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self {
            seen: LruCache::new(capacity),
            all: Shares::new(),
        }
    }

    /// Notes an answer of `generated` tokens that could have had `max_new`.
    pub fn note(&mut self, key: &str, route: &str, generated: u32, max_new: u32) {
        let share = f64::from(generated) / f64::from(max_new.max(1));
        self.all.note(share);
        let name = (key.to_owned(), route.to_owned());
        self.seen.get_or_insert_mut(name, Shares::new).note(share);
    }

    /// The share that three answers of four stay below, for this key and route.
    pub fn ratio(&mut self, key: &str, route: &str) -> f64 {
        let name = (key.to_owned(), route.to_owned());
        self.seen.get(&name).unwrap_or(&self.all).p75()
    }

    /// What answers come to, over everyone: for those ahead, since many answers together come to their mean and not
    /// to what three of four stay below.
    pub fn lengths_of_all(&self) -> Lengths {
        self.all.lengths()
    }
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
