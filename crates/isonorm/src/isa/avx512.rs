//! AVX-512 (F, BW, VL, DQ): 32 f32 lanes in two registers, 32 f64 lanes in four.
#![allow(unsafe_code)] // intrinsics; every use is in `op!`

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Isa;
use super::x86::{_MM_HINT_T0, _MM_HINT_T1, Known, is_aligned, prefetch};
use crate::element::Compute;
use crate::level::Kernel;
use crate::order::LANES;

/// Proof that this CPU has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        static KNOWN: Known = Known::unknown();
        let ask = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        };
        KNOWN.or_ask(ask).then_some(Self(()))
    }

    pub(crate) fn run<C: Compute, K: Kernel<C>>(self, kernel: K) -> K::Output
    where
        Self: Isa<C>,
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")] // what `detect` checks
        fn enter<C: Compute, K: Kernel<C>>(isa: Avx512, kernel: K) -> K::Output
        where
            Avx512: Isa<C>,
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
        // SAFETY: an `Avx512` exists, so the CPU has the instruction; pointers come from references
        // to arrays of exactly the bytes that are read or written, or masks leave those of the slice alone.
        unsafe { $intrinsic }
    };
}

/// `[$f(0), $f(1), ...]`, without a closure that could stay un-inlined.
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

impl Isa<f32> for Avx512 {
    type V = [__m512; 2];
    const LEAVES: usize = 16;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [op!(_mm512_set1_ps(value)); 2]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm512_add_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm512_sub_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm512_mul_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each!(c, i => _mm512_fmadd_ps(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn take_first(self, n: usize, new: Self::V, old: Self::V) -> Self::V {
        let mask = first_bits(n);
        each!(old, i => _mm512_mask_mov_ps(old[i], (mask >> (16 * i)) as u16, new[i]))
    }
    #[inline(always)]
    fn down<const W: usize>(self, [low, high]: Self::V) -> Self::V {
        let v = match W {
            16 => high,
            8 => op!(_mm512_shuffle_f32x4::<0xEE>(low, low)),
            4 => op!(_mm512_shuffle_f32x4::<0x55>(low, low)),
            2 => op!(_mm512_permute_ps::<0xEE>(low)),
            _ => op!(_mm512_permute_ps::<0x55>(low)),
        };
        [v, high]
    }
    #[inline(always)]
    fn first(self, v: Self::V) -> f32 {
        op!(_mm512_cvtss_f32(v[0]))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        let (halves, _) = from.as_chunks::<16>();
        [op!(_mm512_loadu_ps(halves[0].as_ptr())), op!(_mm512_loadu_ps(halves[1].as_ptr()))]
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        let (halves, _) = to.as_chunks_mut::<16>();
        op!(_mm512_storeu_ps(halves[0].as_mut_ptr(), v[0]));
        op!(_mm512_storeu_ps(halves[1].as_mut_ptr(), v[1]));
    }
    #[inline(always)]
    fn load_first(self, from: &[f32]) -> Self::V {
        let (mask, from) = (first_bits(from.len()), from.as_ptr());
        let low = op!(_mm512_maskz_loadu_ps(mask as u16, from));
        [low, op!(_mm512_maskz_loadu_ps((mask >> 16) as u16, from.wrapping_add(16)))]
    }
    #[inline(always)]
    fn store_first(self, v: Self::V, to: &mut [f32]) {
        let (mask, to) = (first_bits(to.len()), to.as_mut_ptr());
        op!(_mm512_mask_storeu_ps(to, mask as u16, v[0]));
        op!(_mm512_mask_storeu_ps(to.wrapping_add(16), (mask >> 16) as u16, v[1]));
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        let (halves, _) = from.as_chunks::<16>();
        let low = op!(_mm256_loadu_si256(halves[0].as_ptr().cast()));
        let high = op!(_mm256_loadu_si256(halves[1].as_ptr().cast()));
        [op!(_mm512_cvtph_ps(low)), op!(_mm512_cvtph_ps(high))]
    }
    #[inline(always)]
    fn store_f16(self, v: Self::V, to: &mut [f16; LANES]) {
        let (halves, _) = to.as_chunks_mut::<16>();
        for i in 0..2 {
            let narrow = op!(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v[i]));
            op!(_mm256_storeu_si256(halves[i].as_mut_ptr().cast(), narrow));
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V {
        let words = op!(_mm512_loadu_si512(from.as_ptr().cast()));
        // Word j of the row becomes the upper word of lane j.
        let low = op!(_mm512_maskz_permutexvar_epi16(0xAAAA_AAAA, words_from::<0>(), words));
        let high = op!(_mm512_maskz_permutexvar_epi16(0xAAAA_AAAA, words_from::<16>(), words));
        [op!(_mm512_castsi512_ps(low)), op!(_mm512_castsi512_ps(high))]
    }
    #[inline(always)]
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]) {
        // `vcvtneps2bf16` flushes subnormals, so the rounding is done on the integers.
        let rounded = [round_bf16(v[0]), round_bf16(v[1])];
        let words = op!(_mm512_permutex2var_epi16(rounded[0], odd_words(), rounded[1]));
        op!(_mm512_storeu_si512(to.as_mut_ptr().cast(), words));
    }
    #[inline(always)]
    fn load_bf16_split(self, from: &[bf16; LANES]) -> Self::V {
        let words = op!(_mm512_loadu_si512(from.as_ptr().cast()));
        let (even, odd) = (op!(_mm512_slli_epi32::<16>(words)), op!(_mm512_and_si512(words, upper_words())));
        [op!(_mm512_castsi512_ps(even)), op!(_mm512_castsi512_ps(odd))]
    }
    #[inline(always)]
    fn store_bf16_split(self, v: Self::V, to: &mut [bf16; LANES]) {
        op!(_mm512_storeu_si512(to.as_mut_ptr().cast(), round_pairs(v)));
    }
    #[inline(always)]
    fn store_past_bf16_split(self, v: Self::V, to: &mut [bf16; LANES]) {
        if !is_aligned(to) {
            return Isa::<f32>::store_bf16_split(self, v, to);
        }
        op!(_mm512_stream_si512(to.as_mut_ptr().cast(), round_pairs(v)));
    }
    #[inline(always)]
    fn in_order(self, [even, odd]: Self::V) -> Self::V {
        let low = op!(_mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0));
        let high = op!(_mm512_add_epi32(low, _mm512_set1_epi32(8)));
        [op!(_mm512_permutex2var_ps(even, low, odd)), op!(_mm512_permutex2var_ps(even, high, odd))]
    }
    #[inline(always)]
    fn split(self, [low, high]: Self::V) -> Self::V {
        let even = op!(_mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0));
        let odd = op!(_mm512_add_epi32(even, _mm512_set1_epi32(1)));
        [op!(_mm512_permutex2var_ps(low, even, high)), op!(_mm512_permutex2var_ps(low, odd, high))]
    }
    #[inline(always)]
    fn round_bf16(self, v: Self::V) -> Self::V {
        each!(v, i => _mm512_castsi512_ps(_mm512_and_si512(round_bf16(v[i]), upper_words())))
    }
    #[inline(always)]
    fn store_past(self, v: Self::V, to: &mut [f32; LANES]) {
        if !is_aligned(to) {
            return self.store(v, to);
        }
        let (halves, _) = to.as_chunks_mut::<16>();
        op!(_mm512_stream_ps(halves[0].as_mut_ptr(), v[0]));
        op!(_mm512_stream_ps(halves[1].as_mut_ptr(), v[1]));
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

impl Isa<f64> for Avx512 {
    type V = [__m512d; 4];

    #[inline(always)]
    fn splat(self, value: f64) -> Self::V {
        [op!(_mm512_set1_pd(value)); 4]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm512_add_pd(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm512_sub_pd(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each!(a, i => _mm512_mul_pd(a[i], b[i]))
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each!(c, i => _mm512_fmadd_pd(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn take_first(self, n: usize, new: Self::V, old: Self::V) -> Self::V {
        let mask = first_bits(n);
        each!(old, i => _mm512_mask_mov_pd(old[i], (mask >> (8 * i)) as u8, new[i]))
    }
    #[inline(always)]
    fn down<const W: usize>(self, v: Self::V) -> Self::V {
        match W {
            16 => [v[2], v[3], v[2], v[3]],
            8 => [v[1], v[1], v[2], v[3]],
            4 => [op!(_mm512_shuffle_f64x2::<0xEE>(v[0], v[0])), v[1], v[2], v[3]],
            2 => [op!(_mm512_shuffle_f64x2::<0x55>(v[0], v[0])), v[1], v[2], v[3]],
            _ => [op!(_mm512_permute_pd::<0x55>(v[0])), v[1], v[2], v[3]],
        }
    }
    #[inline(always)]
    fn first(self, v: Self::V) -> f64 {
        op!(_mm512_cvtsd_f64(v[0]))
    }
    #[inline(always)]
    fn load(self, from: &[f64; LANES]) -> Self::V {
        let (quarters, _) = from.as_chunks::<8>();
        let mut out = [op!(_mm512_setzero_pd()); 4];
        for i in 0..4 {
            out[i] = op!(_mm512_loadu_pd(quarters[i].as_ptr()));
        }
        out
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f64; LANES]) {
        let (quarters, _) = to.as_chunks_mut::<8>();
        for i in 0..4 {
            op!(_mm512_storeu_pd(quarters[i].as_mut_ptr(), v[i]));
        }
    }
    #[inline(always)]
    fn load_first(self, from: &[f64]) -> Self::V {
        let (mask, from) = (first_bits(from.len()), from.as_ptr());
        let mut out = [op!(_mm512_setzero_pd()); 4];
        for (i, out) in out.iter_mut().enumerate() {
            *out = op!(_mm512_maskz_loadu_pd((mask >> (8 * i)) as u8, from.wrapping_add(8 * i)));
        }
        out
    }
    #[inline(always)]
    fn store_first(self, v: Self::V, to: &mut [f64]) {
        let (mask, to) = (first_bits(to.len()), to.as_mut_ptr());
        for (i, v) in v.into_iter().enumerate() {
            op!(_mm512_mask_storeu_pd(to.wrapping_add(8 * i), (mask >> (8 * i)) as u8, v));
        }
    }
    #[inline(always)]
    fn store_past(self, v: Self::V, to: &mut [f64; LANES]) {
        if !is_aligned(to) {
            return self.store(v, to);
        }
        let (quarters, _) = to.as_chunks_mut::<8>();
        for i in 0..4 {
            op!(_mm512_stream_pd(quarters[i].as_mut_ptr(), v[i]));
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

/// Bits 0..n, of at most 32.
#[inline(always)]
fn first_bits(n: usize) -> u32 {
    ((1u64 << n) - 1) as u32
}

#[inline(always)]
fn stream<T: Copy>(from: &[T], to: &mut [T]) {
    assert!(from.len() == to.len(), "stream: {} elements to {}", from.len(), to.len());
    let bytes = size_of_val(to);
    let (from, to) = (from.as_ptr().cast::<u8>(), to.as_mut_ptr().cast::<u8>());
    let head = to.align_offset(64).min(bytes);
    let body = (bytes - head) / 64 * 64;
    op!(std::ptr::copy_nonoverlapping(from, to, head));
    let mut at = head;
    while at < head + body {
        // Every offset below is within `bytes`, the size of both slices; `to + at` is a multiple of 64.
        let line = op!(_mm512_loadu_si512(from.add(at).cast()));
        op!(_mm512_stream_si512(to.add(at).cast(), line));
        at += 64;
    }
    op!(std::ptr::copy_nonoverlapping(from.add(at), to.add(at), bytes - at));
}
