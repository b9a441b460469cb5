//! What a grammar costs: per step of a batch, and to compile.
//!
//! The engine runs for real over a model shape with random weights, all sequences guided or none of them;
//! rounds take turns, and what counts is the time from the first sequence's first token to its last, per
//! step. Random weights choose badly, which is the worst case for a guide: it is asked in every state,
//! with masks of one token and of almost all. The vocabulary is made up, since none can be downloaded: the
//! 256 bytes, JSON's own signs and pairs of them, digits, and words of syllables with and without a space
//! in front, to the size of the model's own; its trie is as deep and as wide as a real one.
#![allow(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use sconce::engine::{self, Engine, Job, Output};
use sconce::generation::{Grammar, Sampling, Tenant, TokenId};
use sconce::guided::{CACHED_GRAMMARS, Compiler, Guide};
use sconce::model::{BLOCK_TOKENS, CausalLm, Checkpoint, Cpu, Decoder, Format};
use sconce::telemetry::{HistogramRanges, Metrics};
use sconce::text::{SpecialTokens, Tokenizer};
use serde_json::{Map, Value as Json, json};

/// Measures guided decoding.
#[derive(Parser)]
struct Args {
    /// A shape with random weights
    #[arg(long, default_value = "SmolLM2-135M")]
    shape: String,
    /// Sequences that run at once
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    batch: Vec<usize>,
    /// Steps of one sample
    #[arg(long, default_value_t = 64)]
    steps: usize,
    /// Samples of each line; with and without a guide take turns
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Kernel threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A schema as callers send them, with room for as many tokens as a sample has.
fn schema() -> Json {
    json!({
        "type": "object",
        "properties": {"people": {"type": "array", "minItems": 1000, "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 40},
                "age": {"type": "integer", "minimum": 0, "maximum": 120},
                "email": {"type": "string", "format": "email"},
                "role": {"enum": ["admin", "editor", "reader"]},
                "score": {"type": "number"},
                "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
                "address": {"anyOf": [{"$ref": "#/$defs/address"}, {"type": "null"}]},
            },
            "required": ["name", "age", "email", "role", "tags", "address"],
            "additionalProperties": false,
        }}},
        "required": ["people"],
        "additionalProperties": false,
        "$defs": {"address": {
            "type": "object",
            "properties": {
                "street": {"type": "string"},
                "city": {"type": "string"},
                "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
            },
            "required": ["street", "city", "zip"],
            "additionalProperties": false,
        }},
    })
}

/// A byte-level vocabulary of `size` tokens; the first one ends an answer.
fn tokenizer(size: usize) -> Tokenizer {
    let mut words: Vec<String> = vec!["<|end|>".to_owned()];
    words.extend(
        ('!'..='~')
            .chain('¡'..='¬')
            .chain('®'..='ÿ')
            .map(String::from),
    );
    words.extend(('\u{100}'..'\u{144}').map(String::from));
    for left in ["{", "}", "[", "]", "\"", ":", ",", "Ġ", "\\"] {
        for right in ["\"", "{", "[", "}", "]", ",", ":", "Ġ", "Ġ\"", "Ċ"] {
            words.push(format!("{left}{right}"));
        }
    }
    let onsets = [
        "b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "w", "st", "th",
    ];
    let rimes = [
        "a", "e", "i", "o", "u", "an", "er", "in", "on", "ou", "ing", "al",
    ];
    let syllables: Vec<String> = onsets
        .iter()
        .flat_map(|onset| rimes.iter().map(move |rime| format!("{onset}{rime}")))
        .collect();
    let count = syllables.len();
    let mut seen: std::collections::HashSet<String> = words.iter().cloned().collect();
    for i in 0_usize.. {
        if words.len() >= size {
            break;
        }
        let tail = match i / (2 * count) {
            0 => String::new(),
            n if n <= count => syllables[n - 1].clone(),
            n => format!("{}{}", syllables[n % count], syllables[(n / count) % count]),
        };
        let space = if i % 2 == 0 { "Ġ" } else { "" };
        let word = format!("{space}{}{tail}", syllables[(i / 2) % count]);
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    let vocab: Map<String, Json> = words
        .into_iter()
        .zip((0..).map(|i: u32| json!(i)))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 0, "content": "<|end|>", "special": true, "single_word": false,
                          "lstrip": false, "rstrip": false, "normalized": false}],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let bytes = file.to_string();
    Tokenizer::from_json(bytes.as_bytes(), SpecialTokens::default()).expect("a sound tokenizer")
}

/// Runs a batch to its end; the time of one step.
fn sample(
    engine: &Engine,
    runtime: &tokio::runtime::Runtime,
    (batch, steps): (usize, usize),
    guide: impl Fn() -> Option<Guide>,
    round: u64,
) -> Duration {
    let jobs: Vec<_> = (0..batch)
        .map(|number| {
            let submitted = engine.submit(|output| Job {
                prompt: vec![TokenId(5 + number as u32), TokenId(7)],
                max_new_tokens: steps + 1,
                eos: Arc::from([]),
                sampling: Sampling {
                    seed: Some(round * 1000 + number as u64),
                    ..Sampling::GREEDY
                },
                guide: guide(),
                top_n: 0,
                prompt_logprobs: false,
                tenant: Tenant::anonymous(),
                begun: Arc::default(),
                output,
            });
            submitted.expect("the queue holds every job")
        })
        .collect();
    runtime.block_on(async {
        let mut times = Vec::new();
        for mut output in jobs {
            let mut first = None;
            let mut last = Instant::now();
            while let Some(output) = output.recv().await {
                match output {
                    Output::Started { .. } => {}
                    Output::Token { .. } => {
                        last = Instant::now();
                        first.get_or_insert(last);
                    }
                    Output::Failed(problem) => panic!("{problem}"),
                }
            }
            times.push(last - first.expect("at least one token"));
        }
        // The first sequence is read as it runs; the others wait in their channels meanwhile.
        times[0] / steps as u32
    })
}

