//! A step in the load, played in virtual time: decisions by their own forecasts against an engine whose steps
//! and answers are not quite what the forecasts take them for.

use std::collections::VecDeque;

use super::*;
use crate::generation::{Reason, Side};

const SLOTS: usize = 4;
const STEP_TOKENS: usize = 64;

/// One request in the engine.
struct One {
    prompt: u32,
    left: u32,
    generated: u32,
    answer: u32,
    max_new: u32,
    /// When it came, and what was said of its first token.
    came_ms: f64,
    said_ms: u64,
    started: bool,
}

/// An engine that takes every step by itself.
#[derive(Default)]
struct Engine {
    running: Vec<One>,
    waiting: VecDeque<One>,
    now_ms: f64,
    /// Times to the first token, and what had been said.
    firsts: Vec<(f64, u64)>,
    /// Milliseconds with every place taken, and in all.
    full_ms: f64,
}

impl Engine {
    fn step(&mut self, times: &StepTimes, noise: f64) {
        while self.running.len() < SLOTS
            && let Some(one) = self.waiting.pop_front()
        {
            self.running.push(one);
        }
        let rows = self.running.iter().filter(|one| one.started).count();
        let mut budget = (STEP_TOKENS - rows) as u32;
        let mut prompt_tokens = 0;
        let full = self.running.len() == SLOTS;
        let mut done = Vec::new();
        for one in self.running.iter_mut().filter(|one| !one.started) {
            let count = one.left.min(budget);
            one.left -= count;
            budget -= count;
            prompt_tokens += count as usize;
            done.push(one.left == 0);
        }
        let took = times.of(prompt_tokens, rows) * noise * 1000.0;
        self.now_ms += took;
        self.full_ms += if full { took } else { 0.0 };
        for one in &mut self.running {
            if one.started {
                one.generated += 1;
            } else if one.left == 0 {
                one.started = true;
                one.left = 1;
                one.generated = 1;
                self.firsts.push((self.now_ms - one.came_ms, one.said_ms));
            }
        }
        self.running.retain(|one| one.generated < one.answer);
    }

    fn view(&self, times: &StepTimes) -> EngineView {
        let work = |one: &One| Work {
            prompt: one.prompt,
            left: one.left,
            generated: one.generated,
            max_new: one.max_new,
        };
        EngineView {
            running: self.running.iter().map(work).collect(),
            waiting: self.waiting.iter().map(work).collect(),
            max_running: SLOTS,
            step_tokens: STEP_TOKENS,
            block_tokens: 16,
            kv_total: 4096,
            kv_free: 2048,
            times: Some(*times),
        }
    }
}

/// Numbers without an order, the same each time.
struct Draw(u64);

impl Draw {
    /// Evenly within 0 to 1.
    fn even(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as f64 / f64::from(1u32 << 31)
    }
}

/// What came of a run.
struct Seen {
    spilled: usize,
    switches: Vec<f64>,
    /// Share of time with every place taken, in the second before the first spill; a heavy step fills the
    /// line within three.
    use_before_spill: f64,
    firsts: Vec<(f64, u64)>,
    full_share_after: f64,
}

