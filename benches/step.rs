//! What a step costs besides the model: the scheduler alone, and the engine's whole loop.
//!
//! The scheduler is driven directly, in two states: `decode`, where every sequence computes one token a
//! step, and `mixed`, where sequences end and new prompts are computed in chunks beside the decodes. The
//! loop runs for real, on its own thread with its channels, over a model that copies one fixed row of
//! scores; what counts is the time from the end of one forward call to the beginning of the next.
//! No weights are read here; `model.rs` has the other half of a step.
#![allow(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use sconce::engine::scheduler::{Limits, Scheduler};
use sconce::engine::sequence::Sequence;
use sconce::engine::{self, Job, Output};
use sconce::generation::{Sampling, Tenant, TokenId};
use sconce::model::{BLOCK_TOKENS, CausalLm, Logits, ModelError, StepInput};
use sconce::telemetry::{HistogramRanges, Metrics};
use serde_json::json;

/// Tokens of a prompt in the `mixed` state, and of its answer.
const PROMPT: usize = 512;
const ANSWER: usize = 128;

/// Prompt tokens that a `mixed` step may compute beside its decodes: the server's default step.
const CHUNK: usize = 128;

/// Measures the step without a model.
#[derive(Parser)]
struct Args {
    /// Sequences that run at once
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256")]
    sequences: Vec<usize>,
    /// Steps of one sample
    #[arg(long, default_value_t = 512)]
    steps: usize,
    /// Samples of each line; lines take turns
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Scores in a row of the loop's model
    #[arg(long, default_value_t = 512)]
    vocab: usize,
    /// How the loop's sequences choose their tokens
    #[arg(long, value_enum, default_value_t = Choice::Greedy)]
    sampling: Choice,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A way to choose tokens.
#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    /// The best one.
    Greedy,
    /// Drawn by a seed.
    Seeded,
    /// Drawn by a seed from the best 50, then from 0.9 of the probability.
    TopKTopP,
}

impl Choice {
    fn sampling(self, seed: u64) -> Sampling {
        match self {
            Self::Greedy => Sampling::GREEDY,
            Self::Seeded => Sampling {
                seed: Some(seed),
                ..Sampling::GREEDY
            },
            Self::TopKTopP => Sampling {
                top_k: NonZeroU32::new(50),
                top_p: Some(0.9),
                seed: Some(seed),
                ..Sampling::GREEDY
            },
        }
    }
}

/// What one line measures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    SchedulerDecode,
    SchedulerMixed,
    Loop,
}

impl Subject {
    const ALL: [Self; 3] = [Self::SchedulerDecode, Self::SchedulerMixed, Self::Loop];

    fn name(self) -> &'static str {
        match self {
            Self::SchedulerDecode => "scheduler decode",
            Self::SchedulerMixed => "scheduler mixed",
            Self::Loop => "engine loop",
        }
    }
}

/// One sample: the time of a step without its forward call, and the tokens it computes.
#[derive(Clone, Copy)]
struct Sample {
    step_us: f64,
    tokens: f64,
}

fn main() {
    let args = Args::parse();
    let lines: Vec<(Subject, usize)> = Subject::ALL
        .into_iter()
        .flat_map(|subject| {
            args.sequences
                .iter()
                .map(move |&sequences| (subject, sequences))
        })
        .collect();
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); lines.len()];
    for _ in 0..args.rounds {
        for (line, samples) in lines.iter().zip(&mut samples) {
            samples.push(match *line {
                (Subject::SchedulerDecode, n) => scheduler_decode(n, args.steps),
                (Subject::SchedulerMixed, n) => scheduler_mixed(n, args.steps),
                (Subject::Loop, n) => engine_loop(n, &args),
            });
        }
    }
    if !args.json {
        println!(
            "{:<18} {:>9} {:>12} {:>10} {:>10} {:>14}",
            "subject", "sequences", "tokens/step", "us/step", "best us", "ns/sequence"
        );
    }
    for ((subject, sequences), samples) in lines.into_iter().zip(samples) {
        let mut times: Vec<f64> = samples.iter().map(|sample| sample.step_us).collect();
        times.sort_unstable_by(f64::total_cmp);
        let (median, best) = (times[times.len() / 2], times[0]);
        let tokens = samples.iter().map(|sample| sample.tokens).sum::<f64>() / samples.len() as f64;
        let vocab = (subject == Subject::Loop).then_some(args.vocab);
        if args.json {
            let line = json!({
                "subject": subject.name(), "sequences": sequences, "vocab": vocab,
                "tokens_per_step": tokens, "us_per_step": median, "best_us_per_step": best,
                "ns_per_sequence": median * 1e3 / sequences as f64, "rounds": samples.len(),
            });
            println!("{line}");
        } else {
            println!(
                "{:<18} {sequences:>9} {tokens:>12.1} {median:>10.2} {best:>10.2} {:>14.0}",
                subject.name(),
                median * 1e3 / sequences as f64
            );
        }
    }
}

