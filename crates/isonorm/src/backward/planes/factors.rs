//! The element-wise half of the gradients: dx from x, dy and the sums of a channel or group.
//!
//! ```text
//! x_hat = ((x * scale - mean) - delta) * inv
//! dx    = T((fma(-x_hat, k2, dy * weight - k1) * factor) * scale)
//! ```
//!
//! BatchNorm's factor is `weight * inv`, and its weight here 1; in a group the factor is `inv`. Wide planes have one
//! channel's values in registers, all else is rows of columns, as in `channels.rs`.

use std::array::from_fn;
use std::marker::PhantomData;

use crate::apply::{Convert, Fence, LINE, narrow_tile, round_tile};
use crate::channels::{TILE, Task};
use crate::columns::joined_rows;
use crate::element::{Compute, DType, Element};
use crate::isa::Isa;
use crate::level::{Kernel, Level};
use crate::order::{LANES, Row};
use crate::params::widen_slice;
use crate::slice::{Slice, SliceMut};
use crate::stats::Stats;

/// What the elements of one channel need.
#[derive(Clone, Copy, Default)]
pub(crate) struct Factors<C> {
    pub(crate) stats: Stats<C>,
    pub(crate) weight: C,
    pub(crate) k1: C,
    pub(crate) k2: C,
    pub(crate) factor: C,
}

/// Values of a channel, in the order of [`Factors::values`].
const VALUES: usize = 8;
const WEIGHT: usize = 6;
const SCALE: usize = 7;

impl<C: Compute> Factors<C> {
    /// mean, delta, inv, k1, -k2, factor, weight, scale.
    fn values(&self) -> [C; VALUES] {
        let Factors { stats, weight, k1, k2, factor } = *self;
        [stats.mean, stats.delta, stats.inv, k1, -k2, factor, weight, stats.scale]
    }
}

/// dx of 32 elements. Without weight and scale where they are 1.
#[inline(always)]
fn dx_of<C: Compute, S: Isa<C>>(
    isa: S,
    x: S::V,
    dy: S::V,
    values: [S::V; VALUES],
    weighted: bool,
    scaled: bool,
) -> S::V {
    let [mean, delta, inv, k1, minus_k2, factor, weight, scale] = values;
    let x = if scaled { isa.mul(x, scale) } else { x };
    let x_hat = isa.mul(isa.sub(isa.sub(x, mean), delta), inv);
    let g = if weighted { isa.mul(dy, weight) } else { dy };
    let dx = isa.mul(isa.fma(x_hat, minus_k2, isa.sub(g, k1)), factor);
    if scaled { isa.mul(dx, scale) } else { dx }
}

/// A stretch of x and dy that becomes a stretch of dx.
pub(crate) trait Stretch<C: Compute> {
    fn apply<T: Element<Compute = C>>(&self, level: Level, x: &[T], dy: &[T], dx: &mut [T], past: bool);
}

/// Contiguous planes, one for each of the factors.
struct Planes<'a, C> {
    spatial: usize,
    next: isize,
    factors: &'a [Factors<C>],
}

impl<C: Compute> Stretch<C> for Planes<'_, C> {
    fn apply<T: Element<Compute = C>>(&self, level: Level, x: &[T], dy: &[T], dx: &mut [T], past: bool) {
        let Planes { spatial, next, factors } = *self;
        C::enter(level, PlanesDx { x, dy, dx, spatial, next, factors, past });
    }
}

struct PlanesDx<'a, T: Element> {
    x: &'a [T],
    dy: &'a [T],
    dx: &'a mut [T],
    spatial: usize,
    next: isize,
    factors: &'a [Factors<T::Compute>],
    past: bool,
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for PlanesDx<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let PlanesDx { x, dy, dx, spatial, next, factors, past } = self;
        for (i, factors) in factors.iter().enumerate() {
            let plane = i * spatial..(i + 1) * spatial;
            let (x, dy, dx) = (&x[plane.clone()], &dy[plane.clone()], &mut dx[plane]);
            let mut splat = [isa.splat(C::ZERO); VALUES];
            let values = factors.values();
            for v in 0..VALUES {
                splat[v] = isa.splat(values[v]);
            }
            // Stores past the caches want whole lines: chunks begin where one does.
            let head = if past { dx.as_ptr().align_offset(LINE).min(spatial) } else { 0 };
            let ((x_head, x), (dy_head, dy)) = (x.split_at(head), dy.split_at(head));
            let (dx_head, dx) = dx.split_at_mut(head);
            plane_part(isa, x_head, dy_head, dx_head, splat);
            let ((x, x_tail), (dy, dy_tail)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
            let (dx, dx_tail) = dx.as_chunks_mut::<LANES>();
            let count = x.len();
            let (dy, dx) = (&dy[..count], &mut dx[..count]);
            for at in 0..count {
                if past {
                    isa.prefetch_second(&x[at], next);
                    isa.prefetch_second(&dy[at], next);
                }
                let v = dx_of(isa, T::load(isa, &x[at]), T::load(isa, &dy[at]), splat, true, true);
                if past { T::store_past(isa, v, &mut dx[at]) } else { T::store(isa, v, &mut dx[at]) }
            }
            plane_part(isa, x_tail, dy_tail, dx_tail, splat);
        }
    }
}

