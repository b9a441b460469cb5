//! An engine over a model from disk, driven by token ids, without text or sockets.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sconce::engine::{self, Engine, Job, Output};
use sconce::generation::{Sampling, Tenant, TokenId};
use sconce::model::{CausalLm, Checkpoint, Cpu, Decoder, FloatType, Tier};
use sconce::telemetry::{HistogramRanges, Metrics};

/// How an engine is set up; the default is roomy.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub max_batched_tokens: usize,
    pub max_running: usize,
    pub num_blocks: usize,
    pub threads: usize,
    pub tier: Option<Tier>,
    pub dtype: Option<FloatType>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            max_batched_tokens: 256,
            max_running: 64,
            num_blocks: 1024,
            threads: 2,
            tier: None,
            dtype: None,
        }
    }
}

/// A running engine with its metrics.
pub struct Running {
    pub engine: Engine,
    pub metrics: Arc<Metrics>,
}

/// One finished sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub prompt_logprobs: Vec<f32>,
}

/// The folder of frozen tiny models.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden")
}

/// The model of one frozen case: a folder, or the GGUF file in it.
pub fn case(name: &str) -> PathBuf {
    let folder = golden().join(name);
    let file = folder.join("model.gguf");
    if file.exists() { file } else { folder }
}

/// Starts an engine over a model.
pub fn start(model: &Path, setup: Setup) -> Running {
    start_wrapped(model, setup, |decoder| Box::new(decoder))
}

/// Starts an engine over what `wrap` makes of a model.
pub fn start_wrapped(
    model: &Path,
    setup: Setup,
    wrap: impl FnOnce(Decoder) -> Box<dyn CausalLm>,
) -> Running {
    let checkpoint = Checkpoint::open(model, setup.dtype).expect("a sound model");
    let not_zero = |n| NonZeroUsize::new(n).expect("not zero");
    let cpu = Cpu::new(not_zero(setup.threads), setup.tier).expect("an available tier");
    let decoder = Decoder::new(&checkpoint, setup.num_blocks, cpu).expect("all tensors");
    let metrics = Arc::new(Metrics::new(HistogramRanges {
        max_input_tokens: 512,
        max_total_tokens: 512,
    }));
    let config = engine::Config {
        max_batched_tokens: not_zero(setup.max_batched_tokens),
        max_running: not_zero(setup.max_running),
        max_queued: not_zero(1024),
        num_blocks: setup.num_blocks,
    };
    let engine =
        engine::start(wrap(decoder), config, Arc::clone(&metrics)).expect("a thread to run on");
    Running { engine, metrics }
}

/// One sequence to run.
#[derive(Debug, Clone)]
pub struct Ask {
    pub prompt: Vec<u32>,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    pub prompt_logprobs: bool,
}

impl Ask {
    /// A greedy request that ignores EOS.
    pub fn greedy(prompt: &[u32], max_new_tokens: usize) -> Self {
        Self {
            prompt: prompt.to_vec(),
            max_new_tokens,
            sampling: Sampling::GREEDY,
            prompt_logprobs: false,
        }
    }
}

impl Running {
    /// Runs all sequences at once and returns their answers in order.
    pub fn run(&self, asks: &[Ask]) -> Vec<Answer> {
        self.run_when_all_wait(asks, || {})
    }

    /// As [`Running::run`], calling `all_wait` when every sequence has been handed over.
    pub fn run_when_all_wait(&self, asks: &[Ask], all_wait: impl FnOnce()) -> Vec<Answer> {
        let submit = |ask: &Ask| {
            self.engine.submit(|output| Job {
                prompt: ask.prompt.iter().copied().map(TokenId).collect(),
                max_new_tokens: ask.max_new_tokens,
                eos: Arc::from([]),
                sampling: ask.sampling.clone(),
                guide: None,
                top_n: 0,
                prompt_logprobs: ask.prompt_logprobs,
                tenant: Tenant::anonymous(),
                begun: Arc::default(),
                output,
            })
        };
        let receivers: Vec<_> = asks
            .iter()
            .map(|ask| submit(ask).expect("room in the queue"))
            .collect();
        all_wait();
        receivers
            .into_iter()
            .map(|mut receiver| {
                let mut answer = Answer {
                    tokens: Vec::new(),
                    logprobs: Vec::new(),
                    prompt_logprobs: Vec::new(),
                };
                loop {
                    match receiver.blocking_recv().expect("an answer until its end") {
                        Output::Started {
                            prompt_logprobs, ..
                        } => answer.prompt_logprobs = prompt_logprobs,
                        Output::Token { sampled, ended } => {
                            answer.tokens.push(sampled.token.0);
                            answer.logprobs.push(sampled.logprob);
                            if ended.is_some() {
                                return answer;
                            }
                        }
                        Output::Failed(problem) => panic!("the engine failed: {problem}"),
                    }
                }
            })
            .collect()
    }
}
