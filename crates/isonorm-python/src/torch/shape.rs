//! Sizes and strides: what can be read in place, as rows or as planes of channels.
#![allow(unsafe_code)]

use isonorm::MAX_DIMS;

use super::tensor::Dims;

/// Of one tensor, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape<'a> {
    pub(super) sizes: &'a [i64],
    pub(super) strides: &'a [i64],
}

impl<'a> Shape<'a> {
    /// # Safety
    ///
    /// Both have `dims` elements and live as long as `'a`.
    pub(super) unsafe fn from_raw(sizes: *const i64, strides: *const i64, dims: usize) -> Shape<'a> {
        if dims == 0 {
            return Shape { sizes: &[], strides: &[] };
        }
        // SAFETY: by the caller's word.
        let sizes = unsafe { std::slice::from_raw_parts(sizes, dims) };
        // SAFETY: by the caller's word.
        let strides = unsafe { std::slice::from_raw_parts(strides, dims) };
        Shape { sizes, strides }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sizes.contains(&0)
    }

    /// Elements from the first to the last in memory.
    pub(super) fn span(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        1 + self.sizes.iter().zip(self.strides).map(|(size, stride)| ((size - 1) * stride) as usize).sum::<usize>()
    }

    /// Whether elements follow one another in memory as their indices do.
    pub(super) fn is_contiguous(&self) -> bool {
        self.is_dense(0..self.sizes.len())
    }

    /// Whether the last `dims` dimensions do, so that they are the rows of a norm.
    pub(super) fn has_rows(&self, dims: usize) -> bool {
        let leading = self.sizes.len() - dims;
        self.is_contiguous() || (leading <= MAX_DIMS && self.is_dense(leading..self.sizes.len()))
    }

    /// Whether all dimensions but the last `dims` are crossed with two strides: one for the last of them, and one for all
    /// before it. Tensors of one call then share such strides.
    pub(super) fn has_two_strides(&self, dims: usize) -> bool {
        let outer = self.sizes.len().saturating_sub(dims + 1);
        let mut expected = None;
        self.is_contiguous()
            || (0..outer).rev().filter(|d| self.sizes[*d] != 1).all(|d| {
                let fits = expected.is_none_or(|expected| expected == self.strides[d]);
                expected = Some(self.strides[d] * self.sizes[d]);
                fits
            })
    }

    /// Whether channels, dimension 1, lie side by side, positions after one another and samples after these.
    pub(super) fn is_channels_last(&self) -> bool {
        let dims = self.sizes.len();
        dims > 2 && self.is_dense([0].into_iter().chain(2..dims).chain([1]))
    }

    /// Whether these dimensions, outermost first, lie in memory without gaps.
    fn is_dense(&self, order: impl DoubleEndedIterator<Item = usize>) -> bool {
        let mut expected = 1;
        self.is_empty()
            || order.rev().all(|d| {
                let fits = self.sizes[d] == 1 || self.strides[d] == expected;
                expected *= self.sizes[d];
                fits
            })
    }

    /// Whether the elements of `other` are in the same places.
    pub(super) fn is_same(&self, other: &Shape<'_>) -> bool {
        let strides = self.strides.iter().zip(other.strides).zip(self.sizes);
        self.sizes == other.sizes && strides.into_iter().all(|((own, other), size)| own == other || *size == 1)
    }
}

/// Of a tensor whose elements follow one another.
pub(super) fn contiguous_strides(sizes: &[i64]) -> Dims {
    strides(sizes, 0..sizes.len())
}

/// Of a tensor whose channels lie side by side.
pub(super) fn channels_last_strides(sizes: &[i64]) -> Dims {
    strides(sizes, [0].into_iter().chain(2..sizes.len()).chain([1]))
}

/// Of dimensions that lie in memory in this order, outermost first.
fn strides(sizes: &[i64], order: impl DoubleEndedIterator<Item = usize>) -> Dims {
    let (mut strides, mut next) = (sizes.iter().map(|_| 1).collect::<Dims>(), 1);
    for d in order.rev() {
        strides[d] = next;
        next *= sizes[d].max(1);
    }
    strides
}
