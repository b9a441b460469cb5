//! One layer's paged keys and values, and the batch description that attention reads them by.
//!
//! Separate because the model owns one [`KvCacheLayer`] per layer while the engine only speaks of block ids.
//! Keys lie with tokens innermost, so the scores of a block are one vector; values lie with features innermost, so the
//! weighted sum is. Nothing here decides which block belongs to whom.

use super::BLOCK_TOKENS;

/// The keys and values of one layer for every block of the pool.
///
/// Shapes: `k: [blocks, kv_heads, head_dim, BLOCK_TOKENS] f32` · `v: [blocks, kv_heads, BLOCK_TOKENS, head_dim] f32`.
/// Invariants: `head_dim` is even; `v` is followed by one vector of slack, which a last partial vector may read.
/// Cost: memory is zeroed lazily by the system, so a block costs nothing until first written.
pub struct KvCacheLayer {
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    blocks: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl KvCacheLayer {
    /// Reserves room for `blocks` blocks.
    ///
    /// Panics: when `head_dim` is zero or odd, or `kv_heads` is zero.
    #[must_use]
    pub fn new(blocks: usize, kv_heads: usize, head_dim: usize) -> Self {
        assert!(
            head_dim > 0 && head_dim.is_multiple_of(2),
            "head_dim must be even"
        );
        assert!(kv_heads > 0, "at least one KV head");
        let len = blocks * kv_heads * head_dim * BLOCK_TOKENS;
        Self {
            k: vec![0.0; len],
            v: vec![0.0; len + BLOCK_TOKENS],
            blocks,
            kv_heads,
            head_dim,
        }
    }

    /// Bytes that one block takes in this layer, keys and values together.
    #[must_use]
    pub const fn block_bytes(kv_heads: usize, head_dim: usize) -> usize {
        2 * kv_heads * head_dim * BLOCK_TOKENS * size_of::<f32>()
    }

    /// Blocks there is room for.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Key and value heads.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Elements of one head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Elements of one head in one block, the same for keys and values.
    pub(super) fn tile_len(&self) -> usize {
        self.head_dim * BLOCK_TOKENS
    }
}

/// Which tokens each query row attends.
///
/// Shapes: `tables`: one list of block ids per sequence, in token order · `rows`: one entry per query row, in row order.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBatch<'a> {
    /// Block ids per sequence.
    pub tables: &'a [&'a [u32]],
    /// Per query row: the index of its sequence in `tables`, and its position; it attends tokens `0..=position`.
    pub rows: &'a [(u32, u32)],
}
