//! Elements of two bytes: bf16 rounded by integers, lanes in pairs of words.

use super::*;

/// Each lane rounded to the nearest bf16, ties to even, in its lower word; NaN becomes quiet.
#[inline(always)]
pub(super) fn round_bf16(v: __m256) -> __m256i {
    let bits = op!(_mm256_castps_si256(v));
    let odd = op!(_mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1)));
    let rounded = op!(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd));
    let quiet = op!(_mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000)));
    let nan = op!(_mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v)));
    op!(_mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan)))
}

/// The upper word of each lane.
#[inline(always)]
pub(super) fn upper_words() -> __m256i {
    op!(_mm256_set1_epi32(0xFFFF_0000_u32.cast_signed()))
}

/// Even lanes and odd ones, rounded to the nearest bf16, ties to even, in pairs of words: upper halves go up by one
/// where the lower halves, made odd with them, exceed half a unit. NaN is quiet with a lower half of 0, and stays.
#[inline(always)]
pub(super) fn round_pairs([even, odd]: [__m256; 2]) -> __m256i {
    let (even, odd) = (op!(_mm256_castps_si256(even)), op!(_mm256_castps_si256(odd)));
    let upper = op!(_mm256_blend_epi16::<0xAA>(_mm256_srli_epi32::<16>(even), odd));
    let lower = op!(_mm256_blend_epi16::<0xAA>(even, _mm256_slli_epi32::<16>(odd)));
    let sticky = op!(_mm256_or_si256(lower, _mm256_and_si256(upper, _mm256_set1_epi16(1))));
    // Unsigned words above 0x8000 are the signed ones above 0, half the range on.
    let moved = op!(_mm256_xor_si256(sticky, _mm256_set1_epi16(i16::MIN)));
    op!(_mm256_sub_epi16(upper, _mm256_cmpgt_epi16(moved, _mm256_setzero_si256())))
}

/// 32 elements of two bytes, past the caches where `to` is aligned.
#[inline(always)]
pub(super) fn store_words_past<T: Copy>(from: &[T; LANES], to: &mut [T; LANES]) {
    if size_of::<T>() != 2 || !is_aligned(to) {
        *to = *from;
        return;
    }
    for half in [0, 16] {
        let words = op!(_mm256_loadu_si256(from[half..].as_ptr().cast()));
        op!(_mm256_stream_si256(to[half..].as_mut_ptr().cast(), words));
    }
}
