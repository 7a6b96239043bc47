//! The sums that dx takes its means from, over the columns of a shard.

use std::marker::PhantomData;
use std::ops::Range;

use arrayvec::ArrayVec;

use crate::backward::correlate::{Products, SplitWeight};
use crate::element::{Compute, Element};
use crate::forward::RowNorm;
use crate::level::Level;
use crate::order::{Row, Terms};
use crate::residual::widen_any;
use crate::rows::{AnyIn, In, Run};
use crate::shards::measure::widen_scaled;
use crate::shards::stretches::{Lanes, RowSums, Stretches, SumStretches};
use crate::stats::Stats;

/// Rows whose statistics are at hand at once.
const BLOCK: usize = 64;

/// Rows of x and dy to be summed. g is rounded to `R`, as in `backward/correlate.rs`.
pub(crate) struct Correlate<'a, N, T: Element, R> {
    pub(crate) level: Level,
    pub(crate) x: In<'a, T>,
    pub(crate) dy: AnyIn<'a>,
    pub(crate) stats: In<'a, Stats<T::Compute>>,
    /// The weight of the shard's columns.
    pub(crate) weight: &'a [T::Compute],
    /// The same with the lanes of whole chunks, from the first leaf border on, as `T::load_split` has them.
    pub(crate) split_weight: &'a [T::Compute],
    pub(crate) norm: PhantomData<fn() -> (N, R)>,
}

impl<C, N, T, R, const K: usize> RowSums<C, K> for Correlate<'_, N, T, R>
where
    C: Compute,
    N: RowNorm,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
    for<'p> Products<'p, T, N::Hat<C>, R>: Terms<C, K>,
    for<'p> Products<'p, C, N::Hat<C>, R>: Terms<C, K>,
{
    fn sum(&self, rows: Range<usize>, stretches: &[Range<usize>], to: &mut Lanes<'_, C, K>) {
        let [mut wide_x, mut wide_dy] = [Vec::new(), Vec::new()];
        let mut at = rows.start;
        while at < rows.end {
            let first = at - rows.start;
            let n = self.block(at..rows.end, stretches, first, &mut *to);
            at += n;
            if n == 0 {
                let (x, stats) = (self.x.row(at), self.stats.row(at)[0]);
                widen_scaled(self.level, x, stats.scale, &mut wide_x);
                wide_dy.resize(x.len(), C::ZERO);
                widen_any(self.level, self.dy.row(at, 0..x.len()), &mut wide_dy);
                let (x, dy, stats) = (Run::one(&wide_x), Run::one(&wide_dy), &[stats][..]);
                let from = Pairs { x, dy, stats, weight: self.weight, norm: self.norm };
                C::enter(self.level, SumStretches { from, rows: 1, stretches, first, to: &mut *to });
                at += 1;
            }
        }
    }

    fn terms(&self, row: usize, a: &mut [C], b: &mut [C]) {
        let stats = self.stats.row(row)[0];
        widen_any(self.level, self.dy.row(row, 0..a.len()), a);
        widen_any(self.level, T::slice(&self.x.row(row)[..b.len()]), b);
        for i in 0..a.len() {
            a[i] = R::narrow(a[i] * self.weight[i]).widen();
            let x = b[i] * stats.scale;
            b[i] = if N::CENTERED { ((x - stats.mean) - stats.delta) * stats.inv } else { x * stats.inv };
        }
    }
}

impl<N: RowNorm, T: Element, R: Element<Compute = T::Compute>> Correlate<'_, N, T, R> {
    /// Sums rows that the kernels can read where they are; how many.
    fn block<const K: usize>(
        &self,
        rows: Range<usize>,
        stretches: &[Range<usize>],
        first: usize,
        to: &mut Lanes<'_, T::Compute, K>,
    ) -> usize
    where
        for<'p> Products<'p, T, N::Hat<T::Compute>, R>: Terms<T::Compute, K>,
    {
        let Some(dy) = self.dy.of::<T>() else { return 0 };
        let (x, n) = self.x.runs(rows.start, rows.len().min(BLOCK));
        let (dy, n) = dy.runs(rows.start, n);
        let stats = (rows.start..rows.start + n).map(|row| self.stats.row(row)[0]);
        let stats: ArrayVec<_, BLOCK> = stats.take_while(|stats| !stats.is_scaled()).collect();
        if !stats.is_empty() {
            let from = Pairs { x, dy, stats: &stats, weight: self.split_weight, norm: self.norm };
            T::Compute::enter(self.level, SumStretches { from, rows: stats.len(), stretches, first, to });
        }
        stats.len()
    }
}

/// Some rows of x and dy.
struct Pairs<'a, N, T: Element, R> {
    x: Run<'a, T>,
    dy: Run<'a, T>,
    stats: &'a [Stats<T::Compute>],
    weight: &'a [T::Compute],
    norm: PhantomData<fn() -> (N, R)>,
}

impl<'a, C, N, T, R, const K: usize> Stretches<C, K> for Pairs<'a, N, T, R>
where
    C: Compute,
    N: RowNorm,
    T: Element<Compute = C>,
    R: Element<Compute = C>,
    Products<'a, T, N::Hat<C>, R>: Terms<C, K>,
{
    type Terms = Products<'a, T, N::Hat<C>, R>;

    #[inline(always)]
    fn terms(&self, i: usize, start: usize, len: usize) -> Self::Terms {
        let end = start + len;
        let x = Row::new(&self.x.row(i, end)[start..]);
        let dy = Row::new(&self.dy.row(i, end)[start..]);
        let weight = Row::new(&self.weight[start..end]);
        Products { x, dy, weight, ahead: None, stats: self.stats[i], rounding: PhantomData }
    }
}

/// The weight with the lanes of whole chunks from column `from` on as `T::load_split` has them.
pub(crate) fn split_from<T: Element>(level: Level, weight: &[T::Compute], from: usize) -> Vec<T::Compute> {
    let mut split = weight.to_vec();
    let mut from = weight.get(from..).unwrap_or_default().to_vec();
    let at = split.len() - from.len();
    let split_weight = SplitWeight::<T> { from: &mut from, split: &mut split[at..] };
    T::Compute::enter(level, split_weight);
    split
}
