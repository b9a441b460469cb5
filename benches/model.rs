//! Prefill and decode speed of a model, beside the limits of the machine it ran on.
//!
//! The decoder is called directly, with block tables made by hand: no scheduler, no sampling, no text.
//! A shared machine is slower at some moments than at others, so every sample is taken between two
//! measurements of what the same threads can read and multiply at that moment, and is reported as a share
//! of those. Lines take turns within a round, and medians over the rounds are shown.
#![allow(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]
#![allow(
    unsafe_code,
    reason = "the limits are measured with the instructions the kernels use"
)]

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use sconce::generation::TokenId;
use sconce::model::{
    BLOCK_TOKENS, BlockId, CausalLm, Checkpoint, Cpu, Decoder, Format, Logits, ModelError,
    ModelSpec, StepInput, Tier,
};
use serde_json::json;

/// Bytes that the bandwidth measurement reads: many times what any cache holds.
const READ_BYTES: usize = 384 << 20;

/// Time of each measurement of a limit: long enough that other programs' turns even out.
const CALIBRATION: Duration = Duration::from_millis(60);

/// Measures prefill and decode.
#[derive(Parser)]
struct Args {
    /// A folder or a GGUF file, or `shape:NAME` for random weights
    #[arg(long, default_value = "shape:SmolLM2-135M")]
    model_id: String,
    /// Format of random weights, by default the one these models are published in: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k
    #[arg(long, default_value = "bf16")]
    format: String,
    /// Lengths of the prompts measured, each alone
    #[arg(long, value_delimiter = ',', default_value = "512")]
    prompt_tokens: Vec<usize>,
    /// Tokens of a prompt that one step computes, as the server's default
    #[arg(long, default_value_t = 128)]
    chunk: usize,
    /// Decode steps of one sample
    #[arg(long, default_value_t = 32)]
    new_tokens: usize,
    /// Sequences that decode together
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16")]
    batch: Vec<usize>,
    /// Tokens each sequence already has when decoding begins
    #[arg(long, value_delimiter = ',', default_value = "128")]
    context: Vec<usize>,
    /// Threads that compute [default: the CPUs this process may use]
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// avx512, avx2 or portable [default: the best this machine has]
    #[arg(long)]
    cpu_tier: Option<String>,
    /// Samples of each line; lines take turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one line measures.
#[derive(Clone, Copy)]
enum Subject {
    /// One prompt of so many tokens, in chunks.
    Prefill { tokens: usize },
    /// One token a step for each of `batch` sequences.
    Decode { batch: usize, context: usize },
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Prefill { .. } => "prefill",
            Self::Decode { .. } => "decode",
        }
    }

    fn batch(self) -> usize {
        match self {
            Self::Prefill { .. } => 1,
            Self::Decode { batch, .. } => batch,
        }
    }

    fn context(self) -> usize {
        match self {
            Self::Prefill { tokens } => tokens,
            Self::Decode { context, .. } => context,
        }
    }
}

/// One sample, with the limits measured around it.
#[derive(Clone, Copy)]
struct Sample {
    seconds: f64,
    /// Bytes a second.
    bandwidth: f64,
    /// Floating-point operations a second.
    peak: f64,
}

/// What the work of a line amounts to.
#[derive(Clone, Copy)]
struct Work {
    tokens: usize,
    steps: usize,
    /// Bytes of weights that the steps read.
    weight_bytes: f64,
    /// Bytes of keys and values that the steps read.
    kv_bytes: f64,
    /// Two a weight and token.
    operations: f64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let checkpoint = match args.model_id.strip_prefix("shape:") {
        Some(shape) => Checkpoint::random(shape, format(&args.format)?)?,
        None => Checkpoint::open(Path::new(&args.model_id), None)?,
    };
    let threads = match args.threads {
        Some(threads) => threads,
        None => thread::available_parallelism()?,
    };
    let tier = args
        .cpu_tier
        .as_deref()
        .map(str::parse::<Tier>)
        .transpose()?;
    let cpu = Cpu::new(threads, tier)?;
    let tier = cpu.tier();
    let mut bench = Bench::new(&args, &checkpoint, cpu)?;
    let limits = Limits::new(threads.get());
    let subjects: Vec<Subject> = args
        .prompt_tokens
        .iter()
        .map(|&tokens| Subject::Prefill { tokens })
        .chain(args.context.iter().flat_map(|&context| {
            args.batch
                .iter()
                .map(move |&batch| Subject::Decode { batch, context })
        }))
        .collect();
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); subjects.len()];
    for _ in 0..args.rounds {
        for (&subject, samples) in subjects.iter().zip(&mut samples) {
            samples.push(limits.around(|| bench.run(subject))?);
        }
    }
    let report = Report {
        args: &args,
        format: checkpoint
            .main_format()
            .map_or_else(String::new, |format| format.to_string()),
        tier,
        threads: threads.get(),
    };
    report.head(&samples);
    let mut decode_speeds = Vec::new();
    for (subject, samples) in subjects.into_iter().zip(&samples) {
        let speed = report.line(subject, bench.work(subject), samples);
        if let Subject::Decode { batch, context } = subject {
            decode_speeds.push((context, batch, speed));
        }
    }
    for &(context, batch, speed) in &decode_speeds {
        let alone = decode_speeds
            .iter()
            .find(|other| (other.0, other.1) == (context, 1));
        if let Some(&(_, _, alone)) = alone
            && batch > 1
        {
            report.ratio(context, batch, speed / alone);
        }
    }
    Ok(())
}

