//! The same tokens and log-probabilities as `transformers`, from the same weights.
//!
//! The expectations are frozen files made by `tests/parity/make.py`; the models are tiny, random, and
//! oddly shaped on purpose. All prompts of a case run together, with chunks smaller than a prompt, and
//! then again over a warm prefix cache.

use std::fs;

use serde_json::Value as Json;

use crate::support::engine::{Ask, Setup, case, golden, start};

/// Largest difference of a log-probability that rounding explains.
const TOLERANCE: f32 = 1e-2;

fn floats(value: &Json) -> Vec<f32> {
    let items = value.as_array().expect("a list").iter();
    items.filter_map(Json::as_f64).map(|x| x as f32).collect()
}

fn ids(value: &Json) -> Vec<u32> {
    value
        .as_array()
        .expect("a list")
        .iter()
        .map(|id| id.as_u64().expect("an id") as u32)
        .collect()
}

fn assert_close(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!(
            (a - b).abs() <= TOLERANCE,
            "{what}: place {i}: {a} here, {b} there"
        );
    }
}

fn check(name: &str, setup: Setup) {
    let text =
        fs::read_to_string(golden().join(name).join("expected.json")).expect("a frozen case");
    let expected: Json = serde_json::from_str(&text).expect("sound JSON");
    let prompts = expected["prompts"].as_array().expect("prompts");
    let running = start(&case(name), setup);
    let asks: Vec<Ask> = prompts
        .iter()
        .map(|prompt| {
            let steps = prompt["tokens"].as_array().expect("tokens").len();
            Ask {
                prompt_logprobs: true,
                ..Ask::greedy(&ids(&prompt["ids"]), steps)
            }
        })
        .collect();
    for (prompt, answer) in prompts.iter().zip(running.run(&asks)) {
        let what = format!("{name}, prompt of {}", ids(&prompt["ids"]).len());
        assert_eq!(answer.tokens, ids(&prompt["tokens"]), "{what}");
        assert_close(&what, &answer.logprobs, &floats(&prompt["logprobs"]));
        // The first entry is null: nothing precedes the first token.
        assert_close(
            &what,
            &answer.prompt_logprobs,
            &floats(&prompt["prompt_logprobs"]),
        );
    }
    let warm: Vec<Ask> = asks
        .into_iter()
        .map(|ask| Ask {
            prompt_logprobs: false,
            ..ask
        })
        .collect();
    for (prompt, answer) in prompts.iter().zip(running.run(&warm)) {
        assert_eq!(
            answer.tokens,
            ids(&prompt["tokens"]),
            "{name} over a warm prefix cache"
        );
    }
}

#[test]
fn every_frozen_case_agrees_with_transformers() {
    let mut names: Vec<String> = fs::read_dir(golden())
        .expect("the frozen cases")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a plain name")
        })
        .collect();
    names.sort();
    assert!(names.len() >= 18, "{names:?}");
    for name in names {
        check(
            &name,
            Setup {
                max_batched_tokens: 24,
                ..Setup::default()
            },
        );
    }
}

#[test]
fn every_tier_agrees_with_transformers() {
    use sconce::model::Tier;
    for tier in [Tier::Avx2, Tier::Portable]
        .into_iter()
        .filter(|tier| tier.is_available())
    {
        for name in [
            "qwen3-tied",
            "llama-gguf-q5_0",
            "llama-gguf-q5_k",
            "qwen2-gguf-q3_k",
        ] {
            check(
                name,
                Setup {
                    tier: Some(tier),
                    threads: 1,
                    ..Setup::default()
                },
            );
        }
    }
}
