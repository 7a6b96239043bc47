//! Bytes as typed elements: buffers aligned for every type, and views of a map without a copy.

use bytemuck::{Pod, cast_slice, cast_slice_mut, try_cast_slice};
use isonorm::{DType, Slice, SliceMut};
use memmap2::{Mmap, MmapMut};

/// Runs `$body` with `$T` as the Rust type of a storage type, giving the library's slice of it.
macro_rules! typed {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            DType::F16 => {
                type $T = half::f16;
                $body
            }
            DType::Bf16 => {
                type $T = half::bf16;
                $body
            }
        }
    };
}

/// Bytes as elements; `None` where they are not aligned or not a whole number of elements.
pub(super) fn view(dtype: DType, bytes: &[u8]) -> Option<Slice<'_>> {
    typed!(dtype, T => try_cast_slice::<u8, T>(bytes).ok().map(Slice::from))
}

/// Aligned bytes as elements to write to.
fn view_mut(dtype: DType, bytes: &mut [u8]) -> SliceMut<'_> {
    typed!(dtype, T => SliceMut::from(cast_slice_mut::<u8, T>(bytes)))
}

/// Elements of a type, aligned, in memory of their own or in a map.
#[derive(Debug)]
pub struct Buffer {
    dtype: DType,
    len: usize,
    store: Store,
}

#[derive(Debug)]
enum Store {
    /// 8-byte words, so that every type is aligned.
    Words(Vec<u64>),
    /// A window of an input, where it is aligned.
    Read(Mmap),
    /// A file to write to, and the byte where the elements begin: an output, or scratch.
    File(MmapMut, usize),
}

impl Buffer {
    /// `len` elements of zero.
    pub fn zeroed(dtype: DType, len: usize) -> Self {
        Buffer { dtype, len, store: Store::Words(vec![0; (len * dtype.size()).div_ceil(8)]) }
    }

    /// `len` elements from byte `start` of a file's map on, a multiple of 8, so that every type is aligned.
    pub(crate) fn file(dtype: DType, len: usize, map: MmapMut, start: usize) -> Self {
        Buffer { dtype, len, store: Store::File(map, start) }
    }

    /// A copy of bytes, which must be a whole number of elements.
    pub fn copied(dtype: DType, bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(dtype, bytes.len() / dtype.size());
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    /// The elements of a map, without a copy where they are aligned.
    pub(super) fn mapped(dtype: DType, map: Mmap) -> Self {
        if view(dtype, &map).is_some() {
            Buffer { dtype, len: map.len() / dtype.size(), store: Store::Read(map) }
        } else {
            Self::copied(dtype, &map)
        }
    }

    /// Values, held in a type.
    pub fn of<T: Pod>(dtype: DType, values: &[T]) -> Self {
        Self::copied(dtype, cast_slice(values))
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps only the first `len` elements in view; for the last, shorter block of a tensor.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.capacity());
    }

    fn capacity(&self) -> usize {
        let bytes = match &self.store {
            Store::Words(words) => words.len() * 8,
            Store::Read(map) => map.len(),
            Store::File(map, start) => map.len() - start,
        };
        bytes / self.dtype.size()
    }

    /// The bytes of the elements.
    pub fn bytes(&self) -> &[u8] {
        let all: &[u8] = match &self.store {
            Store::Words(words) => cast_slice(words),
            Store::Read(map) => map,
            Store::File(map, start) => &map[*start..],
        };
        &all[..self.len * self.dtype.size()]
    }

    /// The bytes of the elements, to write to. A window of an input is copied first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        if let Store::Read(map) = &self.store {
            *self = Self::copied(self.dtype, map);
        }
        let all: &mut [u8] = match &mut self.store {
            Store::Words(words) => cast_slice_mut(words),
            Store::Read(_) => &mut [],
            Store::File(map, start) => &mut map[*start..],
        };
        &mut all[..self.len * self.dtype.size()]
    }

    /// The elements.
    pub fn slice(&self) -> Slice<'_> {
        let bytes = self.bytes();
        typed!(self.dtype, T => Slice::from(cast_slice::<u8, T>(bytes)))
    }

    /// The elements, to write to.
    pub fn slice_mut(&mut self) -> SliceMut<'_> {
        let dtype = self.dtype;
        view_mut(dtype, self.bytes_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_aligned_and_keeps_its_length() {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::Bf16] {
            for len in [0, 1, 3, 8] {
                let mut buffer = Buffer::zeroed(dtype, len);
                assert_eq!((buffer.slice().len(), buffer.slice().dtype()), (len, dtype));
                assert_eq!(buffer.slice_mut().len(), len);
                assert_eq!(buffer.bytes().len(), len * dtype.size());
            }
        }
    }
}
