//! Elements of two bytes: bf16 rounded by integers, lanes in pairs of words.

use super::*;

/// Indices that put word `FIRST + i` at word `2 i + 1`.
#[inline(always)]
pub(super) fn words_from<const FIRST: i32>() -> __m512i {
    let iota = op!(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    let words = op!(_mm512_add_epi32(iota, _mm512_set1_epi32(FIRST)));
    op!(_mm512_slli_epi32::<16>(words))
}

/// Indices of the upper words of the 16 lanes of two registers.
#[inline(always)]
pub(super) fn odd_words() -> __m512i {
    let iota = op!(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    // Word pairs (4 i + 1, 4 i + 3), i = 0..16: over both registers.
    let low = op!(_mm512_add_epi32(_mm512_slli_epi32::<2>(iota), _mm512_set1_epi32(1)));
    let high = op!(_mm512_slli_epi32::<16>(_mm512_add_epi32(low, _mm512_set1_epi32(2))));
    op!(_mm512_or_si512(low, high))
}

/// Each lane rounded to the nearest bf16, ties to even, in its upper word; NaN becomes quiet.
#[inline(always)]
pub(super) fn round_bf16(v: __m512) -> __m512i {
    let bits = op!(_mm512_castps_si512(v));
    let odd = op!(_mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1)));
    let rounded = op!(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd));
    let nan = op!(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v));
    op!(_mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000)))
}

/// The upper word of each lane.
#[inline(always)]
pub(super) fn upper_words() -> __m512i {
    op!(_mm512_set1_epi32(0xFFFF_0000_u32.cast_signed()))
}

/// Even lanes and odd ones, rounded to the nearest bf16, ties to even, in pairs of words: upper halves go up by one
/// where the lower halves, made odd with them, exceed half a unit. NaN is quiet with a lower half of 0, and stays.
#[inline(always)]
pub(super) fn round_pairs([even, odd]: [__m512; 2]) -> __m512i {
    let (even, odd) = (op!(_mm512_castps_si512(even)), op!(_mm512_castps_si512(odd)));
    // 0xF8: a | (b & c)
    let upper = op!(_mm512_ternarylogic_epi32::<0xF8>(_mm512_srli_epi32::<16>(even), odd, upper_words()));
    let lower = op!(_mm512_ternarylogic_epi32::<0xF8>(_mm512_slli_epi32::<16>(odd), even, _mm512_set1_epi32(0xFFFF)));
    let sticky = op!(_mm512_ternarylogic_epi32::<0xF8>(lower, upper, _mm512_set1_epi16(1)));
    let up = op!(_mm512_cmpgt_epu16_mask(sticky, _mm512_set1_epi16(i16::MIN)));
    // Saturating, though nothing saturates: a plain sum would become three instructions instead of two.
    op!(_mm512_mask_adds_epu16(upper, up, upper, _mm512_set1_epi16(1)))
}

/// 32 elements of two bytes, past the caches where `to` is aligned.
#[inline(always)]
pub(super) fn store_words_past<T: Copy>(from: &[T; LANES], to: &mut [T; LANES]) {
    if size_of::<T>() != 2 || !is_aligned(to) {
        *to = *from;
        return;
    }
    let words = op!(_mm512_loadu_si512(from.as_ptr().cast()));
    op!(_mm512_stream_si512(to.as_mut_ptr().cast(), words));
}
