//! Products of activations with stored weights, and the lookup of embedding rows.
//!
//! Separate as the one place where weights are read. Two paths give the same bits: for a few rows the weights go from
//! memory through registers into the accumulators; for more, a panel of them is unpacked once into the worker's scratch
//! and met by every row. Each output is sixteen partial sums, element `k` in lane `k mod 16`, added in `k` order.
//! Nothing here knows what the columns mean, and no result depends on tile, panel or thread.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "pointer arithmetic under the caller's promise"
)]

use super::lanes::{self, Kernel, LANES, Lanes};
use super::pool::{Pool, Scratch, SharedMut};
use super::unpack::{
    self, Bf16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Unpack,
};
use super::{Format, MatrixView, Tier};

/// Fewest output columns that one thread claims at a time.
const CHUNK: usize = 32;

/// How far ahead of its use a weight is asked for, at least: a few hundred nanoseconds of reading.
const AHEAD_BYTES: usize = 12 * 1024;

/// Output columns unpacked together: they stay in the second-level cache while all rows pass.
const PANEL: usize = 16;

/// Rows up to which unpacking anew for each tile of rows is cheaper than writing a panel and reading it back.
const FUSED_ROWS: usize = 12;

/// See [`crate::kernel::Cpu::matmul`].
pub(super) fn matmul(
    pool: &Pool,
    tier: Tier,
    x: &[f32],
    k: usize,
    weights: &[MatrixView<'_>],
    out: &mut [f32],
) {
    assert!(
        k > 0 && x.len().is_multiple_of(k),
        "x is not whole rows of {k}"
    );
    let m = x.len() / k;
    let stride: usize = weights.iter().map(MatrixView::n).sum();
    assert!(
        weights.iter().all(|w| w.k() == k),
        "a weight has another k than x"
    );
    assert_eq!(out.len(), m * stride, "output is not [{m}, {stride}]");
    let size = (stride / (4 * pool.threads()))
        .next_multiple_of(CHUNK)
        .max(CHUNK);
    let chunks = weights.iter().map(|w| w.n().div_ceil(size)).sum();
    let out = SharedMut::new(out);
    let work = m.saturating_mul(k).saturating_mul(stride);
    pool.run(if m == 0 { 0 } else { chunks }, work, &|scratch, chunk| {
        let (mut chunk, mut before) = (chunk, 0);
        for weight in weights {
            let own = weight.n().div_ceil(size);
            if chunk >= own {
                chunk -= own;
                before += weight.n();
                continue;
            }
            let first = chunk * size;
            let weight = weight.rows(first, size.min(weight.n() - first));
            // SAFETY: the tier is available by `Cpu`'s invariant; shapes were checked above; this chunk alone writes
            // its columns of `out`.
            unsafe {
                let product = Product {
                    x: x.as_ptr(),
                    m,
                    weight,
                    out: out.at(before + first),
                    stride,
                    scratch,
                };
                lanes::run(tier, product);
            }
            return;
        }
    });
}

/// `out[i, j] = x[i, ..] · weight[j, ..]` over a chunk of columns.
///
/// # Safety
/// `x` has `[m, k]` elements, `m > 0`; `out` may be written at `i * stride + j` for every row `i` and weight row `j`.
struct Product<'a> {
    x: *const f32,
    m: usize,
    weight: MatrixView<'a>,
    out: *mut f32,
    stride: usize,
    scratch: &'a mut Scratch,
}

