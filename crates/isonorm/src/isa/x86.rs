//! What the x86-64 sets share: which of them the CPU has, whole cache lines, and reading ahead.
#![allow(unsafe_code)] // one intrinsic

use std::arch::x86_64::_mm_prefetch;
pub(super) use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::order::LANES;

/// The answer to a question about the CPU, asked once: asking for seven features takes longer than a short row.
pub(super) struct Known(AtomicU8);

impl Known {
    pub(super) const fn unknown() -> Self {
        Known(AtomicU8::new(0))
    }

    #[inline(always)]
    pub(super) fn or_ask(&self, ask: fn() -> bool) -> bool {
        match self.0.load(Ordering::Relaxed) {
            0 => self.ask(ask),
            answer => answer == 2,
        }
    }

    #[cold]
    fn ask(&self, ask: fn() -> bool) -> bool {
        let answer = ask();
        self.0.store(if answer { 2 } else { 1 }, Ordering::Relaxed);
        answer
    }
}

/// Whether a chunk lies on whole cache lines, as stores past the caches want it.
#[inline(always)]
pub(super) fn is_aligned<T>(chunk: &[T; LANES]) -> bool {
    chunk.as_ptr().addr().is_multiple_of(64)
}

/// Asks for the lines of the chunk `ahead` elements after this one, into the cache that `HINT` names.
#[inline(always)]
pub(super) fn prefetch<T, const HINT: i32>(chunk: &[T; LANES], ahead: isize) {
    let soon = chunk.as_ptr().wrapping_offset(ahead).cast::<i8>();
    let mut at = 0;
    while at < size_of::<[T; LANES]>() {
        // SAFETY: every x86-64 has the instruction, which reads nothing and faults at no address.
        unsafe { _mm_prefetch::<HINT>(soon.wrapping_add(at)) };
        at += 64;
    }
}
