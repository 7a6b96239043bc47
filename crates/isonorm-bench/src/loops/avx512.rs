//! The loops written by hand for AVX-512: eight vectors a step, whole steps only.

use std::arch::x86_64::*;
use std::{mem, ptr};

use half::bf16;

use super::Backward;
use crate::cells::EPS;
use crate::memory::Line;

/// Elements of one vector of f32.
const WIDTH: usize = 16;
/// Vectors of a step, and sums in flight.
const STEP: usize = 8;

type Vector = [f32; WIDTH];
type Step = [Vector; STEP];
/// Two vectors' worth, in one vector's bytes.
type Pair = [bf16; 2 * WIDTH];

#[target_feature(enable = "avx512f")]
pub(super) fn rms_norm(x: &[f32], w: &[f32], y: &mut [f32]) {
    let mut sums = [_mm512_setzero_ps(); STEP];
    for x in steps(x) {
        for (sum, v) in sums.iter_mut().zip(load(x)) {
            *sum = _mm512_fmadd_ps(v, v, *sum);
        }
    }
    let rstd = _mm512_set1_ps(1.0 / (total(sums) / x.len() as f32 + EPS).sqrt());
    for ((y, x), w) in steps_mut(y).iter_mut().zip(steps(x)).zip(steps(w)) {
        let mut v = load(x);
        for (v, w) in v.iter_mut().zip(load(w)) {
            *v = _mm512_mul_ps(_mm512_mul_ps(*v, rstd), w);
        }
        store(y, v);
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
    let mut sums = [_mm512_setzero_ps(); STEP];
    let mut squares = [_mm512_setzero_ps(); STEP];
    for x in steps(x) {
        for ((sum, square), v) in sums.iter_mut().zip(&mut squares).zip(load(x)) {
            *sum = _mm512_add_ps(*sum, v);
            *square = _mm512_fmadd_ps(v, v, *square);
        }
    }
    let n = x.len() as f32;
    let mean = total(sums) / n;
    let rstd = 1.0 / (total(squares) / n - mean * mean + EPS).sqrt();
    let (scale, shift) = (_mm512_set1_ps(rstd), _mm512_set1_ps(-mean * rstd));
    let params = steps(w).iter().zip(steps(b));
    for ((y, x), (w, b)) in steps_mut(y).iter_mut().zip(steps(x)).zip(params) {
        let mut v = load(x);
        for (v, (w, b)) in v.iter_mut().zip(load(w).into_iter().zip(load(b))) {
            *v = _mm512_fmadd_ps(_mm512_fmadd_ps(*v, scale, shift), w, b);
        }
        store(y, v);
    }
}

/// The contract's arithmetic, three passes and a corrected variance, in free order: what accuracy costs.
#[target_feature(enable = "avx512f")]
pub(super) fn layer_norm_corrected(x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
    let mut sums = [_mm512_setzero_ps(); STEP];
    for x in steps(x) {
        for (sum, v) in sums.iter_mut().zip(load(x)) {
            *sum = _mm512_add_ps(*sum, v);
        }
    }
    let n = x.len() as f32;
    let mean = total(sums) / n;
    let mean_all = _mm512_set1_ps(mean);
    let mut sums = [_mm512_setzero_ps(); STEP];
    let mut squares = [_mm512_setzero_ps(); STEP];
    for x in steps(x) {
        for ((sum, square), v) in sums.iter_mut().zip(&mut squares).zip(load(x)) {
            let d = _mm512_sub_ps(v, mean_all);
            *sum = _mm512_add_ps(*sum, d);
            *square = _mm512_fmadd_ps(d, d, *square);
        }
    }
    let s1 = total(sums);
    let delta = s1 / n;
    let rstd = 1.0 / ((total(squares) - s1 * delta) / n + EPS).sqrt();
    let (delta_all, rstd_all) = (_mm512_set1_ps(delta), _mm512_set1_ps(rstd));
    let params = steps(w).iter().zip(steps(b));
    for ((y, x), (w, b)) in steps_mut(y).iter_mut().zip(steps(x)).zip(params) {
        let mut v = load(x);
        for (v, (w, b)) in v.iter_mut().zip(load(w).into_iter().zip(load(b))) {
            let d = _mm512_sub_ps(_mm512_sub_ps(*v, mean_all), delta_all);
            *v = _mm512_fmadd_ps(_mm512_mul_ps(d, rstd_all), w, b);
        }
        store(y, v);
    }
}

/// Row by row: a sum, then dx and the row's terms of dweight. The next row's x is asked for in the
/// first pass, its dy in the second, so that memory is read in both.
#[target_feature(enable = "avx512f")]
pub(super) fn rms_norm_backward<const NON_TEMPORAL: bool>(tensors: Backward<'_>) {
    let Backward { x, dy, w, rstd, dx, dweight } = tensors;
    let n = w.len();
    dweight.fill(0.0);
    let dx: &mut [Line] = bytemuck::cast_slice_mut(dx);
    for (r, dx) in dx.chunks_exact_mut(n / WIDTH).enumerate() {
        let (x, dy, rstd) = (&x[r * n..][..n], &dy[r * n..][..n], rstd[r]);
        let mut sums = [_mm512_setzero_ps(); STEP];
        for ((x, dy), w) in steps(x).iter().zip(steps(dy)).zip(steps(w)) {
            x.iter().for_each(|x| ask_for(x, n));
            for (((sum, x), dy), w) in sums.iter_mut().zip(load(x)).zip(load(dy)).zip(load(w)) {
                *sum = _mm512_fmadd_ps(_mm512_mul_ps(dy, w), x, *sum);
            }
        }
        let c = _mm512_set1_ps(total(sums) * rstd / n as f32);
        let rstd = _mm512_set1_ps(rstd);
        let inputs = vectors(x).iter().zip(vectors(dy)).zip(vectors(w));
        let outputs = dx.iter_mut().zip(vectors_mut(dweight));
        for ((dx, dweight), ((x, dy), w)) in outputs.zip(inputs) {
            ask_for(dy, n);
            let dy = load_vector(dy);
            let x_hat = _mm512_mul_ps(load_vector(x), rstd);
            let g = _mm512_mul_ps(dy, load_vector(w));
            let sum = _mm512_fmadd_ps(dy, x_hat, load_vector(dweight));
            store_vector(dweight, sum);
            store_line::<NON_TEMPORAL>(dx, _mm512_mul_ps(_mm512_fnmadd_ps(x_hat, c, g), rstd));
        }
    }
    if NON_TEMPORAL {
        _mm_sfence();
    }
}

/// Even and odd elements apart, rounded to nearest even by integer arithmetic.
#[target_feature(enable = "avx512f")]
pub(super) fn rms_norm_bf16(x: &[bf16], w: &[bf16], y: &mut [bf16]) {
    let mut sums = [_mm512_setzero_ps(); STEP];
    for x in pairs(x).as_chunks::<{ STEP / 2 }>().0 {
        for (sums, x) in sums.as_chunks_mut::<2>().0.iter_mut().zip(x) {
            for (sum, v) in sums.iter_mut().zip(split(x)) {
                *sum = _mm512_fmadd_ps(v, v, *sum);
            }
        }
    }
    let rstd = _mm512_set1_ps(1.0 / (total(sums) / x.len() as f32 + EPS).sqrt());
    for ((y, x), w) in pairs_mut(y).iter_mut().zip(pairs(x)).zip(pairs(w)) {
        let [even, odd] = scaled(split(x), rstd, split(w)).map(|v| round(v));
        let odd = _mm512_and_si512(odd, upper_halves());
        store_pair(y, _mm512_or_si512(odd, _mm512_srli_epi32::<16>(even)));
    }
}

/// By the instructions for bf16, which take subnormals for zero: less than the operation.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn rms_norm_bf16_without_subnormals(x: &[bf16], w: &[bf16], y: &mut [bf16]) {
    let mut sums = [_mm512_setzero_ps(); STEP];
    for x in pairs(x).as_chunks::<STEP>().0 {
        for (sum, x) in sums.iter_mut().zip(x) {
            // SAFETY: `x` is 64 readable bytes; the read needs no alignment.
            let x = unsafe { ptr::from_ref(x).cast::<__m512bh>().read_unaligned() };
            *sum = _mm512_dpbf16_ps(*sum, x, x);
        }
    }
    let rstd = _mm512_set1_ps(1.0 / (total(sums) / x.len() as f32 + EPS).sqrt());
    let mut interleaved = [bf16::ZERO; 2 * WIDTH];
    for (i, place) in interleaved.iter_mut().enumerate() {
        *place = bf16::from_bits((i / 2 + WIDTH * (i % 2)) as u16);
    }
    let interleaved = load_pair(&interleaved);
    for ((y, x), w) in pairs_mut(y).iter_mut().zip(pairs(x)).zip(pairs(w)) {
        let [even, odd] = scaled(split(x), rstd, split(w));
        let halves = _mm512_cvtne2ps_pbh(odd, even);
        // SAFETY: both are 64 bytes, every bit pattern of which is a value.
        let halves = unsafe { mem::transmute::<__m512bh, __m512i>(halves) };
        store_pair(y, _mm512_permutexvar_epi16(interleaved, halves));
    }
}

