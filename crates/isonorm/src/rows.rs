//! Rows in memory: any leading dimensions with any strides, the last axis contiguous.
//!
//! Views of several tensors walk the same grid of rows. The grid is put into the order in which the output
//! lies in memory, so that it can be cut into disjoint mutable pieces for threads.

use std::ops::Range;

use crate::element::{Element, Slice, SliceMut};
use crate::error::Error;

/// The most leading dimensions of a view.
pub const MAX_DIMS: usize = 8;

/// A tensor of rows that is read. `&[E]`, `&Vec<E>` and `&[E; N]` convert into one of contiguous rows.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    pub(crate) data: Slice<'a>,
    layout: Option<Layout>,
}

/// A tensor of rows that is written. `&mut [E]`, `&mut Vec<E>` and `&mut [E; N]` convert into one of contiguous rows.
#[derive(Debug)]
pub struct RowsMut<'a> {
    pub(crate) data: SliceMut<'a>,
    layout: Option<Layout>,
}

#[derive(Clone, Debug)]
struct Layout {
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<isize>,
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
    pub fn strided(data: impl Into<Slice<'a>>, offset: usize, shape: &[usize], strides: &[isize]) -> Self {
        let layout = Layout { offset, shape: shape.to_vec(), strides: strides.to_vec() };
        Rows { data: data.into(), layout: Some(layout) }
    }
}

impl<'a> RowsMut<'a> {
    /// As [`Rows::strided`]; rows must not share elements.
    pub fn strided(data: impl Into<SliceMut<'a>>, offset: usize, shape: &[usize], strides: &[isize]) -> Self {
        let layout = Layout { offset, shape: shape.to_vec(), strides: strides.to_vec() };
        RowsMut { data: data.into(), layout: Some(layout) }
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

/// The leading shape shared by all tensors of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Grid {
    lens: [usize; MAX_DIMS],
    dims: usize,
    pub(crate) rows: usize,
}

/// Where each row of one tensor starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    grid: Grid,
    strides: [isize; MAX_DIMS],
    offset: usize,
    pub(crate) hidden: usize,
}

impl Grid {
    pub(crate) fn of(rows: usize) -> Self {
        let mut lens = [1; MAX_DIMS];
        lens[0] = rows;
        Grid { lens, dims: 1, rows }
    }

    fn shape(&self) -> Vec<usize> {
        self.lens[..self.dims].to_vec()
    }
}

/// One tensor of a call, before the grid is known.
pub(crate) struct Tensor<'t> {
    pub(crate) name: &'static str,
    len: usize,
    layout: Option<&'t Layout>,
}

impl Tensor<'_> {
    pub(crate) fn plain(name: &'static str, len: usize) -> Tensor<'static> {
        Tensor { name, len, layout: None }
    }

    pub(crate) fn read<'t>(name: &'static str, rows: &'t Rows<'_>) -> Tensor<'t> {
        Tensor { name, len: rows.data.len(), layout: rows.layout.as_ref() }
    }

    pub(crate) fn write<'t>(name: &'static str, rows: &'t RowsMut<'_>) -> Tensor<'t> {
        Tensor { name, len: rows.data.len(), layout: rows.layout.as_ref() }
    }

    /// The grid that this tensor gives the call.
    pub(crate) fn grid(&self, hidden: usize) -> Result<Grid, Error> {
        let name = self.name;
        let Some(layout) = self.layout else {
            if self.len % hidden.max(1) != 0 || (hidden == 0 && self.len > 0) {
                return Err(Error::NotWhole { name, what: "rows", found: self.len, size: hidden });
            }
            return Ok(Grid::of(self.len.checked_div(hidden).unwrap_or(0)));
        };
        let (dims, strides) = (layout.shape.len(), layout.strides.len());
        if dims > MAX_DIMS || dims != strides {
            return Err(Error::Dims { name, dims, strides, most: MAX_DIMS });
        }
        let mut lens = [1; MAX_DIMS];
        lens[..dims].copy_from_slice(&layout.shape);
        let rows = if lens.contains(&0) { Some(0) } else { lens.iter().try_fold(1usize, |n, len| n.checked_mul(*len)) };
        let rows = rows.ok_or(Error::OutOfBounds { name, reaches: i128::MAX, len: self.len })?;
        Ok(Grid { lens, dims, rows })
    }

    /// Whether its own layout gives a shape that others must follow.
    pub(crate) fn is_strided(&self) -> bool {
        self.layout.is_some()
    }

    /// Its walk over `grid`, which came from the tensor named `like`.
    pub(crate) fn walk(&self, grid: Grid, hidden: usize, like: &'static str) -> Result<Walk, Error> {
        let own = self.grid(hidden)?;
        let same = if self.is_strided() { own == grid } else { own.rows == grid.rows };
        if !same && (own.rows, grid.rows) != (0, 0) {
            let row = |grid: Grid| grid.shape().into_iter().chain([hidden]).collect();
            return Err(Error::Shape { name: self.name, like, expected: row(grid), found: row(own) });
        }
        let mut strides = [0; MAX_DIMS];
        let mut offset = 0;
        if let Some(layout) = self.layout {
            strides[..grid.dims].copy_from_slice(&layout.strides);
            offset = layout.offset;
        } else {
            let mut stride = hidden as isize;
            for d in (0..grid.dims).rev() {
                strides[d] = stride;
                stride = stride.saturating_mul(grid.lens[d] as isize);
            }
        }
        let walk = Walk { grid, strides, offset, hidden };
        walk.check_bounds(self.name, self.len)?;
        Ok(walk)
    }
}

