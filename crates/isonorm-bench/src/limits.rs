//! The limits of this machine: the operation's minimal traffic, moved and nothing else.
//!
//! Each copy reads as many tensors and writes as many as the operation; with two of each, a block
//! of [`BLOCK`] lines of the one, then of the other. The limit of a cell is the fastest copy.
#![allow(unsafe_code)] // vector loads and stores the compiler would not choose, and their detection

use std::hint::black_box;

use crate::memory::{Inputs, Line, Outputs};
use crate::timing::{Contestant, Role, repeat_on_threads};

/// Lines of one stream before the next stream's turn: 16 KiB, a row of 4096 f32.
const BLOCK: usize = 256;

/// A way to copy lines.
#[derive(Clone, Copy)]
struct Copier {
    name: &'static str,
    copy: fn(&[Line], &mut [Line]),
    /// Its stores have to be fenced before the results are anyone's.
    fence: Option<fn()>,
}

type Read = fn(&[Line]) -> u64;

/// The copies and the read of `cell`'s bytes that this machine can do.
pub(crate) fn contestants(inputs: &Inputs, threads: usize) -> Vec<Contestant<'_>> {
    let copy = |copier: Copier| Contestant {
        name: copier.name.to_string(),
        role: Role::Copy,
        run: Box::new(move |calls, outputs| repeat_on_threads(calls, copy_parts(copier, inputs, outputs, threads))),
    };
    let mut contestants: Vec<Contestant<'_>> = copiers().into_iter().map(copy).collect();
    let (name, read) = reader();
    contestants.push(Contestant {
        name: name.to_string(),
        role: Role::Read,
        run: Box::new(move |calls, _| repeat_on_threads(calls, read_parts(read, inputs, threads))),
    });
    contestants
}

/// Each thread's share of the copy of `x` and, where there is one, of the residual.
fn copy_parts<'a>(
    copier: Copier,
    inputs: &'a Inputs,
    outputs: &'a mut Outputs,
    threads: usize,
) -> Vec<impl FnMut() + Send + use<'a>> {
    let share = inputs.x.lines().len().div_ceil(threads);
    let mut parts: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
    for (from, to) in [(inputs.x.lines(), outputs.y.lines_mut()), (inputs.residual.lines(), outputs.sum.lines_mut())] {
        for (part, pair) in parts.iter_mut().zip(from.chunks(share).zip(to.chunks_mut(share))) {
            part.push(pair);
        }
    }
    parts.into_iter().map(|mut part| move || copy_pairs(copier, black_box(&mut part))).collect()
}

fn copy_pairs(copier: Copier, pairs: &mut [(&[Line], &mut [Line])]) {
    let len = pairs.first().map_or(0, |(from, _)| from.len());
    let block = if pairs.len() == 1 { len } else { BLOCK };
    for start in (0..len).step_by(block.max(1)) {
        let lines = start..(start + block).min(len);
        for (from, to) in pairs.iter_mut() {
            (copier.copy)(&from[lines.clone()], &mut to[lines.clone()]);
        }
    }
    if let Some(fence) = copier.fence {
        fence();
    }
}

/// Each thread's share of reading `x` and, where there is one, the residual.
fn read_parts<'a>(read: Read, inputs: &'a Inputs, threads: usize) -> Vec<impl FnMut() + Send + use<'a>> {
    let share = inputs.x.lines().len().div_ceil(threads);
    let residual = inputs.residual.lines();
    let part = |lines: &'a [Line], i: usize| lines.chunks(share).nth(i).unwrap_or(&[]);
    (0..threads)
        .map(|i| {
            let (x, residual) = (part(inputs.x.lines(), i), part(residual, i));
            move || _ = black_box(read(black_box(x)).wrapping_add(read(black_box(residual))))
        })
        .collect()
}

