//! The grid of rows that all tensors of a call share, and how each of them walks it.
//!
//! The grid is put into the order in which the output lies in memory, so that the output can be cut into
//! disjoint mutable pieces for threads.

use crate::error::Error;
use crate::rows::{Layout, MAX_DIMS, Rows, RowsMut};

/// The leading shape shared by all tensors of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    lens: [usize; MAX_DIMS],
    dims: usize,
    /// How many.
    pub rows: usize,
}

impl Grid {
    pub(crate) const fn of(rows: usize) -> Self {
        let mut lens = [1; MAX_DIMS];
        lens[0] = rows;
        Grid { lens, dims: 1, rows }
    }

    /// The leading shape, joined as far as all tensors allow.
    pub fn lens(&self) -> &[usize] {
        &self.lens[..self.dims]
    }

    fn shape(&self, hidden: usize) -> Vec<usize> {
        self.lens[..self.dims].iter().copied().chain([hidden]).collect()
    }
}

/// Where each row of one tensor starts, in a grid.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    strides: [isize; MAX_DIMS],
    offset: usize,
}

/// One tensor of a call, before the grid is known.
#[derive(Clone, Copy)]
pub struct Tensor<'t> {
    name: &'static str,
    len: usize,
    layout: Option<Layout<'t>>,
    is_written: bool,
    /// One element for each row, instead of a row's.
    is_scalar: bool,
}

/// The walks of a call's tensors over one grid; those of absent tensors stand still.
#[derive(Clone, Copy, Debug)]
pub struct Walks<const N: usize> {
    /// The shape.
    pub grid: Grid,
    /// A walk for each tensor.
    pub each: [Walk; N],
}

/// The order in which a call takes its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// As the first tensor lies in memory, which is written, so that it can be cut for threads.
    Memory,
    /// The logical one: rows are summed.
    Logical,
}

impl<const N: usize> Walks<N> {
    pub(crate) const fn none() -> Self {
        Walks { grid: Grid::of(1), each: [Walk::contiguous(0); N] }
    }

    /// Checks all shapes and strides of tensors of rows of `hidden` elements, the first of which is written, and
    /// brings them into one order. The second gives the shape where none is strided.
    pub fn of(tensors: &[Option<Tensor<'_>>; N], hidden: usize, sequence: Sequence) -> Result<Self, Error> {
        let mut walks = Walks::none();
        let present = || tensors.iter().flatten();
        let leader = present().find(|tensor| tensor.is_strided()).or(tensors[1].as_ref()).or(tensors[0].as_ref());
        let Some(leader) = leader else { return Ok(walks) };
        walks.grid = leader.grid(hidden)?;
        let grid = walks.grid;
        for (tensor, walk) in tensors.iter().zip(&mut walks.each) {
            let Some(tensor) = tensor else { continue };
            let hidden = if tensor.is_scalar { 1 } else { hidden };
            *walk = tensor.walk(&grid, hidden, leader.name)?;
            if tensor.is_written && tensor.is_strided() {
                walk.check_own_rows(tensor.name, &grid, hidden)?;
            }
        }
        if leader.is_strided() {
            match sequence {
                Sequence::Memory => arrange(&mut walks.grid, &mut walks.each),
                Sequence::Logical => join(&mut walks.grid, &mut walks.each),
            }
        }
        Ok(walks)
    }
}

impl<'t> Tensor<'t> {
    /// Rows of `len` elements in all, contiguous where no layout is given.
    pub fn rows(name: &'static str, len: usize, layout: Option<Layout<'t>>, is_written: bool) -> Tensor<'t> {
        Tensor { name, len, layout, is_written, is_scalar: false }
    }

