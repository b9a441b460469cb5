//! The same request, seed and model give the same tokens in any company.
//!
//! Compared bit for bit, log-probabilities included: alone, in a batch of 16, whole or in chunks, with a
//! cold or a warm prefix cache, preempted or not, on one thread or three.

use std::num::NonZeroU32;
use std::sync::mpsc::{Receiver, channel};

use sconce::generation::Sampling;
use sconce::model::{CausalLm, Decoder, Logits, ModelError, StepInput};

use crate::support::engine::{Answer, Ask, Setup, case, start, start_wrapped};

/// Sixteen requests of unequal length, some greedy, some sampled, some sharing a beginning.
fn asks(vocab: u32) -> Vec<Ask> {
    (0..16_u32)
        .map(|i| {
            let len = 1 + (i * 7) % 45;
            let family = i / 3;
            let prompt: Vec<u32> = (0..len)
                .map(|j| (family * 31 + j * 17 + u32::from(j > 20) * i) % vocab)
                .collect();
            let sampling = match i % 3 {
                0 => Sampling::GREEDY,
                1 => Sampling {
                    seed: Some(u64::from(i)),
                    temperature: 0.9,
                    ..Sampling::GREEDY
                },
                _ => Sampling {
                    seed: Some(u64::from(i)),
                    top_k: NonZeroU32::new(20),
                    top_p: Some(0.9),
                    repetition_penalty: 1.1,
                    frequency_penalty: 0.5,
                    ..Sampling::GREEDY
                },
            };
            Ask {
                sampling,
                ..Ask::greedy(&prompt, 20 + (i as usize * 5) % 24)
            }
        })
        .collect()
}

/// Everything that must be equal, floats as bits.
fn bits(answers: &[Answer]) -> Vec<(Vec<u32>, Vec<u32>)> {
    let to_bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
    answers
        .iter()
        .map(|answer| (answer.tokens.clone(), to_bits(&answer.logprobs)))
        .collect()
}

fn check(name: &str) {
    let model = case(name);
    let asks = asks(300);
    let alone: Vec<Answer> = asks
        .iter()
        .map(|ask| {
            start(&model, Setup::default())
                .run(std::slice::from_ref(ask))
                .remove(0)
        })
        .collect();
    let expected = bits(&alone);

    let together = start(&model, Setup::default());
    assert_eq!(
        bits(&together.run(&asks)),
        expected,
        "{name}: in a batch of 16"
    );
    let before = together.metrics.prefix_cache_hit_tokens.get();
    assert_eq!(
        bits(&together.run(&asks)),
        expected,
        "{name}: over a warm prefix cache"
    );
    assert!(together.metrics.prefix_cache_hit_tokens.get() > before);

    for budget in [1, 5, 17] {
        let setup = Setup {
            max_batched_tokens: budget,
            ..Setup::default()
        };
        assert_eq!(
            bits(&start(&model, setup).run(&asks)),
            expected,
            "{name}: chunks of {budget}"
        );
    }
    for threads in [1, 3] {
        let setup = Setup {
            threads,
            ..Setup::default()
        };
        assert_eq!(
            bits(&start(&model, setup).run(&asks)),
            expected,
            "{name}: {threads} threads"
        );
    }
    let tight = start(
        &model,
        Setup {
            num_blocks: 8,
            ..Setup::default()
        },
    );
    assert_eq!(bits(&tight.run(&asks)), expected, "{name}: preempted");
    assert!(
        tight.metrics.preemptions.get() > 0,
        "eight blocks must not be enough for all"
    );
}

#[test]
fn company_does_not_matter_with_floats() {
    check("llama-gqa3");
}

#[test]
fn company_does_not_matter_with_quantised_weights() {
    check("qwen2-gguf-q4_k");
    check("llama-gguf-q8_0");
}

/// A model that does not begin before it is told to.
struct Gated {
    model: Decoder,
    gate: Option<Receiver<()>>,
}

impl CausalLm for Gated {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn forward(&mut self, step: &StepInput<'_>, logits: &mut Logits) -> Result<(), ModelError> {
        if let Some(gate) = self.gate.take() {
            gate.recv().expect("the test opens the gate");
        }
        self.model.forward(step, logits)
    }
}

#[test]
fn one_step_is_one_forward_whatever_the_batch() {
    let (open, gate) = channel();
    let running = start_wrapped(&case("llama-gguf-q8_0"), Setup::default(), |model| {
        Box::new(Gated {
            model,
            gate: Some(gate),
        })
    });
    let asks: Vec<Ask> = (0..16).map(|i| Ask::greedy(&[i + 1], 32)).collect();
    running.run_when_all_wait(&asks, || open.send(()).expect("the model waits"));
    // The first step holds those that had arrived when it began, so the last of the others end one step
    // later. A loop over rows would need 16 x 32.
    let forwards = running.metrics.forward_count.get();
    assert!((32..=33).contains(&forwards), "{forwards} forwards");
}

#[test]
fn a_repeated_prompt_computes_one_block_and_one_token_at_most() {
    let running = start(&case("llama-gguf-q8_0"), Setup::default());
    for len in [16, 33, 48, 64] {
        let prompt: Vec<u32> = (0..len).map(|i| (i * 13 + len) % 300).collect();
        running.run(&[Ask::greedy(&prompt, 1)]);
        let before = running.metrics.computed_tokens.get();
        running.run(&[Ask::greedy(&prompt, 1)]);
        let anew = running.metrics.computed_tokens.get() - before;
        assert!(anew <= 17, "{anew} of {len} tokens computed again");
    }
}
