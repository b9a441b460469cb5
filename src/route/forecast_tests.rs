//! The forecast against a simulation that takes every step by itself.

use proptest::prelude::*;

use super::*;

fn times() -> StepTimes {
    StepTimes {
        step: 0.010,
        prompt_token: 0.001,
        row: 0.002,
        decode: [None; BUCKETS.len()],
    }
}

fn view(running: Vec<Work>, waiting: Vec<Work>) -> EngineView {
    EngineView {
        running,
        waiting,
        max_running: 4,
        step_tokens: 64,
        block_tokens: 16,
        kv_total: 4096,
        kv_free: 4096,
        times: Some(times()),
    }
}

fn newcomer(prompt: u32, expected: u32) -> Newcomer {
    Newcomer {
        prompt,
        uncached: prompt,
        max_new: expected * 2,
        expected,
    }
}

fn fresh(prompt: u32, max_new: u32) -> Work {
    Work {
        prompt,
        left: prompt,
        generated: 0,
        max_new,
    }
}

/// Answers that all come to this share.
fn all(share: f64) -> Lengths {
    Lengths::new(vec![(share, share, 1.0)])
}

/// Seconds until the newcomer starts and has its first token, one step after the other.
fn stepwise(view: &EngineView, newcomer: &Newcomer, lengths: &Lengths) -> (f64, f64) {
    struct One {
        left: u64,
        answer: u64,
        blocks: usize,
        is_newcomer: bool,
    }
    let times = view.times.expect("known");
    let one = |work: &Work, answer: u64, is_newcomer| One {
        left: u64::from(work.left.max(1)),
        answer,
        blocks: view.blocks(work.prompt as usize + work.generated as usize + answer as usize),
        is_newcomer,
    };
    let mut running: Vec<One> = Vec::new();
    let mut free = view.kv_free as i64;
    for work in &view.running {
        let one = one(work, remaining_tokens(work, lengths), false);
        let held = view.blocks((work.prompt + work.generated - work.left) as usize);
        free -= one.blocks.saturating_sub(held) as i64;
        running.push(one);
    }
    let mut waiting: VecDeque<One> = view
        .waiting
        .iter()
        .map(|work| one(work, remaining_tokens(work, lengths), false))
        .collect();
    let arrival = fresh(newcomer.prompt, newcomer.max_new);
    waiting.push_back(One {
        left: u64::from(newcomer.uncached),
        ..one(&arrival, u64::from(newcomer.expected), true)
    });
    let (mut now, mut start) = (0.0, None);
    loop {
        let wanted: u64 = running.iter().map(|one| one.left).sum();
        let mut budget = (view.step_tokens as u64).saturating_sub(wanted);
        while let Some(head) = waiting.front() {
            let fits = head.blocks as i64 <= free || running.is_empty();
            if budget == 0 || running.len() >= view.max_running || !fits {
                break;
            }
            let head = waiting.pop_front().expect("looked at");
            if head.is_newcomer {
                start = Some(now);
            }
            free -= head.blocks as i64;
            budget = budget.saturating_sub(head.left);
            running.push(head);
        }
        let rows = running.iter().filter(|one| one.left == 1).count();
        let mut budget = view.step_tokens as u64;
        let (mut prompt_tokens, mut first) = (0, false);
        // One token that is left is a row, be it of an answer or the prompt's last.
        budget -= (rows as u64).min(budget);
        for one in &mut running {
            if one.left == 1 {
                one.answer -= 1;
                first |= one.is_newcomer;
                continue;
            }
            let count = one.left.min(budget);
            budget -= count;
            prompt_tokens += count;
            one.left -= count;
            if one.left == 0 {
                one.left = 1;
                one.answer -= 1;
                first |= one.is_newcomer;
            }
        }
        now += times.of(prompt_tokens as usize, rows);
        running.retain(|one| {
            if one.answer == 0 {
                free += one.blocks as i64;
            }
            one.answer > 0
        });
        if first {
            return (start.expect("it has started"), now);
        }
    }
}