fn format(name: &str) -> Result<Format, String> {
    let wanted = Format::ALL
        .into_iter()
        .find(|f| f.to_string().eq_ignore_ascii_case(name));
    wanted.ok_or_else(|| format!("unknown format `{name}`"))
}

/// A decoder whose sequences have their context computed already.
struct Bench {
    decoder: Decoder,
    logits: Logits,
    /// Blocks of each sequence; the one after the last batch's belongs to the measured prompt.
    tables: Vec<Vec<BlockId>>,
    chunk: usize,
    new_tokens: usize,
    weight_bytes: usize,
}

impl Bench {
    fn new(args: &Args, checkpoint: &Checkpoint, cpu: Cpu) -> Result<Self, ModelError> {
        let most = |values: &[usize]| values.iter().copied().max().unwrap_or(0);
        let (batch, context) = (most(&args.batch), most(&args.context));
        let longest = (context + args.new_tokens).max(most(&args.prompt_tokens));
        let blocks = longest.div_ceil(BLOCK_TOKENS);
        // Neighbouring blocks of a sequence lie apart, as in a server that has run for a while.
        let sequences = batch + 1;
        let tables = (0..sequences)
            .map(|sequence| {
                (0..blocks)
                    .map(|i| (i * sequences + sequence) as BlockId)
                    .collect()
            })
            .collect();
        let spec = checkpoint.spec();
        let embedding_only = if spec.tied {
            0
        } else {
            let format = checkpoint.main_format().unwrap_or(Format::F32);
            spec.vocab * format.row_bytes(spec.hidden).unwrap_or(2 * spec.hidden)
        };
        let mut bench = Self {
            decoder: Decoder::new(checkpoint, blocks * sequences, cpu)?,
            logits: Logits::default(),
            tables,
            chunk: args.chunk,
            new_tokens: args.new_tokens,
            weight_bytes: checkpoint.size_bytes() - embedding_only,
        };
        for sequence in 0..batch {
            bench.prefill(sequence, context)?;
        }
        Ok(bench)
    }

    /// The duration of a line's work in seconds.
    fn run(&mut self, subject: Subject) -> Result<f64, ModelError> {
        let began = Instant::now();
        match subject {
            Subject::Prefill { tokens } => self.prefill(self.tables.len() - 1, tokens)?,
            Subject::Decode { batch, context } => {
                for step in 0..self.new_tokens {
                    self.decode(batch, context + step)?;
                }
            }
        }
        Ok(began.elapsed().as_secs_f64())
    }

    fn prefill(&mut self, sequence: usize, tokens: usize) -> Result<(), ModelError> {
        let tables = [self.tables[sequence].as_slice()];
        for start in (0..tokens).step_by(self.chunk) {
            let end = tokens.min(start + self.chunk);
            let ids: Vec<TokenId> = (start..end).map(|i| self.token(sequence, i)).collect();
            let rows: Vec<(u32, u32)> = (start..end).map(|position| (0, position as u32)).collect();
            let last = [(end - start - 1) as u32];
            let outputs = if end == tokens { last.as_slice() } else { &[] };
            let step = StepInput {
                tokens: &ids,
                rows: &rows,
                tables: &tables,
                outputs,
            };
            self.decoder.forward(&step, &mut self.logits)?;
        }
        Ok(())
    }

    fn decode(&mut self, batch: usize, position: usize) -> Result<(), ModelError> {
        let tables: Vec<&[BlockId]> = self.tables[..batch].iter().map(Vec::as_slice).collect();
        let ids: Vec<TokenId> = (0..batch).map(|i| self.token(i, position)).collect();
        let rows: Vec<(u32, u32)> = (0..batch as u32).map(|i| (i, position as u32)).collect();
        let outputs: Vec<u32> = (0..batch as u32).collect();
        let step = StepInput {
            tokens: &ids,
            rows: &rows,
            tables: &tables,
            outputs: &outputs,
        };
        self.decoder.forward(&step, &mut self.logits)
    }

