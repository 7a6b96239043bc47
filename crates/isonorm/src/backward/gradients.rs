//! dx, and the leaf of the parameters' gradients, of rows of one type of which the slopes are known.
//!
//! ```text
//! dx      = fma(-x_hat, c2, g - c1) * inv              RMSNorm has no c1
//! dweight's leaf = fma(dy, x_hat, leaf)                dbias's leaf = leaf + dy
//! ```
//!
//! Wide rows go a few together from end to end, so that each stretch of a leaf is read and written once for all of
//! them; what remains, and narrow rows, down the columns.

use std::marker::PhantomData;
use std::ops::Range;

use crate::apply::{Hat, LINE};
use crate::backward::correlate::Slope;
use crate::element::{Compute, Element};
use crate::forward::RowNorm;
use crate::isa::Isa;
use crate::level::Kernel;
use crate::order::{LANES, leaf_step, padded};
use crate::rows::{Run, RunMut};

/// Elements of a row from which setting out along it is worth its price.
const WIDE: usize = 512;
/// Rows that go along together.
const PAIR: usize = 2;
/// Elements that they go along before the next rows do: leaf and weight stay in the nearest cache meanwhile.
const TILE: usize = 1024;

/// The open leaf of the parameters' gradients, where they are wanted.
pub(crate) struct Leaf<'a, C> {
    pub(crate) dweight: Option<&'a mut [C]>,
    pub(crate) dbias: Option<&'a mut [C]>,
    /// Whether it is to be overwritten: it holds anything.
    pub(crate) is_new: bool,
}

impl<C> Leaf<'_, C> {
    /// Not wanted.
    pub(crate) fn none() -> Self {
        Leaf { dweight: None, dbias: None, is_new: false }
    }

    /// Whether it holds sums when row `i` of a block comes.
    #[inline(always)]
    fn goes_on(&self, i: usize) -> bool {
        !self.is_new || i > 0
    }
}

/// How dx is written, and what is asked for meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Way {
    /// Whether dx is written past the caches.
    pub(crate) past: bool,
    /// Elements from x to what is read next, where that is worth asking for.
    pub(crate) ahead: Option<isize>,
}

/// A block of rows of dx, and what they add to the parameters' gradients.
pub(crate) struct Gradients<'a, N, T: Element, R> {
    pub(crate) hidden: usize,
    pub(crate) x: Run<'a, T>,
    /// `None`: what dx holds.
    pub(crate) dy: Option<Run<'a, T>>,
    pub(crate) dx: RunMut<'a, T>,
    pub(crate) weight: &'a [T::Compute],
    pub(crate) rows: &'a [Slope<T::Compute>],
    pub(crate) leaf: Leaf<'a, T::Compute>,
    pub(crate) way: Way,
    pub(crate) norm: PhantomData<(N, R)>,
}

impl<C, N, T, R> Kernel<C> for Gradients<'_, N, T, R>
where
    C: Compute,
    N: RowNorm,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(mut self, isa: S) {
        let (hidden, rows) = (self.hidden, self.rows.len());
        let head = self.head();
        let tail = hidden - (hidden - head) % LANES;
        if S::LEAVES == 1 || hidden < WIDE || !self.dx.is_nested(hidden) {
            self.down(isa, 0, head..tail);
        } else {
            let mut at = head;
            while at < tail {
                let tile = at..tail.min(at + TILE);
                let mut i = 0;
                while i + PAIR <= rows {
                    self.along::<S, PAIR>(isa, i, tile.clone());
                    i += PAIR;
                }
                self.down(isa, i, tile);
                at += TILE;
            }
        }
        self.part(isa, 0, head);
        self.part(isa, tail, hidden - tail);
    }
}

