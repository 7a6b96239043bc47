//! The sums that statistics come from, over the columns of a shard.

use std::marker::PhantomData;
use std::ops::Range;

use crate::element::{Compute, Element};
use crate::isa::Isa;
use crate::layer_norm::{Deviations, Values};
use crate::level::Level;
use crate::order::{Row, Terms};
use crate::residual::widen_any;
use crate::rms_norm::Squares;
use crate::rows::{In, Run};
use crate::shards::progress::Set;
use crate::shards::stretches::{Lanes, RowSums, Stretches, SumStretches};

/// What is summed of a row.
pub(crate) trait Form<C: Compute, const K: usize>: Sync {
    type Terms<'a, T: Element<Compute = C>>: Terms<C, K>;
    /// The terms of a stretch of x.
    fn terms<'a, T: Element<Compute = C>>(x: &'a [T], set: &Set<C>) -> Self::Terms<'a, T>;
    /// The term of one x: the factor of a dot with itself, or a summand.
    fn term(x: C, set: &Set<C>) -> C;
}

/// x
pub(crate) struct OfX;
/// x * x
pub(crate) struct OfSquares;
/// The product of x - mean with itself, and x - mean.
pub(crate) struct OfDeviations;

impl<C: Compute> Form<C, 1> for OfX {
    type Terms<'a, T: Element<Compute = C>> = Values<'a, T, false>;
    #[inline(always)]
    fn terms<'a, T: Element<Compute = C>>(x: &'a [T], _: &Set<C>) -> Values<'a, T, false> {
        Values { row: Row::new(x), scale: C::ONE }
    }
    fn term(x: C, _: &Set<C>) -> C {
        x
    }
}

impl<C: Compute> Form<C, 1> for OfSquares {
    type Terms<'a, T: Element<Compute = C>> = Squares<'a, T, false>;
    #[inline(always)]
    fn terms<'a, T: Element<Compute = C>>(x: &'a [T], _: &Set<C>) -> Squares<'a, T, false> {
        Squares { row: Row::new(x), scale: C::ONE }
    }
    fn term(x: C, _: &Set<C>) -> C {
        x
    }
}

impl<C: Compute> Form<C, 2> for OfDeviations {
    type Terms<'a, T: Element<Compute = C>> = DotFirst<Deviations<'a, T, false>>;
    #[inline(always)]
    fn terms<'a, T: Element<Compute = C>>(x: &'a [T], set: &Set<C>) -> Self::Terms<'a, T> {
        DotFirst(Deviations { row: Row::new(x), scale: C::ONE, mean: set.mean })
    }
    fn term(x: C, set: &Set<C>) -> C {
        x - set.mean
    }
}

/// Terms whose sum comes first, the other way round.
pub(crate) struct DotFirst<T>(T);

impl<C: Compute, T: Terms<C, 2>> Terms<C, 2> for DotFirst<T> {
    #[inline(always)]
    fn step<S: Isa<C>>(&self, isa: S, [dot, sum]: [S::V; 2], at: usize, n: usize) -> [S::V; 2] {
        let [sum, dot] = self.0.step(isa, [sum, dot], at, n);
        [dot, sum]
    }
    #[inline(always)]
    fn whole_leaves(&self, leaf: usize, leaves: usize) -> Option<Self> {
        self.0.whole_leaves(leaf, leaves).map(DotFirst)
    }
    #[inline(always)]
    fn in_order<S: Isa<C>>(isa: S, v: S::V) -> S::V {
        T::in_order(isa, v)
    }
}

/// Rows of x to be summed: those of `sets`.
pub(crate) struct Measure<'a, F, T: Element> {
    pub(crate) level: Level,
    pub(crate) x: In<'a, T>,
    pub(crate) sets: &'a [Set<T::Compute>],
    pub(crate) form: PhantomData<F>,
}

/// Some rows of it.
struct Stretch<'a, F, T: Element> {
    x: Run<'a, T>,
    sets: &'a [Set<T::Compute>],
    form: PhantomData<F>,
}

impl<C, F, T, const K: usize> RowSums<C, K> for Measure<'_, F, T>
where
    C: Compute,
    F: Form<C, K>,
    T: Element<Compute = C>,
{
    fn sum(&self, rows: Range<usize>, stretches: &[Range<usize>], to: &mut Lanes<'_, C, K>) {
        let Measure { level, x, sets, form } = *self;
        let mut wide = Vec::new();
        let mut at = rows.start;
        while at < rows.end {
            let (set, first) = (&sets[at], at - rows.start);
            if set.scale == C::ONE {
                // Of the first computation, whose sets are all rows in their order.
                let (x, n) = x.runs(at, rows.end - at);
                let from = Stretch { x, sets: &sets[at..at + n], form };
                C::enter(level, SumStretches { from, rows: n, stretches, first, to: &mut *to });
                at += n;
            } else {
                widen_scaled(level, x.row(set.at), set.scale, &mut wide);
                let from = Stretch { x: Run::one(&wide), sets: &sets[at..at + 1], form };
                C::enter(level, SumStretches { from, rows: 1, stretches, first, to: &mut *to });
                at += 1;
            }
        }
    }

    fn terms(&self, row: usize, a: &mut [C], b: &mut [C]) {
        let set = &self.sets[row];
        widen_any(self.level, T::slice(&self.x.row(set.at)[..a.len()]), a);
        for a in a.iter_mut() {
            *a = F::term(*a * set.scale, set);
        }
        b.copy_from_slice(a);
    }
}

impl<'a, C, F, T, const K: usize> Stretches<C, K> for Stretch<'a, F, T>
where
    C: Compute,
    F: Form<C, K>,
    T: Element<Compute = C>,
{
    type Terms = F::Terms<'a, T>;

    #[inline(always)]
    fn terms(&self, i: usize, start: usize, len: usize) -> Self::Terms {
        F::terms(&self.x.row(i, start + len)[start..], &self.sets[i])
    }
}

/// A row in the compute type, times `scale`.
pub(crate) fn widen_scaled<T: Element>(level: Level, x: &[T], scale: T::Compute, wide: &mut Vec<T::Compute>) {
    wide.resize(x.len(), T::Compute::ZERO);
    widen_any(level, T::slice(x), wide);
    if scale != T::Compute::ONE {
        wide.iter_mut().for_each(|x| *x = *x * scale);
    }
}
