//! Numeric routines: matrix products over stored weights, attention over paged keys and values, and what lies between.
//!
//! The face is one type, [`Cpu`], whose methods take plain slices. It is separate from `model/` so that no architecture
//! knows how a number is computed, and no kernel knows what a layer is.
//!
//! The one idea is *invariance*: within a [`Tier`], a row's result is the same bits whatever other rows share the call,
//! whatever the thread count, and wherever its KV blocks lie. Each output element has one fixed order of arithmetic;
//! tiles, threads and fused paths only choose when that order is carried out. The two AVX tiers agree bit for bit too.
//!
//! Never here: file formats beyond the bytes of a block, tensors with strides and types, async, locks held across work.
#![allow(
    unsafe_code,
    reason = "vector instructions and threads that share one output; every other floor denies it"
)]

mod cpu;
mod format;
mod kv_cache;
pub mod reference;
mod rope;

pub use cpu::{Cpu, Tier};
pub use format::{Format, MatrixView};
pub use kv_cache::{AttentionBatch, KvCacheLayer};
pub use rope::{Pairing, Rope};

/// Tokens in one KV block.
pub const BLOCK_TOKENS: usize = 16;

/// What can go wrong before any arithmetic starts; a kernel that runs cannot fail.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A tier was asked for by name and this machine lacks its instructions. The operator should choose another.
    #[error("this machine has no {tier} instructions")]
    TierUnavailable {
        /// The tier asked for.
        tier: Tier,
    },
    /// A name is not one of a tier.
    #[error("unknown tier {name:?}, expected avx512, avx2 or portable")]
    UnknownTier {
        /// The name as given.
        name: String,
    },
    /// Weight bytes do not make the matrix they are said to be. The file is damaged or of another kind.
    #[error("{format} matrix [{n}, {k}] over {len} bytes: {problem}")]
    Shape {
        /// The format claimed.
        format: Format,
        /// Rows claimed.
        n: usize,
        /// Elements a row claimed.
        k: usize,
        /// Bytes given.
        len: usize,
        /// Which rule is broken.
        problem: &'static str,
    },
    /// The operating system refused a worker thread.
    #[error("cannot start a kernel thread")]
    Threads(#[source] std::io::Error),
}
