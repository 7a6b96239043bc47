//! Memory for large results. It is new at most calls, since the allocator gives blocks this large back to the system,
//! so each page has to be cleared by the kernel when it is first written, which takes longer than the norm:
//! RMSNorm 4096 x 4096 f32 took 42 ms so and 14 ms with pages asked for beforehand, in large ones where the system has
//! them (one thread, fastest of 12 rounds, Intel Xeon, November 2026; 7.6 ms into memory that is in use already).
#![allow(unsafe_code)]

use std::ffi::c_void;

/// Bytes from which the core writes past the caches, where pages that were just cleared would be.
const LARGE: usize = 16 << 20;

/// Asks for the pages of `bytes` bytes at `start`, which a kernel is about to write.
#[cfg(target_os = "linux")]
pub(super) fn ask_for(start: *mut c_void, bytes: usize) {
    use std::ffi::c_int;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use isonorm::Pool;

    use super::pool::TorchPool;

    const HUGEPAGE: c_int = 14;
    const POPULATE_WRITE: c_int = 23;
    const PAGE: usize = 4 << 10;
    const PIECE: usize = 8 << 20;

    unsafe extern "C" {
        fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int;
        fn mincore(start: *mut c_void, bytes: usize, is_there: *mut u8) -> c_int;
    }

    if bytes < LARGE {
        return;
    }
    let (first, end) = (start.addr().next_multiple_of(PAGE), (start.addr() + bytes) / PAGE * PAGE);
    let advise = |from: usize, to: usize, advice| {
        // SAFETY: the pages are wholly within the tensor's own memory, and neither advice changes what they hold.
        // A system that does not know an advice refuses it, and nothing is lost.
        unsafe { madvise(std::ptr::without_provenance_mut(from), to - from, advice) }
    };
    let is_there = |page: usize| {
        let mut answer = 0u8;
        // SAFETY: the page is within the tensor's own memory; one byte is written for it.
        let status = unsafe { mincore(std::ptr::without_provenance_mut(page), PAGE, &mut answer) };
        status == 0 && answer & 1 != 0
    };
    // A block that the allocator kept has its pages, and one that is new has none: three of them tell.
    if [first, first + (end - first) / 2 / PAGE * PAGE, end - PAGE].into_iter().all(is_there) {
        return;
    }
    advise(first, end, HUGEPAGE);
    let next = AtomicUsize::new(first);
    TorchPool.run(TorchPool.threads(), &|| {
        loop {
            let from = next.fetch_add(PIECE, Ordering::Relaxed);
            if from >= end || advise(from, (from + PIECE).min(end), POPULATE_WRITE) != 0 {
                return;
            }
        }
    });
}

/// Other systems have no such advice.
#[cfg(not(target_os = "linux"))]
pub(super) fn ask_for(_: *mut c_void, _: usize) {}
