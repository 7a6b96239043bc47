//! Rows of columns, each column with values of its own: channels that lie side by side, and planes so narrow
//! that a row of several is better than each for itself.

use std::ops::Range;

use crate::apply::LINE;
use crate::channels::{Output, Source, Stretch, TILE, Task, Values, WINDOW};
use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::isa::float_env::FloatEnv;
use crate::level::{Kernel, Level};
use crate::order::{LANES, Row};
use crate::slice::SliceMut;
use crate::threads::Job;

/// Columns that one pass over a row should span, so that what a row costs by itself is spread out.
const WIDE: usize = 256;

/// The values of up to [`TILE`] columns, laid out as a row is.
pub(crate) struct Columns<C> {
    mean: [C; TILE],
    delta: [C; TILE],
    inv: [C; TILE],
    scale: [C; TILE],
    weight: [C; TILE],
    bias: [C; TILE],
    /// Columns of a row.
    pub(crate) width: usize,
    /// From row to row.
    pub(crate) stride: usize,
    scaled: bool,
}

impl<C: Compute> Columns<C> {
    /// None yet, of rows that are `stride` apart.
    pub(crate) fn new(stride: usize) -> Self {
        let [mean, delta, inv, scale, weight, bias] = [[C::ZERO; TILE]; 6];
        Columns { mean, delta, inv, scale, weight, bias, width: 0, stride, scaled: false }
    }

    pub(crate) fn clear(&mut self) {
        self.width = 0;
        self.scaled = false;
    }

    /// `repeat` columns for each of `values`.
    pub(crate) fn extend(&mut self, values: &[Values<C>], repeat: usize) {
        for Values { stats, weight, bias } in values {
            let columns = self.width..self.width + repeat;
            self.mean[columns.clone()].fill(stats.mean);
            self.delta[columns.clone()].fill(stats.delta);
            self.inv[columns.clone()].fill(stats.inv);
            self.scale[columns.clone()].fill(stats.scale);
            self.weight[columns.clone()].fill(*weight);
            self.bias[columns.clone()].fill(*bias);
            self.scaled |= stats.is_scaled();
            self.width = columns.end;
        }
    }

    /// Where the columns are whole rows, makes one row of several: of a whole number of vectors if it can.
    fn join_rows(&mut self, rows: usize) {
        let width = self.width;
        if width == 0 || width != self.stride {
            return;
        }
        let joined = joined_rows(width, rows);
        for array in [&mut self.mean, &mut self.delta, &mut self.inv, &mut self.scale, &mut self.weight, &mut self.bias]
        {
            for row in 1..joined {
                array.copy_within(..width, row * width);
            }
        }
        self.width = width * joined;
        self.stride = self.width;
    }
}

/// How many of `rows` rows of `width` columns make a good row of one pass.
pub(crate) fn joined_rows(width: usize, rows: usize) -> usize {
    let vectors = LANES >> width.trailing_zeros().min(LANES.trailing_zeros());
    let joined = if width * vectors <= TILE { WIDE.div_ceil(width * vectors) * vectors } else { TILE / width };
    joined.min(TILE / width).min(rows).max(1)
}

impl<C: Compute> Stretch<C> for Columns<C> {
    fn apply<X: Element<Compute = C>, Y: Element<Compute = C>>(&self, level: Level, x: &[X], y: &mut [Y]) {
        if self.scaled {
            C::enter(level, ApplyColumns::<_, _, _, true> { x, y, columns: self, past: false });
        } else {
            C::enter(level, ApplyColumns::<_, _, _, false> { x, y, columns: self, past: false });
        }
    }

    /// Where every row begins with a line.
    fn apply_past<T: Element<Compute = C>>(&self, level: Level, x: &[T], y: &mut [T]) -> bool {
        let is_aligned = (self.stride * size_of::<T>()).is_multiple_of(LINE) && y.as_ptr().addr().is_multiple_of(LINE);
        if is_aligned && !self.scaled {
            C::enter(level, ApplyColumns::<_, _, _, false> { x, y, columns: self, past: true });
        }
        is_aligned && !self.scaled
    }
}

struct ApplyColumns<'a, C, X, Y, const SCALED: bool> {
    x: &'a [X],
    y: &'a mut [Y],
    columns: &'a Columns<C>,
    past: bool,
}