/// Median and least, in microseconds.
fn summary(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    (us(times[times.len() / 2]), us(times[0]))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let checkpoint = Checkpoint::random(&args.shape, Format::Q8_0)?;
    let threads = NonZeroUsize::new(args.threads).ok_or("at least one thread")?;
    let batches = args.batch.iter().copied().max().unwrap_or(1);
    let blocks = batches * (args.steps + 3).div_ceil(BLOCK_TOKENS);
    let decoder = Decoder::new(&checkpoint, blocks, Cpu::new(threads, None)?)?;
    let tokenizer = tokenizer(decoder.vocab_size());
    let compile = |compiler: &Compiler| -> Result<f64, Box<dyn std::error::Error>> {
        let began = Instant::now();
        compiler.compile(&Grammar::JsonSchema(schema().to_string()))?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    let eos: Arc<[TokenId]> = Arc::from([TokenId(0)]);
    let compiler = Compiler::new(tokenizer, eos, CACHED_GRAMMARS);
    println!("{} tokens, {} threads", decoder.vocab_size(), args.threads);
    println!(
        "compile, with the vocabulary's trie: {:.1} ms",
        compile(&compiler)?
    );
    println!("again, remembered: {:.3} ms", compile(&compiler)?);
    let mut cold: Vec<f64> = (0..args.rounds)
        .map(|i| {
            let mut schema = schema();
            schema["properties"]["people"]["minItems"] = json!(1001 + i);
            let began = Instant::now();
            let compiled = compiler.compile(&Grammar::JsonSchema(schema.to_string()));
            compiled.map(|_| began.elapsed().as_secs_f64() * 1e3)
        })
        .collect::<Result<_, _>>()?;
    cold.sort_unstable_by(f64::total_cmp);
    println!("another schema: {:.1} ms (median)", cold[cold.len() / 2]);

    let ranges = HistogramRanges {
        max_input_tokens: 1024,
        max_total_tokens: 2048,
    };
    let positive = |n: usize| NonZeroUsize::new(n).ok_or("at least one sequence");
    let config = engine::Config {
        max_batched_tokens: positive(batches * 2)?,
        max_running: positive(batches)?,
        max_queued: positive(batches)?,
        num_blocks: blocks,
    };
    let engine = engine::start(Box::new(decoder), config, Arc::new(Metrics::new(ranges)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let grammar = Grammar::JsonSchema(schema().to_string());
    println!("us/step: medians, then the best of {} rounds", args.rounds);
    println!("batch      free      guided  share      free      guided  share");
    for &batch in &args.batch {
        let guided = || compiler.compile(&grammar).ok();
        let (mut with, mut without) = (Vec::new(), Vec::new());
        // The first round warms up; who goes first alternates.
        for round in 0..=args.rounds as u64 {
            for shaped in [round % 2 == 0, round % 2 == 1] {
                let guide = || if shaped { guided() } else { None };
                let step = sample(&engine, &runtime, (batch, args.steps), guide, round);
                let times = if shaped { &mut with } else { &mut without };
                if round > 0 {
                    times.push(step);
                }
            }
        }
        let ((without, best_without), (with, best_with)) = (summary(without), summary(with));
        println!(
            "{batch:>5} {without:>9.0} {with:>11.0} {:>6.1}% {best_without:>9.0} {best_with:>11.0} {:>6.1}%",
            (with / without - 1.0) * 100.0,
            (best_with / best_without - 1.0) * 100.0
        );
    }
    let (masks, largest, forced) = masks(&compiler, &grammar)?;
    println!(
        "one mask: {masks:.0} us (median), {largest:.0} us (largest); no choice in {forced:.0} % of places"
    );
    Ok(())
}

/// Times single masks along random walks: median and largest in microseconds, and the share of places
/// with one allowed token, in percent.
fn masks(
    compiler: &Compiler,
    grammar: &Grammar,
) -> Result<(f64, f64, f64), Box<dyn std::error::Error>> {
    let mut times = Vec::new();
    let mut forced = 0_usize;
    let mut state = 1_u64;
    for _ in 0..8 {
        let mut guide = compiler.compile(grammar)?;
        for _ in 0..200 {
            let began = Instant::now();
            guide.prepare()?;
            times.push(began.elapsed());
            let mask = guide.mask().ok_or("a prepared guide has a mask")?;
            forced += usize::from(mask.only().is_some());
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let nth = (state >> 33) as usize % mask.num_allowed();
            let ids = (0_u32..).map(TokenId).filter(|id| mask.allows(*id));
            let token = ids.into_iter().nth(nth).ok_or("an allowed token")?;
            guide.accept(token)?;
        }
    }
    times.sort_unstable();
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    Ok((
        us(times[times.len() / 2]),
        us(times[times.len() - 1]),
        forced as f64 * 100.0 / times.len() as f64,
    ))
}
