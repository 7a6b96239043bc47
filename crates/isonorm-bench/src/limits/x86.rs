//! The copies and merges of x86-64, by its vector loads and stores.
//!
//! `AHEAD` asks for lines before their turn: plain stores for those they will write, stores past
//! the caches for those that are read.

use std::arch::x86_64::*;
use std::ptr;

use super::{Copier, Merger, Reader, Way};
use crate::memory::Line;

/// Lines that stores into the caches ask ahead for: 2 KiB.
const WRITE_AHEAD: usize = 32;
/// Lines that are read ahead where the stores go past the caches: 4 KiB.
const READ_AHEAD: usize = 64;

/// The copies this machine's instructions allow.
pub(super) fn copies() -> Vec<Way<Copier>> {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512F was detected just now.
        let plain = |from: &[Line], to: &mut [Line]| unsafe { copy_512::<false, false>(from, to) };
        // SAFETY: as above.
        let past_the_caches = |from: &[Line], to: &mut [Line]| unsafe { copy_512::<true, false>(from, to) };
        return vec![cached("AVX-512 copy", plain), streamed("non-temporal copy", past_the_caches)];
    }
    if is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was detected just now.
        let plain = |from: &[Line], to: &mut [Line]| unsafe { copy_256::<false>(from, to) };
        // SAFETY: as above.
        let past_the_caches = |from: &[Line], to: &mut [Line]| unsafe { copy_256::<true>(from, to) };
        return vec![cached("AVX2 copy", plain), streamed("non-temporal copy", past_the_caches)];
    }
    Vec::new()
}

/// The copies that ask ahead.
pub(super) fn copies_ahead() -> Vec<Way<Copier>> {
    if !is_x86_feature_detected!("avx512f") {
        return Vec::new();
    }
    // SAFETY: AVX-512F was detected just now.
    let plain = |from: &[Line], to: &mut [Line]| unsafe { copy_512::<false, true>(from, to) };
    // SAFETY: as above.
    let past_the_caches = |from: &[Line], to: &mut [Line]| unsafe { copy_512::<true, true>(from, to) };
    vec![cached("AVX-512 copy", plain), streamed("non-temporal copy", past_the_caches)]
}

/// The merges this machine's instructions allow.
pub(super) fn merges() -> Vec<Way<Merger>> {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512F was detected just now.
        let plain = |a: &[Line], b: &[Line], to: &mut [Line]| unsafe { merge_512::<false>(a, b, to) };
        // SAFETY: as above.
        let past_the_caches = |a: &[Line], b: &[Line], to: &mut [Line]| unsafe { merge_512::<true>(a, b, to) };
        return vec![cached("AVX-512 merge", plain), streamed("non-temporal merge", past_the_caches)];
    }
    if is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was detected just now.
        let plain = |a: &[Line], b: &[Line], to: &mut [Line]| unsafe { merge_256::<false>(a, b, to) };
        // SAFETY: as above.
        let past_the_caches = |a: &[Line], b: &[Line], to: &mut [Line]| unsafe { merge_256::<true>(a, b, to) };
        return vec![cached("AVX2 merge", plain), streamed("non-temporal merge", past_the_caches)];
    }
    Vec::new()
}

/// The widest read this machine's instructions allow.
pub(super) fn reader() -> Option<(&'static str, Reader)> {
    // SAFETY: the function is handed out only after AVX-512F was detected.
    is_x86_feature_detected!("avx512f").then_some(("AVX-512 read", |lines| unsafe { read_512(lines) }))
}

fn cached<F>(name: &'static str, run: F) -> Way<F> {
    Way { name, run, fence: None }
}

fn streamed<F>(name: &'static str, run: F) -> Way<F> {
    // SAFETY: every x86-64 has SSE.
    Way { name, run, fence: Some(|| unsafe { _mm_sfence() }) }
}

#[target_feature(enable = "avx512f")]
fn copy_512<const NON_TEMPORAL: bool, const AHEAD: bool>(from: &[Line], to: &mut [Line]) {
    for (from, to) in from.iter().zip(to.iter_mut()) {
        match (AHEAD, NON_TEMPORAL) {
            (false, _) => {}
            (true, false) => prefetch::<_MM_HINT_ET0>(to, WRITE_AHEAD),
            (true, true) => prefetch::<_MM_HINT_T0>(from, READ_AHEAD),
        }
        store::<NON_TEMPORAL>(to, load(from));
    }
}