    fn token(&self, sequence: usize, position: usize) -> TokenId {
        TokenId(((sequence * 7919 + position * 104_729) % self.decoder.vocab_size()) as u32)
    }

    fn work(&self, subject: Subject) -> Work {
        let spec = self.decoder.spec();
        let kv_token = spec.kv_bytes_per_token() as f64;
        match subject {
            Subject::Prefill { tokens } => {
                let chunks = tokens.div_ceil(self.chunk);
                let read_back: usize = (1..=chunks).map(|i| (i * self.chunk).min(tokens)).sum();
                Work {
                    tokens,
                    steps: chunks,
                    weight_bytes: (chunks * self.weight_bytes) as f64,
                    kv_bytes: read_back as f64 * kv_token,
                    operations: 2.0
                        * (layer_weights(spec) * tokens + spec.vocab * spec.hidden) as f64,
                }
            }
            Subject::Decode { batch, context } => {
                let steps = self.new_tokens;
                let attended = batch * steps * (2 * context + steps + 1) / 2;
                let weights = layer_weights(spec) + spec.vocab * spec.hidden;
                Work {
                    tokens: batch * steps,
                    steps,
                    weight_bytes: (steps * self.weight_bytes) as f64,
                    kv_bytes: attended as f64 * kv_token,
                    operations: 2.0 * (weights * batch * steps) as f64,
                }
            }
        }
    }
}

/// Weights that a token is multiplied with, the head apart.
fn layer_weights(spec: &ModelSpec) -> usize {
    let attention = spec.hidden * spec.head_dim * 2 * (spec.heads + spec.kv_heads);
    spec.layers * (attention + 3 * spec.hidden * spec.intermediate)
}

/// What the machine can do at the moment, with a given number of threads.
struct Limits {
    threads: usize,
    buffer: Vec<u64>,
}

impl Limits {
    fn new(threads: usize) -> Self {
        Self {
            threads,
            buffer: (0..READ_BYTES as u64 / 8).collect(),
        }
    }

    /// Takes a sample with the limits before and after it averaged.
    fn around(&self, run: impl FnOnce() -> Result<f64, ModelError>) -> Result<Sample, ModelError> {
        let before = (self.bandwidth(), self.peak());
        let seconds = run()?;
        let after = (self.bandwidth(), self.peak());
        Ok(Sample {
            seconds,
            bandwidth: f64::midpoint(before.0, after.0),
            peak: f64::midpoint(before.1, after.1),
        })
    }

    /// Bytes a second of reading a large buffer over and over, each thread its own part.
    fn bandwidth(&self) -> f64 {
        let part = self.buffer.len().div_ceil(self.threads);
        self.rate(|thread| {
            let words = &self.buffer[thread * part..self.buffer.len().min((thread + 1) * part)];
            let mut blocks = words.chunks(READ_BYTES / 8 / 64).cycle();
            move || {
                let block = blocks.next().unwrap_or_default();
                black_box(read_all(block));
                size_of_val(block) as u64
            }
        })
    }

    /// Operations a second of multiply-adds that need no memory.
    fn peak(&self) -> f64 {
        self.rate(|_| || multiply_add(100_000))
    }

    /// What all threads together get done in a second; `worker` makes a thread's work, each call of which
    /// returns how much it was.
    fn rate<W: FnMut() -> u64>(&self, worker: impl Fn(usize) -> W + Sync) -> f64 {
        let worker = &worker;
        let began = Instant::now();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads)
                .map(|thread| {
                    scope.spawn(move || {
                        let (mut work, mut done) = (worker(thread), 0);
                        while began.elapsed() < CALIBRATION {
                            done += work();
                        }
                        done as f64 / began.elapsed().as_secs_f64()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or(0.0))
                .sum()
        })
    }
}

fn read_all(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the instructions are there.
        return unsafe { x86::read_avx512(words) };
    }
    words.iter().fold(0, |sum, &word| sum ^ word)
}

/// Does rounds of independent multiply-adds and returns the number of operations.
fn multiply_add(rounds: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the instructions are there.
        return unsafe { x86::multiply_add_avx512(rounds) };
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the instructions are there.
        return unsafe { x86::multiply_add_avx2(rounds) };
    }
    let mut sums = [black_box(1.0_f32); 64];
    let factor = black_box(0.999_f32);
    for _ in 0..rounds {
        sums.iter_mut()
            .for_each(|sum| *sum = *sum * factor + factor);
    }
    black_box(sums);
    rounds * 64 * 2
}