#[target_feature(enable = "avx512f")]
fn scaled(x: [__m512; 2], rstd: __m512, w: [__m512; 2]) -> [__m512; 2] {
    let [even, odd] = x.map(|x| _mm512_mul_ps(x, rstd));
    [_mm512_mul_ps(even, w[0]), _mm512_mul_ps(odd, w[1])]
}

#[target_feature(enable = "avx512f")]
fn total(s: [__m512; STEP]) -> f32 {
    let low = _mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3]));
    let high = _mm512_add_ps(_mm512_add_ps(s[4], s[5]), _mm512_add_ps(s[6], s[7]));
    _mm512_reduce_add_ps(_mm512_add_ps(low, high))
}

fn steps(x: &[f32]) -> &[Step] {
    x.as_chunks().0.as_chunks().0
}

fn steps_mut(y: &mut [f32]) -> &mut [Step] {
    y.as_chunks_mut().0.as_chunks_mut().0
}

fn pairs(x: &[bf16]) -> &[Pair] {
    x.as_chunks().0
}

fn pairs_mut(y: &mut [bf16]) -> &mut [Pair] {
    y.as_chunks_mut().0
}

fn vectors(x: &[f32]) -> &[Vector] {
    x.as_chunks().0
}

fn vectors_mut(y: &mut [f32]) -> &mut [Vector] {
    y.as_chunks_mut().0
}

