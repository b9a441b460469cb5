//! Sixteen logical lanes: the one vector width that every kernel is written in.
//!
//! Separate so that each kernel exists once: a [`Kernel`] is generic over [`Lanes`], and [`run`] enters it under the
//! instructions of one tier. Element `k` of a sum goes to lane `k mod 16` on every machine, which is what makes the
//! AVX tiers agree bit for bit; the portable tier differs only in rounding twice where they fuse.
//! Nothing here allocates, and nothing changes the floating-point environment.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "each method hands its caller's promise to one or two intrinsics"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::Tier;

/// Lanes in one vector.
pub(super) const LANES: usize = 16;

/// Sixteen f32 numbers worked on together.
///
/// # Safety
/// Every method may be called only where the tier's instructions exist, and is meant to be inlined into a function that
/// enables them. Methods that take a pointer read or write sixteen elements there (or as many as they are told).
pub(super) trait Lanes: Copy {
    /// Sixteen bytes.
    type Codes: Copy;
    /// The values that a 4-bit code stands for.
    type Levels: Copy;
    /// Whether 32 vectors fit in registers; tiles are chosen by it.
    const WIDE: bool;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger; `other` where either is not a number.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` where either is not a number.
    unsafe fn min(self, other: Self) -> Self;
    /// Nearest integers, ties to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^n` for whole `n` in -252..=254, rounded once.
    unsafe fn scale_by_power(self, n: Self) -> Self;
    /// Exchanges lanes `2i` and `2i + 1`.
    unsafe fn swap_pairs(self) -> Self;
    /// The largest lane, not a number only if chance has it so.
    unsafe fn max_across(self) -> f32;
    /// Sums each vector in the one fixed order: lanes `i` and `i + 8`, then `i + 4`, then `i + 2`, then the last two.
    unsafe fn sum_across(vectors: [Self; 4]) -> [f32; 4];

    /// Sixteen f16 numbers of any alignment.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// Sixteen bf16 numbers of any alignment.
    unsafe fn load_bf16(from: *const u8) -> Self;
    /// Sixteen f32 numbers of any alignment.
    unsafe fn load_f32(from: *const u8) -> Self;
    /// One f16 number in every lane.
    unsafe fn splat_f16(from: *const u8) -> Self;
    /// Sixteen signed bytes.
    unsafe fn load_i8(from: *const u8) -> Self;

    /// Sixteen bytes of any alignment.
    unsafe fn codes(from: *const u8) -> Self::Codes;
    /// `(code >> shift) & mask`, where `mask << shift` fits a byte.
    unsafe fn bits(codes: Self::Codes, shift: u32, mask: u8) -> Self::Codes;
    /// `low | high << 4`, where `high` is below 16.
    unsafe fn join(low: Self::Codes, high: Self::Codes) -> Self::Codes;
    /// `low`, which is below 16, with bit `i` of `fifth` as the fifth bit of byte `i`.
    unsafe fn with_fifth(low: Self::Codes, fifth: u16) -> Self::Codes;
    unsafe fn from_codes(codes: Self::Codes) -> Self;
    /// Prepares `code * scale + offset` for the sixteen 4-bit codes; both are one number in every lane.
    unsafe fn levels(scale: Self, offset: Self) -> Self::Levels;
    /// Values of the lower four bits of each byte.
    unsafe fn low_levels(levels: Self::Levels, codes: Self::Codes) -> Self;
    /// Values of the upper four bits of each byte.
    unsafe fn high_levels(levels: Self::Levels, codes: Self::Codes) -> Self;

    /// Asks for the cache line at `address`, which need not exist.
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        let _ = address;
    }

    /// As [`Lanes::prefetch`], for a line needed after the nearest cache has been filled with others.
    #[inline(always)]
    unsafe fn prefetch_later(address: *const u8) {
        let _ = address;
    }

    /// The first `n <= 16` elements, zero in the other lanes; reads no further.
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        let mut padded = [0.0; LANES];
        std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), n);
        Self::load(padded.as_ptr())
    }

    /// Writes the first `n <= 16` lanes and nothing further.
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        let mut lanes = [0.0; LANES];
        self.store(lanes.as_mut_ptr());
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
    }

    /// The sum of the lanes, in the order of [`Lanes::sum_across`].
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        Self::sum_across([self; 4])[0]
    }

    /// `e^self`, within 2 ulp where the result is normal; 0 from about -104 down, infinite from 89 up.
    ///
    /// Source: Cephes `expf`: reduction by `n ln 2` in two parts, then a polynomial of degree 7.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        let x = Self::splat(89.0).min(Self::splat(-104.0).max(self));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        let r = n.mul_add(Self::splat(-0.693_359_4), x);
        let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.987_569_2e-4);
        for coefficient in [
            1.398_2e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ] {
            p = p.mul_add(r, Self::splat(coefficient));
        }
        let p = p.mul_add(r.mul(r), r).add(Self::splat(1.0));
        p.scale_by_power(n)
    }
}

/// A piece of work written once for all tiers.
pub(super) trait Kernel {
    /// Carries the work out.
    ///
    /// # Safety
    /// As [`Lanes`]; and whatever the implementing type asks of its fields.
    unsafe fn run<L: Lanes>(self);
}

/// Runs `kernel` with the instructions of `tier`.
///
/// # Safety
/// `tier` must be available on this machine, and the kernel's own conditions must hold.
pub(super) unsafe fn run<K: Kernel>(tier: Tier, kernel: K) {
    match tier {
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512 => run_avx512(kernel),
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => run_avx2(kernel),
        _ => kernel.run::<portable::Portable>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn run_avx512<K: Kernel>(kernel: K) {
    kernel.run::<avx512::Avx512>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run::<avx2::Avx2>();
}

#[cfg(test)]
mod tests;
