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
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub(crate) data: Slice<'a>,
    layout: Option<Layout<'a>>,
}

/// A tensor of rows that is written. `&mut [E]`, `&mut Vec<E>` and `&mut [E; N]` convert into one of contiguous rows.
#[derive(Debug)]
pub struct RowsMut<'a> {
    pub(crate) data: SliceMut<'a>,
    layout: Option<Layout<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Layout<'a> {
    offset: usize,
    shape: &'a [usize],
    strides: &'a [isize],
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

/// The leading shape shared by all tensors of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Grid {
    lens: [usize; MAX_DIMS],
    dims: usize,
    pub(crate) rows: usize,
}

impl Grid {
    /// One row.
    pub(crate) const ONE: &Grid = &Grid::of(1);

    pub(crate) const fn of(rows: usize) -> Self {
        let mut lens = [1; MAX_DIMS];
        lens[0] = rows;
        Grid { lens, dims: 1, rows }
    }

    fn shape(&self, hidden: usize) -> Vec<usize> {
        self.lens[..self.dims].iter().copied().chain([hidden]).collect()
    }
}

/// Where each row of one tensor starts, in a grid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    strides: [isize; MAX_DIMS],
    offset: usize,
}

/// One tensor of a call, before the grid is known.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'t> {
    pub(crate) name: &'static str,
    len: usize,
    layout: Option<Layout<'t>>,
}

impl<'t> Tensor<'t> {
    pub(crate) fn plain(name: &'static str, len: usize) -> Tensor<'t> {
        Tensor { name, len, layout: None }
    }

    pub(crate) fn read(name: &'static str, rows: &Rows<'t>) -> Self {
        Tensor { name, len: rows.data.len(), layout: rows.layout }
    }

    pub(crate) fn write(name: &'static str, rows: &RowsMut<'t>) -> Self {
        Tensor { name, len: rows.data.len(), layout: rows.layout }
    }

    /// Whether its own layout gives a shape that others must follow.
    pub(crate) fn is_strided(&self) -> bool {
        self.layout.is_some()
    }

    /// The grid that this tensor gives the call.
    pub(crate) fn grid(&self, hidden: usize) -> Result<Grid, Error> {
        let name = self.name;
        let Some(layout) = self.layout else {
            if self.len.checked_rem(hidden).unwrap_or(self.len) != 0 {
                return Err(Error::NotWhole { name, what: "rows", found: self.len, size: hidden });
            }
            return Ok(Grid::of(self.len.checked_div(hidden).unwrap_or(0)));
        };
        let (dims, strides) = (layout.shape.len(), layout.strides.len());
        if dims > MAX_DIMS || dims != strides {
            return Err(Error::Dims { name, dims, strides, most: MAX_DIMS });
        }
        let mut lens = [1; MAX_DIMS];
        lens[..dims].copy_from_slice(layout.shape);
        let rows = if lens.contains(&0) { Some(0) } else { lens.iter().try_fold(1usize, |n, len| n.checked_mul(*len)) };
        let rows = rows.ok_or(Error::OutOfBounds { name, reaches: i128::MAX, len: self.len })?;
        Ok(Grid { lens, dims, rows })
    }

    /// Its walk over `grid`, which came from the tensor named `like`.
    pub(crate) fn walk(&self, grid: &Grid, hidden: usize, like: &'static str) -> Result<Walk, Error> {
        let own = self.grid(hidden)?;
        let same = if self.is_strided() { own == *grid } else { own.rows == grid.rows };
        let both_empty = !self.is_strided() && self.len == 0 && (grid.rows == 0 || hidden == 0);
        if !same && !both_empty {
            let (expected, found) = (grid.shape(hidden), own.shape(hidden));
            return Err(Error::Shape { name: self.name, like, expected, found });
        }
        let mut walk = Walk { strides: [0; MAX_DIMS], offset: 0 };
        if let Some(layout) = self.layout {
            for (d, stride) in layout.strides.iter().enumerate() {
                walk.strides[d] = if grid.lens[d] == 1 { 0 } else { *stride }; // one row is crossed by no stride
            }
            walk.offset = layout.offset;
            walk.check_bounds(self.name, self.len, grid, hidden)?;
        } else {
            let mut stride = hidden as isize;
            for d in (0..grid.dims).rev() {
                walk.strides[d] = stride;
                stride = stride.saturating_mul(grid.lens[d] as isize);
            }
        }
        Ok(walk)
    }
}

impl Walk {
    /// The first row of a slice.
    pub(crate) const ONE: &Walk = &Walk { strides: [0; MAX_DIMS], offset: 0 };

