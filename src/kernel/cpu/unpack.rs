//! From stored blocks to f32 lanes, a few vectors at a time.
//!
//! Separate because the fused and the panel path of a product, and the embedding, must unpack with the very same
//! arithmetic. Every quantised weight is an exact f32 (a short integer times a short scale), so a fused multiply-add
//! and a separate product give the same number. Nothing here sees activations.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "pointer arithmetic under the caller's promise"
)]

use super::lanes::{LANES, Lanes};

/// One storage format.
///
/// # Safety
/// A block pointer has `BYTES` readable bytes, of any alignment; and as [`Lanes`].
pub(super) trait Unpack {
    /// Weights in one block, counted for the unquantised formats in runs of two vectors.
    const LEN: usize;
    /// Bytes in one block.
    const BYTES: usize;
    /// Groups in one block: runs of weights whose bytes are read together.
    const GROUPS: usize = 1;
    /// What a block's groups share, worked out once.
    type Head: Copy;
    /// The vectors of one group, in order.
    type Group<L: Lanes>: AsRef<[L]>;

    unsafe fn head<L: Lanes>(block: *const u8) -> Self::Head;

    /// The weights of a group; `group < GROUPS`.
    unsafe fn group<L: Lanes>(block: *const u8, head: &Self::Head, group: usize) -> Self::Group<L>;

    /// The first `n <= 16` weights at `from`, zero in the other lanes; reads no further.
    /// Only formats whose rows may end inside a block have such a tail.
    unsafe fn tail<L: Lanes>(from: *const u8, n: usize) -> L {
        let _ = (from, n);
        L::splat(0.0)
    }
}

/// Copies `n` elements of `SIZE` bytes in front of zeros.
#[inline(always)]
unsafe fn padded<const SIZE: usize>(from: *const u8, n: usize) -> [[u8; SIZE]; LANES] {
    let mut bytes = [[0; SIZE]; LANES];
    std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr().cast(), n * SIZE);
    bytes
}

pub(super) struct F32;

impl Unpack for F32 {
    const LEN: usize = 32;
    const BYTES: usize = 128;
    type Head = ();
    type Group<L: Lanes> = [L; 2];

    #[inline(always)]
    unsafe fn head<L: Lanes>(_: *const u8) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), _: usize) -> [L; 2] {
        [L::load_f32(block), L::load_f32(block.add(64))]
    }

    #[inline(always)]
    unsafe fn tail<L: Lanes>(from: *const u8, n: usize) -> L {
        L::load_f32(padded::<4>(from, n).as_ptr().cast())
    }
}

pub(super) struct F16;

impl Unpack for F16 {
    const LEN: usize = 32;
    const BYTES: usize = 64;
    type Head = ();
    type Group<L: Lanes> = [L; 2];

    #[inline(always)]
    unsafe fn head<L: Lanes>(_: *const u8) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), _: usize) -> [L; 2] {
        [L::load_f16(block), L::load_f16(block.add(32))]
    }

    #[inline(always)]
    unsafe fn tail<L: Lanes>(from: *const u8, n: usize) -> L {
        L::load_f16(padded::<2>(from, n).as_ptr().cast())
    }
}

pub(super) struct Bf16;

impl Unpack for Bf16 {
    const LEN: usize = 32;
    const BYTES: usize = 64;
    type Head = ();
    type Group<L: Lanes> = [L; 2];

    #[inline(always)]
    unsafe fn head<L: Lanes>(_: *const u8) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), _: usize) -> [L; 2] {
        [L::load_bf16(block), L::load_bf16(block.add(32))]
    }

    #[inline(always)]
    unsafe fn tail<L: Lanes>(from: *const u8, n: usize) -> L {
        L::load_bf16(padded::<2>(from, n).as_ptr().cast())
    }
}

/// f16 scale, then 16 bytes: weight `i` in the low half of byte `i`, weight `16 + i` in the high half; 8 stands for zero.
pub(super) struct Q4_0;

impl Unpack for Q4_0 {
    const LEN: usize = 32;
    const BYTES: usize = 18;
    type Head = ();
    type Group<L: Lanes> = [L; 2];

