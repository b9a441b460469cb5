//! From files to logits: the floor where tensors live.
//!
//! A [`Checkpoint`] is what files say (a spec, named weights, a tokenizer's source); a [`Decoder`] turns
//! it into a [`CausalLm`], the one trait of the house, because families truly vary at run time. One
//! decoder, driven by its spec, serves every dense family. Nothing here knows a request, a schedule or a
//! text; block ids come from above, the memory behind them is here.

mod checkpoint;
mod decoder;
mod gguf;
mod names;
mod shapes;
mod spec;
mod weights;

pub use crate::kernel::{BLOCK_TOKENS, Cpu, Format, KernelError, Tier};
pub use checkpoint::{ChatTemplates, Checkpoint, FloatType, TokenizerSource};
pub use decoder::Decoder;
pub use gguf::{Metadata, Value};
pub use shapes::SHAPES;
pub use spec::{Architecture, ModelSpec, Rope, RopeScaling};

use crate::generation::TokenId;

/// A KV block's index.
pub type BlockId = u32;

/// Why a model could not be loaded or run; each text names the file and the field.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// A file's content is wrong.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with which field.
        problem: String,
    },
    /// The model is sound but of a kind that is not served.
    #[error("{path}: {problem}")]
    Unsupported {
        /// The file.
        path: String,
        /// Which field asks for what, and what is served instead.
        problem: String,
    },
    /// A kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A forward pass failed.
    #[error("{0}")]
    Forward(String),
}

impl ModelError {
    pub(crate) fn malformed(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn unsupported(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.into(),
            problem: problem.into(),
        }
    }
}

/// One step's work for the model: a ragged batch of tokens, each with its place in its sequence.
///
/// Invariants: `tokens.len() == rows.len()`; the rows of one sequence stand together in rising position;
/// table `t` covers every position of its rows; `outputs` are rising indices into `rows`.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// Token of each row.
    pub tokens: &'a [TokenId],
    /// Of each row: index into `tables`, and position within the sequence.
    pub rows: &'a [(u32, u32)],
    /// Block ids of each sequence, in order.
    pub tables: &'a [&'a [BlockId]],
    /// Rows whose logits are wanted.
    pub outputs: &'a [u32],
}

/// Scores of one step. Shape: `[outputs, vocab] f32`, row-major.
#[derive(Debug, Default)]
pub struct Logits {
    data: Vec<f32>,
    vocab: usize,
}

impl Logits {
    /// Makes room for `rows` rows of `vocab` scores and returns it all; former content is unspecified.
    pub fn reset(&mut self, rows: usize, vocab: usize) -> &mut [f32] {
        self.vocab = vocab;
        self.data.resize(rows * vocab, 0.0);
        &mut self.data
    }

    /// The scores of one output row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.vocab..(row + 1) * self.vocab]
    }
}

/// A model that scores the next token for every row of a ragged batch.
///
/// It owns its KV memory, addressed by block ids chosen above; keys and values of the given rows are
/// stored before they are attended. Whatever the batch, a row's logits are a function of its sequence
/// alone, bit for bit.
pub trait CausalLm: Send {
    /// Number of scores per row.
    fn vocab_size(&self) -> usize;

    /// Runs one step.
    ///
    /// Shapes: see [`StepInput`]; `logits` is reset to `[outputs, vocab]`.
    /// Errors: [`ModelError::Forward`] fails this batch only.
    fn forward(&mut self, step: &StepInput<'_>, logits: &mut Logits) -> Result<(), ModelError>;
}