impl Walk {
    pub(crate) fn rows(&self) -> usize {
        self.grid.rows
    }

    /// Row `r` starts at this element.
    #[inline(always)]
    pub(crate) fn start(&self, r: usize) -> usize {
        if self.grid.dims == 1 {
            return self.offset.wrapping_add_signed(r as isize * self.strides[0]);
        }
        self.start_in_grid(r)
    }

    fn start_in_grid(&self, r: usize) -> usize {
        let (mut r, mut at) = (r, self.offset);
        for d in (0..self.grid.dims).rev() {
            at = at.wrapping_add_signed((r % self.grid.lens[d]) as isize * self.strides[d]);
            r /= self.grid.lens[d];
        }
        at
    }

    fn check_bounds(&self, name: &'static str, len: usize) -> Result<(), Error> {
        if self.grid.rows == 0 {
            return Ok(());
        }
        let (mut low, mut high) = (self.offset as i128, self.offset as i128 + self.hidden as i128);
        for d in 0..self.grid.dims {
            let reach = (self.grid.lens[d] as i128 - 1) * self.strides[d] as i128;
            if reach < 0 { low += reach } else { high += reach }
        }
        if low < 0 {
            return Err(Error::OutOfBounds { name, reaches: -1, len });
        }
        if high > len as i128 {
            return Err(Error::OutOfBounds { name, reaches: high - 1, len });
        }
        Ok(())
    }

    /// Whether rows follow one another in memory in the grid's order, without sharing elements.
    pub(crate) fn is_nested(&self) -> bool {
        let mut extent = self.hidden as isize;
        for d in (0..self.grid.dims).rev() {
            if self.grid.lens[d] == 1 {
                continue;
            }
            if self.strides[d] < extent {
                return false;
            }
            extent = extent.saturating_add(self.strides[d].saturating_mul(self.grid.lens[d] as isize - 1));
        }
        true
    }

    /// The error of an output that is not nested in any order.
    pub(crate) fn check_own_rows(mut self, name: &'static str) -> Result<(), Error> {
        let given = self;
        arrange(&mut [&mut self]);
        if self.is_nested() || self.grid.rows == 0 {
            return Ok(());
        }
        let dims = given.grid.dims;
        Err(Error::Overlap { name, shape: given.grid.shape(), strides: given.strides[..dims].to_vec() })
    }
}

/// Puts the grid of all walks into the order in which the first of them lies in memory, and joins
/// dimensions that all of them cross with one stride.
pub(crate) fn arrange(walks: &mut [&mut Walk]) {
    let mut dims = walks[0].grid.dims;
    for d in 0..dims {
        if walks[0].strides[d] < 0 {
            for walk in walks.iter_mut() {
                let last = (walk.grid.lens[d].saturating_sub(1)) as isize;
                walk.offset = walk.offset.wrapping_add_signed(last * walk.strides[d]);
                walk.strides[d] = -walk.strides[d];
            }
        }
    }
    for d in 1..dims {
        let mut at = d;
        while at > 0 && walks[0].strides[at - 1] < walks[0].strides[at] {
            for walk in walks.iter_mut() {
                walk.strides.swap(at - 1, at);
                walk.grid.lens.swap(at - 1, at);
            }
            at -= 1;
        }
    }
    let mut d = 1;
    while d < dims {
        let len = walks[0].grid.lens[d] as isize;
        let joins = |walk: &&mut Walk| walk.strides[d - 1] == walk.strides[d].saturating_mul(len);
        if len == 1 || walks[0].grid.lens[d - 1] == 1 || walks.iter().all(joins) {
            let outer_is_one = walks[0].grid.lens[d - 1] == 1;
            for walk in walks.iter_mut() {
                walk.join(d, len == 1 && !outer_is_one);
            }
            dims -= 1;
        } else {
            d += 1;
        }
    }
}

impl Walk {
    /// Makes one of dimensions d - 1 and d; the stride is d's, or d - 1's where d has length 1.
    fn join(&mut self, d: usize, keep_outer: bool) {
        let stride = if keep_outer { self.strides[d - 1] } else { self.strides[d] };
        let len = self.grid.lens[d - 1] * self.grid.lens[d];
        self.strides.copy_within(d.., d - 1);
        self.grid.lens.copy_within(d.., d - 1);
        (self.strides[d - 1], self.grid.lens[d - 1]) = (stride, len);
        self.grid.dims -= 1;
    }