impl Kernel for Product<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        match self.weight.format() {
            Format::F32 => self.typed::<L, F32>(),
            Format::F16 => self.typed::<L, F16>(),
            Format::Bf16 => self.typed::<L, Bf16>(),
            Format::Q4_0 => self.typed::<L, Q4_0>(),
            Format::Q4_1 => self.typed::<L, Q4_1>(),
            Format::Q5_0 => self.typed::<L, Q5_0>(),
            Format::Q5_1 => self.typed::<L, Q5_1>(),
            Format::Q8_0 => self.typed::<L, Q8_0>(),
            Format::Q2K => self.typed::<L, Q2K>(),
            Format::Q3K => self.typed::<L, Q3K>(),
            Format::Q4K => self.typed::<L, Q4K>(),
            Format::Q5K => self.typed::<L, Q5K>(),
            Format::Q6K => self.typed::<L, Q6K>(),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    unsafe fn typed<L: Lanes, U: Unpack>(self) {
        match (self.m, L::WIDE) {
            (1, _) => self.fused::<L, U, 1, 4>(),
            (..=FUSED_ROWS, true) => self.fused::<L, U, 4, 4>(),
            (..=FUSED_ROWS, false) => self.fused::<L, U, 2, 2>(),
            (_, true) => self.panels::<L, U, 4, 4>(),
            (_, false) => self.panels::<L, U, 3, 2>(),
        }
    }

    /// Takes `COLS` rows of weights at a time and passes the rows of `x` by them, `ROWS` at a time.
    #[inline(always)]
    unsafe fn fused<L: Lanes, U: Unpack, const ROWS: usize, const COLS: usize>(self) {
        for first in (0..self.weight.n()).step_by(COLS) {
            for i in (0..self.m).step_by(ROWS) {
                match self.m - i {
                    1 => self.fused_tile::<L, U, 1, COLS>(i, first),
                    2 if ROWS > 2 => self.fused_tile::<L, U, 2, COLS>(i, first),
                    _ => self.fused_tile::<L, U, ROWS, COLS>(i, first),
                }
            }
        }
    }

    /// The tile at row `i`, column `first`, weights going from memory through registers into the accumulators.
    #[inline(always)]
    unsafe fn fused_tile<L: Lanes, U: Unpack, const ROWS: usize, const COLS: usize>(
        &self,
        i: usize,
        first: usize,
    ) {
        let (n, k, row_bytes) = (self.weight.n(), self.weight.k(), self.weight.row_bytes());
        let mut columns = [self.weight.data().as_ptr(); COLS];
        for (j, column) in columns.iter_mut().enumerate() {
            *column = column.add((first + j).min(n - 1) * row_bytes);
        }
        let x = row_pointers::<ROWS>(self.x.add(i * k), k, self.m - i);
        let tiles_ahead = AHEAD_BYTES.div_ceil(COLS * row_bytes);
        let is_last = i > 0 || first + tiles_ahead * COLS >= n;
        let ahead = if is_last {
            0
        } else {
            tiles_ahead * COLS * row_bytes
        };
        let blocks = k / U::LEN;
        let mut sums = [[L::splat(0.0); COLS]; ROWS];
        for b in 0..blocks {
            // The tile ahead is asked for from end to end, not column by column: memory likes one stream better.
            for line in (0..COLS * U::BYTES).step_by(64) {
                L::prefetch(columns[0].wrapping_add(ahead + b * COLS * U::BYTES + line));
            }
            let mut heads = [U::head::<L>(columns[0].add(b * U::BYTES)); COLS];
            for j in 1..COLS {
                heads[j] = U::head::<L>(columns[j].add(b * U::BYTES));
            }
            for group in 0..U::GROUPS {
                let at = b * U::LEN + group * (U::LEN / U::GROUPS);
                for (j, &column) in columns.iter().enumerate() {
                    let weights = U::group::<L>(column.add(b * U::BYTES), &heads[j], group);
                    for (v, weight) in weights.as_ref().iter().enumerate() {
                        for r in 0..ROWS {
                            sums[r][j] =
                                weight.mul_add(L::load(x[r].add(at + v * LANES)), sums[r][j]);
                        }
                    }
                }
            }
        }
        for done in (blocks * U::LEN..k).step_by(LANES) {
            let len = (k - done).min(LANES);
            for (j, &column) in columns.iter().enumerate() {
                let weight = U::tail::<L>(column.add(done * U::BYTES / U::LEN), len);
                for r in 0..ROWS {
                    sums[r][j] = weight.mul_add(L::load_first(x[r].add(done), len), sums[r][j]);
                }
            }
        }
        self.write(
            &sums,
            i,
            (self.m - i).min(ROWS),
            first,
            (n - first).min(COLS),
        );
    }