#[test]
fn an_idle_engine_takes_a_prompt_at_once() {
    let idle = view(Vec::new(), Vec::new());
    let seen = forecast(&idle, &newcomer(64, 11), &all(0.5)).expect("known");
    assert_eq!((seen.wait_ms, seen.ttft_ms), (0, 74));
    // Ten more steps of one row, 12 ms each.
    assert_eq!(seen.e2e_ms, 194);
    assert!(!seen.kv_bound);
}

#[test]
fn a_cached_prompt_is_answered_sooner() {
    let idle = view(Vec::new(), Vec::new());
    let cached = Newcomer {
        uncached: 8,
        ..newcomer(512, 11)
    };
    let (whole, part) = (newcomer(512, 11), cached);
    let ttft = |n: &Newcomer| forecast(&idle, n, &all(0.5)).expect("known").ttft_ms;
    assert!(ttft(&part) * 10 < ttft(&whole));
}

#[test]
fn a_full_batch_makes_the_newcomer_wait_for_its_shortest_answer() {
    let running = (0..4u32).map(|i| Work {
        prompt: 16,
        left: 1,
        generated: 10,
        max_new: 100 * (i + 1),
    });
    let full = view(running.collect(), Vec::new());
    let seen = forecast(&full, &newcomer(16, 20), &all(0.5)).expect("known");
    // 40 of 50 expected tokens are to come, 18 ms each with four rows.
    assert_eq!(seen.wait_ms, 720);
    assert!(!seen.kv_bound);
}

#[test]
fn short_memory_makes_it_wait_although_a_place_is_free() {
    let one = Work {
        prompt: 160,
        left: 1,
        generated: 10,
        max_new: 300,
    };
    let mut short = view(vec![one], Vec::new());
    short.kv_total = 30;
    short.kv_free = 19;
    let asks = newcomer(200, 60);
    let seen = forecast(&short, &asks, &all(0.5)).expect("known");
    assert!(seen.kv_bound && seen.wait_ms > 1_000);
    assert!(!short.never_fits(&asks));
    assert!(short.never_fits(&newcomer(400, 60)));
}

#[test]
fn nothing_is_forecast_from_nothing() {
    let mut blind = view(Vec::new(), vec![fresh(10, 10)]);
    blind.times = None;
    assert_eq!(forecast(&blind, &newcomer(10, 10), &all(0.5)), None);
}

#[test]
fn the_closed_form_is_of_the_same_size_as_the_simulation() {
    let waiting = |n| view(vec![fresh(32, 64); 4], vec![fresh(32, 64); n]);
    let asks = newcomer(32, 32);
    let simulated = forecast(&waiting(508), &asks, &all(0.5)).expect("known");
    let closed = forecast(&waiting(509), &asks, &all(0.5)).expect("known");
    let ratio = closed.ttft_ms as f64 / simulated.ttft_ms as f64;
    assert!((0.6..1.7).contains(&ratio), "{ratio}");
}

#[test]
fn a_step_without_prompts_takes_what_was_seen_for_its_size() {
    let mut seen = times();
    seen.decode[0] = Some(0.020);
    seen.decode[2] = Some(0.050);
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
    near(seen.of(0, 1), 0.020);
    near(seen.of(0, 2), 0.030);
    near(seen.of(0, 4), 0.050);
    near(seen.of(0, 8), 0.058);
    near(seen.of(10, 4), 0.050);
    near(seen.of(100, 4), 0.118);
}

#[test]
fn histories_learn_how_long_answers_get_and_forget_it() {
    let mut history = OutputHistory::new(NonZeroUsize::MIN);
    assert_eq!(history.ratio("k", "/r"), 0.5);
    for _ in 0..100 {
        history.note("k", "/r", 10, 100);
    }
    assert_eq!(history.ratio("k", "/r"), 0.1);
    assert_eq!(history.ratio("other", "/r"), 0.1);
    for _ in 0..200 {
        history.note("k", "/r", 100, 100);
    }
    assert_eq!(history.ratio("k", "/r"), 1.0);
    assert!((history.lengths_of_all().mean - 0.96).abs() < 0.02);
    history.note("other", "/r", 0, 100);
    assert!(history.lengths_of_all().mean < history.ratio("k", "/r"));
    assert_eq!(expected_tokens(1_000, 0.1), 100);
    assert_eq!(
        (expected_tokens(100, 0.1), expected_tokens(4, 0.5)),
        (16, 4)
    );
}

