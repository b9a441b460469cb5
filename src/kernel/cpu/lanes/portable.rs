//! Lanes as a plain array, for machines without AVX2: multiplies and adds round separately.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "the trait's methods are unsafe for other tiers' sake"
)]

use half::{bf16, f16};

use super::{LANES, Lanes};

#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Portable {
    Portable(std::array::from_fn(f))
}

impl Lanes for Portable {
    type Codes = [u8; LANES];
    type Levels = (Self, Self);
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(from.cast::<[f32; LANES]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        to.cast::<[f32; LANES]>().write_unaligned(self.0);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        each(|i| self.0[i] + other.0[i])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        each(|i| self.0[i] - other.0[i])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        each(|i| self.0[i] * other.0[i])
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        each(|i| self.0[i] / other.0[i])
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        each(|i| self.0[i] * factor.0[i] + addend.0[i])
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        each(|i| {
            if self.0[i] > other.0[i] {
                self.0[i]
            } else {
                other.0[i]
            }
        })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        each(|i| {
            if self.0[i] < other.0[i] {
                self.0[i]
            } else {
                other.0[i]
            }
        })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        each(|i| self.0[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, n: Self) -> Self {
        each(|i| {
            let n = n.0[i] as i32;
            let half = n >> 1;
            let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            self.0[i] * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        each(|i| self.0[i ^ 1])
    }
    #[inline(always)]
    unsafe fn max_across(self) -> f32 {
        self.0.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn sum_across(vectors: [Self; 4]) -> [f32; 4] {
        vectors.map(|Self(mut v)| {
            for width in [8, 4, 2, 1] {
                for i in 0..width {
                    v[i] += v[i + width];
                }
            }
            v[0]
        })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        let bits = from.cast::<[u16; LANES]>().read_unaligned();
        each(|i| f16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        let bits = from.cast::<[u16; LANES]>().read_unaligned();
        each(|i| bf16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        Self::load(from.cast())
    }
    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        Self::splat(f16::from_bits(from.cast::<u16>().read_unaligned()).to_f32())
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        let bytes = from.cast::<[i8; LANES]>().read_unaligned();
        each(|i| f32::from(bytes[i]))
    }

    #[inline(always)]
    unsafe fn codes(from: *const u8) -> [u8; LANES] {
        from.cast::<[u8; LANES]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn bits(codes: [u8; LANES], shift: u32, mask: u8) -> [u8; LANES] {
        codes.map(|code| (code >> shift) & mask)
    }
    #[inline(always)]
    unsafe fn join(low: [u8; LANES], high: [u8; LANES]) -> [u8; LANES] {
        std::array::from_fn(|i| low[i] | high[i] << 4)
    }
    #[inline(always)]
    unsafe fn with_fifth(low: [u8; LANES], fifth: u16) -> [u8; LANES] {
        std::array::from_fn(|i| low[i] | ((fifth >> i & 1) as u8) << 4)
    }
    #[inline(always)]
    unsafe fn from_codes(codes: [u8; LANES]) -> Self {
        each(|i| f32::from(codes[i]))
    }
    #[inline(always)]
    unsafe fn levels(scale: Self, offset: Self) -> (Self, Self) {
        (scale, offset)
    }
    #[inline(always)]
    unsafe fn low_levels(levels: (Self, Self), codes: [u8; LANES]) -> Self {
        Self::from_codes(Self::bits(codes, 0, 15)).mul_add(levels.0, levels.1)
    }
    #[inline(always)]
    unsafe fn high_levels(levels: (Self, Self), codes: [u8; LANES]) -> Self {
        Self::from_codes(Self::bits(codes, 4, 15)).mul_add(levels.0, levels.1)
    }
}