    /// Contiguous rows in a grid of one dimension.
    pub(crate) const fn contiguous(hidden: usize) -> Self {
        let mut strides = [0; MAX_DIMS];
        strides[0] = hidden as isize;
        Walk { strides, offset: 0 }
    }

    /// Row `r` starts at this element.
    #[inline(always)]
    fn start(&self, grid: &Grid, r: usize) -> usize {
        if grid.dims == 1 {
            return self.offset.wrapping_add_signed(r as isize * self.strides[0]);
        }
        self.start_in_grid(grid, r)
    }

    #[inline(never)] // once a row, and only with several leading dimensions
    fn start_in_grid(&self, grid: &Grid, r: usize) -> usize {
        let (mut r, mut at) = (r, self.offset);
        for d in (0..grid.dims).rev() {
            at = at.wrapping_add_signed((r % grid.lens[d]) as isize * self.strides[d]);
            r /= grid.lens[d];
        }
        at
    }

    fn check_bounds(&self, name: &'static str, len: usize, grid: &Grid, hidden: usize) -> Result<(), Error> {
        if grid.rows == 0 {
            return Ok(());
        }
        let (mut low, mut high) = (self.offset as i128, self.offset as i128 + hidden as i128);
        for d in 0..grid.dims {
            let reach = (grid.lens[d] as i128 - 1) * self.strides[d] as i128;
            if reach < 0 { low += reach } else { high = high.saturating_add(reach) }
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
    pub(crate) fn is_nested(&self, grid: &Grid, hidden: usize) -> bool {
        let mut extent = hidden as isize;
        for d in (0..grid.dims).rev() {
            if grid.lens[d] == 1 {
                continue;
            }
            if self.strides[d] < extent {
                return false;
            }
            extent = extent.saturating_add(self.strides[d].saturating_mul(grid.lens[d] as isize - 1));
        }
        true
    }

    /// Refuses an output whose rows share elements or interleave.
    pub(crate) fn check_own_rows(&self, name: &'static str, grid: &Grid, hidden: usize) -> Result<(), Error> {
        let (mut own, mut walks) = (*grid, [*self]);
        arrange(&mut own, &mut walks);
        if grid.rows == 0 || walks[0].is_nested(&own, hidden) {
            return Ok(());
        }
        let strides = self.strides[..grid.dims].to_vec();
        Err(Error::Overlap { name, shape: grid.lens[..grid.dims].to_vec(), strides })
    }
}

/// Puts the grid of all walks into the order in which the first of them lies in memory, and joins
/// dimensions that all of them cross with one stride.
pub(crate) fn arrange(grid: &mut Grid, walks: &mut [Walk]) {
    if grid.rows == 0 {
        return; // its strides are unchecked
    }
    for d in 0..grid.dims {
        if walks[0].strides[d] < 0 {
            for walk in walks.iter_mut() {
                let last = (grid.lens[d].saturating_sub(1)) as isize;
                walk.offset = walk.offset.wrapping_add_signed(last.wrapping_mul(walk.strides[d]));
                walk.strides[d] = walk.strides[d].wrapping_neg();
            }
        }
    }
    for d in 1..grid.dims {
        let mut at = d;
        while at > 0 && walks[0].strides[at - 1] < walks[0].strides[at] {
            grid.lens.swap(at - 1, at);
            walks.iter_mut().for_each(|walk| walk.strides.swap(at - 1, at));
            at -= 1;
        }
    }
    let mut d = 1;
    while d < grid.dims {
        let (outer, inner) = (grid.lens[d - 1], grid.lens[d]);
        let joins = |walk: &Walk| walk.strides[d - 1] == walk.strides[d].saturating_mul(inner as isize);
        if outer != 1 && inner != 1 && !walks.iter().all(joins) {
            d += 1;
            continue;
        }
        for walk in walks.iter_mut() {
            // A dimension of one row is crossed by no stride.
            let stride = if inner == 1 { walk.strides[d - 1] } else { walk.strides[d] };
            walk.strides.copy_within(d.., d - 1);
            walk.strides[d - 1] = stride;
        }
        grid.lens.copy_within(d.., d - 1);
        grid.lens[d - 1] = outer * inner;
        grid.dims -= 1;
    }
}

/// The walk of one tensor over its call's grid.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) grid: &'a Grid,
    pub(crate) walk: &'a Walk,
    pub(crate) hidden: usize,
}

impl Place<'_> {
    fn one(hidden: usize) -> Self {
        Place { grid: Grid::ONE, walk: Walk::ONE, hidden }
    }

    #[inline(always)]
    fn start(&self, r: usize) -> usize {
        self.walk.start(self.grid, r)
    }

    fn is_nested(&self) -> bool {
        self.walk.is_nested(self.grid, self.hidden)
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
