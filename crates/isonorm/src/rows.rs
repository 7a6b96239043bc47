//! Rows in memory: any leading dimensions with any strides, the last axis contiguous.
//!
//! [`Rows`] and [`RowsMut`] are what a caller gives; [`In`] and [`Out`] what a kernel reads and writes, once
//! `grid.rs` has brought all tensors of a call into one order.

use std::ops::Range;

use crate::element::{Element, Slice, SliceMut};
use crate::grid::Place;

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

#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout<'a> {
    pub(crate) offset: usize,
    pub(crate) shape: &'a [usize],
    pub(crate) strides: &'a [isize],
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

impl<'a, T> In<'a, T> {
    pub(crate) fn one(row: &'a [T]) -> Self {
        In { data: row, base: 0, place: Place::one(row.len()) }
    }

    /// Contiguous rows, the first of which is row `base / hidden` of `place`.
    pub(crate) fn block(data: &'a [T], base: usize, place: Place<'a>) -> Self {
        In { data, base, place }
    }

    pub(crate) fn data(&self) -> &'a [T] {
        self.data
    }

    #[inline(always)]
    pub(crate) fn row(&self, r: usize) -> &'a [T] {
        &self.data[self.place.start(r) - self.base..][..self.place.hidden]
    }
}

impl<'a, T> Out<'a, T> {
    pub(crate) fn new(data: &'a mut [T], place: Place<'a>) -> Self {
        Out { data, base: 0, place }
    }

    pub(crate) fn one(row: &'a mut [T]) -> Self {
        let place = Place::one(row.len());
        Out { data: row, base: 0, place }
    }

    #[inline(always)]
    pub(crate) fn row_mut(&mut self, r: usize) -> &mut [T] {
        &mut self.data[self.place.start(r) - self.base..][..self.place.hidden]
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.place.is_nested()
    }

    /// Rows before `r`, and the rest; only where the walk is nested.
    pub(crate) fn split(self, r: usize) -> (Self, Self) {
        let place = self.place;
        let at = if r < place.grid.rows { place.start(r) - self.base } else { self.data.len() };
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

    /// Rows before `r`, and the rest; only where the walk is nested.
    pub(crate) fn split(self, r: usize) -> (Self, Self) {
        let place = self.place;
        let at = if r < place.grid.rows { place.start(r) - self.base } else { self.data.len() };
        let (left, right) = self.data.split(at);
        (AnyOut { data: left, base: self.base, place }, AnyOut { data: right, base: self.base + at, place })
    }
}