    #[inline(always)]
    unsafe fn head<L: Lanes>(_: *const u8) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), _: usize) -> [L; 2] {
        let scale = L::splat_f16(block);
        let levels = L::levels(scale, scale.mul(L::splat(-8.0)));
        let codes = L::codes(block.add(2));
        [L::low_levels(levels, codes), L::high_levels(levels, codes)]
    }
}

/// f16 scale, then 32 signed bytes.
pub(super) struct Q8_0;

impl Unpack for Q8_0 {
    const LEN: usize = 32;
    const BYTES: usize = 34;
    type Head = ();
    type Group<L: Lanes> = [L; 2];

    #[inline(always)]
    unsafe fn head<L: Lanes>(_: *const u8) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), _: usize) -> [L; 2] {
        let scale = L::splat_f16(block);
        [
            L::load_i8(block.add(2)).mul(scale),
            L::load_i8(block.add(18)).mul(scale),
        ]
    }
}

/// Scales of the eight groups of a Q4_K or Q5_K block, and what to add after multiplying (the minima, negated).
#[derive(Clone, Copy)]
pub(super) struct Affine {
    scales: [f32; LANES],
    /// Entry `8 + group` belongs to the group.
    offsets: [f32; LANES],
}

impl Affine {
    /// Reads f16 `d` and `dmin`, then twelve bytes that hold eight 6-bit scales and eight 6-bit minima.
    #[inline(always)]
    unsafe fn read<L: Lanes>(block: *const u8) -> Self {
        const LOW: u32 = 0x0f0f_0f0f;
        const TOP: u32 = 0x0303_0303;
        const SIX: u32 = 0x3f3f_3f3f;
        let [a, b, c] = block
            .add(4)
            .cast::<[u32; 3]>()
            .read_unaligned()
            .map(u32::from_le);
        let packed = [
            a & SIX,
            c & LOW | (a >> 6 & TOP) << 4,
            b & SIX,
            c >> 4 & LOW | (b >> 6 & TOP) << 4,
        ]
        .map(u32::to_le);
        let codes = L::from_codes(L::codes(packed.as_ptr().cast()));
        let (d, dmin) = (L::splat_f16(block), L::splat_f16(block.add(2)));
        let mut affine = Self {
            scales: [0.0; LANES],
            offsets: [0.0; LANES],
        };
        codes.mul(d).store(affine.scales.as_mut_ptr());
        codes
            .mul(dmin.mul(L::splat(-1.0)))
            .store(affine.offsets.as_mut_ptr());
        affine
    }

    /// Scale and offset of one of the eight.
    #[inline(always)]
    unsafe fn of<L: Lanes>(&self, group: usize) -> (L, L) {
        (
            L::splat(*self.scales.get_unchecked(group)),
            L::splat(*self.offsets.get_unchecked(8 + group)),
        )
    }
}

/// [`Affine`] head (16 bytes), then 128 bytes: each 32 hold 32 weights in the low halves and the next 32 in the high ones.
pub(super) struct Q4K;

impl Unpack for Q4K {
    const LEN: usize = 256;
    const BYTES: usize = 144;
    const GROUPS: usize = 4;
    type Head = Affine;
    type Group<L: Lanes> = [L; 4];

    #[inline(always)]
    unsafe fn head<L: Lanes>(block: *const u8) -> Affine {
        Affine::read::<L>(block)
    }

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, head: &Affine, group: usize) -> [L; 4] {
        let (scale, offset) = head.of::<L>(2 * group);
        let low = L::levels(scale, offset);
        let (scale, offset) = head.of::<L>(2 * group + 1);
        let high = L::levels(scale, offset);
        let codes = block.add(16 + group * 32);
        let (a, b) = (L::codes(codes), L::codes(codes.add(LANES)));
        [
            L::low_levels(low, a),
            L::low_levels(low, b),
            L::high_levels(high, a),
            L::high_levels(high, b),
        ]
    }
}

/// As [`Q4K`], with 32 bytes before the halves: bit `j` of byte `i` is the fifth bit of weight `32 * j + i`.
pub(super) struct Q5K;

impl Unpack for Q5K {
    const LEN: usize = 256;
    const BYTES: usize = 176;
    const GROUPS: usize = 4;
    type Head = Affine;
    type Group<L: Lanes> = [L; 4];

