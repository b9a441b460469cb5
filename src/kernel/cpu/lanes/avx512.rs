//! Lanes as one 512-bit register.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "each method is one or two intrinsics"
)]

use std::arch::x86_64::*;

use super::{LANES, Lanes, avx2};

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

const IOTA: [f32; LANES] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
];

#[inline(always)]
unsafe fn first(n: usize) -> __mmask16 {
    ((1_u32 << n) - 1) as __mmask16
}

#[inline(always)]
unsafe fn halves(v: __m512) -> (__m256, __m256) {
    let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v));
    (_mm512_castps512_ps256(v), _mm256_castpd_ps(high))
}

impl Lanes for Avx512 {
    type Codes = __m128i;
    type Levels = __m512;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(_mm512_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm512_storeu_ps(to, self.0);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(_mm512_add_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(_mm512_sub_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(_mm512_mul_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(_mm512_div_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(_mm512_fmadd_ps(self.0, factor.0, addend.0))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(_mm512_max_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(_mm512_min_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(_mm512_roundscale_ps::<
            { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
        >(self.0))
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, n: Self) -> Self {
        Self(_mm512_scalef_ps(self.0, n.0))
    }
    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        Self(_mm512_permute_ps::<0b10_11_00_01>(self.0))
    }
    #[inline(always)]
    unsafe fn max_across(self) -> f32 {
        let (low, high) = halves(self.0);
        avx2::max_across(_mm256_max_ps(low, high))
    }
    #[inline(always)]
    unsafe fn sum_across(vectors: [Self; 4]) -> [f32; 4] {
        let [a, b, c, d] = vectors;
        avx2::sum_across([a.folded(), b.folded(), c.folded(), d.folded()])
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast())))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        Self(_mm512_loadu_ps(from.cast()))
    }
    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        let bits = i32::from(from.cast::<u16>().read_unaligned());
        Self(_mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(
            from.cast(),
        ))))
    }

    #[inline(always)]
    unsafe fn codes(from: *const u8) -> __m128i {
        avx2::codes(from)
    }
    #[inline(always)]
    unsafe fn bits(codes: __m128i, shift: u32, mask: u8) -> __m128i {
        avx2::bits(codes, shift, mask)
    }
    #[inline(always)]
    unsafe fn join(low: __m128i, high: __m128i) -> __m128i {
        avx2::join(low, high)
    }
    #[inline(always)]
    unsafe fn with_fifth(low: __m128i, fifth: u16) -> __m128i {
        _mm_mask_add_epi8(low, fifth, low, _mm_set1_epi8(16))
    }
    #[inline(always)]
    unsafe fn from_codes(codes: __m128i) -> Self {
        Self(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)))
    }
    #[inline(always)]
    unsafe fn levels(scale: Self, offset: Self) -> __m512 {
        _mm512_fmadd_ps(_mm512_loadu_ps(IOTA.as_ptr()), scale.0, offset.0)
    }
    #[inline(always)]
    unsafe fn low_levels(levels: __m512, codes: __m128i) -> Self {
        Self(_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), levels))
    }
    #[inline(always)]
    unsafe fn high_levels(levels: __m512, codes: __m128i) -> Self {
        Self::low_levels(levels, _mm_srli_epi16::<4>(codes))
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }

    #[inline(always)]
    unsafe fn prefetch_later(address: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        Self(_mm512_maskz_loadu_ps(first(n), from))
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        _mm512_mask_storeu_ps(to, first(n), self.0);
    }
}

impl Avx512 {
    /// Lanes `i` and `i + 8` added.
    #[inline(always)]
    unsafe fn folded(self) -> __m256 {
        let (low, high) = halves(self.0);
        _mm256_add_ps(low, high)
    }
}
