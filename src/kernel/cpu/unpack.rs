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

/// f16 scale, f16 minimum, then halves as in [`Q4_0`].
pub(super) struct Q4_1;

impl Unpack for Q4_1 {
    const LEN: usize = 32;
    const BYTES: usize = 20;
    type Head = ();
    type Group<L: Lanes> = [L; 2];

    #[inline(always)]
    unsafe fn head<L: Lanes>(_: *const u8) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), _: usize) -> [L; 2] {
        let levels = L::levels(L::splat_f16(block), L::splat_f16(block.add(2)));
        let codes = L::codes(block.add(4));
        [L::low_levels(levels, codes), L::high_levels(levels, codes)]
    }
}

/// Thirty-two weights of which `from` has four bytes of fifth bits, weight `i`'s in bit `i`, then halves as in [`Q4_0`].
#[inline(always)]
unsafe fn five_bits<L: Lanes>(from: *const u8, scale: L, offset: L) -> [L; 2] {
    let [low, high] = from.cast::<[u16; 2]>().read_unaligned().map(u16::from_le);
    let codes = L::codes(from.add(4));
    let weights = |shift: u32, fifth: u16| {
        let code = L::with_fifth(L::bits(codes, shift, 15), fifth);
        L::from_codes(code).mul_add(scale, offset)
    };
    [weights(0, low), weights(4, high)]
}

/// f16 scale, then [`five_bits`]; 16 stands for zero.
pub(super) struct Q5_0;

impl Unpack for Q5_0 {
    const LEN: usize = 32;
    const BYTES: usize = 22;
    type Head = ();
    type Group<L: Lanes> = [L; 2];

    #[inline(always)]
    unsafe fn head<L: Lanes>(_: *const u8) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), _: usize) -> [L; 2] {
        let scale = L::splat_f16(block);
        five_bits(block.add(2), scale, scale.mul(L::splat(-16.0)))
    }
}

/// f16 scale, f16 minimum, then [`five_bits`].
pub(super) struct Q5_1;

impl Unpack for Q5_1 {
    const LEN: usize = 32;
    const BYTES: usize = 24;
    type Head = ();
    type Group<L: Lanes> = [L; 2];

    #[inline(always)]
    unsafe fn head<L: Lanes>(_: *const u8) {}

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, (): &(), _: usize) -> [L; 2] {
        five_bits(
            block.add(4),
            L::splat_f16(block),
            L::splat_f16(block.add(2)),
        )
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

/// Scales of the sixteen runs of a Q2_K, Q3_K or Q6_K block, and what to add after multiplying.
#[derive(Clone, Copy)]
pub(super) struct Runs {
    scales: [f32; LANES],
    offsets: [f32; LANES],
}

impl Runs {
    #[inline(always)]
    unsafe fn new<L: Lanes>(scales: L, offsets: L) -> Self {
        let mut runs = Self {
            scales: [0.0; LANES],
            offsets: [0.0; LANES],
        };
        scales.store(runs.scales.as_mut_ptr());
        offsets.store(runs.offsets.as_mut_ptr());
        runs
    }

    /// Scale and offset of one of the sixteen.
    #[inline(always)]
    unsafe fn of<L: Lanes>(&self, run: usize) -> (L, L) {
        (
            L::splat(*self.scales.get_unchecked(run)),
            L::splat(*self.offsets.get_unchecked(run)),
        )
    }
}

/// Sixteen bytes of scales (low halves) and minima (high ones), 64 bytes of weights, f16 factors of either.
///
/// Each half of the block is 128 weights in four quarters, of which quarter `q` has bits `2q` of 32 bytes that all share.
pub(super) struct Q2K;

impl Unpack for Q2K {
    const LEN: usize = 256;
    const BYTES: usize = 84;
    const GROUPS: usize = 2;
    type Head = Runs;
    type Group<L: Lanes> = [L; 8];

    #[inline(always)]
    unsafe fn head<L: Lanes>(block: *const u8) -> Runs {
        let codes = L::codes(block);
        let (d, dmin) = (L::splat_f16(block.add(80)), L::splat_f16(block.add(82)));
        Runs::new(
            L::from_codes(L::bits(codes, 0, 15)).mul(d),
            L::from_codes(L::bits(codes, 4, 15)).mul(dmin.mul(L::splat(-1.0))),
        )
    }

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, head: &Runs, group: usize) -> [L; 8] {
        let mut weights = [L::splat(0.0); 8];
        for (i, weight) in weights.iter_mut().enumerate() {
            let (quarter, part) = (i / 2, i % 2 * LANES);
            let codes = L::codes(block.add(16 + group * 32 + part));
            let (scale, offset) = head.of::<L>(group * 8 + i);
            *weight = L::from_codes(L::bits(codes, (quarter * 2) as u32, 3)).mul_add(scale, offset);
        }
        weights
    }
}