    /// One element for each row.
    pub fn scalars(name: &'static str, len: usize) -> Tensor<'t> {
        Tensor { name, len, layout: None, is_written: false, is_scalar: true }
    }

    pub(crate) fn read(name: &'static str, rows: &Rows<'t>) -> Self {
        Tensor::rows(name, rows.data.len(), rows.layout, false)
    }

    pub(crate) fn write(name: &'static str, rows: &RowsMut<'t>) -> Self {
        Tensor::rows(name, rows.data.len(), rows.layout, true)
    }

    /// Whether its own layout gives a shape that others must follow.
    fn is_strided(&self) -> bool {
        self.layout.is_some()
    }

    /// The grid that this tensor gives the call.
    fn grid(&self, hidden: usize) -> Result<Grid, Error> {
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
    fn walk(&self, grid: &Grid, hidden: usize, like: &'static str) -> Result<Walk, Error> {
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
    /// Where the first row starts.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Elements from a row to the next along dimension `d` of the grid.
    pub fn stride(&self, d: usize) -> isize {
        self.strides[d]
    }

    /// Contiguous rows in a grid of one dimension.
    pub(crate) const fn contiguous(hidden: usize) -> Self {
        let mut strides = [0; MAX_DIMS];
        strides[0] = hidden as isize;
        Walk { strides, offset: 0 }
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
            let last = isize::try_from(grid.lens[d] - 1).unwrap_or(isize::MAX);
            extent = extent.saturating_add(self.strides[d].saturating_mul(last));
        }
        true
    }

    /// Refuses an output whose rows share elements or interleave.
    fn check_own_rows(&self, name: &'static str, grid: &Grid, hidden: usize) -> Result<(), Error> {
        let (mut own, mut walks) = (*grid, [*self]);
        arrange(&mut own, &mut walks);
        if grid.rows == 0 || walks[0].is_nested(&own, hidden) {
            return Ok(());
        }
        let strides = self.strides[..grid.dims].to_vec();
        Err(Error::Overlap { name, shape: grid.lens[..grid.dims].to_vec(), strides })
    }
}

/// Puts the grid of all walks into the order in which the first of them lies in memory, and joins dimensions.
fn arrange(grid: &mut Grid, walks: &mut [Walk]) {
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
    join(grid, walks);
}

/// Joins dimensions that all walks cross with one stride.
fn join(grid: &mut Grid, walks: &mut [Walk]) {
    if grid.rows == 0 {
        return; // its strides are unchecked
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

/// Where the rows of one tensor of a call are.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) hidden: usize,
    offset: usize,
    stride: isize,
    /// Several leading dimensions.
    dims: Option<(&'a Grid, &'a Walk)>,
}

impl<'a> Place<'a> {
    /// Rows of `hidden` elements, one after the other.
    #[inline(always)]
    pub(crate) fn contiguous(hidden: usize) -> Self {
        Place { hidden, offset: 0, stride: hidden as isize, dims: None }
    }

    pub(crate) fn new(grid: &'a Grid, walk: &'a Walk, hidden: usize) -> Self {
        let dims = (grid.dims > 1).then_some((grid, walk));
        Place { hidden, offset: walk.offset, stride: walk.strides[0], dims }
    }

    /// Row `r` starts at this element.
    #[inline(always)]
    pub(crate) fn start(&self, r: usize) -> usize {
        match self.dims {
            None => self.offset.wrapping_add_signed(r as isize * self.stride),
            Some((grid, walk)) => walk.start_in_grid(grid, r),
        }
    }

    /// Rows from `r` on that are crossed with one stride, at most `most`, and that stride.
    #[inline(always)]
    pub(crate) fn run(&self, r: usize, most: usize) -> (usize, isize) {
        match self.dims {
            None => (most, self.stride),
            Some((grid, walk)) => {
                let last = grid.dims - 1;
                (most.min(grid.lens[last] - r % grid.lens[last]), walk.strides[last])
            }
        }
    }

    /// Whether rows follow one another in memory, without sharing elements.
    pub(crate) fn is_nested(&self) -> bool {
        match self.dims {
            None => self.stride >= self.hidden as isize,
            Some((grid, walk)) => walk.is_nested(grid, self.hidden),
        }
    }
}