/// Fewer than 32 elements.
#[inline(always)]
fn plane_part<C, S, T>(isa: S, x: &[T], dy: &[T], dx: &mut [T], splat: [S::V; VALUES])
where
    C: Compute,
    S: Isa<C>,
    T: Element<Compute = C>,
{
    if !x.is_empty() {
        let (x, dy) = (T::load_first(isa, x), T::load_first(isa, dy));
        T::store_first(isa, dx_of(isa, x, dy, splat, true, true), dx);
    }
}

/// The values of up to [`TILE`] columns, laid out as a row is.
pub(crate) struct Columns<C> {
    values: [[C; TILE]; VALUES],
    /// Columns of a row.
    pub(crate) width: usize,
    /// From row to row.
    pub(crate) stride: usize,
    weighted: bool,
    scaled: bool,
}

impl<C: Compute> Columns<C> {
    /// None yet, of rows that are `stride` apart.
    pub(crate) fn new(stride: usize) -> Self {
        Columns { values: [[C::ZERO; TILE]; VALUES], width: 0, stride, weighted: false, scaled: false }
    }

    pub(crate) fn clear(&mut self, stride: usize) {
        (self.width, self.stride, self.weighted, self.scaled) = (0, stride, false, false);
    }

    /// `repeat` columns for each of the factors.
    pub(crate) fn extend(&mut self, factors: &[Factors<C>], repeat: usize) {
        for factors in factors {
            let columns = self.width..self.width + repeat;
            for (column, value) in self.values.iter_mut().zip(factors.values()) {
                column[columns.clone()].fill(value);
            }
            self.weighted |= factors.weight != C::ONE;
            self.scaled |= factors.stats.is_scaled();
            self.width = columns.end;
        }
    }

    /// Where the columns are whole rows, makes one row of several.
    pub(crate) fn join_rows(&mut self, rows: usize) {
        let width = self.width;
        if width == 0 || width != self.stride {
            return;
        }
        let joined = joined_rows(width, rows);
        for row in 1..joined {
            self.values.iter_mut().for_each(|values| values.copy_within(..width, row * width));
        }
        (self.width, self.stride) = (width * joined, width * joined);
    }
}

impl<C: Compute> Stretch<C> for Columns<C> {
    fn apply<T: Element<Compute = C>>(&self, level: Level, x: &[T], dy: &[T], dx: &mut [T], past: bool) {
        C::enter(level, ColumnsDx { x, dy, dx, columns: self, past });
    }
}

struct ColumnsDx<'a, T: Element> {
    x: &'a [T],
    dy: &'a [T],
    dx: &'a mut [T],
    columns: &'a Columns<T::Compute>,
    past: bool,
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for ColumnsDx<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let ColumnsDx { x, dy, dx, columns, past } = self;
        let mut at = 0;
        while at < dx.len() {
            let end = (at + columns.width).min(dx.len());
            columns_row(isa, &x[at..end], &dy[at..end], &mut dx[at..end], columns, past);
            at += columns.stride;
        }
    }
}