/// 32 bytes of third bits, 64 of lower pairs as in [`Q2K`], twelve of sixteen 6-bit scales, f16 factor; 4 stands for zero,
/// and 32 for a scale of zero. The third bit of weight `l` of quarter `q` is bit `4 * half + q` of byte `l`.
pub(super) struct Q3K;

impl Unpack for Q3K {
    const LEN: usize = 256;
    const BYTES: usize = 110;
    const GROUPS: usize = 2;
    type Head = Runs;
    type Group<L: Lanes> = [L; 8];

    #[inline(always)]
    unsafe fn head<L: Lanes>(block: *const u8) -> Runs {
        const LOW: u32 = 0x0f0f_0f0f;
        const TOP: u32 = 0x0303_0303;
        let [a, b, c] = block
            .add(96)
            .cast::<[u32; 3]>()
            .read_unaligned()
            .map(u32::from_le);
        let packed = [
            a & LOW | (c & TOP) << 4,
            b & LOW | (c >> 2 & TOP) << 4,
            a >> 4 & LOW | (c >> 4 & TOP) << 4,
            b >> 4 & LOW | (c >> 6 & TOP) << 4,
        ]
        .map(u32::to_le);
        let scales = L::from_codes(L::codes(packed.as_ptr().cast()));
        let scales = scales.sub(L::splat(32.0)).mul(L::splat_f16(block.add(108)));
        Runs::new(scales, scales.mul(L::splat(-4.0)))
    }

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, head: &Runs, group: usize) -> [L; 8] {
        let mut weights = [L::splat(0.0); 8];
        for (i, weight) in weights.iter_mut().enumerate() {
            let (quarter, part) = (i / 2, i % 2 * LANES);
            let low = L::codes(block.add(32 + group * 32 + part));
            let high = L::codes(block.add(part));
            let low = L::from_codes(L::bits(low, (quarter * 2) as u32, 3));
            let high = L::from_codes(L::bits(high, (group * 4 + quarter) as u32, 1));
            let (scale, offset) = head.of::<L>(group * 8 + i);
            *weight = high.mul_add(L::splat(4.0), low).mul_add(scale, offset);
        }
        weights
    }
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
    type Head = Runs;
    type Group<L: Lanes> = [L; 8];

    #[inline(always)]
    unsafe fn head<L: Lanes>(block: *const u8) -> Runs {
        let scales = L::load_i8(block.add(192)).mul(L::splat_f16(block.add(208)));
        Runs::new(scales, scales.mul(L::splat(-32.0)))
    }

    #[inline(always)]
    unsafe fn group<L: Lanes>(block: *const u8, head: &Runs, group: usize) -> [L; 8] {
        let mut weights = [L::splat(0.0); 8];
        for (i, weight) in weights.iter_mut().enumerate() {
            let (quarter, part) = (i / 2, i % 2 * LANES);
            let low = L::codes(block.add(group * 64 + quarter % 2 * 32 + part));
            let high = L::codes(block.add(128 + group * 32 + part));
            let low = L::bits(low, (quarter / 2 * 4) as u32, 15);
            let high = L::bits(high, (quarter * 2) as u32, 3);
            let (scale, offset) = head.of::<L>(group * 8 + i);
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
