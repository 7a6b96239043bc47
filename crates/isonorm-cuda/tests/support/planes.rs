//! Samples of channels as they lie in a GPU's memory: any strides, any alignment.
#![allow(unsafe_code)]

use isonorm_cuda::kernels::Planes;
use isonorm_testing::DType;
use isonorm_testing::oracle::forward::Channels;

use super::core::Tensor;
use super::memory::{dtype, tensor};

/// Elements between channels, positions and samples, and before the first one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlaneLayout {
    pub(crate) strides: [usize; 3],
    pub(crate) offset: usize,
}

impl PlaneLayout {
    /// Channel after channel.
    pub(crate) fn first(shape: Channels) -> Self {
        PlaneLayout { strides: [shape.channels * shape.spatial, shape.spatial, 1], offset: 0 }
    }

    /// Position after position.
    pub(crate) fn last(shape: Channels) -> Self {
        PlaneLayout { strides: [shape.channels * shape.spatial, 1, shape.channels], offset: 0 }
    }

    /// Room between samples and between channels, and a start that no vector has.
    pub(crate) fn with_gaps(shape: Channels) -> Self {
        let channel = shape.spatial + 3;
        PlaneLayout { strides: [shape.channels * channel + 5, channel, 1], offset: 1 }
    }

    /// Room between samples and between positions.
    pub(crate) fn last_with_gaps(shape: Channels) -> Self {
        let position = shape.channels.next_multiple_of(8) + 8;
        PlaneLayout { strides: [shape.spatial * position, 1, position], offset: 8 }
    }

    pub(crate) fn is_last(&self) -> bool {
        self.strides[1] == 1
    }
}

/// A tensor in logical order, placed. All else has bits that no kernel may touch.
pub(crate) struct PlaneMemory {
    words: Vec<u128>,
    dtype: DType,
    strides: [i64; 3],
    /// Of each element in logical order, in elements.
    places: Vec<usize>,
}

/// Elements behind the last one.
const GUARD: usize = 40;
/// Bytes of what is not the tensor's.
const FILL: u8 = 0xA5;

impl PlaneMemory {
    pub(crate) fn new(tensor: &Tensor, shape: Channels, layout: PlaneLayout) -> Self {
        let mut memory = Self::empty(tensor.dtype(), shape, layout);
        let size = memory.size();
        for at in 0..tensor.len() {
            let (bits, start) = (tensor.bits(at).to_le_bytes(), memory.places[at] * size);
            memory.bytes_mut()[start..start + size].copy_from_slice(&bits[..size]);
        }
        memory
    }

    /// To be written.
    pub(crate) fn empty(dtype: DType, shape: Channels, PlaneLayout { strides, offset }: PlaneLayout) -> Self {
        let Channels { samples, channels, spatial } = shape;
        let [sample, channel, position] = strides;
        let planes = (0..samples).flat_map(|n| (0..channels).map(move |c| offset + n * sample + c * channel));
        let places: Vec<usize> = planes.flat_map(|plane| (0..spatial).map(move |p| plane + p * position)).collect();
        let elements = places.iter().max().map_or(0, |last| last + 1) + GUARD;
        let words = vec![u128::from_ne_bytes([FILL; 16]); elements * dtype.digits() / 2 / 16 + 1];
        PlaneMemory { words, dtype, strides: strides.map(|stride| stride as i64), places }
    }

    /// As a kernel takes it.
    pub(crate) fn argument(&mut self) -> Planes {
        let (own, strides) = (self.dtype, self.strides);
        let start = self.places.first().map_or(0, |place| place * self.size());
        Planes::new(self.bytes_mut()[start..].as_mut_ptr().cast(), dtype(own), strides)
    }

    /// The tensor in logical order; panics if anything beside it was written.
    pub(crate) fn tensor(&self) -> Tensor {
        let (bytes, size) = (self.bytes(), self.size());
        let mut untouched = bytes.to_vec();
        let mut values = Vec::new();
        for place in &self.places {
            let element = place * size..(place + 1) * size;
            untouched[element.clone()].fill(FILL);
            values.extend_from_slice(&bytes[element]);
        }
        assert!(untouched.iter().all(|byte| *byte == FILL), "something beside the planes was written");
        tensor(self.dtype, &values)
    }

    fn size(&self) -> usize {
        self.dtype.digits() / 2
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
