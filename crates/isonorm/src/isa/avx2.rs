//! AVX2, FMA and F16C: 32 f32 lanes in four registers, 32 f64 lanes in eight.
#![allow(unsafe_code)] // intrinsics; every use is in `op!`

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Isa;
use super::x86::{_MM_HINT_T0, _MM_HINT_T1, Known, is_aligned, prefetch};
use crate::element::Compute;
use crate::level::Kernel;
use crate::order::LANES;

/// Proof that this CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        static KNOWN: Known = Known::unknown();
        let ask =
            || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        KNOWN.or_ask(ask).then_some(Self(()))
    }

    pub(crate) fn run<C: Compute, K: Kernel<C>>(self, kernel: K) -> K::Output
    where
        Self: Isa<C>,
    {
        #[target_feature(enable = "avx2,fma,f16c")] // what `detect` checks
        fn enter<C: Compute, K: Kernel<C>>(isa: Avx2, kernel: K) -> K::Output
        where
            Avx2: Isa<C>,
        {
            kernel.eval(isa)
        }
        // SAFETY: `self` exists, so `detect` saw every feature.
        unsafe { enter(self, kernel) }
    }
}

/// One intrinsic.
macro_rules! op {
    ($intrinsic:expr) => {
        // SAFETY: an `Avx2` exists, so the CPU has the instruction; pointers come from references
        // to arrays of exactly the bytes that are read or written.
        unsafe { $intrinsic }
    };
}

/// `$v` with each register replaced by `$op`, without a closure that could stay un-inlined.
macro_rules! each {
    ($v:expr, $i:ident => $op:expr) => {{
        let mut out = $v;
        for $i in 0..out.len() {
            out[$i] = op!($op);
        }
        out
    }};
}

mod words;

use words::*;

