//! Memory maps: the only `unsafe` of this program.
//!
//! A mapping is sound as long as nobody shortens or changes the file while it is mapped. Another process
//! could; so could it with any program that maps files. A file shortened meanwhile ends this program by
//! SIGBUS, with its temporary output left behind; a file changed meanwhile gives a result of mixed contents.
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
