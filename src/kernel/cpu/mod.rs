//! The kernels for CPUs: tiers of instructions, a thread pool, and one generic routine per operation.
//!
//! This file is the face: it checks nothing that the routines do not check themselves, and adds no arithmetic.
//! `lanes/` is what a tier can do, `pool` who does it, `unpack` what weights mean, the rest is the operations.

mod attention;
mod elementwise;
mod lanes;
mod matmul;
mod pool;
mod unpack;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::str::FromStr;

use pool::Pool;

use super::{
    AttentionBatch, BLOCK_TOKENS, Format, KernelError, KvCacheLayer, MatrixView, Pairing, Rope,
};

/// A set of instructions that kernels are compiled for.
///
/// `Avx512` and `Avx2` give the same bits; `Portable` rounds products and sums separately and may differ in the last ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// AVX-512 F, BW and VL.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Whatever the compiler assumes of the target.
    Portable,
}

impl Tier {
    /// Every tier, fastest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// The fastest tier this machine has.
    #[must_use]
    pub fn detect() -> Self {
        Self::ALL
            .into_iter()
            .find(|tier| tier.is_available())
            .unwrap_or(Self::Portable)
    }

    /// Whether this machine has the tier's instructions.
    #[must_use]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        #[cfg(target_arch = "x86_64")]
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        #[cfg(not(target_arch = "x86_64"))]
        let (avx2, avx512) = (false, false);
        match self {
            Self::Avx512 => avx512,
            Self::Avx2 => avx2,
            Self::Portable => true,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        })
    }
}

impl FromStr for Tier {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.to_string() == name)
            .ok_or_else(|| KernelError::UnknownTier {
                name: name.to_owned(),
            })
    }
}

/// The CPU as a device: a tier and the threads that work in it.
///
/// Invariants: the tier is available on this machine; a row's result is the same bits for any number of rows and threads.
/// Panics: every method, when sizes do not fit together or an id lies outside its table: errors of the program, not of
/// a request. A panic inside a kernel thread reaches the caller.
/// It is `Send` but not `Sync`: the thread that runs steps owns it. Dropping it joins its threads.
pub struct Cpu {
    tier: Tier,
    pool: Pool,
}

impl Cpu {
    /// Starts `threads - 1` workers beside the caller. Without a `tier` the fastest available is taken.
    ///
    /// Errors: [`KernelError::TierUnavailable`] when a tier is asked for that the machine lacks;
    /// [`KernelError::Threads`] when the system refuses a thread.
    pub fn new(threads: NonZeroUsize, tier: Option<Tier>) -> Result<Self, KernelError> {
        let tier = tier.unwrap_or_else(Tier::detect);
        if !tier.is_available() {
            return Err(KernelError::TierUnavailable { tier });
        }
        let pool = Pool::new(threads.get()).map_err(KernelError::Threads)?;
        Ok(Self { tier, pool })
    }

    /// The instructions in use.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Threads that take part in a call, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Multiplies `x` with the transposes of several weights that share it.
    ///
    /// Shapes: `x: [m, k] f32` · `weights[i]: [n_i, k]` · `out: [m, n_0 + n_1 + ..] f32`, columns in order of `weights`,
    /// overwritten. Formats may differ from weight to weight.
    /// Cost: reads each weight once; bound by memory up to a few rows, by multiply-adds from about 16. One fork-join.
    pub fn matmul(&self, x: &[f32], k: usize, weights: &[MatrixView<'_>], out: &mut [f32]) {
        matmul::matmul(&self.pool, self.tier, x, k, weights, out);
    }

    /// Unpacks the rows of `table` that `ids` name.
    ///
    /// Shapes: `table: [vocab, k]` · `ids: [m]` · `out: [m, k] f32`, overwritten.
    pub fn embed(&self, table: MatrixView<'_>, ids: &[u32], out: &mut [f32]) {
        matmul::embed(&self.pool, self.tier, table, ids, out);
    }

    /// Divides each row by its root mean square and multiplies it with `weight`.
    ///
    /// Shapes: `x`, `out: [m, weight.len()] f32`; `out` is overwritten.
    /// Source: RMSNorm (Zhang & Sennrich 2019) eq. 4; `eps` joins the mean of squares, as in transformers.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        elementwise::rms_norm(&self.pool, self.tier, x, weight, eps, out);
    }

