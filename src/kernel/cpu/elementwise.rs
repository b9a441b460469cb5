//! What lies between products: norms, sums, the gated activation, rotary positions, and writing keys and values.
//!
//! Separate because each of these touches every element once or twice and is bound by memory, not arithmetic.
//! Rows are independent and never split, so threads cannot change a result.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "pointer arithmetic under the caller's promise"
)]

use std::ops::Range;

use super::lanes::{self, Kernel, LANES, Lanes};
use super::pool::{Pool, SharedMut};
use super::{BLOCK_TOKENS, KvCacheLayer, Pairing, Rope, Tier};

/// See [`crate::kernel::Cpu::rms_norm`].
pub(super) fn rms_norm(
    pool: &Pool,
    tier: Tier,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    assert_eq!(x.len(), out.len(), "input and output differ in size");
    let width = weight.len();
    pool.run_rows(out, width, 2 * width, &|first, out| {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let x = x[(first + i) * width..][..width].as_ptr();
            // SAFETY: the tier is available by `Cpu`'s invariant; all three have `width` elements.
            unsafe {
                lanes::run(
                    tier,
                    Norm {
                        x,
                        weight,
                        eps,
                        out: out.as_mut_ptr(),
                    },
                )
            };
        }
    });
}

/// See [`crate::kernel::Cpu::rms_norm_in_place`].
pub(super) fn rms_norm_in_place(
    pool: &Pool,
    tier: Tier,
    x: &mut [f32],
    stride: usize,
    heads: Range<usize>,
    weight: &[f32],
    eps: f32,
) {
    let width = weight.len();
    assert!(
        heads.end * width <= stride,
        "heads {heads:?} of {width} lie outside a row of {stride}"
    );
    pool.run_rows(x, stride, 2 * heads.len() * width, &|_, x| {
        for row in x.chunks_exact_mut(stride) {
            for head in row[heads.start * width..heads.end * width].chunks_exact_mut(width) {
                let out = head.as_mut_ptr();
                // SAFETY: the tier is available by `Cpu`'s invariant; head and weight have `width` elements.
                unsafe {
                    lanes::run(
                        tier,
                        Norm {
                            x: out,
                            weight,
                            eps,
                            out,
                        },
                    )
                };
            }
        }
    });
}

/// Root-mean-square norm of one row.
///
/// # Safety
/// `x` and `out` have as many elements as `weight`; they may be the same.
struct Norm<'a> {
    x: *const f32,
    weight: &'a [f32],
    eps: f32,
    out: *mut f32,
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (width, weight) = (self.weight.len(), self.weight.as_ptr());
        let whole = width / LANES * LANES;
        // Four sums hide the latency of the addition; which one an element joins depends on its place alone.
        let mut squares = [L::splat(0.0); 4];
        for at in (0..whole).step_by(LANES) {
            let x = L::load(self.x.add(at));
            let sum = &mut squares[at / LANES % 4];
            *sum = x.mul_add(x, *sum);
        }
        if whole < width {
            let x = L::load_first(self.x.add(whole), width - whole);
            let sum = &mut squares[whole / LANES % 4];
            *sum = x.mul_add(x, *sum);
        }
        let [a, b, c, d] = squares;
        let mean = a.add(b).add(c.add(d)).sum() / width as f32;
        let scale = L::splat(1.0 / (mean + self.eps).sqrt());
        for at in (0..whole).step_by(LANES) {
            let x = L::load(self.x.add(at)).mul(scale);
            x.mul(L::load(weight.add(at))).store(self.out.add(at));
        }
        if whole < width {
            let rest = width - whole;
            let x = L::load_first(self.x.add(whole), rest).mul(scale);
            x.mul(L::load_first(weight.add(whole), rest))
                .store_first(self.out.add(whole), rest);
        }
    }
}

/// See [`crate::kernel::Cpu::add`]. One addition an element rounds alike on every tier, so plain code serves all.
pub(super) fn add(pool: &Pool, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "the two differ in size");
    pool.run_rows(x, 1, 1, &|first, x| {
        for (x, y) in x.iter_mut().zip(&y[first..]) {
            *x += y;
        }
    });
}

/// See [`crate::kernel::Cpu::add_bias`].
pub(super) fn add_bias(pool: &Pool, x: &mut [f32], bias: &[f32]) {
    pool.run_rows(x, bias.len(), bias.len(), &|_, x| {
        for row in x.chunks_exact_mut(bias.len()) {
            for (x, bias) in row.iter_mut().zip(bias) {
                *x += bias;
            }
        }
    });
}

/// See [`crate::kernel::Cpu::silu_mul`].
pub(super) fn silu_mul(pool: &Pool, tier: Tier, gate_up: &[f32], out: &mut [f32], width: usize) {
    assert_eq!(
        gate_up.len(),
        2 * out.len(),
        "gate and up are not twice the output"
    );
    pool.run_rows(out, width, 8 * width, &|first, out| {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let (gate, up) = gate_up[(first + i) * 2 * width..][..2 * width].split_at(width);
            // SAFETY: the tier is available by `Cpu`'s invariant; all three have `width` elements.
            unsafe { lanes::run(tier, Silu { gate, up, out }) };
        }
    });
}