impl<C, N, T, R> Gradients<'_, N, T, R>
where
    C: Compute,
    N: RowNorm,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
{
    /// Whole chunks of rows `i..i + M`, together from end to end.
    #[inline(always)]
    fn along<S: Isa<C>, const M: usize>(&mut self, isa: S, i: usize, columns: Range<usize>) {
        let (hidden, goes_on) = (self.hidden, self.leaf.goes_on(i));
        let stretch = Stretch::<T, M> {
            x: std::array::from_fn(|r| &self.x.row(i + r, hidden)[columns.clone()]),
            dy: self.dy.map(|dy| std::array::from_fn(|r| &dy.row(i + r, hidden)[columns.clone()])),
            dx: self.dx.rows_mut(i, hidden).map(|row| &mut row[columns.clone()]),
            weight: &self.weight[columns.clone()],
            dweight: self.leaf.dweight.as_deref_mut().map(|leaf| &mut leaf[columns.clone()]),
            dbias: self.leaf.dbias.as_deref_mut().map(|leaf| &mut leaf[columns.clone()]),
            goes_on,
        };
        let slopes = std::array::from_fn(|r| self.rows[i + r]);
        stretch.chunks::<S, N, R>(isa, &slopes, self.way);
    }

    /// Whole chunks of the rows from `i` on, column by column.
    #[inline(always)]
    fn down<S: Isa<C>>(&mut self, isa: S, i: usize, columns: Range<usize>) {
        if i == self.rows.len() {
            return;
        }
        let mut at = columns.start;
        while at < columns.end {
            self.chunk(isa, i, at);
            at += LANES;
        }
    }

    /// Columns before the first chunk: stores past the caches want whole lines.
    #[inline(always)]
    fn head(&mut self) -> usize {
        let row = self.dx.row_mut(0, self.hidden);
        if self.way.past { row.as_ptr().align_offset(LINE).min(row.len()) } else { 0 }
    }

    /// 32 columns of the rows from `first` on.
    #[inline(always)]
    fn chunk<S: Isa<C>>(&mut self, isa: S, first: usize, at: usize) {
        let (weight, zero) = (T::split(isa, isa.load(chunk(self.weight, at))), isa.splat(C::ZERO));
        let goes_on = self.leaf.goes_on(first);
        let leaf = &mut self.leaf;
        let (mut dot, mut sum) = (zero, zero);
        if let (Some(leaf), true) = (&leaf.dweight, goes_on) {
            dot = T::split(isa, isa.load(chunk(leaf, at)));
        }
        if let (Some(leaf), true) = (&leaf.dbias, goes_on) {
            sum = T::split(isa, isa.load(chunk(leaf, at)));
        }
        for i in first..self.rows.len() {
            let x = self.x.chunk(i, at);
            if let Some(ahead) = self.way.ahead {
                isa.prefetch_second(x, ahead);
            }
            let x = T::load_split(isa, x);
            let to = self.dx.chunk_mut(i, at);
            let dy = T::load_split(isa, self.dy.as_ref().map_or(&*to, |dy| dy.chunk(i, at)));
            let (dx, x_hat) = row::<T, S, N, R>(isa, &self.rows[i], x, dy, weight);
            if self.way.past {
                T::store_past_split(isa, dx, to)
            } else {
                T::store_split(isa, dx, to)
            }
            [dot, sum] = leaf_step(isa, [dot, sum], dy, x_hat);
        }
        if let Some(leaf) = &mut leaf.dweight {
            isa.store(T::in_order(isa, dot), chunk_mut(leaf, at));
        }
        if let Some(leaf) = &mut leaf.dbias {
            isa.store(T::in_order(isa, sum), chunk_mut(leaf, at));
        }
    }

    /// `n < 32` columns of all rows.
    #[inline(always)]
    fn part<S: Isa<C>>(&mut self, isa: S, at: usize, n: usize) {
        if n == 0 {
            return;
        }
        let (hidden, columns, zero) = (self.hidden, at..at + n, isa.splat(C::ZERO));
        let weight = isa.load(&padded(&self.weight[columns.clone()]));
        let goes_on = self.leaf.goes_on(0);
        let leaf = &mut self.leaf;
        let (mut dot, mut sum) = (zero, zero);
        if let (Some(leaf), true) = (&leaf.dweight, goes_on) {
            dot = isa.load(&padded(&leaf[columns.clone()]));
        }
        if let (Some(leaf), true) = (&leaf.dbias, goes_on) {
            sum = isa.load(&padded(&leaf[columns.clone()]));
        }
        for i in 0..self.rows.len() {
            let x = T::load(isa, &padded(&self.x.row(i, hidden)[columns.clone()]));
            let to = &mut self.dx.row_mut(i, hidden)[columns.clone()];
            let dy = self.dy.as_ref().map_or(&*to, |dy| &dy.row(i, hidden)[columns.clone()]);
            let dy = T::load(isa, &padded(dy));
            let (dx, x_hat) = row::<T, S, N, R>(isa, &self.rows[i], x, dy, weight);
            let mut own = [T::default(); LANES];
            T::store(isa, dx, &mut own);
            to.copy_from_slice(&own[..n]);
            [dot, sum] = leaf_step(isa, [dot, sum], dy, x_hat);
        }
        for (leaf, sums) in [(&mut leaf.dweight, dot), (&mut leaf.dbias, sum)] {
            if let Some(leaf) = leaf {
                let mut own = [C::ZERO; LANES];
                isa.store(sums, &mut own);
                leaf[columns.clone()].copy_from_slice(&own[..n]);
            }
        }
    }
}