    /// As [`Cpu::rms_norm`] for each of some heads of each row, in place.
    ///
    /// Shapes: `x: [m, stride] f32`; head `h` of a row is its elements `h * weight.len()..(h + 1) * weight.len()`.
    pub fn rms_norm_in_place(
        &self,
        x: &mut [f32],
        stride: usize,
        heads: Range<usize>,
        weight: &[f32],
        eps: f32,
    ) {
        elementwise::rms_norm_in_place(&self.pool, self.tier, x, stride, heads, weight, eps);
    }

    /// Adds `bias` to every row of `x: [m, bias.len()] f32`.
    pub fn add_bias(&self, x: &mut [f32], bias: &[f32]) {
        elementwise::add_bias(&self.pool, x, bias);
    }

    /// Adds `y` to `x`, element by element.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        elementwise::add(&self.pool, x, y);
    }

    /// Turns some heads of each row by the row's position, in place.
    ///
    /// Shapes: `x: [m, stride] f32` · `positions: [m]`; head `h` of a row is its elements
    /// `h * head_dim..(h + 1) * head_dim`, of which the first `rope.rotary_dims()` turn.
    /// Source: `RoFormer` (Su et al. 2021) eq. 34.
    pub fn rope(
        &self,
        x: &mut [f32],
        stride: usize,
        heads: Range<usize>,
        head_dim: usize,
        rope: &Rope,
        positions: &[u32],
    ) {
        elementwise::rope(
            &self.pool, self.tier, x, stride, heads, head_dim, rope, positions,
        );
    }

    /// Multiplies the SiLU of the first half of each row with the second half.
    ///
    /// Shapes: `gate_up: [m, 2 * width] f32` · `out: [m, width] f32`, overwritten.
    /// Source: `SwiGLU` (Shazeer 2020) eq. 5 with beta 1.
    pub fn silu_mul(&self, gate_up: &[f32], out: &mut [f32], width: usize) {
        elementwise::silu_mul(&self.pool, self.tier, gate_up, out, width);
    }

    /// Stores each row's keys and values in its slot.
    ///
    /// Shapes: `rows: [m, stride] f32`, keys `[kv_heads, head_dim]` from `k_offset` on and values likewise from
    /// `v_offset` · `slots: [m]`, each `block_id * BLOCK_TOKENS + offset`. Where two rows name one slot the later wins.
    pub fn write_kv(
        &self,
        rows: &[f32],
        stride: usize,
        k_offset: usize,
        v_offset: usize,
        slots: &[u32],
        cache: &mut KvCacheLayer,
    ) {
        elementwise::write_kv(&self.pool, rows, stride, k_offset, v_offset, slots, cache);
    }

    /// Attends each query row over the tokens `0..=position` of its sequence.
    ///
    /// Shapes: `q: [m, stride] f32`, the queries `[heads, head_dim]` first in each row · `out: [m, heads * head_dim] f32`,
    /// overwritten. `heads` is a multiple of the cache's KV heads; query head `h` reads KV head
    /// `h / (heads / kv_heads)` (GQA, Ainslie et al. 2023).
    /// Units: `scale` multiplies dot products, usually `head_dim^-0.5`.
    /// Invariants: never reads past a row's position; does not depend on where blocks lie.
    /// Cost: adjacent rows of one sequence share one reading of its blocks; a lone row reads
    /// `8 * (position + 1) * kv_heads * head_dim` bytes.
    #[allow(clippy::too_many_arguments, reason = "a kernel's operands")]
    pub fn attention(
        &self,
        q: &[f32],
        stride: usize,
        heads: usize,
        cache: &KvCacheLayer,
        batch: &AttentionBatch<'_>,
        scale: f32,
        out: &mut [f32],
    ) {
        attention::attention(
            &self.pool, self.tier, q, stride, heads, cache, batch, scale, out,
        );
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cpu({}, {} threads)", self.tier, self.threads())
    }
}

#[cfg(test)]
mod tests;