impl Isa<f32> for Avx2 {
    type V = [__m256; 4];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [op!(_mm256_set1_ps(value)); 4]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm256_add_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm256_sub_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm256_mul_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each!(c, i => _mm256_fmadd_ps(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn take_first(self, n: usize, new: Self::V, old: Self::V) -> Self::V {
        let iota = op!(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
        let mut out = old;
        for i in 0..4 {
            let left = op!(_mm256_set1_epi32(n as i32 - 8 * i as i32));
            let mask = op!(_mm256_castsi256_ps(_mm256_cmpgt_epi32(left, iota)));
            out[i] = op!(_mm256_blendv_ps(old[i], new[i], mask));
        }
        out
    }
    #[inline(always)]
    fn down<const W: usize>(self, v: Self::V) -> Self::V {
        match W {
            16 => [v[2], v[3], v[2], v[3]],
            8 => [v[1], v[1], v[2], v[3]],
            4 => [op!(_mm256_permute2f128_ps::<0x11>(v[0], v[0])), v[1], v[2], v[3]],
            2 => [op!(_mm256_permute_ps::<0xEE>(v[0])), v[1], v[2], v[3]],
            _ => [op!(_mm256_permute_ps::<0x55>(v[0])), v[1], v[2], v[3]],
        }
    }
    #[inline(always)]
    fn first(self, v: Self::V) -> f32 {
        op!(_mm256_cvtss_f32(v[0]))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        let (quarters, _) = from.as_chunks::<8>();
        let mut out = [op!(_mm256_setzero_ps()); 4];
        for i in 0..4 {
            out[i] = op!(_mm256_loadu_ps(quarters[i].as_ptr()));
        }
        out
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        let (quarters, _) = to.as_chunks_mut::<8>();
        for i in 0..4 {
            op!(_mm256_storeu_ps(quarters[i].as_mut_ptr(), v[i]));
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        let (quarters, _) = from.as_chunks::<8>();
        let mut out = [op!(_mm256_setzero_ps()); 4];
        for i in 0..4 {
            let words = op!(_mm_loadu_si128(quarters[i].as_ptr().cast()));
            out[i] = op!(_mm256_cvtph_ps(words));
        }
        out
    }
    #[inline(always)]
    fn store_f16(self, v: Self::V, to: &mut [f16; LANES]) {
        let (quarters, _) = to.as_chunks_mut::<8>();
        for i in 0..4 {
            let words = op!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[i]));
            op!(_mm_storeu_si128(quarters[i].as_mut_ptr().cast(), words));
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V {
        let (quarters, _) = from.as_chunks::<8>();
        let mut out = [op!(_mm256_setzero_ps()); 4];
        for i in 0..4 {
            let words = op!(_mm_loadu_si128(quarters[i].as_ptr().cast()));
            let wide = op!(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(words)));
            out[i] = op!(_mm256_castsi256_ps(wide));
        }
        out
    }
    #[inline(always)]
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]) {
        let (halves, _) = to.as_chunks_mut::<16>();
        for i in 0..2 {
            let (low, high) = (round_bf16(v[2 * i]), round_bf16(v[2 * i + 1]));
            // packus interleaves the 128-bit halves of its operands; the permutation puts them back.
            let words = op!(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high)));
            op!(_mm256_storeu_si256(halves[i].as_mut_ptr().cast(), words));
        }
    }
    #[inline(always)]
    fn load_bf16_split(self, from: &[bf16; LANES]) -> Self::V {
        let (halves, _) = from.as_chunks::<16>();
        let mut out = [op!(_mm256_setzero_ps()); 4];
        for i in 0..2 {
            let words = op!(_mm256_loadu_si256(halves[i].as_ptr().cast()));
            out[2 * i] = op!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)));
            out[2 * i + 1] = op!(_mm256_castsi256_ps(_mm256_and_si256(words, upper_words())));
        }
        out
    }
    #[inline(always)]
    fn store_bf16_split(self, v: Self::V, to: &mut [bf16; LANES]) {
        let (halves, _) = to.as_chunks_mut::<16>();
        for i in 0..2 {
            op!(_mm256_storeu_si256(halves[i].as_mut_ptr().cast(), round_pairs([v[2 * i], v[2 * i + 1]])));
        }
    }
    #[inline(always)]
    fn store_past_bf16_split(self, v: Self::V, to: &mut [bf16; LANES]) {
        if !is_aligned(to) {
            return Isa::<f32>::store_bf16_split(self, v, to);
        }
        let (halves, _) = to.as_chunks_mut::<16>();
        for i in 0..2 {
            op!(_mm256_stream_si256(halves[i].as_mut_ptr().cast(), round_pairs([v[2 * i], v[2 * i + 1]])));
        }
    }
    #[inline(always)]
    fn split(self, v: Self::V) -> Self::V {
        let mut out = v;
        for i in 0..2 {
            let (low, high) = (v[2 * i], v[2 * i + 1]);
            let even = op!(_mm256_castps_pd(_mm256_shuffle_ps::<0x88>(low, high)));
            let odd = op!(_mm256_castps_pd(_mm256_shuffle_ps::<0xDD>(low, high)));
            out[2 * i] = op!(_mm256_castpd_ps(_mm256_permute4x64_pd::<0xD8>(even)));
            out[2 * i + 1] = op!(_mm256_castpd_ps(_mm256_permute4x64_pd::<0xD8>(odd)));
        }
        out
    }
    #[inline(always)]
    fn in_order(self, v: Self::V) -> Self::V {
        let mut out = v;
        for i in 0..2 {
            let (even, odd) = (v[2 * i], v[2 * i + 1]);
            let (low, high) = (op!(_mm256_unpacklo_ps(even, odd)), op!(_mm256_unpackhi_ps(even, odd)));
            out[2 * i] = op!(_mm256_permute2f128_ps::<0x20>(low, high));
            out[2 * i + 1] = op!(_mm256_permute2f128_ps::<0x31>(low, high));
        }
        out
    }
    #[inline(always)]
    fn round_bf16(self, v: Self::V) -> Self::V {
        each!(v, i => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(round_bf16(v[i]))))
    }
    #[inline(always)]
    fn store_past(self, v: Self::V, to: &mut [f32; LANES]) {
        if !is_aligned(to) {
            return self.store(v, to);
        }
        let (quarters, _) = to.as_chunks_mut::<8>();
        for i in 0..4 {
            op!(_mm256_stream_ps(quarters[i].as_mut_ptr(), v[i]));
        }
    }
    #[inline(always)]
    fn store_past_f16(self, v: Self::V, to: &mut [f16; LANES]) {
        let mut words = [f16::ZERO; LANES];
        Isa::<f32>::store_f16(self, v, &mut words);
        store_words_past(&words, to);
    }
    #[inline(always)]
    fn store_past_bf16(self, v: Self::V, to: &mut [bf16; LANES]) {
        let mut words = [bf16::ZERO; LANES];
        Isa::<f32>::store_bf16(self, v, &mut words);
        store_words_past(&words, to);
    }
    #[inline(always)]
    fn prefetch<T>(self, chunk: &[T; LANES], ahead: isize) {
        prefetch::<T, _MM_HINT_T0>(chunk, ahead);
    }
    #[inline(always)]
    fn prefetch_second<T>(self, chunk: &[T; LANES], ahead: isize) {
        prefetch::<T, _MM_HINT_T1>(chunk, ahead);
    }
    #[inline(always)]
    fn stream<T: Copy>(self, from: &[T], to: &mut [T]) {
        stream(from, to);
    }
    #[inline(always)]
    fn fence(self) {
        op!(_mm_sfence());
    }
}