/// A prompt that shares no block with another of a different number.
fn prompt(number: usize, len: usize) -> Vec<TokenId> {
    (0..len)
        .map(|i| TokenId((number * 7919 + i * 31) as u32 % 49_152))
        .collect()
}

fn scheduler(sequences: usize, budget: usize, longest: usize) -> Scheduler {
    Scheduler::new(Limits {
        max_batched_tokens: NonZeroUsize::new(budget).expect("a positive budget"),
        max_running: NonZeroUsize::new(sequences).expect("at least one sequence"),
        num_blocks: (sequences + 1) * longest.div_ceil(BLOCK_TOKENS),
    })
}

fn append_to_all(scheduler: &mut Scheduler) {
    for i in 0..scheduler.plan().shares.len() {
        let share = scheduler.plan().shares[i];
        if share.samples {
            let token = TokenId((share.start * 131) as u32 % 49_152);
            scheduler.append(share.sequence, token);
        }
    }
}

/// Steps in which every sequence computes one token.
fn scheduler_decode(sequences: usize, steps: usize) -> Sample {
    let prompt_len = 2 * BLOCK_TOKENS;
    // The budget takes in all prompts with the first step, so that every later one is alike.
    let mut scheduler = scheduler(
        sequences,
        sequences * prompt_len,
        prompt_len + steps + BLOCK_TOKENS,
    );
    for number in 0..sequences {
        let tokens = prompt(number, prompt_len);
        scheduler.add(Sequence::new(
            tokens,
            steps + BLOCK_TOKENS,
            &Tenant::anonymous(),
            false,
        ));
    }
    scheduler.schedule();
    scheduler.complete_step();
    append_to_all(&mut scheduler);
    let began = Instant::now();
    for _ in 0..steps {
        scheduler.schedule();
        scheduler.complete_step();
        append_to_all(&mut scheduler);
    }
    per_step(began.elapsed(), steps, sequences as f64)
}

/// Steps in which sequences end, and the next ones' prompts are computed in chunks.
fn scheduler_mixed(sequences: usize, steps: usize) -> Sample {
    let mut scheduler = scheduler(sequences, sequences + CHUNK, PROMPT + ANSWER);
    let mut number = 0;
    let mut tokens = 0;
    let mut measured = Duration::ZERO;
    let warm_up = 4 * ANSWER;
    for step in 0..warm_up + steps {
        let began = Instant::now();
        while scheduler.running().len() + scheduler.num_waiting() < sequences {
            let tokens = prompt(number, PROMPT);
            scheduler.add(Sequence::new(tokens, ANSWER, &Tenant::anonymous(), false));
            number += 1;
        }
        let planned = scheduler.schedule().num_tokens();
        scheduler.complete_step();
        append_to_all(&mut scheduler);
        for i in 0..scheduler.plan().shares.len() {
            let id = scheduler.plan().shares[i].sequence;
            if scheduler.sequence(id).generated().len() >= ANSWER {
                scheduler.remove(id);
            }
        }
        if step >= warm_up {
            measured += began.elapsed();
            tokens += planned;
        }
    }
    per_step(measured, steps, tokens as f64 / steps as f64)
}

