//! The sums of the backward pass over rows of one type, of which the statistics are known.
//!
//! ```text
//! c1 = rowsum(g) / n            c2 = (rowdot(g, x_hat) / n) * q            g = dy * weight
//! ```
//!
//! RMSNorm has no c1. g is rounded to `R` first, as the recipe says: the Llama recipe gives x's storage type, the others
//! the compute type.

use std::marker::PhantomData;

use crate::apply::Hat;
use crate::element::{Compute, Element};
use crate::forward::RowNorm;
use crate::isa::Isa;
use crate::level::Kernel;
use crate::order::{LANES, Row, Terms, reduce};
use crate::rows::Run;
use crate::stats::{Eps, Stats};

/// What the gradient of one row needs besides the row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slope<C> {
    pub(crate) stats: Stats<C>,
    /// The mean of g.
    pub(crate) c1: C,
    /// Minus the mean of `g * x_hat`, times q.
    pub(crate) minus_c2: C,
}

impl<C: Compute> Slope<C> {
    pub(crate) fn of(stats: Stats<C>) -> Self {
        Slope { stats: stats.quiet(), c1: C::ZERO, minus_c2: C::ZERO }
    }
}

/// The means of g and `g * x_hat`, row by row.
pub(crate) struct Correlate<'a, N, T: Element, R> {
    pub(crate) hidden: usize,
    /// Elements that entered the statistics: n.
    pub(crate) measured: usize,
    pub(crate) eps: Eps<T::Compute>,
    pub(crate) x: Run<'a, T>,
    pub(crate) dy: Run<'a, T>,
    /// Lanes of whole chunks as `T::load_split` has them.
    pub(crate) weight: &'a [T::Compute],
    /// Elements from dy to what is asked for meanwhile.
    pub(crate) ahead: Option<isize>,
    pub(crate) rows: &'a mut [Slope<T::Compute>],
    pub(crate) norm: PhantomData<(N, R)>,
}

impl<C, N, T, R> Kernel<C> for Correlate<'_, N, T, R>
where
    C: Compute,
    N: RowNorm,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let Correlate { hidden, eps, .. } = self;
        let count = C::from_count(self.measured);
        let weight = Row::new(&self.weight[..hidden]);
        for i in 0..self.rows.len() {
            let slope = &mut self.rows[i];
            let (x, dy) = (Row::new(self.x.row(i, hidden)), Row::new(self.dy.row(i, hidden)));
            let stats = slope.stats;
            let products =
                Products::<T, N::Hat<C>, R> { x, dy, weight, ahead: self.ahead, stats, rounding: PhantomData };
            let dot;
            if N::CENTERED {
                let sum;
                [dot, sum] = reduce(isa, &products, hidden);
                slope.c1 = sum / count;
            } else {
                [dot] = reduce(isa, &products, hidden);
            }
            slope.minus_c2 = -eps.times_q(dot / count, &stats);
        }
    }
}

/// `g * x_hat`, and g.
pub(crate) struct Products<'a, T: Element, H, R> {
    pub(crate) x: Row<'a, T>,
    pub(crate) dy: Row<'a, T>,
    pub(crate) weight: Row<'a, T::Compute>,
    pub(crate) ahead: Option<isize>,
    pub(crate) stats: Stats<T::Compute>,
    pub(crate) rounding: PhantomData<(H, R)>,
}

impl<C, T, H, R> Products<'_, T, H, R>
where
    C: Compute,
    T: Element<Compute = C>,
    H: Hat<C>,
    R: Element<Compute = C>,
{
    /// g and x_hat.
    #[inline(always)]
    fn read<S: Isa<C>>(&self, isa: S, at: usize, n: usize) -> [S::V; 2] {
        if let Some(ahead) = self.ahead
            && n == LANES
        {
            self.dy.ask(isa, at, ahead);
        }
        let x_hat = H::x_hat(isa, H::splat(isa, &self.stats), self.x.read_as(isa, at, n, true));
        [R::round(isa, isa.mul(self.dy.read_as(isa, at, n, true), self.weight.read(isa, at, n))), x_hat]
    }

    #[inline(always)]
    fn part(&self, leaf: usize, leaves: usize) -> Self {
        let Products { x, dy, weight, ahead, stats, rounding } = *self;
        let (x, dy) = (x.whole_leaves(leaf, leaves), dy.whole_leaves(leaf, leaves));
        Products { x, dy, weight: weight.whole_leaves(leaf, leaves), ahead, stats, rounding }
    }
}

impl<C, T, H, R> Terms<C, 1> for Products<'_, T, H, R>
where
    C: Compute,
    T: Element<Compute = C>,
    H: Hat<C>,
    R: Element<Compute = C>,
{
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [dot]: [S::V; 1], at: usize, n: usize) -> [S::V; 1] {
        let [g, x_hat] = self.read(isa, at, n);
        [isa.fma(g, x_hat, dot)]
    }
    #[inline(always)]
    fn whole_leaves(&self, leaf: usize, leaves: usize) -> Option<Self> {
        Some(self.part(leaf, leaves))
    }
    #[inline(always)]
    fn in_order<S: Isa<C>>(isa: S, v: S::V) -> S::V {
        T::in_order(isa, v)
    }
}

impl<C, T, H, R> Terms<C, 2> for Products<'_, T, H, R>
where
    C: Compute,
    T: Element<Compute = C>,
    H: Hat<C>,
    R: Element<Compute = C>,
{
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [dot, sum]: [S::V; 2], at: usize, n: usize) -> [S::V; 2] {
        let [g, x_hat] = self.read(isa, at, n);
        [isa.fma(g, x_hat, dot), isa.add(sum, g)]
    }
    #[inline(always)]
    fn whole_leaves(&self, leaf: usize, leaves: usize) -> Option<Self> {
        Some(self.part(leaf, leaves))
    }
    #[inline(always)]
    fn in_order<S: Isa<C>>(isa: S, v: S::V) -> S::V {
        T::in_order(isa, v)
    }
}

/// The weight as a backward call reads it: NaN quiet, and once more with the lanes of whole chunks as `T::load_split`
/// has them.
pub(crate) struct SplitWeight<'a, T: Element> {
    pub(crate) from: &'a mut [T::Compute],
    pub(crate) split: &'a mut [T::Compute],
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for SplitWeight<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        let SplitWeight { from, split } = self;
        for weight in from.iter_mut() {
            *weight = weight.quiet();
        }
        split.copy_from_slice(from);
        let (from, to) = (from.as_chunks::<LANES>().0, split.as_chunks_mut::<LANES>().0);
        for at in 0..from.len() {
            isa.store(T::split(isa, isa.load(&from[at])), &mut to[at]);
        }
    }
}
