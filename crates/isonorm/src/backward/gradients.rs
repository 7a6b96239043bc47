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
use crate::order::{LANES, padded};
use crate::rows::{Run, RunMut};

/// Elements of a row from which setting out along it is worth its price.
const WIDE: usize = 512;

/// The open leaf of the parameters' gradients, where they are wanted.
pub(crate) struct Leaf<'a, C> {
    pub(crate) dweight: Option<&'a mut [C]>,
    pub(crate) dbias: Option<&'a mut [C]>,
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
        let rows = self.rows.len();
        let mut i = 0;
        if S::LEAVES > 1 && self.hidden >= WIDE && self.dx.is_nested(self.hidden) {
            // As many as registers hold, with what rounding to two bytes takes.
            if size_of::<T>() == 2 {
                while i + 2 <= rows {
                    self.along::<S, 2>(isa, i);
                    i += 2;
                }
            } else {
                while i + 4 <= rows {
                    self.along::<S, 4>(isa, i);
                    i += 4;
                }
            }
        }
        if i < rows {
            self.down(isa, i);
        }
    }
}

impl<C, N, T, R> Gradients<'_, N, T, R>
where
    C: Compute,
    N: RowNorm,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
{
    /// Rows `i..i + M`, together from end to end.
    #[inline(always)]
    fn along<S: Isa<C>, const M: usize>(&mut self, isa: S, i: usize) {
        let (hidden, head) = (self.hidden, self.head(i));
        let stretch = Stretch::<T, M> {
            x: std::array::from_fn(|r| self.x.row(i + r, hidden)),
            dy: self.dy.map(|dy| std::array::from_fn(|r| dy.row(i + r, hidden))),
            dx: self.dx.rows_mut(i, hidden),
            weight: &self.weight[..hidden],
            dweight: self.leaf.dweight.as_deref_mut().map(|leaf| &mut leaf[..hidden]),
            dbias: self.leaf.dbias.as_deref_mut().map(|leaf| &mut leaf[..hidden]),
        };
        let slopes = std::array::from_fn(|r| self.rows[i + r]);
        let tail = (hidden - head) % LANES;
        let (_, rest) = stretch.split_at(head);
        let (whole, _) = rest.split_at(hidden - head - tail);
        whole.chunks::<S, N, R>(isa, &slopes, self.way);
        self.part(isa, i..i + M, 0, head);
        self.part(isa, i..i + M, hidden - tail, tail);
    }

    /// Rows from `i` on, column by column.
    #[inline(always)]
    fn down<S: Isa<C>>(&mut self, isa: S, i: usize) {
        let (hidden, rows) = (self.hidden, i..self.rows.len());
        let head = self.head(i);
        let tail = (hidden - head) % LANES;
        let mut at = head;
        while at < hidden - tail {
            self.chunk(isa, rows.clone(), at);
            at += LANES;
        }
        self.part(isa, rows.clone(), 0, head);
        self.part(isa, rows, hidden - tail, tail);
    }

    /// Columns before the first chunk: stores past the caches want whole lines.
    #[inline(always)]
    fn head(&mut self, i: usize) -> usize {
        if self.way.past { self.dx.row_mut(i, self.hidden).as_ptr().align_offset(LINE).min(self.hidden) } else { 0 }
    }

    /// 32 columns of some rows.
    #[inline(always)]
    fn chunk<S: Isa<C>>(&mut self, isa: S, rows: Range<usize>, at: usize) {
        let (weight, zero) = (T::split(isa, isa.load(chunk(self.weight, at))), isa.splat(C::ZERO));
        let leaf = &mut self.leaf;
        let mut dot = leaf.dweight.as_ref().map_or(zero, |leaf| T::split(isa, isa.load(chunk(leaf, at))));
        let mut sum = leaf.dbias.as_ref().map_or(zero, |leaf| T::split(isa, isa.load(chunk(leaf, at))));
        for i in rows {
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
            dot = isa.fma(dy, x_hat, dot);
            sum = isa.add(sum, dy);
        }
        if let Some(leaf) = &mut leaf.dweight {
            isa.store(T::in_order(isa, dot), chunk_mut(leaf, at));
        }
        if let Some(leaf) = &mut leaf.dbias {
            isa.store(T::in_order(isa, sum), chunk_mut(leaf, at));
        }
    }

    /// `n < 32` columns of some rows.
    #[inline(always)]
    fn part<S: Isa<C>>(&mut self, isa: S, rows: Range<usize>, at: usize, n: usize) {
        if n == 0 {
            return;
        }
        let (hidden, columns, zero) = (self.hidden, at..at + n, isa.splat(C::ZERO));
        let weight = isa.load(&padded(&self.weight[columns.clone()]));
        let leaf = &mut self.leaf;
        let mut dot = leaf.dweight.as_ref().map_or(zero, |leaf| isa.load(&padded(&leaf[columns.clone()])));
        let mut sum = leaf.dbias.as_ref().map_or(zero, |leaf| isa.load(&padded(&leaf[columns.clone()])));
        for i in rows {
            let x = T::load(isa, &padded(&self.x.row(i, hidden)[columns.clone()]));
            let to = &mut self.dx.row_mut(i, hidden)[columns.clone()];
            let dy = self.dy.as_ref().map_or(&*to, |dy| &dy.row(i, hidden)[columns.clone()]);
            let dy = T::load(isa, &padded(dy));
            let (dx, x_hat) = row::<T, S, N, R>(isa, &self.rows[i], x, dy, weight);
            let mut own = [T::default(); LANES];
            T::store(isa, dx, &mut own);
            to.copy_from_slice(&own[..n]);
            dot = isa.fma(dy, x_hat, dot);
            sum = isa.add(sum, dy);
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
}

impl<'a, T: Element, const M: usize> Stretch<'a, T, M> {
    #[inline(always)]
    fn split_at(self, at: usize) -> (Self, Self) {
        let (x, x_rest) = split_all(self.x, at);
        let (dy, dy_rest) = self.dy.map(|dy| split_all(dy, at)).unzip();
        let (dx, dx_rest) = split_all_mut(self.dx, at);
        let (weight, weight_rest) = self.weight.split_at(at);
        let (dweight, dweight_rest) = self.dweight.map(|leaf| leaf.split_at_mut(at)).unzip();
        let (dbias, dbias_rest) = self.dbias.map(|leaf| leaf.split_at_mut(at)).unzip();
        let rest = Stretch {
            x: x_rest,
            dy: dy_rest,
            dx: dx_rest,
            weight: weight_rest,
            dweight: dweight_rest,
            dbias: dbias_rest,
        };
        (Stretch { x, dy, dx, weight, dweight, dbias }, rest)
    }

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
            let mut dot = dweight.as_ref().map_or(zero, |leaf| T::split(isa, isa.load(&leaf[at])));
            let mut sum = dbias.as_ref().map_or(zero, |leaf| T::split(isa, isa.load(&leaf[at])));
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
                dot = isa.fma(dy, x_hat, dot);
                sum = isa.add(sum, dy);
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

#[inline(always)]
fn split_all<T, const M: usize>(rows: [&[T]; M], at: usize) -> ([&[T]; M], [&[T]; M]) {
    (rows.map(|row| &row[..at]), rows.map(|row| &row[at..]))
}

#[inline(always)]
fn split_all_mut<T, const M: usize>(rows: [&mut [T]; M], at: usize) -> ([&mut [T]; M], [&mut [T]; M]) {
    let mut rest: [&mut [T]; M] = std::array::from_fn(|_| &mut [][..]);
    let mut r = 0;
    let first = rows.map(|row| {
        let (first, others) = row.split_at_mut(at);
        rest[r] = others;
        r += 1;
        first
    });
    (first, rest)
}