fn per_step(elapsed: Duration, steps: usize, tokens: f64) -> Sample {
    Sample {
        step_us: elapsed.as_secs_f64() * 1e6 / steps as f64,
        tokens,
    }
}

/// A model whose every row is the same, and which notes how long the engine stays away.
struct Toy {
    row: Vec<f32>,
    sequences: usize,
    /// The first step waits here until all jobs have been handed over.
    gate: Option<Receiver<()>>,
    away: Sender<Duration>,
    returned_at: Option<Instant>,
}

impl CausalLm for Toy {
    fn vocab_size(&self) -> usize {
        self.row.len()
    }

    fn forward(&mut self, step: &StepInput<'_>, logits: &mut Logits) -> Result<(), ModelError> {
        let entered = Instant::now();
        if let Some(gate) = self.gate.take() {
            // An error means that the jobs' owner has left; there is nothing to wait for then.
            let _ = gate.recv();
        }
        let whole = step.rows.len() == self.sequences;
        if let Some(returned_at) = self.returned_at.take()
            && whole
        {
            // The receiver leaves only after the last step.
            let _ = self.away.send(entered - returned_at);
        }
        let vocab = self.row.len();
        let scores = logits.reset(step.outputs.len(), vocab);
        scores
            .chunks_exact_mut(vocab)
            .for_each(|row| row.copy_from_slice(&self.row));
        if whole {
            self.returned_at = Some(Instant::now());
        }
        Ok(())
    }
}

/// Scores as a language model gives them: probabilities fall with the rank, ranks are scattered.
fn zipf_row(vocab: usize) -> Vec<f32> {
    (0..vocab)
        .map(|token| {
            let rank = (token * 40_503 + 12_345) % vocab;
            -1.2 * ((rank + 1) as f32).ln()
        })
        .collect()
}

/// The engine's own steps, with a task that takes each sequence's tokens as they come.
fn engine_loop(sequences: usize, args: &Args) -> Sample {
    let (open, gate) = mpsc::channel();
    let (away, away_times) = mpsc::channel();
    let toy = Toy {
        row: zipf_row(args.vocab),
        sequences,
        gate: Some(gate),
        away,
        returned_at: None,
    };
    let positive = |n: usize| NonZeroUsize::new(n).expect("at least one sequence");
    let config = engine::Config {
        max_batched_tokens: positive(sequences.max(CHUNK)),
        max_running: positive(sequences),
        max_queued: positive(sequences),
        num_blocks: sequences * (args.steps + 2).div_ceil(BLOCK_TOKENS),
    };
    let ranges = HistogramRanges {
        max_input_tokens: 1024,
        max_total_tokens: 2048,
    };
    let engine = engine::start(Box::new(toy), config, Arc::new(Metrics::new(ranges)))
        .expect("the system has a thread to give");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime without drivers always starts");
    runtime.block_on(async {
        let tasks: Vec<_> = (0..sequences)
            .map(|number| {
                let submitted = engine.submit(|output| Job {
                    prompt: vec![TokenId((number % args.vocab) as u32)],
                    max_new_tokens: args.steps + 1,
                    eos: Arc::from([]),
                    sampling: args.sampling.sampling(number as u64),
                    guide: None,
                    top_n: 0,
                    prompt_logprobs: false,
                    tenant: Tenant::anonymous(),
                    begun: Arc::default(),
                    output,
                });
                let mut output = submitted.expect("the queue holds every job");
                tokio::spawn(async move {
                    while let Some(output) = output.recv().await {
                        assert!(!matches!(output, Output::Failed(_)), "the toy never fails");
                    }
                })
            })
            .collect();
        open.send(()).expect("the first step waits for it");
        for task in tasks {
            task.await.expect("a listener never panics");
        }
    });
    drop(engine);
    let mut times: Vec<Duration> = away_times.iter().collect();
    times.sort_unstable();
    let median = times[times.len() / 2];
    Sample {
        step_us: median.as_secs_f64() * 1e6,
        tokens: sequences as f64,
    }
}
