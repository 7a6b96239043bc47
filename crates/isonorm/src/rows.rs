//! Rows in memory: any leading dimensions with any strides, the last axis contiguous.
//!
//! [`Rows`] and [`RowsMut`] are what a caller gives; [`In`] and [`Out`] what a kernel reads and writes, once
//! `grid.rs` has brought all tensors of a call into one order.

use std::ops::Range;

use crate::element::Element;
use crate::grid::Place;
use crate::order::LANES;
use crate::slice::{Slice, SliceMut};

/// The most leading dimensions of a view.
pub const MAX_DIMS: usize = 8;

/// A tensor of rows that is read. `&[E]`, `&Vec<E>` and `&[E; N]` convert into one of contiguous rows.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub(crate) data: Slice<'a>,
    pub(crate) layout: Option<Layout<'a>>,
}

/// A tensor of rows that is written. `&mut [E]`, `&mut Vec<E>` and `&mut [E; N]` convert into one of contiguous rows.
#[derive(Debug)]
pub struct RowsMut<'a> {
    pub(crate) data: SliceMut<'a>,
    pub(crate) layout: Option<Layout<'a>>,
}

/// Leading dimensions of rows.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// Where the first row starts.
    pub offset: usize,
    /// Rows along each.
    pub shape: &'a [usize],
    /// Elements from a row to the next along each.
    pub strides: &'a [isize],
}

impl<'a> Rows<'a> {
    /// Rows whose leading dimensions have the given shape and strides, in elements; the first row starts at `offset`.
    ///
    /// Strides may be 0 or negative. Whether they fit the slice is checked by the call that uses the view.
    ///
    /// ```
    /// // q of a packed [tokens, (q, k, v), 4]: rows of 4, 12 elements apart.
    /// let qkv = [1.0f32; 24];
    /// let q = isonorm::Rows::strided(&qkv, 0, &[2], &[12]);
    /// let mut y = [0.0f32; 8];
    /// isonorm::RmsNorm::new(4).forward(q, &mut y)?;
    /// # Ok::<(), isonorm::Error>(())
    /// ```
    pub fn strided(data: impl Into<Slice<'a>>, offset: usize, shape: &'a [usize], strides: &'a [isize]) -> Self {
        Rows { data: data.into(), layout: Some(Layout { offset, shape, strides }) }
    }

    pub(crate) fn is_contiguous(&self, len: usize) -> bool {
        self.layout.is_none() && self.data.len() == len
    }
}

impl<'a> RowsMut<'a> {
    /// As [`Rows::strided`]; rows must not share elements.
    pub fn strided(data: impl Into<SliceMut<'a>>, offset: usize, shape: &'a [usize], strides: &'a [isize]) -> Self {
        RowsMut { data: data.into(), layout: Some(Layout { offset, shape, strides }) }
    }

    pub(crate) fn is_contiguous(&self, len: usize) -> bool {
        self.layout.is_none() && self.data.len() == len
    }
}

impl<'a, D: Into<Slice<'a>>> From<D> for Rows<'a> {
    fn from(data: D) -> Self {
        Rows { data: data.into(), layout: None }
    }
}

impl<'a, D: Into<SliceMut<'a>>> From<D> for RowsMut<'a> {
    fn from(data: D) -> Self {
        RowsMut { data: data.into(), layout: None }
    }
}

/// Rows of one type that are read.
#[derive(Clone, Copy)]
pub(crate) struct In<'a, T> {
    data: &'a [T],
    base: usize,
    place: Place<'a>,
}

/// Rows of one type that are written: `data` begins with element `base` of the tensor.
pub(crate) struct Out<'a, T> {
    data: &'a mut [T],
    base: usize,
    place: Place<'a>,
}

/// Some rows of an [`In`] that are crossed with one stride.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a, T> {
    data: &'a [T],
    start: usize,
    stride: isize,
}