fn any_running() -> impl Strategy<Value = Work> {
    (2..200u32, 1..60u32, 1..120u32, any::<bool>()).prop_map(
        |(prompt, generated, more, filling)| Work {
            prompt,
            left: if filling { prompt } else { 1 },
            generated: if filling { 0 } else { generated },
            max_new: generated + more,
        },
    )
}

fn any_view() -> impl Strategy<Value = EngineView> {
    let waiting = (2..200u32, 1..120u32).prop_map(|(prompt, max_new)| fresh(prompt, max_new));
    (
        proptest::collection::vec(any_running(), 0..4),
        proptest::collection::vec(waiting, 0..12),
        40..400usize,
    )
        .prop_map(|(running, waiting, blocks)| {
            let mut view = view(running, waiting);
            let held: u32 = view
                .running
                .iter()
                .map(|w| w.prompt + w.generated - w.left)
                .sum();
            view.kv_total = blocks;
            view.kv_free = blocks.saturating_sub(held as usize / 16);
            // Answers before prompts, as in a line where the oldest come first.
            view.running.sort_by_key(|work| work.left > 1);
            view
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Within 2 % and two steps of the slowest kind.
    #[test]
    fn many_steps_at_once_come_to_what_single_steps_come_to(
        view in any_view(), prompt in 2..200u32, expected in 1..60u32, ratio in 0.05..1.0f64,
    ) {
        let asks = newcomer(prompt, expected);
        let seen = forecast(&view, &asks, &all(ratio)).expect("known");
        let (start, first) = stepwise(&view, &asks, &all(ratio));
        let slack = |exact: f64| exact * 20.0 + 2.0 * 1000.0 * times().of(64, 4);
        prop_assert!((seen.wait_ms as f64 - start * 1000.0).abs() <= slack(start), "{seen:?} {start}");
        prop_assert!((seen.ttft_ms as f64 - first * 1000.0).abs() <= slack(first), "{seen:?} {first}");
        prop_assert!(seen.wait_ms <= seen.ttft_ms && seen.ttft_ms <= seen.e2e_ms);
    }

    #[test]
    fn one_more_in_the_line_never_helps(
        view in any_view(), prompt in 2..200u32, more in (2..200u32, 1..120u32), ratio in 0.05..1.0f64,
    ) {
        let asks = newcomer(prompt, 20);
        let before = forecast(&view, &asks, &all(ratio)).expect("known");
        let mut longer = view.clone();
        longer.waiting.push(fresh(more.0, more.1));
        let after = forecast(&longer, &asks, &all(ratio)).expect("known");
        prop_assert!(after.ttft_ms >= before.ttft_ms, "{before:?} {after:?}");
    }
}

#[test]
fn what_has_run_for_long_is_expected_to_run_on() {
    let mut history = OutputHistory::new(NonZeroUsize::MIN);
    // Log-uniform from 16 to 800: 200 in the mean.
    for i in 0..2000 {
        let place = f64::from(i * 7919 % 2000) / 2000.0;
        let tokens = 16.0 * 50f64.powf(place);
        history.note("k", "/r", tokens as u32, 800);
    }
    let lengths = history.lengths_of_all();
    assert!((0.2..0.3).contains(&lengths.mean), "{}", lengths.mean);
    let left = |generated| {
        let work = Work {
            prompt: 1,
            left: 1,
            generated,
            max_new: 800,
        };
        remaining_tokens(&work, &lengths)
    };
    // (800 - g) / ln(800 / g) - g, but for what the bins and the fading blur.
    for (generated, expected) in [(100, 236.0), (200, 233.0), (400, 177.0)] {
        let ratio = left(generated) as f64 / expected;
        assert!(
            (0.75..1.25).contains(&ratio),
            "{generated}: {}",
            left(generated)
        );
    }
    assert!(left(790) <= 10 && left(799) == 1);
}
