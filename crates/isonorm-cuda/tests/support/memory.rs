//! Rows as they lie in a GPU's memory: any stride, any alignment.
#![allow(unsafe_code)]

use half::{bf16, f16};
use isonorm::DType;
use isonorm_cuda::kernels::Tensor as Argument;
use isonorm_testing::DType as Name;

use super::core::Tensor;

/// Rows of a tensor, `stride` elements apart, the first one `offset` elements after a multiple of 16 bytes. All else
/// has bits that no kernel may touch.
pub(crate) struct Memory {
    words: Vec<u128>,
    layout: Layout,
    dtype: Name,
    rows: usize,
    hidden: usize,
}

/// Where rows lie: elements from one to the next, and before the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) stride: usize,
    pub(crate) offset: usize,
}

/// Elements behind the last row.
const GUARD: usize = 40;
/// Bytes of what is not a row's.
const FILL: u8 = 0xA5;

impl Memory {
    /// A tensor's rows in this layout.
    pub(crate) fn new(tensor: &Tensor, hidden: usize, layout: Layout) -> Self {
        let rows = tensor.len() / hidden;
        let mut memory = Self::empty(tensor.dtype(), rows, hidden, layout);
        let size = memory.size();
        for at in 0..tensor.len() {
            let bits = tensor.bits(at).to_le_bytes();
            let start = memory.byte(at / hidden, at % hidden);
            memory.bytes_mut()[start..start + size].copy_from_slice(&bits[..size]);
        }
        memory
    }

    /// Rows to be written.
    pub(crate) fn empty(dtype: Name, rows: usize, hidden: usize, layout: Layout) -> Self {
        let elements = layout.offset + rows * layout.stride + hidden + GUARD;
        let words = elements * dtype.digits() / 2 / 16 + 1;
        Memory { words: vec![u128::from_ne_bytes([FILL; 16]); words], layout, dtype, rows, hidden }
    }

    /// As a kernel takes it.
    pub(crate) fn argument(&mut self) -> Argument {
        let start = self.byte(0, 0);
        let data = self.bytes_mut()[start..].as_mut_ptr();
        Argument::new(data.cast(), dtype(self.dtype), self.layout.stride as i64, 0)
    }

    /// The rows; panics if anything beside them was written.
    pub(crate) fn rows(&self) -> Tensor {
        let (bytes, size) = (self.bytes(), self.size());
        let mut untouched = bytes.to_vec();
        let mut values = Vec::new();
        for row in 0..self.rows {
            let start = self.byte(row, 0);
            untouched[start..start + self.hidden * size].fill(FILL);
            values.extend_from_slice(&bytes[start..start + self.hidden * size]);
        }
        assert!(untouched.iter().all(|byte| *byte == FILL), "something beside the rows was written");
        tensor(self.dtype, &values)
    }

    fn size(&self) -> usize {
        self.dtype.digits() / 2
    }

    fn byte(&self, row: usize, column: usize) -> usize {
        (self.layout.offset + row * self.layout.stride + column) * self.size()
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: words are bytes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.words.len() * 16) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: words are bytes, and any bytes are words.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.words.len() * 16) }
    }
}

/// A tensor as a kernel takes it, or none.
pub(crate) fn argument(memory: &mut Option<Memory>) -> Argument {
    memory.as_mut().map_or(Argument::NONE, Memory::argument)
}

/// The core's name of a type.
pub(crate) fn dtype(name: Name) -> DType {
    match name {
        Name::F32 => DType::F32,
        Name::F64 => DType::F64,
        Name::F16 => DType::F16,
        Name::Bf16 => DType::Bf16,
    }
}

/// A tensor of these bytes.
pub(crate) fn tensor(dtype: Name, bytes: &[u8]) -> Tensor {
    match dtype {
        Name::F32 => Tensor::F32(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Name::F64 => Tensor::F64(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
        Name::F16 => Tensor::F16(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
        Name::Bf16 => Tensor::Bf16(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect()),
    }
}