    /// Unpacks [`PANEL`] weight rows at a time and passes every row of `x` by them in tiles of `ROWS` by `COLS`.
    #[inline(always)]
    unsafe fn panels<L: Lanes, U: Unpack, const ROWS: usize, const COLS: usize>(mut self) {
        let (n, k, row_bytes) = (self.weight.n(), self.weight.k(), self.weight.row_bytes());
        let padded = k.next_multiple_of(LANES);
        let panel = self.scratch.floats(PANEL * padded).0.as_mut_ptr();
        for first in (0..n).step_by(PANEL) {
            let count = (n - first).min(PANEL);
            for j in 0..count {
                let row = self.weight.data().as_ptr().add((first + j) * row_bytes);
                unpack::row::<L, U, true>(row, k, panel.add(j * padded));
            }
            let bytes = n.saturating_sub(first + PANEL).min(PANEL) * row_bytes;
            let tiles = self.m.div_ceil(ROWS) * count.div_ceil(COLS);
            let mut ahead = Ahead {
                next: self
                    .weight
                    .data()
                    .as_ptr()
                    .wrapping_add((first + PANEL) * row_bytes),
                left: bytes,
                part: bytes.div_ceil(tiles).next_multiple_of(64),
            };
            for i in (0..self.m).step_by(ROWS) {
                match (self.m - i).min(ROWS) {
                    1 => self.strip::<L, 1, COLS>(panel, i, first, count, &mut ahead),
                    2 => self.strip::<L, 2, COLS>(panel, i, first, count, &mut ahead),
                    3 => self.strip::<L, 3, COLS>(panel, i, first, count, &mut ahead),
                    _ => self.strip::<L, ROWS, COLS>(panel, i, first, count, &mut ahead),
                }
            }
        }
    }

    /// `ROWS` rows of `x` from `i` on against the whole panel.
    #[inline(always)]
    unsafe fn strip<L: Lanes, const ROWS: usize, const COLS: usize>(
        &mut self,
        panel: *const f32,
        i: usize,
        first: usize,
        count: usize,
        ahead: &mut Ahead,
    ) {
        let k = self.weight.k();
        let padded = k.next_multiple_of(LANES);
        let x = row_pointers::<ROWS>(self.x.add(i * k), k, ROWS);
        for j in (0..count).step_by(COLS) {
            ahead.ask::<L>();
            let w = row_pointers::<COLS>(panel.add(j * padded), padded, count - j);
            let mut sums = [[L::splat(0.0); COLS]; ROWS];
            let whole = k / LANES * LANES;
            for at in (0..whole).step_by(LANES) {
                let mut weights = [L::splat(0.0); COLS];
                for c in 0..COLS {
                    weights[c] = L::load(w[c].add(at));
                }
                for r in 0..ROWS {
                    let x = L::load(x[r].add(at));
                    for c in 0..COLS {
                        sums[r][c] = weights[c].mul_add(x, sums[r][c]);
                    }
                }
            }
            if whole < k {
                for r in 0..ROWS {
                    let x = L::load_first(x[r].add(whole), k - whole);
                    for c in 0..COLS {
                        sums[r][c] = L::load(w[c].add(whole)).mul_add(x, sums[r][c]);
                    }
                }
            }
            self.write(&sums, i, ROWS, first + j, (count - j).min(COLS));
        }
    }