/// The loops with vector instructions.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_loadu_si512,
        _mm512_reduce_add_epi64, _mm512_set1_ps, _mm512_setzero_si512, _mm512_xor_si512,
    };
    use std::hint::black_box;

    /// # Safety
    /// The machine has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn read_avx512(words: &[u64]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 4];
        for chunk in words.chunks_exact(32) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a chunk has four times eight words.
                let read = unsafe { _mm512_loadu_si512(chunk.as_ptr().add(8 * i).cast()) };
                *sum = _mm512_xor_si512(*sum, read);
            }
        }
        let [a, b, c, d] = sums;
        let sum = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
        _mm512_reduce_add_epi64(sum) as u64
    }

    /// # Safety
    /// The machine has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn multiply_add_avx512(rounds: u64) -> u64 {
        let mut sums = [_mm512_set1_ps(black_box(1.0)); 16];
        let factor = _mm512_set1_ps(black_box(0.999));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        rounds * 16 * 16 * 2
    }

    /// # Safety
    /// The machine has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn multiply_add_avx2(rounds: u64) -> u64 {
        let mut sums = [_mm256_set1_ps(black_box(1.0)); 12];
        let factor = _mm256_set1_ps(black_box(0.999));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        rounds * 12 * 8 * 2
    }
}

/// How results are shown.
struct Report<'a> {
    args: &'a Args,
    format: String,
    tier: Tier,
    threads: usize,
}

impl Report<'_> {
    fn head(&self, samples: &[Vec<Sample>]) {
        if self.args.json {
            return;
        }
        let all = || samples.iter().flatten();
        println!(
            "{} {} · {} threads · {} · limits {:.1} GB/s, {:.0} GFLOP/s",
            self.args.model_id,
            self.format,
            self.threads,
            self.tier,
            median(all().map(|sample| sample.bandwidth)) / 1e9,
            median(all().map(|sample| sample.peak)) / 1e9,
        );
        println!(
            "{:<8} {:>5} {:>7} {:>10} {:>9} {:>7} {:>7} {:>8} {:>9} {:>7}",
            "phase",
            "batch",
            "context",
            "tokens/s",
            "ms/step",
            "GB/s",
            "% read",
            "% r+kv",
            "GFLOP/s",
            "% FMA",
        );
    }

    /// Prints a line and returns its tokens a second.
    fn line(&self, subject: Subject, work: Work, samples: &[Sample]) -> f64 {
        let seconds = median(samples.iter().map(|sample| sample.seconds));
        let share = |amount: f64, limit: fn(&Sample) -> f64| {
            100.0
                * median(
                    samples
                        .iter()
                        .map(|sample| amount / sample.seconds / limit(sample)),
                )
        };
        let tokens_per_second = work.tokens as f64 / seconds;
        let step_ms = 1e3 * seconds / work.steps as f64;
        let (read, flops) = (
            work.weight_bytes / seconds / 1e9,
            work.operations / seconds / 1e9,
        );
        let of_read = share(work.weight_bytes, |sample| sample.bandwidth);
        let of_traffic = share(work.weight_bytes + work.kv_bytes, |sample| sample.bandwidth);
        let of_peak = share(work.operations, |sample| sample.peak);
        let (name, batch, context) = (subject.name(), subject.batch(), subject.context());
        if self.args.json {
            let line = json!({
                "model": self.args.model_id, "format": self.format, "threads": self.threads,
                "tier": self.tier.to_string(), "phase": name, "batch": batch, "context": context,
                "tokens_per_s": tokens_per_second, "ms_per_step": step_ms,
                "weights_gb_per_s": read, "percent_of_read": of_read,
                "percent_of_read_with_kv": of_traffic, "gflop_per_s": flops,
                "percent_of_fma": of_peak, "rounds": samples.len(),
                "limit_gb_per_s": median(samples.iter().map(|sample| sample.bandwidth)) / 1e9,
                "limit_gflop_per_s": median(samples.iter().map(|sample| sample.peak)) / 1e9,
            });
            println!("{line}");
        } else {
            println!(
                "{name:<8} {batch:>5} {context:>7} {tokens_per_second:>10.1} {step_ms:>9.2} {read:>7.2} {of_read:>7.1} {of_traffic:>8.1} {flops:>9.1} {of_peak:>7.1}",
            );
        }
        tokens_per_second
    }

    fn ratio(&self, context: usize, batch: usize, ratio: f64) {
        if self.args.json {
            let line = json!({ "context": context, "batch": batch, "speed_over_batch_1": ratio });
            println!("{line}");
        } else {
            println!("decode at context {context}: batch {batch} / batch 1 = {ratio:.2}");
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