    /// One row of `hidden` elements at the start of a slice.
    pub(crate) fn one(hidden: usize) -> Self {
        Walk { grid: Grid::of(1), strides: [0; MAX_DIMS], offset: 0, hidden }
    }
}

/// Rows of one type that are read.
#[derive(Clone, Copy)]
pub(crate) struct In<'a, T> {
    data: &'a [T],
    base: usize,
    walk: Walk,
}

/// Rows of one type that are written: `data` begins with element `base` of the tensor.
pub(crate) struct Out<'a, T> {
    data: &'a mut [T],
    base: usize,
    walk: Walk,
}

impl<'a, T> In<'a, T> {
    pub(crate) fn new(data: &'a [T], walk: Walk) -> Self {
        In { data, base: 0, walk }
    }

    pub(crate) fn one(row: &'a [T]) -> Self {
        In { data: row, base: 0, walk: Walk::one(row.len()) }
    }

    #[inline(always)]
    pub(crate) fn row(&self, r: usize) -> &'a [T] {
        &self.data[self.walk.start(r) - self.base..][..self.walk.hidden]
    }
}

impl<'a, T> Out<'a, T> {
    pub(crate) fn new(data: &'a mut [T], walk: Walk) -> Self {
        Out { data, base: 0, walk }
    }

    pub(crate) fn one(row: &'a mut [T]) -> Self {
        let walk = Walk::one(row.len());
        Out { data: row, base: 0, walk }
    }

    #[inline(always)]
    pub(crate) fn row_mut(&mut self, r: usize) -> &mut [T] {
        &mut self.data[self.walk.start(r) - self.base..][..self.walk.hidden]
    }

    pub(crate) fn reborrow(&mut self) -> Out<'_, T> {
        Out { data: self.data, base: self.base, walk: self.walk }
    }

    pub(crate) fn as_in(&self) -> In<'_, T> {
        In { data: self.data, base: self.base, walk: self.walk }
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.walk.is_nested()
    }

    /// Rows before `r`, and the rest; only where the walk is nested.
    pub(crate) fn split(self, r: usize) -> (Self, Self) {
        let at = if r < self.walk.grid.rows { self.walk.start(r) - self.base } else { self.data.len() };
        let (left, right) = self.data.split_at_mut(at);
        let walk = self.walk;
        (Out { data: left, base: self.base, walk }, Out { data: right, base: self.base + at, walk })
    }
}

/// Rows of any storage type that are read.
#[derive(Clone, Copy)]
pub(crate) struct AnyIn<'a> {
    pub(crate) data: Slice<'a>,
    base: usize,
    walk: Walk,
}

impl<'a> AnyIn<'a> {
    pub(crate) fn new(data: Slice<'a>, walk: Walk) -> Self {
        AnyIn { data, base: 0, walk }
    }

    pub(crate) fn of<T: Element>(&self) -> Option<In<'a, T>> {
        T::of(&self.data).map(|data| In { data, base: self.base, walk: self.walk })
    }

    /// Elements `columns` of row `r`.
    pub(crate) fn row(&self, r: usize, columns: Range<usize>) -> Slice<'a> {
        self.data.part(self.walk.start(r) - self.base + columns.start, columns.len())
    }
}

/// Rows of any storage type that are written.
pub(crate) struct AnyOut<'a> {
    pub(crate) data: SliceMut<'a>,
    base: usize,
    walk: Walk,
}

impl<'a> AnyOut<'a> {
    pub(crate) fn new(data: SliceMut<'a>, walk: Walk) -> Self {
        AnyOut { data, base: 0, walk }
    }

    pub(crate) fn of<T: Element>(&mut self) -> Option<Out<'_, T>> {
        T::of_mut(self.data.reborrow()).map(|data| Out { data, base: self.base, walk: self.walk })
    }

    pub(crate) fn as_in(&self) -> AnyIn<'_> {
        AnyIn { data: self.data.as_slice(), base: self.base, walk: self.walk }
    }

    /// Elements `columns` of row `r`.
    pub(crate) fn row(&mut self, r: usize, columns: Range<usize>) -> SliceMut<'_> {
        let at = self.walk.start(r) - self.base + columns.start;
        self.data.reborrow().part(at, columns.len())
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.walk.is_nested()
    }

    /// Rows before `r`, and the rest; only where the walk is nested.
    pub(crate) fn split(self, r: usize) -> (Self, Self) {
        let at = if r < self.walk.grid.rows { self.walk.start(r) - self.base } else { self.data.len() };
        let (left, right) = self.data.split(at);
        let walk = self.walk;
        (AnyOut { data: left, base: self.base, walk }, AnyOut { data: right, base: self.base + at, walk })
    }
}