impl<C, X, Y, const SCALED: bool> Kernel<C> for ApplyColumns<'_, C, X, Y, SCALED>
where
    C: Compute,
    X: Element<Compute = C>,
    Y: Element<Compute = C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let columns = self.columns;
        let (x, y) = (self.x.chunks(columns.stride), self.y.chunks_mut(columns.stride));
        for (x, y) in x.zip(y) {
            let n = columns.width.min(x.len());
            apply_columns::<C, S, X, Y, SCALED>(isa, &x[..n], &mut y[..n], columns, self.past);
        }
    }
}

#[inline(always)]
fn apply_columns<C, S, X, Y, const SCALED: bool>(isa: S, x: &[X], y: &mut [Y], columns: &Columns<C>, past: bool)
where
    C: Compute,
    S: Isa<C>,
    X: Element<Compute = C>,
    Y: Element<Compute = C>,
{
    let columns = [
        Row::new(&columns.mean[..]),
        Row::new(&columns.delta[..]),
        Row::new(&columns.inv[..]),
        Row::new(&columns.scale[..]),
        Row::new(&columns.weight[..]),
        Row::new(&columns.bias[..]),
    ];
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    for (at, (x, y)) in x.iter().zip(y).enumerate() {
        let v = apply_chunk::<C, S, SCALED>(isa, &columns, X::load(isa, x), at);
        if past { Y::store_past(isa, v, y) } else { Y::store(isa, v, y) }
    }
    if !x_tail.is_empty() {
        let tail = X::load_first(isa, x_tail);
        Y::store_first(isa, apply_chunk::<C, S, SCALED>(isa, &columns, tail, x.len()), y_tail);
    }
}

#[inline(always)]
fn apply_chunk<C, S, const SCALED: bool>(isa: S, columns: &[Row<'_, C>; 6], x: S::V, at: usize) -> S::V
where
    C: Compute,
    S: Isa<C>,
{
    let [mean, delta, inv, scale, weight, bias] = columns;
    let x = if SCALED { isa.mul(x, scale.read(isa, at, LANES)) } else { x };
    let d = isa.sub(isa.sub(x, mean.read(isa, at, LANES)), delta.read(isa, at, LANES));
    let x_hat = isa.mul(d, inv.read(isa, at, LANES));
    isa.fma(x_hat, weight.read(isa, at, LANES), bias.read(isa, at, LANES))
}

/// Rows of channels that are normalized with statistics known before.
pub(crate) struct ColumnsJob<'a, T: Element> {
    pub(crate) task: Task<'a, T::Compute>,
    pub(crate) source: Source<'a, T::Compute>,
    pub(crate) channels: Range<usize>,
    /// Columns of a channel, at most [`TILE`].
    pub(crate) repeat: usize,
    pub(crate) x: Option<&'a [T]>,
    pub(crate) y: SliceMut<'a>,
}

impl<T: Element> ColumnsJob<'_, T> {
    fn stride(&self) -> usize {
        self.task.shape.channels * self.repeat
    }
}

impl<T: Element> Job for ColumnsJob<'_, T> {
    fn units(&self) -> usize {
        self.y.len() / self.stride()
    }

    fn split(self, units: usize) -> (Self, Self) {
        let at = units * self.stride();
        let ColumnsJob { task, source, channels, repeat, x, y } = self;
        let (y, y_rest) = y.split(at);
        let (x, x_rest) = x.map(|x| x.split_at(at)).unzip();
        let first = ColumnsJob { task, source, channels: channels.clone(), repeat, x, y };
        (first, ColumnsJob { task, source, channels, repeat, x: x_rest, y: y_rest })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let stride = self.stride();
        let rows = self.units();
        let most = TILE / self.repeat;
        let mut output = Output::<T>::new(&self.task);
        let mut columns = Columns::new(stride);
        for first in self.channels.clone().step_by(most) {
            let end = self.channels.end.min(first + most);
            columns.clear();
            for window in (first..end).step_by(WINDOW) {
                let values = self.task.values(self.source, window..end.min(window + WINDOW));
                columns.extend(&values, self.repeat);
            }
            columns.join_rows(rows);
            // From the first column of the first row to the last column of the last.
            let (from, to) = (first * self.repeat, self.y.len() - stride + end * self.repeat);
            let x = self.x.map(|x| &x[from..to]);
            output.columns(x, self.y.reborrow().part(from, to - from), &columns);
        }
        output.finish();
    }
}