/// Stretches of `M` rows, all of one length.
struct Stretch<'a, T: Element, const M: usize> {
    x: [&'a [T]; M],
    /// `None`: what dx holds.
    dy: Option<[&'a [T]; M]>,
    dx: [&'a mut [T]; M],
    weight: &'a [T::Compute],
    dweight: Option<&'a mut [T::Compute]>,
    dbias: Option<&'a mut [T::Compute]>,
    /// Whether the leaf holds sums.
    goes_on: bool,
}

impl<T: Element, const M: usize> Stretch<'_, T, M> {
    /// Whole chunks.
    #[inline(always)]
    fn chunks<S, N, R>(self, isa: S, slopes: &[Slope<T::Compute>; M], way: Way)
    where
        S: Isa<T::Compute>,
        N: RowNorm,
        R: Element<Compute = T::Compute>,
    {
        // Slices of one length: the loop has no bounds check.
        let (weight, zero) = (chunks(self.weight), isa.splat(T::Compute::ZERO));
        let count = weight.len();
        let x = self.x.map(|row| &chunks(row)[..count]);
        let dy = self.dy.map(|dy| dy.map(|row| &chunks(row)[..count]));
        let dx = self.dx.map(|row| &mut row.as_chunks_mut::<LANES>().0[..count]);
        let mut dweight = self.dweight.map(|leaf| &mut leaf.as_chunks_mut::<LANES>().0[..count]);
        let mut dbias = self.dbias.map(|leaf| &mut leaf.as_chunks_mut::<LANES>().0[..count]);
        for at in 0..count {
            let weight = T::split(isa, isa.load(&weight[at]));
            let (mut dot, mut sum) = (zero, zero);
            if let (Some(leaf), true) = (&dweight, self.goes_on) {
                dot = T::split(isa, isa.load(&leaf[at]));
            }
            if let (Some(leaf), true) = (&dbias, self.goes_on) {
                sum = T::split(isa, isa.load(&leaf[at]));
            }
            for r in 0..M {
                if let Some(ahead) = way.ahead {
                    isa.prefetch_second(&x[r][at], ahead);
                }
                let x = T::load_split(isa, &x[r][at]);
                let dy = T::load_split(isa, dy.as_ref().map_or(&dx[r][at], |dy| &dy[r][at]));
                let (out, x_hat) = row::<T, S, N, R>(isa, &slopes[r], x, dy, weight);
                let to = &mut dx[r][at];
                if way.past {
                    T::store_past_split(isa, out, to)
                } else {
                    T::store_split(isa, out, to)
                }
                [dot, sum] = leaf_step(isa, [dot, sum], dy, x_hat);
            }
            if let Some(leaf) = &mut dweight {
                isa.store(T::in_order(isa, dot), &mut leaf[at]);
            }
            if let Some(leaf) = &mut dbias {
                isa.store(T::in_order(isa, sum), &mut leaf[at]);
            }
        }
    }
}

/// dx, and x_hat as dweight takes it.
#[inline(always)]
fn row<T, S, N, R>(isa: S, slope: &Slope<T::Compute>, x: S::V, dy: S::V, weight: S::V) -> (S::V, S::V)
where
    T: Element,
    S: Isa<T::Compute>,
    N: RowNorm,
    R: Element<Compute = T::Compute>,
{
    let x_hat = N::Hat::x_hat(isa, N::Hat::splat(isa, &slope.stats), x);
    let mut g = R::round(isa, isa.mul(dy, weight));
    if N::CENTERED {
        g = isa.sub(g, isa.splat(slope.c1));
    }
    let dx = isa.mul(isa.fma(x_hat, isa.splat(slope.minus_c2), g), isa.splat(slope.stats.inv));
    (dx, R::round(isa, x_hat))
}

#[inline(always)]
fn chunks<T>(from: &[T]) -> &[[T; LANES]] {
    from.as_chunks().0
}

/// 32 elements from `at` on.
#[inline(always)]
fn chunk<T>(from: &[T], at: usize) -> &[T; LANES] {
    &from[at..at + LANES].as_chunks().0[0]
}

/// 32 elements from `at` on.
#[inline(always)]
fn chunk_mut<T>(from: &mut [T], at: usize) -> &mut [T; LANES] {
    &mut from[at..at + LANES].as_chunks_mut().0[0]
}