/// Some rows of an [`Out`] that are crossed with one stride.
pub(crate) struct RunMut<'a, T> {
    data: &'a mut [T],
    start: usize,
    stride: isize,
}

impl<'a, T> Run<'a, T> {
    /// Elements `at..at + 32` of row `i` of the run.
    #[inline(always)]
    pub(crate) fn chunk(&self, i: usize, at: usize) -> &'a [T; LANES] {
        let start = self.start.wrapping_add_signed(i as isize * self.stride) + at;
        &self.data[start..start + LANES].as_chunks().0[0]
    }

    /// The first `hidden` elements of row `i` of the run.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize, hidden: usize) -> &'a [T] {
        &self.data[self.start.wrapping_add_signed(i as isize * self.stride)..][..hidden]
    }
}

impl<'a, T> Run<'a, T> {
    /// One row.
    pub(crate) fn one(data: &'a [T]) -> Self {
        Run { data, start: 0, stride: 0 }
    }
}

impl<'a, T> RunMut<'a, T> {
    /// One row.
    pub(crate) fn one(data: &'a mut [T]) -> Self {
        RunMut { data, start: 0, stride: 0 }
    }

    /// Elements `at..at + 32` of row `i` of the run.
    #[inline(always)]
    pub(crate) fn chunk_mut(&mut self, i: usize, at: usize) -> &mut [T; LANES] {
        let start = self.start.wrapping_add_signed(i as isize * self.stride) + at;
        &mut self.data[start..start + LANES].as_chunks_mut().0[0]
    }

    /// Rows `i..i + M` of the run, which has to be nested where M is more than 1.
    #[inline(always)]
    pub(crate) fn rows_mut<const M: usize>(&mut self, i: usize, hidden: usize) -> [&mut [T]; M] {
        let mut rest = &mut self.data[self.start.wrapping_add_signed(i as isize * self.stride)..];
        std::array::from_fn(|r| {
            let at = if r == 0 { 0 } else { self.stride as usize - hidden };
            let (row, others) = std::mem::take(&mut rest)[at..].split_at_mut(hidden);
            rest = others;
            row
        })
    }

    /// Whether rows of `hidden` elements follow one another.
    #[inline(always)]
    pub(crate) fn is_nested(&self, hidden: usize) -> bool {
        self.stride >= hidden as isize
    }

    /// The first `hidden` elements of row `i` of the run.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, i: usize, hidden: usize) -> &mut [T] {
        &mut self.data[self.start.wrapping_add_signed(i as isize * self.stride)..][..hidden]
    }
}

impl<'a, T> In<'a, T> {
    pub(crate) fn new(data: &'a [T], place: Place<'a>) -> Self {
        In { data, base: 0, place }
    }

    /// Contiguous rows of `hidden` elements, the first of which is row `first`.
    #[inline(always)]
    pub(crate) fn contiguous(data: &'a [T], hidden: usize, first: usize) -> Self {
        In { data, base: first * hidden, place: Place::contiguous(hidden) }
    }

    #[inline(always)]
    pub(crate) fn row(&self, r: usize) -> &'a [T] {
        &self.data[self.place.start(r) - self.base..][..self.place.hidden]
    }

    /// Rows from `r` on, as many as [`Out::run`] has.
    #[inline(always)]
    pub(crate) fn run(&self, r: usize) -> Run<'a, T> {
        let (_, stride) = self.place.run(r, 1);
        Run { data: self.data, start: self.place.start(r) - self.base, stride }
    }

    /// At most `most` rows from `r` on that are crossed with one stride, and how many they are.
    #[inline(always)]
    pub(crate) fn runs(&self, r: usize, most: usize) -> (Run<'a, T>, usize) {
        (self.run(r), self.place.run(r, most).0)
    }

    /// Elements from the start of row `from` to that of row `to`.
    #[inline(always)]
    pub(crate) fn distance(&self, from: usize, to: usize) -> isize {
        self.place.start(to).wrapping_sub(self.place.start(from)).cast_signed()
    }
}

