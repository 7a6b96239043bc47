//! Memory maps, and the other `unsafe` calls of this program.
//!
//! A mapping is sound as long as nobody shortens or changes the file while it is mapped. Another process
//! could; so could it with any program that maps files. A file shortened meanwhile raises SIGBUS, for which
//! `interrupt.rs` watches; one changed meanwhile gives mixed contents, which `Tensor::check_unchanged` refuses.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapMut, MmapOptions};

/// Bytes `offset .. offset + len` of a file, read-only. With `now`, they are read at once.
pub(super) fn read(file: &File, offset: u64, len: usize, now: bool) -> io::Result<Mmap> {
    let mut options = MmapOptions::new();
    options.offset(offset).len(len);
    if now {
        options.populate();
    }
    // SAFETY: the map is private to this program and only read; see the module for files that others change.
    unsafe { options.map(file) }
}

/// The first `len` bytes of a file that this program made and preallocated, for writing.
pub(crate) fn write(file: &File, len: usize) -> io::Result<MmapMut> {
    // SAFETY: the file is this program's own temporary file, mapped once, which nobody else writes.
    unsafe { MmapOptions::new().len(len).map_mut(file) }
}

/// Gives SIGBUS its default action, so that a handler added after it is the only one: Rust's runtime has one that
/// lets the signal end the program at once.
#[cfg(unix)]
pub(crate) fn reset_sigbus() {
    // SAFETY: the default action is no code of this program, and `signal` may be called by any thread.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Has all threads allocate from one arena: the C library reserves 128 MiB of addresses for each further one, more than
/// a whole call needs, and a limit on address space counts them.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn allocate_from_one_arena() {
    // SAFETY: sets an option of the allocator, which any thread may do at any time.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