fn copiers() -> Vec<Copier> {
    let memcpy = Copier { name: "memcpy", copy: memcpy, fence: None };
    #[cfg(target_arch = "x86_64")]
    return [vec![memcpy], x86::copiers()].concat();
    #[cfg(not(target_arch = "x86_64"))]
    vec![memcpy]
}

fn reader() -> (&'static str, Read) {
    #[cfg(target_arch = "x86_64")]
    if let Some(reader) = x86::reader() {
        return reader;
    }
    ("read", read_lines)
}

fn memcpy(from: &[Line], to: &mut [Line]) {
    to.copy_from_slice(from);
}

fn read_lines(lines: &[Line]) -> u64 {
    let words: &[u64] = bytemuck::cast_slice(lines);
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::ptr;

    use super::{Copier, Line, Read};

    /// The copies this machine's instructions allow.
    pub(super) fn copiers() -> Vec<Copier> {
        // SAFETY: every x86-64 has SSE.
        let fence: Option<fn()> = Some(|| unsafe { _mm_sfence() });
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512F was detected just now.
            let plain = |from: &[Line], to: &mut [Line]| unsafe { copy_512::<false>(from, to) };
            // SAFETY: as above.
            let past_the_caches = |from: &[Line], to: &mut [Line]| unsafe { copy_512::<true>(from, to) };
            return vec![
                Copier { name: "AVX-512 copy", copy: plain, fence: None },
                Copier { name: "non-temporal copy", copy: past_the_caches, fence },
            ];
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 was detected just now.
            let plain = |from: &[Line], to: &mut [Line]| unsafe { copy_256::<false>(from, to) };
            // SAFETY: as above.
            let past_the_caches = |from: &[Line], to: &mut [Line]| unsafe { copy_256::<true>(from, to) };
            return vec![
                Copier { name: "AVX2 copy", copy: plain, fence: None },
                Copier { name: "non-temporal copy", copy: past_the_caches, fence },
            ];
        }
        Vec::new()
    }

    /// The widest read this machine's instructions allow.
    pub(super) fn reader() -> Option<(&'static str, Read)> {
        // SAFETY: the function is handed out only after AVX-512F was detected.
        is_x86_feature_detected!("avx512f").then_some(("AVX-512 read", |lines| unsafe { read_512(lines) }))
    }

    #[target_feature(enable = "avx512f")]
    fn copy_512<const NON_TEMPORAL: bool>(from: &[Line], to: &mut [Line]) {
        for (from, to) in from.iter().zip(to.iter_mut()) {
            let (from, to) = (ptr::from_ref(from).cast(), ptr::from_mut(to).cast());
            // SAFETY: `from` is a line: 64 readable bytes on a 64-byte boundary.
            let line = unsafe { _mm512_load_si512(from) };
            if NON_TEMPORAL {
                // SAFETY: `to` is a line: 64 writable bytes on a 64-byte boundary. The
                // copier's fence orders the store before anyone else's read.
                unsafe { _mm512_stream_si512(to, line) };
            } else {
                // SAFETY: as above. Volatile, or the compiler calls memcpy for the whole loop.
                unsafe { ptr::write_volatile(to, line) };
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn copy_256<const NON_TEMPORAL: bool>(from: &[Line], to: &mut [Line]) {
        for (from, to) in from.iter().zip(to.iter_mut()) {
            let to: *mut [__m256i; 2] = ptr::from_mut(to).cast();
            // SAFETY: a line is two 32-byte vectors on a 32-byte boundary, any bits valid.
            let halves = unsafe { ptr::from_ref(from).cast::<[__m256i; 2]>().read() };
            // SAFETY: as above, and nothing else borrows `to`.
            for (to, half) in unsafe { &mut *to }.iter_mut().zip(halves) {
                if NON_TEMPORAL {
                    // SAFETY: 32 writable bytes on a 32-byte boundary, fenced as above.
                    unsafe { _mm256_stream_si256(to, half) };
                } else {
                    // SAFETY: as above. Volatile, or the compiler calls memcpy.
                    unsafe { ptr::write_volatile(to, half) };
                }
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
}