    /// Adds up the lanes and writes `rows` by `cols` of the tile at row `i`, column `j`.
    #[inline(always)]
    unsafe fn write<L: Lanes, const ROWS: usize, const COLS: usize>(
        &self,
        sums: &[[L; COLS]; ROWS],
        i: usize,
        rows: usize,
        j: usize,
        cols: usize,
    ) {
        let last = ROWS * COLS - 1;
        for quad in (0..=last).step_by(4) {
            let mut four = [L::splat(0.0); 4];
            for (q, sum) in four.iter_mut().enumerate() {
                let from = (quad + q).min(last);
                *sum = sums[from / COLS][from % COLS];
            }
            for (q, sum) in L::sum_across(four).into_iter().enumerate() {
                let (r, c) = ((quad + q) / COLS, (quad + q) % COLS);
                if r < rows && c < cols {
                    *self.out.add((i + r) * self.stride + j + c) = sum;
                }
            }
        }
    }
}

/// The bytes of the next panel, asked for a part at a time while this one is multiplied: reading and arithmetic
/// overlap, where unpacking a cold panel would wait for memory with idle multipliers.
struct Ahead {
    next: *const u8,
    left: usize,
    part: usize,
}

impl Ahead {
    #[inline(always)]
    unsafe fn ask<L: Lanes>(&mut self) {
        let bytes = self.part.min(self.left);
        for line in (0..bytes).step_by(64) {
            L::prefetch_later(self.next.wrapping_add(line));
        }
        self.next = self.next.wrapping_add(bytes);
        self.left -= bytes;
    }
}

/// Where `COUNT` rows start; those at or past `limit` repeat the last one, so a tile may read but not write them.
#[inline(always)]
unsafe fn row_pointers<const COUNT: usize>(
    start: *const f32,
    stride: usize,
    limit: usize,
) -> [*const f32; COUNT] {
    let mut rows = [start; COUNT];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = start.add(i.min(limit - 1) * stride);
    }
    rows
}

/// See [`crate::kernel::Cpu::embed`].
pub(super) fn embed(pool: &Pool, tier: Tier, table: MatrixView<'_>, ids: &[u32], out: &mut [f32]) {
    let k = table.k();
    assert_eq!(
        out.len(),
        ids.len() * k,
        "output is not [{}, {k}]",
        ids.len()
    );
    pool.run_rows(out, k, k, &|first, out| {
        for (&id, out) in ids[first..].iter().zip(out.chunks_exact_mut(k)) {
            let row = table.rows(id as usize, 1);
            // SAFETY: the tier is available by `Cpu`'s invariant; both rows have `k` elements.
            unsafe { lanes::run(tier, Lookup { row, out }) };
        }
    });
}

/// Unpacks one row.
///
/// # Safety
/// `out` has as many elements as the row.
struct Lookup<'a> {
    row: MatrixView<'a>,
    out: &'a mut [f32],
}

impl Kernel for Lookup<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (from, k, to) = (
            self.row.data().as_ptr(),
            self.row.k(),
            self.out.as_mut_ptr(),
        );
        match self.row.format() {
            Format::F32 => unpack::row::<L, F32, false>(from, k, to),
            Format::F16 => unpack::row::<L, F16, false>(from, k, to),
            Format::Bf16 => unpack::row::<L, Bf16, false>(from, k, to),
            Format::Q4_0 => unpack::row::<L, Q4_0, false>(from, k, to),
            Format::Q4_1 => unpack::row::<L, Q4_1, false>(from, k, to),
            Format::Q5_0 => unpack::row::<L, Q5_0, false>(from, k, to),
            Format::Q5_1 => unpack::row::<L, Q5_1, false>(from, k, to),
            Format::Q8_0 => unpack::row::<L, Q8_0, false>(from, k, to),
            Format::Q2K => unpack::row::<L, Q2K, false>(from, k, to),
            Format::Q3K => unpack::row::<L, Q3K, false>(from, k, to),
            Format::Q4K => unpack::row::<L, Q4K, false>(from, k, to),
            Format::Q5K => unpack::row::<L, Q5K, false>(from, k, to),
            Format::Q6K => unpack::row::<L, Q6K, false>(from, k, to),
        }
    }
}
