//! Lanes as two 256-bit registers.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "each method is one or two intrinsics a half"
)]

use std::arch::x86_64::*;

use super::Lanes;

#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

/// The largest of eight.
#[inline(always)]
pub(super) unsafe fn max_across(v: __m256) -> f32 {
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
}

/// Sums of four vectors whose lanes `i` and `i + 8` are added already: `i + 4` next, then `i + 2`, then the last two.
#[inline(always)]
pub(super) unsafe fn sum_across(vectors: [__m256; 4]) -> [f32; 4] {
    let [a, b, c, d] = vectors;
    let (a, b, c, d) = (quarter(a), quarter(b), quarter(c), quarter(d));
    let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    let mut sums = [0.0; 4];
    _mm_storeu_ps(
        sums.as_mut_ptr(),
        _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)),
    );
    sums
}

#[inline(always)]
unsafe fn quarter(v: __m256) -> __m128 {
    _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v))
}

#[inline(always)]
pub(super) unsafe fn codes(from: *const u8) -> __m128i {
    _mm_loadu_si128(from.cast())
}

/// Shifts pairs of bytes: what crosses from one byte into its neighbour must lie outside `mask`.
#[inline(always)]
pub(super) unsafe fn bits(codes: __m128i, shift: u32, mask: u8) -> __m128i {
    let shifted = _mm_srl_epi16(codes, _mm_cvtsi32_si128(shift as i32));
    _mm_and_si128(shifted, _mm_set1_epi8(mask.cast_signed()))
}

#[inline(always)]
pub(super) unsafe fn join(low: __m128i, high: __m128i) -> __m128i {
    _mm_or_si128(low, _mm_slli_epi16::<4>(high))
}

/// `2^n` for `n` in -126..=127.
#[inline(always)]
unsafe fn power(n: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
        n,
        _mm256_set1_epi32(127),
    )))
}

/// Two factors, because one cannot reach the ends of the exponent's range; the first product is exact.
#[inline(always)]
unsafe fn scale_by_power(v: __m256, n: __m256) -> __m256 {
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    _mm256_mul_ps(
        _mm256_mul_ps(v, power(half)),
        power(_mm256_sub_epi32(n, half)),
    )
}

impl Lanes for Avx2 {
    type Codes = __m128i;
    type Levels = (Self, Self);
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(_mm256_set1_ps(value), _mm256_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm256_storeu_ps(to, self.0);
        _mm256_storeu_ps(to.add(8), self.1);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(
            _mm256_add_ps(self.0, other.0),
            _mm256_add_ps(self.1, other.1),
        )
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(
            _mm256_sub_ps(self.0, other.0),
            _mm256_sub_ps(self.1, other.1),
        )
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(
            _mm256_mul_ps(self.0, other.0),
            _mm256_mul_ps(self.1, other.1),
        )
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(
            _mm256_div_ps(self.0, other.0),
            _mm256_div_ps(self.1, other.1),
        )
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(
            _mm256_fmadd_ps(self.0, factor.0, addend.0),
            _mm256_fmadd_ps(self.1, factor.1, addend.1),
        )
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(
            _mm256_max_ps(self.0, other.0),
            _mm256_max_ps(self.1, other.1),
        )
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(
            _mm256_min_ps(self.0, other.0),
            _mm256_min_ps(self.1, other.1),
        )
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        Self(
            _mm256_round_ps::<NEAREST>(self.0),
            _mm256_round_ps::<NEAREST>(self.1),
        )
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, n: Self) -> Self {
        Self(scale_by_power(self.0, n.0), scale_by_power(self.1, n.1))
    }
    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        Self(
            _mm256_permute_ps::<0b10_11_00_01>(self.0),
            _mm256_permute_ps::<0b10_11_00_01>(self.1),
        )
    }
    #[inline(always)]
    unsafe fn max_across(self) -> f32 {
        max_across(_mm256_max_ps(self.0, self.1))
    }
    #[inline(always)]
    unsafe fn sum_across(vectors: [Self; 4]) -> [f32; 4] {
        let [a, b, c, d] = vectors;
        sum_across([
            _mm256_add_ps(a.0, a.1),
            _mm256_add_ps(b.0, b.1),
            _mm256_add_ps(c.0, c.1),
            _mm256_add_ps(d.0, d.1),
        ])
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        Self(
            _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
        )
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast()));
        Self(
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
        )
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        Self::load(from.cast())
    }
    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        let v = _mm256_cvtph_ps(_mm_set1_epi16(from.cast::<i16>().read_unaligned()));
        Self(v, v)
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        Self(
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()))),
        )
    }

    #[inline(always)]
    unsafe fn codes(from: *const u8) -> __m128i {
        codes(from)
    }
    #[inline(always)]
    unsafe fn bits(codes: __m128i, shift: u32, mask: u8) -> __m128i {
        bits(codes, shift, mask)
    }
    #[inline(always)]
    unsafe fn join(low: __m128i, high: __m128i) -> __m128i {
        join(low, high)
    }
    #[inline(always)]
    unsafe fn with_fifth(low: __m128i, fifth: u16) -> __m128i {
        // Each byte looks at its own bit: bytes 0 to 7 in the lower half of `fifth`, the others in the upper one.
        let halves = _mm_set_epi64x(0x0101_0101_0101_0101, 0);
        let bytes = _mm_shuffle_epi8(_mm_set1_epi16(fifth.cast_signed()), halves);
        let own = _mm_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let set = _mm_cmpeq_epi8(_mm_and_si128(bytes, own), own);
        _mm_or_si128(low, _mm_and_si128(set, _mm_set1_epi8(16)))
    }
    #[inline(always)]
    unsafe fn from_codes(codes: __m128i) -> Self {
        Self(
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(codes))),
        )
    }
    #[inline(always)]
    unsafe fn levels(scale: Self, offset: Self) -> (Self, Self) {
        (scale, offset)
    }
    #[inline(always)]
    unsafe fn low_levels(levels: (Self, Self), codes: __m128i) -> Self {
        Self::from_codes(bits(codes, 0, 15)).mul_add(levels.0, levels.1)
    }
    #[inline(always)]
    unsafe fn high_levels(levels: (Self, Self), codes: __m128i) -> Self {
        Self::from_codes(bits(codes, 4, 15)).mul_add(levels.0, levels.1)
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }

    #[inline(always)]
    unsafe fn prefetch_later(address: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
}
