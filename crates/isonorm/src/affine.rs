//! Weight and bias: from x_hat to the value that is rounded to y.

use crate::element::{Compute, DType, Element};
use crate::isa::Isa;
use crate::order::Row;

/// From x_hat to the value that is rounded to y.
pub(crate) trait Affine<C: Compute>: Copy {
    /// What chunks of a row read.
    type Row: Copy;
    /// The storage type whose chunks have their lanes as the parameters' chunks; `None` where there is no chunk.
    const LANES_OF: Option<DType>;
    /// Weight and bias of a row of `hidden` elements.
    fn row(&self, hidden: usize) -> Self::Row;
    /// Weight and bias of the elements from `start` on.
    fn after(self, start: usize) -> Self;
    /// Of `count` whole chunks.
    fn whole(row: Self::Row, count: usize) -> Self::Row;
    /// Chunk `at`, the first `n` elements of which exist; `split`: a whole one, its lanes as `load_split` has them.
    fn apply<S: Isa<C>>(isa: S, row: Self::Row, x_hat: S::V, at: usize, n: usize, split: bool) -> S::V;
}

/// Neither weight nor bias.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

/// A weight for each element.
#[derive(Clone, Copy)]
pub(crate) struct Weight<'a, W>(pub(crate) &'a [W]);

/// A weight and a bias for each element.
#[derive(Clone, Copy)]
pub(crate) struct WeightBias<'a, W>(pub(crate) &'a [W], pub(crate) &'a [W]);

/// A weight for each element, stored as its distance from an offset.
#[derive(Clone, Copy)]
pub(crate) struct OffsetWeight<'a, W: Element>(pub(crate) &'a [W], pub(crate) W::Compute);

/// One weight and one bias for the whole row: 1 and -0 where there are none, which change no bit.
#[derive(Clone, Copy)]
pub(crate) struct Channel<C>(pub(crate) C, pub(crate) C);

impl<C: Compute> Affine<C> for Plain {
    type Row = ();
    const LANES_OF: Option<DType> = None;
    #[inline(always)]
    fn row(&self, _: usize) {}
    #[inline(always)]
    fn whole(_: (), _: usize) {}
    #[inline(always)]
    fn after(self, _: usize) -> Self {
        self
    }
    #[inline(always)]
    fn apply<S: Isa<C>>(_: S, _: (), x_hat: S::V, _: usize, _: usize, _: bool) -> S::V {
        x_hat
    }
}

impl<'a, W: Element> Affine<W::Compute> for Weight<'a, W> {
    type Row = Row<'a, W>;
    const LANES_OF: Option<DType> = Some(W::DTYPE);
    #[inline(always)]
    fn row(&self, hidden: usize) -> Row<'a, W> {
        Row::new(&self.0[..hidden])
    }
    #[inline(always)]
    fn whole(row: Row<'a, W>, count: usize) -> Row<'a, W> {
        row.whole(count)
    }
    #[inline(always)]
    fn after(self, start: usize) -> Self {
        Weight(&self.0[start..])
    }
    #[inline(always)]
    fn apply<S: Isa<W::Compute>>(isa: S, weight: Row<'a, W>, x_hat: S::V, at: usize, n: usize, split: bool) -> S::V {
        isa.mul(x_hat, weight.read_as(isa, at, n, split))
    }
}

impl<'a, W: Element> Affine<W::Compute> for OffsetWeight<'a, W> {
    type Row = (Row<'a, W>, W::Compute);
    const LANES_OF: Option<DType> = Some(W::DTYPE);
    #[inline(always)]
    fn row(&self, hidden: usize) -> Self::Row {
        (Row::new(&self.0[..hidden]), self.1)
    }
    #[inline(always)]
    fn whole((row, offset): Self::Row, count: usize) -> Self::Row {
        (row.whole(count), offset)
    }
    #[inline(always)]
    fn after(self, start: usize) -> Self {
        OffsetWeight(&self.0[start..], self.1)
    }
    #[inline(always)]
    fn apply<S: Isa<W::Compute>>(
        isa: S,
        (weight, offset): Self::Row,
        x_hat: S::V,
        at: usize,
        n: usize,
        split: bool,
    ) -> S::V {
        isa.mul(x_hat, isa.add(weight.read_as(isa, at, n, split), isa.splat(offset)))
    }
}

impl<'a, W: Element> Affine<W::Compute> for WeightBias<'a, W> {
    type Row = (Row<'a, W>, Row<'a, W>);
    const LANES_OF: Option<DType> = Some(W::DTYPE);
    #[inline(always)]
    fn row(&self, hidden: usize) -> Self::Row {
        (Row::new(&self.0[..hidden]), Row::new(&self.1[..hidden]))
    }
    #[inline(always)]
    fn whole((weight, bias): Self::Row, count: usize) -> Self::Row {
        (weight.whole(count), bias.whole(count))
    }
    #[inline(always)]
    fn after(self, start: usize) -> Self {
        WeightBias(&self.0[start..], &self.1[start..])
    }
    #[inline(always)]
    fn apply<S: Isa<W::Compute>>(
        isa: S,
        (weight, bias): Self::Row,
        x_hat: S::V,
        at: usize,
        n: usize,
        split: bool,
    ) -> S::V {
        isa.fma(x_hat, weight.read_as(isa, at, n, split), bias.read_as(isa, at, n, split))
    }
}

impl<C: Compute> Affine<C> for Channel<C> {
    type Row = (C, C);
    // Any lane has the same, but a NaN of an f32 is not what `store_split` takes.
    const LANES_OF: Option<DType> = Some(C::DTYPE);
    #[inline(always)]
    fn row(&self, _: usize) -> (C, C) {
        (self.0, self.1)
    }
    #[inline(always)]
    fn whole(row: (C, C), _: usize) -> (C, C) {
        row
    }
    #[inline(always)]
    fn after(self, _: usize) -> Self {
        self
    }
    #[inline(always)]
    fn apply<S: Isa<C>>(isa: S, (weight, bias): (C, C), x_hat: S::V, _: usize, _: usize, _: bool) -> S::V {
        isa.fma(x_hat, isa.splat(weight), isa.splat(bias))
    }
}