#[target_feature(enable = "avx512f")]
fn merge_512<const NON_TEMPORAL: bool>(a: &[Line], b: &[Line], to: &mut [Line]) {
    for ((a, b), to) in a.iter().zip(b).zip(to.iter_mut()) {
        if NON_TEMPORAL {
            prefetch::<_MM_HINT_T0>(a, READ_AHEAD);
            prefetch::<_MM_HINT_T0>(b, READ_AHEAD);
        } else {
            prefetch::<_MM_HINT_ET0>(to, WRITE_AHEAD);
        }
        store::<NON_TEMPORAL>(to, _mm512_xor_si512(load(a), load(b)));
    }
}

/// Asks for the line that lies `ahead` lines after `line`.
fn prefetch<const HINT: i32>(line: &Line, ahead: usize) {
    let soon = ptr::from_ref(line).wrapping_add(ahead);
    // SAFETY: asking for a line reads nothing, and of an address without memory it does nothing.
    unsafe { _mm_prefetch::<HINT>(soon.cast()) };
}

#[target_feature(enable = "avx512f")]
fn store<const NON_TEMPORAL: bool>(to: &mut Line, line: __m512i) {
    let to: *mut __m512i = ptr::from_mut(to).cast();
    if NON_TEMPORAL {
        // SAFETY: `to` is a line: 64 writable bytes on a 64-byte boundary. The way's fence orders
        // the store before anyone else's read.
        unsafe { _mm512_stream_si512(to, line) };
    } else {
        // SAFETY: as above. Volatile, or the compiler calls memcpy for the whole loop.
        unsafe { ptr::write_volatile(to, line) };
    }
}

#[target_feature(enable = "avx2")]
fn copy_256<const NON_TEMPORAL: bool>(from: &[Line], to: &mut [Line]) {
    for (from, to) in from.iter().zip(to.iter_mut()) {
        store_halves::<NON_TEMPORAL>(to, halves(from));
    }
}

#[target_feature(enable = "avx2")]
fn merge_256<const NON_TEMPORAL: bool>(a: &[Line], b: &[Line], to: &mut [Line]) {
    for ((a, b), to) in a.iter().zip(b).zip(to.iter_mut()) {
        let ([a, c], [b, d]) = (halves(a), halves(b));
        store_halves::<NON_TEMPORAL>(to, [_mm256_xor_si256(a, b), _mm256_xor_si256(c, d)]);
    }
}

#[target_feature(enable = "avx2")]
fn halves(line: &Line) -> [__m256i; 2] {
    // SAFETY: a line is two 32-byte vectors on a 32-byte boundary, any bits valid.
    unsafe { ptr::from_ref(line).cast::<[__m256i; 2]>().read() }
}

#[target_feature(enable = "avx2")]
fn store_halves<const NON_TEMPORAL: bool>(to: &mut Line, halves: [__m256i; 2]) {
    let to: *mut [__m256i; 2] = ptr::from_mut(to).cast();
    // SAFETY: as in `halves`, and nothing else borrows `to`.
    for (to, half) in unsafe { &mut *to }.iter_mut().zip(halves) {
        if NON_TEMPORAL {
            // SAFETY: 32 writable bytes on a 32-byte boundary, fenced as in `store`.
            unsafe { _mm256_stream_si256(to, half) };
        } else {
            // SAFETY: as above. Volatile, or the compiler calls memcpy.
            unsafe { ptr::write_volatile(to, half) };
        }
    }
}

#[target_feature(enable = "avx512f")]
fn read_512(lines: &[Line]) -> u64 {
    let mut sums = [_mm512_setzero_si512(); 8];
    let (eights, rest) = lines.as_chunks::<8>();
    for eight in eights {
        for (sum, line) in sums.iter_mut().zip(eight) {
            *sum = _mm512_add_epi64(*sum, load(line));
        }
    }
    for line in rest {
        sums[0] = _mm512_add_epi64(sums[0], load(line));
    }
    let sum = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi64(a, b));
    _mm512_reduce_add_epi64(sum) as u64
}

#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 readable bytes on a 64-byte boundary.
    unsafe { _mm512_load_si512(ptr::from_ref(line).cast()) }
}