#[inline(always)]
fn columns_row<C, S, T>(isa: S, x: &[T], dy: &[T], dx: &mut [T], columns: &Columns<C>, past: bool)
where
    C: Compute,
    S: Isa<C>,
    T: Element<Compute = C>,
{
    let ((x, x_tail), (dy, dy_tail)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
    let (dx, dx_tail) = dx.as_chunks_mut::<LANES>();
    let count = x.len();
    let (dy, dx) = (&dy[..count], &mut dx[..count]);
    for at in 0..count {
        let v = column_chunk(isa, T::load(isa, &x[at]), T::load(isa, &dy[at]), columns, at);
        if past { T::store_past(isa, v, &mut dx[at]) } else { T::store(isa, v, &mut dx[at]) }
    }
    if !x_tail.is_empty() {
        let (x, dy) = (T::load_first(isa, x_tail), T::load_first(isa, dy_tail));
        T::store_first(isa, column_chunk(isa, x, dy, columns, count), dx_tail);
    }
}

#[inline(always)]
fn column_chunk<C: Compute, S: Isa<C>>(isa: S, x: S::V, dy: S::V, columns: &Columns<C>, at: usize) -> S::V {
    let Columns { weighted, scaled, .. } = *columns;
    let mut values = [x; VALUES];
    for (v, value) in values.iter_mut().enumerate() {
        if (v != WEIGHT || weighted) && (v != SCALE || scaled) {
            *value = Row::new(&columns.values[v][..]).read(isa, at, LANES);
        }
    }
    dx_of(isa, x, dy, values, weighted, scaled)
}

/// How dx is written: where the types allow it from x and dy to dx at once, else through tiles.
pub(crate) struct Output<T: Element> {
    level: Level,
    /// Elements from a plane to one that is read later, and is asked for while this one is written.
    pub(crate) next: usize,
    stream: bool,
    rounded: Option<DType>,
    of: PhantomData<T>,
}

impl<T: Element> Output<T> {
    pub(crate) fn new(task: &Task<'_, T::Compute>) -> Self {
        Output { level: task.level, next: 0, stream: task.stream, rounded: task.rounded, of: PhantomData }
    }

    /// Contiguous planes of `spatial` elements, one for each of the factors; dy is what dx holds where there is none.
    pub(crate) fn planes(
        &mut self,
        x: &[T],
        dy: Option<Slice<'_>>,
        mut dx: SliceMut<'_>,
        spatial: usize,
        factors: &[Factors<T::Compute>],
    ) {
        let next = self.next.cast_signed();
        if self.directly(x, dy, dx.reborrow(), &Planes { spatial, next, factors }) {
            return;
        }
        for (i, factors) in factors.iter().enumerate() {
            for start in (0..spatial).step_by(TILE) {
                let (at, n) = (i * spatial + start, TILE.min(spatial - start));
                let plane = Planes { spatial: n, next, factors: std::slice::from_ref(factors) };
                self.tile(&x[at..at + n], dy.map(|dy| dy.part(at, n)), dx.reborrow().part(at, n), &plane);
            }
        }
    }

    /// Rows of columns, of which the last may be cut short.
    pub(crate) fn columns(
        &mut self,
        x: &[T],
        dy: Option<Slice<'_>>,
        mut dx: SliceMut<'_>,
        columns: &Columns<T::Compute>,
    ) {
        if self.directly(x, dy, dx.reborrow(), columns) {
            return;
        }
        for at in (0..dx.len()).step_by(columns.stride) {
            let n = columns.width.min(dx.len() - at);
            self.tile(&x[at..at + n], dy.map(|dy| dy.part(at, n)), dx.reborrow().part(at, n), columns);
        }
    }

    fn directly(&self, x: &[T], dy: Option<Slice<'_>>, dx: SliceMut<'_>, stretch: &impl Stretch<T::Compute>) -> bool {
        let (Some(dy), Some(dx)) = (dy.and_then(|dy| T::of(&dy)), T::of_mut(dx)) else { return false };
        stretch.apply(self.level, x, dy, dx, self.stream);
        true
    }

    /// At most [`TILE`] elements.
    fn tile(&self, x: &[T], dy: Option<Slice<'_>>, dx: SliceMut<'_>, stretch: &impl Stretch<T::Compute>) {
        if let Some(dy) = dy {
            return self.wide_tile(x, dy, dx, stretch);
        }
        let Some(dx) = T::of_mut(dx) else { return }; // dy, which dx holds, is of x's type
        let mut dy = [T::default(); TILE];
        let dy = &mut dy[..dx.len()];
        dy.copy_from_slice(dx);
        stretch.apply(self.level, x, dy, dx, false);
    }

    /// At most [`TILE`] elements of types that are not all x's.
    fn wide_tile(&self, x: &[T], dy: Slice<'_>, dx: SliceMut<'_>, stretch: &impl Stretch<T::Compute>) {
        let (level, n) = (self.level, x.len());
        let mut wide = [[T::Compute::ZERO; TILE]; 3];
        let [wide_x, wide_dy, wide_dx] = wide.each_mut().map(|tile| &mut tile[..n]);
        T::Compute::enter(level, Convert { x, y: &mut *wide_x });
        widen_slice(dy, wide_dy);
        stretch.apply(level, wide_x, wide_dy, wide_dx, false);
        if let Some(dtype) = self.rounded {
            round_tile(level, wide_dx, dtype);
        }
        narrow_tile(level, wide_dx, dx);
    }

    /// Orders what was written past the caches before whatever comes next.
    pub(crate) fn finish(self) {
        if self.stream {
            T::Compute::enter(self.level, Fence);
        }
    }
}

/// The factors of BatchNorm in training, from the unrounded sums of its channels.
pub(crate) fn batch_factors<C: Compute>(
    task: &Task<'_, C>,
    first: usize,
    stats: &[Stats<C>],
    [dbias, dweight]: [&[C]; 2],
    factors: &mut [Factors<C>],
) {
    let count = C::from_count(task.shape.count());
    for (window, factors) in factors.chunks_mut(LANES).enumerate() {
        let from = window * LANES;
        let [mut weight, mut bias] = [[C::ONE; LANES]; 2];
        let n = factors.len();
        task.params.widen(first + from, &mut weight[..n], &mut bias[..n]);
        let factor: [Factors<C>; LANES] = from_fn(|l| {
            let i = (from + l).min(from + n - 1);
            let k2 = task.eps.times_q(dweight[i] / count, &stats[i]);
            Factors { stats: stats[i], weight: C::ONE, k1: dbias[i] / count, k2, factor: weight[l] * stats[i].inv }
        });
        factors.copy_from_slice(&factor[..n]);
    }
}