impl<'a, T> Out<'a, T> {
    #[inline(always)]
    pub(crate) fn contiguous(data: &'a mut [T], hidden: usize) -> Self {
        Out { data, base: 0, place: Place::contiguous(hidden) }
    }

    pub(crate) fn new(data: &'a mut [T], place: Place<'a>) -> Self {
        Out { data, base: 0, place }
    }

    #[inline(always)]
    pub(crate) fn row_mut(&mut self, r: usize) -> &mut [T] {
        &mut self.data[self.place.start(r) - self.base..][..self.place.hidden]
    }

    /// At most `most` rows from `r` on that are crossed with one stride, and how many they are.
    #[inline(always)]
    pub(crate) fn run(&mut self, r: usize, most: usize) -> (RunMut<'_, T>, usize) {
        let (rows, stride) = self.place.run(r, most);
        (RunMut { data: self.data, start: self.place.start(r) - self.base, stride }, rows)
    }

    /// The same rows, borrowed for reading.
    #[inline(always)]
    pub(crate) fn as_in(&self) -> In<'_, T> {
        In { data: self.data, base: self.base, place: self.place }
    }

    /// The same rows, borrowed again for a shorter time.
    #[inline(always)]
    pub(crate) fn reborrow(&mut self) -> Out<'_, T> {
        Out { data: self.data, base: self.base, place: self.place }
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.place.is_nested()
    }

    /// Rows before `r`, which there is, and the rest; only where the walk is nested.
    pub(crate) fn split(self, r: usize) -> (Self, Self) {
        let (place, at) = (self.place, self.place.start(r) - self.base);
        let (left, right) = self.data.split_at_mut(at);
        (Out { data: left, base: self.base, place }, Out { data: right, base: self.base + at, place })
    }
}

/// Rows of any storage type that are read.
#[derive(Clone, Copy)]
pub(crate) struct AnyIn<'a> {
    data: Slice<'a>,
    base: usize,
    place: Place<'a>,
}

/// Rows of any storage type that are written.
pub(crate) struct AnyOut<'a> {
    data: SliceMut<'a>,
    base: usize,
    place: Place<'a>,
}

impl<'a> AnyIn<'a> {
    pub(crate) fn new(data: Slice<'a>, place: Place<'a>) -> Self {
        AnyIn { data, base: 0, place }
    }

    pub(crate) fn of<T: Element>(&self) -> Option<In<'a, T>> {
        T::of(&self.data).map(|data| In { data, base: self.base, place: self.place })
    }

    /// Elements `columns` of row `r`.
    pub(crate) fn row(&self, r: usize, columns: Range<usize>) -> Slice<'a> {
        self.data.part(self.place.start(r) - self.base + columns.start, columns.len())
    }
}

impl<'a> AnyOut<'a> {
    pub(crate) fn new(data: SliceMut<'a>, place: Place<'a>) -> Self {
        AnyOut { data, base: 0, place }
    }

    pub(crate) fn of<T: Element>(&mut self) -> Option<Out<'_, T>> {
        T::of_mut(self.data.reborrow()).map(|data| Out { data, base: self.base, place: self.place })
    }

    pub(crate) fn as_in(&self) -> AnyIn<'_> {
        AnyIn { data: self.data.as_slice(), base: self.base, place: self.place }
    }

    /// Elements `columns` of row `r`.
    pub(crate) fn row(&mut self, r: usize, columns: Range<usize>) -> SliceMut<'_> {
        let at = self.place.start(r) - self.base + columns.start;
        self.data.reborrow().part(at, columns.len())
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.place.is_nested()
    }

    /// Rows before `r`, which there is, and the rest; only where the walk is nested.
    pub(crate) fn split(self, r: usize) -> (Self, Self) {
        let (place, at) = (self.place, self.place.start(r) - self.base);
        let (left, right) = self.data.split(at);
        (AnyOut { data: left, base: self.base, place }, AnyOut { data: right, base: self.base + at, place })
    }
}