/// Five minutes: one of calm, then three of `load` times what the machine can do, then one of calm.
fn play(load: f64) -> Seen {
    let times = StepTimes {
        step: 0.010,
        prompt_token: 0.0008,
        row: 0.004,
        decode: [None; BUCKETS.len()],
    };
    let terms = Terms {
        slo_ttft_ms: 10_000,
        ..Terms::from(&Config::default())
    };
    let mut draw = Draw(7);
    let mut engine = Engine::default();
    let mut history = OutputHistory::new(std::num::NonZeroUsize::MIN);
    let mut hysteresis = Hysteresis::default();
    let mut lateness = Lateness::default();
    // Answers of 150 tokens in the mean with four at once, 26 ms a step, and 0.08 s for each prompt.
    let capacity_per_s = SLOTS as f64 / (150.0 * 0.026 + 4.0 * 0.08);
    let mut next_ms = 0.0;
    let mut seen = Seen {
        spilled: 0,
        switches: Vec::new(),
        use_before_spill: 1.0,
        firsts: Vec::new(),
        full_share_after: 0.0,
    };
    // Every place taken so far, at each whole second.
    let mut full = Vec::new();
    let mut at_step = None;
    while engine.now_ms < 300_000.0 {
        while next_ms <= engine.now_ms {
            let came_ms = next_ms;
            let busy = (60_000.0..240_000.0).contains(&came_ms);
            let rate = capacity_per_s * if busy { load } else { 0.3 };
            next_ms += -(1.0 - draw.even()).ln() / rate * 1000.0;
            let prompt = 50 + (draw.even() * 100.0) as u32;
            let answer = 50 + (draw.even() * 200.0) as u32;
            let view = engine.view(&times);
            let ratio = history.ratio("k", "/r");
            let asks = Newcomer {
                prompt,
                uncached: prompt,
                max_new: 400,
                expected: expected_tokens(400, ratio),
            };
            let forecast = forecast(&view, &asks, &history.lengths_of_all()).expect("known");
            let local = LocalView {
                served: true,
                waiting: engine.waiting.len(),
                running: engine.running.len(),
                max_running: SLOTS,
                kv_total: view.kv_total,
                kv_free: view.kv_free,
                kv_needed: view.blocks(prompt as usize),
                forecast: Some(forecast),
                lateness: Some(lateness.factor()),
                hysteresis,
                ..LocalView::default()
            };
            let target = decide::tests::target("t");
            let targets = [target];
            let now = engine.now_ms as u64;
            let decision = decide(&Need::default(), &local, &targets, &terms, now);
            if decision.diverting_after.diverting != hysteresis.diverting {
                seen.switches.push(engine.now_ms);
            }
            hysteresis = decision.diverting_after;
            if decision.side() == Some(Side::Remote) {
                assert_eq!(decision.reason, Reason::QueueOverflow);
                let taken = engine.running.len() + engine.waiting.len();
                assert!(taken >= SLOTS, "a spill below capacity");
                if seen.spilled == 0 {
                    let before = full.len().saturating_sub(2);
                    let span = engine.now_ms - before as f64 * 1000.0;
                    seen.use_before_spill = (engine.full_ms - full[before]) / span;
                    at_step = Some((engine.now_ms, engine.full_ms));
                }
                seen.spilled += 1;
                continue;
            }
            engine.waiting.push_back(One {
                prompt,
                left: prompt,
                generated: 0,
                answer,
                max_new: 400,
                came_ms,
                said_ms: forecast.ttft_ms,
                started: false,
            });
            history.note("k", "/r", answer, 400);
        }
        if engine.running.is_empty() && engine.waiting.is_empty() {
            engine.now_ms = next_ms;
        } else {
            let known = engine.firsts.len();
            engine.step(&times, 0.85 + 0.3 * draw.even());
            for (actual, said) in &engine.firsts[known..] {
                lateness.note(*said, *actual as u64);
            }
        }
        while (full.len() as f64) * 1000.0 <= engine.now_ms {
            full.push(engine.full_ms);
        }
        if engine.now_ms < 240_000.0
            && let Some((at, was)) = at_step
        {
            seen.full_share_after = (engine.full_ms - was) / (engine.now_ms - at).max(1.0);
        }
    }
    seen.firsts = engine.firsts;
    seen
}

#[test]
fn a_step_in_the_load_spills_late_and_steadily() {
    for load in [1.3, 2.0, 4.0] {
        let seen = play(load);
        assert!(seen.spilled > 10, "{load}: {} spilled", seen.spilled);
        assert!(
            seen.use_before_spill >= 0.95,
            "{load}: {}",
            seen.use_before_spill
        );
        assert!(
            seen.full_share_after >= 0.95,
            "{load}: {}",
            seen.full_share_after
        );
        for pair in seen.switches.windows(2) {
            assert!(pair[1] - pair[0] >= 60_000.0, "{load}: {:?}", seen.switches);
        }
        let mut firsts: Vec<f64> = seen.firsts.iter().map(|(ms, _)| *ms).collect();
        firsts.sort_by(f64::total_cmp);
        let p95 = firsts[firsts.len() * 95 / 100];
        assert!(p95 <= 10_000.0, "{load}: {p95} ms");
        let mut ratios: Vec<f64> = seen
            .firsts
            .iter()
            .map(|(ms, said)| ms / (*said).max(1) as f64)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        assert!((0.7..1.4).contains(&median), "{load}: {median}");
    }
}

#[test]
fn a_load_that_fits_spills_nothing() {
    assert_eq!(play(0.6).spilled, 0);
}
