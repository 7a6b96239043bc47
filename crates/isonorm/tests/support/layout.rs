//! Rows laid out at random in a larger slice, and what an output there must hold.

use isonorm_testing::values::SplitMix64;

use super::{Tensor, assert_same_bits};

/// Leading dimensions at random in a slice of `len` elements.
pub(crate) struct Layout {
    pub(crate) offset: usize,
    pub(crate) strides: Vec<isize>,
    pub(crate) len: usize,
}

impl Layout {
    /// Rows of their own: any order of the dimensions in memory, any direction, gaps.
    pub(crate) fn of_an_output(shape: &[usize], hidden: usize, source: &mut SplitMix64) -> Self {
        let mut order: Vec<usize> = (0..shape.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, source.below(i + 1));
        }
        let (mut strides, mut room) = (vec![0isize; shape.len()], hidden);
        for d in order {
            room += source.below(4);
            strides[d] = room as isize;
            room *= shape[d];
        }
        let mut offset = source.below(5);
        for (stride, len) in strides.iter_mut().zip(shape) {
            if source.below(3) == 0 {
                offset += (len - 1) * *stride as usize;
                *stride = -*stride;
            }
        }
        Layout { offset, strides, len: room + 8 }
    }

    /// As an output's, or rows that share elements: strides of 0, or shorter than a row.
    pub(crate) fn of_an_input(shape: &[usize], hidden: usize, source: &mut SplitMix64) -> Self {
        let mut layout = Self::of_an_output(shape, hidden, source);
        for (stride, len) in layout.strides.iter_mut().zip(shape) {
            if source.below(4) == 0 {
                if *stride < 0 {
                    layout.offset -= (len - 1) * stride.unsigned_abs();
                }
                *stride = (source.below(3) as isize).min(*stride);
                *stride = (*stride).max(0);
            }
        }
        layout
    }

    /// The elements of all rows, in logical order.
    pub(crate) fn places(&self, shape: &[usize], hidden: usize) -> Vec<usize> {
        let rows: usize = shape.iter().product();
        let mut places = Vec::new();
        for r in 0..rows {
            let (mut rest, mut start) = (r, self.offset as isize);
            for d in (0..shape.len()).rev() {
                start += (rest % shape[d]) as isize * self.strides[d];
                rest /= shape[d];
            }
            places.extend((0..hidden).map(|i| start as usize + i));
        }
        places
    }

    /// A tensor whose rows are those of `x`, with sentinels between them.
    pub(crate) fn holding(&self, x: &Tensor, shape: &[usize], hidden: usize) -> Tensor {
        let mut array = Tensor::sentinel(x.dtype(), self.len).array();
        for (from, to) in self.places(shape, hidden).into_iter().enumerate() {
            array.bits[to] = x.bits(from);
        }
        Tensor::new(&array)
    }
}

/// The rows of `y` are as expected, and nothing else of it was written.
pub(crate) fn check_output(
    label: &dyn std::fmt::Display,
    expected: &Tensor,
    y: &Tensor,
    places: &[usize],
    hidden: usize,
) {
    assert_same_bits(label, hidden, expected, &y.gather(places.iter().copied()));
    let mut free = vec![true; y.len()];
    places.iter().for_each(|at| free[*at] = false);
    (0..y.len()).filter(|at| free[*at]).for_each(|at| assert_untouched(label, y, at));
}

pub(crate) fn assert_untouched(label: &dyn std::fmt::Display, tensor: &Tensor, at: usize) {
    let sentinel = Tensor::sentinel(tensor.dtype(), 1).bits(0);
    assert_eq!(tensor.bits(at), sentinel, "{label}: element {at}, which belongs to no row, was written");
}