impl Isa<f64> for Avx2 {
    type V = [__m256d; 8];

    #[inline(always)]
    fn splat(self, value: f64) -> Self::V {
        [op!(_mm256_set1_pd(value)); 8]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm256_add_pd(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm256_sub_pd(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm256_mul_pd(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each!(c, i => _mm256_fmadd_pd(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn take_first(self, n: usize, new: Self::V, old: Self::V) -> Self::V {
        let iota = op!(_mm256_set_epi64x(3, 2, 1, 0));
        let mut out = old;
        for i in 0..8 {
            let left = op!(_mm256_set1_epi64x(n as i64 - 4 * i as i64));
            let mask = op!(_mm256_castsi256_pd(_mm256_cmpgt_epi64(left, iota)));
            out[i] = op!(_mm256_blendv_pd(old[i], new[i], mask));
        }
        out
    }
    #[inline(always)]
    fn down<const W: usize>(self, v: Self::V) -> Self::V {
        let mut out = v;
        match W {
            16 => [out[0], out[1], out[2], out[3]] = [v[4], v[5], v[6], v[7]],
            8 => [out[0], out[1]] = [v[2], v[3]],
            4 => out[0] = v[1],
            2 => out[0] = op!(_mm256_permute2f128_pd::<0x11>(v[0], v[0])),
            _ => out[0] = op!(_mm256_permute_pd::<0b0101>(v[0])),
        }
        out
    }
    #[inline(always)]
    fn first(self, v: Self::V) -> f64 {
        op!(_mm256_cvtsd_f64(v[0]))
    }
    #[inline(always)]
    fn load(self, from: &[f64; LANES]) -> Self::V {
        let (eighths, _) = from.as_chunks::<4>();
        let mut out = [op!(_mm256_setzero_pd()); 8];
        for i in 0..8 {
            out[i] = op!(_mm256_loadu_pd(eighths[i].as_ptr()));
        }
        out
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f64; LANES]) {
        let (eighths, _) = to.as_chunks_mut::<4>();
        for i in 0..8 {
            op!(_mm256_storeu_pd(eighths[i].as_mut_ptr(), v[i]));
        }
    }
    #[inline(always)]
    fn store_past(self, v: Self::V, to: &mut [f64; LANES]) {
        if !is_aligned(to) {
            return self.store(v, to);
        }
        let (eighths, _) = to.as_chunks_mut::<4>();
        for i in 0..8 {
            op!(_mm256_stream_pd(eighths[i].as_mut_ptr(), v[i]));
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, chunk: &[T; LANES], ahead: isize) {
        prefetch::<T, _MM_HINT_T0>(chunk, ahead);
    }
    #[inline(always)]
    fn prefetch_second<T>(self, chunk: &[T; LANES], ahead: isize) {
        prefetch::<T, _MM_HINT_T1>(chunk, ahead);
    }
    #[inline(always)]
    fn stream<T: Copy>(self, from: &[T], to: &mut [T]) {
        stream(from, to);
    }
    #[inline(always)]
    fn fence(self) {
        op!(_mm_sfence());
    }
}

#[inline(always)]
fn stream<T: Copy>(from: &[T], to: &mut [T]) {
    assert!(from.len() == to.len(), "stream: {} elements to {}", from.len(), to.len());
    let bytes = size_of_val(to);
    let (from, to) = (from.as_ptr().cast::<u8>(), to.as_mut_ptr().cast::<u8>());
    let head = to.align_offset(32).min(bytes);
    let body = (bytes - head) / 32 * 32;
    op!(std::ptr::copy_nonoverlapping(from, to, head));
    let mut at = head;
    while at < head + body {
        // Every offset below is within `bytes`, the size of both slices; `to + at` is a multiple of 32.
        let line = op!(_mm256_loadu_si256(from.add(at).cast()));
        op!(_mm256_stream_si256(to.add(at).cast(), line));
        at += 32;
    }
    op!(std::ptr::copy_nonoverlapping(from.add(at), to.add(at), bytes - at));
}
