//! The local engine: token lists in, tokens out, many sequences at once.
//!
//! One step is drain → schedule → forward ∥ masks → sample → emit, and it all happens on one OS thread, which
//! alone owns the scheduler, the KV blocks and the model: no step waits for anybody's lock. The async
//! world meets it in `handle.rs` only: jobs go in through a bounded channel, each job's tokens come out
//! through a channel of its own, and dropping that channel's far end cancels the job at the next step.
//! Nothing here knows text; stop strings are found outside.

mod batch;
pub mod block_pool;
mod handle;
mod load;
pub mod logits;
mod masks;
pub mod prefix_cache;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
mod softmax;
mod worker;

pub use handle::{Engine, Load, SubmitError};
pub use load::{BUCKETS, LoadSnapshot, SequenceLoad, StepTimes, Unseen};
pub use worker::start;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use crate::generation::{Sampling, Tenant, TokenId};
use crate::guided::Guide;

/// The engine's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Most tokens one step computes.
    pub max_batched_tokens: NonZeroUsize,
    /// Most sequences that run at once.
    pub max_running: NonZeroUsize,
    /// Most jobs that wait for the engine to notice them.
    pub max_queued: NonZeroUsize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
}

/// One sequence's work.
///
/// Invariants: the prompt is not empty, `max_new_tokens` is at least 1, and both together fit the cache.
#[derive(Debug)]
pub struct Job {
    /// Tokens to continue.
    pub prompt: Vec<TokenId>,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Tokens that end the answer.
    pub eos: Arc<[TokenId]>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Which tokens may be chosen, when the answer must have a shape.
    pub guide: Option<Guide>,
    /// How many rivals to report with each token.
    pub top_n: usize,
    /// Whether the prompt's own log-probabilities are wanted.
    pub prompt_logprobs: bool,
    /// Whose prefix cache to use.
    pub tenant: Tenant,
    /// Set when the first step with it begins; until then nothing of it has been computed.
    pub begun: Arc<AtomicBool>,
    /// Where the output goes; closed means that nobody cares any more.
    pub output: UnboundedSender<Output>,
}

/// Why the engine ended a sequence by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The allowed number of tokens was reached.
    Length,
    /// The model chose an EOS token.
    Eos,
}

/// What comes out of a job: a start, then tokens until one has ended, or a failure.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// The prompt has been computed.
    Started {
        /// When the first step with this job began.
        at: Instant,
        /// Log-probabilities of the prompt's tokens from the second on; empty unless asked for.
        prompt_logprobs: Vec<f32>,
    },
    /// One more token.
    Token {
        /// The token and its rivals.
        sampled: sampler::Sampled,
        /// Set on the last token.
        ended: Option<Ended>,
    },
    /// The step failed; nothing follows.
    Failed(String),
}