/// `out = gate / (1 + e^-gate) * up`.
///
/// # Safety
/// All three are of one length.
struct Silu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Silu<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (width, gate, up) = (self.out.len(), self.gate.as_ptr(), self.up.as_ptr());
        let out = self.out.as_mut_ptr();
        let whole = width / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            silu_mul_lanes(L::load(gate.add(at)), L::load(up.add(at))).store(out.add(at));
        }
        if whole < width {
            let rest = width - whole;
            silu_mul_lanes(
                L::load_first(gate.add(whole), rest),
                L::load_first(up.add(whole), rest),
            )
            .store_first(out.add(whole), rest);
        }
    }
}

#[inline(always)]
unsafe fn silu_mul_lanes<L: Lanes>(gate: L, up: L) -> L {
    let decay = L::splat(0.0).sub(gate).exp();
    gate.div(L::splat(1.0).add(decay)).mul(up)
}

/// See [`crate::kernel::Cpu::rope`].
#[allow(
    clippy::too_many_arguments,
    reason = "pool and tier join the face's arguments"
)]
pub(super) fn rope(
    pool: &Pool,
    tier: Tier,
    x: &mut [f32],
    stride: usize,
    heads: Range<usize>,
    head_dim: usize,
    rope: &Rope,
    positions: &[u32],
) {
    assert!(
        heads.end * head_dim <= stride,
        "heads {heads:?} of {head_dim} lie outside a row of {stride}"
    );
    assert!(
        rope.rotary_dims() <= head_dim,
        "more rotary dimensions than a head has"
    );
    assert_eq!(
        x.len(),
        positions.len() * stride,
        "rows and positions differ in number"
    );
    pool.run_rows(x, stride, 4 * heads.len() * head_dim, &|first, x| {
        for (row, &position) in x.chunks_exact_mut(stride).zip(&positions[first..]) {
            let heads = &mut row[heads.start * head_dim..heads.end * head_dim];
            let (cos, sin) = rope.row(position);
            // SAFETY: the tier is available by `Cpu`'s invariant; the table's row is as wide as its pairing says, and
            // the rotated part of a head lies inside it.
            unsafe {
                lanes::run(
                    tier,
                    Rotation {
                        heads,
                        head_dim,
                        pairing: rope.pairing(),
                        cos,
                        sin,
                    },
                )
            };
        }
    });
}

/// Rotates every head of one row.
///
/// # Safety
/// `heads` is whole heads; `cos` and `sin` are of one length: half the rotated elements for halves, all of them for
/// neighbours; the rotated elements are at most `head_dim`.
struct Rotation<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    pairing: Pairing,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rotation<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let width = self.cos.len();
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            let head = head.as_mut_ptr();
            for at in (0..width).step_by(LANES) {
                let n = (width - at).min(LANES);
                let cos = L::load_first(self.cos.as_ptr().add(at), n);
                let sin = L::load_first(self.sin.as_ptr().add(at), n);
                let x = L::load_first(head.add(at), n);
                match self.pairing {
                    Pairing::Halves => {
                        let y = L::load_first(head.add(width + at), n);
                        let minus = y.mul(L::splat(0.0).sub(sin));
                        x.mul_add(cos, minus).store_first(head.add(at), n);
                        y.mul_add(cos, x.mul(sin))
                            .store_first(head.add(width + at), n);
                    }
                    Pairing::Neighbours => {
                        x.mul_add(cos, x.swap_pairs().mul(sin))
                            .store_first(head.add(at), n);
                    }
                }
            }
        }
    }
}

/// See [`crate::kernel::Cpu::write_kv`].
pub(super) fn write_kv(
    pool: &Pool,
    rows: &[f32],
    stride: usize,
    k_offset: usize,
    v_offset: usize,
    slots: &[u32],
    cache: &mut KvCacheLayer,
) {
    let (kv_heads, head_dim, tile) = (cache.kv_heads(), cache.head_dim(), cache.tile_len());
    let width = kv_heads * head_dim;
    assert_eq!(
        rows.len(),
        slots.len() * stride,
        "rows and slots differ in number"
    );
    assert!(
        k_offset + width <= stride && v_offset + width <= stride,
        "keys or values lie outside a row of {stride}"
    );
    let places = cache.blocks() * BLOCK_TOKENS;
    assert!(
        slots.iter().all(|&slot| (slot as usize) < places),
        "a slot lies outside {places} places"
    );
    let (keys, values) = (SharedMut::new(&mut cache.k), SharedMut::new(&mut cache.v));
    // Heads, not rows, are shared out: two rows may name one slot, and then the later must win.
    pool.run(
        kv_heads,
        4 * rows.len() / stride.max(1) * width,
        &|_, head| {
            for (row, &slot) in rows.chunks_exact(stride).zip(slots) {
                let (block, token) = (slot as usize / BLOCK_TOKENS, slot as usize % BLOCK_TOKENS);
                let start = (block * kv_heads + head) * tile;
                // SAFETY: only this chunk touches this head's tiles.
                let (key, value) = unsafe { (keys.slice(start, tile), values.slice(start, tile)) };
                let at = head * head_dim;
                for (place, &x) in key[token..]
                    .iter_mut()
                    .step_by(BLOCK_TOKENS)
                    .zip(&row[k_offset + at..][..head_dim])
                {
                    *place = x;
                }
                value[token * head_dim..][..head_dim]
                    .copy_from_slice(&row[v_offset + at..][..head_dim]);
            }
        },
    );
}