#[target_feature(enable = "avx512f")]
fn load(x: &Step) -> [__m512; STEP] {
    let mut vectors = [_mm512_setzero_ps(); STEP];
    for (vector, x) in vectors.iter_mut().zip(x) {
        *vector = load_vector(x);
    }
    vectors
}

#[target_feature(enable = "avx512f")]
fn load_vector(x: &Vector) -> __m512 {
    // SAFETY: `x` is 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
fn store(y: &mut Step, vectors: [__m512; STEP]) {
    for (y, vector) in y.iter_mut().zip(vectors) {
        store_vector(y, vector);
    }
}

#[target_feature(enable = "avx512f")]
fn store_vector(y: &mut Vector, vector: __m512) {
    // SAFETY: `y` is 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_ps(y.as_mut_ptr(), vector) };
}

#[target_feature(enable = "avx512f")]
fn store_line<const NON_TEMPORAL: bool>(y: &mut Line, vector: __m512) {
    let y: *mut f32 = ptr::from_mut(y).cast();
    if NON_TEMPORAL {
        // SAFETY: `y` is a line: 64 writable bytes on a 64-byte boundary. The caller fences.
        unsafe { _mm512_stream_ps(y, vector) };
    } else {
        // SAFETY: as above.
        unsafe { _mm512_store_ps(y, vector) };
    }
}

/// Asks the second cache for what lies `ahead` elements after `x`; the nearest has no room for two rows.
fn ask_for(x: &Vector, ahead: usize) {
    let soon = x.as_ptr().wrapping_add(ahead);
    // SAFETY: asking for a line reads nothing, and of an address without memory it does nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(soon.cast()) };
}

#[target_feature(enable = "avx512f")]
fn load_pair(x: &Pair) -> __m512i {
    // SAFETY: `x` is 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(ptr::from_ref(x).cast()) }
}

#[target_feature(enable = "avx512f")]
fn store_pair(y: &mut Pair, value: __m512i) {
    // SAFETY: `y` is 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(ptr::from_mut(y).cast(), value) };
}

#[target_feature(enable = "avx512f")]
fn upper_halves() -> __m512i {
    _mm512_set1_epi32(0xffff_0000_u32.cast_signed())
}

/// The elements 0, 2, 4, ... and the elements 1, 3, 5, ..., widened.
#[target_feature(enable = "avx512f")]
fn split(x: &Pair) -> [__m512; 2] {
    let both = load_pair(x);
    let (even, odd) = (_mm512_slli_epi32::<16>(both), _mm512_and_si512(both, upper_halves()));
    [_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)]
}

/// To nearest even, in the upper half of each element; the lower half is left over.
#[target_feature(enable = "avx512f")]
fn round(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)))
}