    #[inline(always)]
    unsafe fn head<L: Lanes>(block: *const u8) -> Affine {
        Affine::read::<L>(block)
    }

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, head: &Affine, group: usize) -> [L; 4] {
        let mut weights = [L::splat(0.0); 4];
        for (i, weight) in weights.iter_mut().enumerate() {
            let (upper, part) = (i / 2, i % 2 * LANES);
            let (scale, offset) = head.of::<L>(2 * group + upper);
            let low = L::bits(
                L::codes(block.add(48 + group * 32 + part)),
                (upper * 4) as u32,
                15,
            );
            let high = L::bits(
                L::codes(block.add(16 + part)),
                (2 * group + upper) as u32,
                1,
            );
            *weight = L::from_codes(L::join(low, high)).mul_add(scale, offset);
        }
        weights
    }
}

/// Scales of the sixteen runs of a Q6_K block, and what to add after multiplying.
#[derive(Clone, Copy)]
pub(super) struct Centred {
    scales: [f32; LANES],
    offsets: [f32; LANES],
}

/// 128 bytes of low halves, 64 of upper bit pairs, 16 signed scales (one per 16 weights), f16 factor; 32 stands for zero.
///
/// Each half of the block is 128 weights in four quarters: quarter `q` takes low bits from byte run `q % 2`, nibble
/// `q / 2`, and its upper pair from bits `2q` of 32 bytes that all quarters share.
pub(super) struct Q6K;

impl Unpack for Q6K {
    const LEN: usize = 256;
    const BYTES: usize = 210;
    const GROUPS: usize = 2;
    type Head = Centred;
    type Group<L: Lanes> = [L; 8];

    #[inline(always)]
    unsafe fn head<L: Lanes>(block: *const u8) -> Centred {
        let scales = L::load_i8(block.add(192)).mul(L::splat_f16(block.add(208)));
        let mut head = Centred {
            scales: [0.0; LANES],
            offsets: [0.0; LANES],
        };
        scales.store(head.scales.as_mut_ptr());
        scales.mul(L::splat(-32.0)).store(head.offsets.as_mut_ptr());
        head
    }

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, head: &Centred, group: usize) -> [L; 8] {
        let mut weights = [L::splat(0.0); 8];
        for (i, weight) in weights.iter_mut().enumerate() {
            let (quarter, part) = (i / 2, i % 2 * LANES);
            let low = L::codes(block.add(group * 64 + quarter % 2 * 32 + part));
            let high = L::codes(block.add(128 + group * 32 + part));
            let low = L::bits(low, (quarter / 2 * 4) as u32, 15);
            let high = L::bits(high, (quarter * 2) as u32, 3);
            let scale = L::splat(*head.scales.get_unchecked(group * 8 + i));
            let offset = L::splat(*head.offsets.get_unchecked(group * 8 + i));
            *weight = L::from_codes(L::join(low, high)).mul_add(scale, offset);
        }
        weights
    }
}

/// Unpacks a row of `k` weights to `to`, which has room for `k` rounded up to whole vectors if `PAD`, else for `k`.
/// With `PAD` the last vector is filled up with zeros.
///
/// # Safety
/// `from` has a row of `k` weights; `to` has the room; and as [`Lanes`].
#[inline(always)]
pub(super) unsafe fn row<L: Lanes, U: Unpack, const PAD: bool>(
    from: *const u8,
    k: usize,
    to: *mut f32,
) {
    let blocks = k / U::LEN;
    for b in 0..blocks {
        let block = from.add(b * U::BYTES);
        let head = U::head::<L>(block);
        for group in 0..U::GROUPS {
            let to = to.add(b * U::LEN + group * (U::LEN / U::GROUPS));
            for (i, weights) in U::group::<L>(block, &head, group)
                .as_ref()
                .iter()
                .enumerate()
            {
                weights.store(to.add(i * LANES));
            }
        }
    }
    let start = blocks * U::LEN;
    for done in (start..k).step_by(LANES) {
        let n = (k - done).min(LANES);
        let tail = U::tail::<L>(from.add(done * U::BYTES / U::LEN), n);
        if PAD {
            tail.store(to.add(done));
        } else {
            tail.store_first(to.add(done), n);
        }
    }
}
