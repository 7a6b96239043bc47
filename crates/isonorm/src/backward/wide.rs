//! A row that the kernels cannot read where it is: widened to the compute type, differentiated there, and rounded.
//!
//! Rows under the range rule, with tensors of several types, of pRMSNorm, and those that are kept as raw terms.

use std::marker::PhantomData;

use crate::affine::Plain;
use crate::apply::{Apply, Convert, narrow_tile};
use crate::backward::correlate::{Correlate, Slope};
use crate::backward::gradients::{Gradients, Leaf, Way};
use crate::backward::rows::{BackwardJob, Plan, leaf_of};
use crate::element::{Compute, Element};
use crate::forward::{RowNorm, measure};
use crate::level::Level;
use crate::order::Sums;
use crate::params::Recipe;
use crate::residual::widen_any;
use crate::rows::{Run, RunMut};

/// Room for one row of each tensor.
pub(crate) struct Wide<C> {
    x: Vec<C>,
    dy: Vec<C>,
    dx: Vec<C>,
    /// dresidual, or x_hat.
    other: Vec<C>,
}

impl<C: Compute> Wide<C> {
    pub(crate) fn new(hidden: usize) -> Self {
        let row = || vec![C::ZERO; hidden];
        Wide { x: row(), dy: row(), dx: row(), other: row() }
    }

    /// Row `row` of the tensors.
    pub(crate) fn row<N: RowNorm, T: Element<Compute = C>>(
        &mut self,
        job: &mut BackwardJob<'_, N, T>,
        row: usize,
        sums: Option<&mut Sums<C>>,
    ) {
        let (plan, task) = (job.plan, job.plan.task);
        let columns = 0..task.hidden();
        let x = job.x.row(row);
        let known = job.known.map(|known| known.row(row)[0]);
        let stats = match (known, job.stats) {
            (Some(known), _) => known.stats,
            (None, Some(saved)) => saved.row(row)[0],
            (None, None) => measure::<N, T>(&task, &x[..task.measured()]),
        };
        widen_any(task.level, T::slice(x), &mut self.x);
        if stats.is_scaled() {
            self.x.iter_mut().for_each(|x| *x = *x * stats.scale);
        }
        widen_any(task.level, job.dy.unwrap_or(job.dx.as_in()).row(row, columns.clone()), &mut self.dy);
        if N::OF_LANGUAGE_MODELS && task.call.recipe == Recipe::Llama {
            let slope = known.unwrap_or_else(|| self.correlate::<N, T>(plan, Slope::of(stats)));
            self.differentiate::<N, T>(plan, slope, sums);
        } else {
            let slope = known.unwrap_or_else(|| self.correlate::<N, C>(plan, Slope::of(stats)));
            self.differentiate::<N, C>(plan, slope, sums);
        }
        if stats.is_scaled() {
            self.dx.iter_mut().for_each(|dx| *dx = *dx * stats.scale);
        }
        round::<T>(task.level, &mut self.dx);
        let dresidual = match (&job.dresidual, &job.dr) {
            (Some(Some(dresidual)), _) => Some(dresidual.row(row, columns.clone())),
            (Some(None), Some(dr)) => Some(dr.as_in().row(row, columns.clone())),
            _ => None,
        };
        if let Some(dresidual) = dresidual {
            widen_any(task.level, dresidual, &mut self.other);
            self.dx.iter_mut().zip(&self.other).for_each(|(dx, other)| *dx = *dx + *other);
            round::<T>(task.level, &mut self.dx);
        }
        narrow_tile(task.level, &self.dx, job.dx.row(row, columns.clone()));
        if let Some(dr) = &mut job.dr {
            narrow_tile(task.level, &self.dx, dr.row(row, columns));
        }
    }

    /// The slope of x and dy.
    fn correlate<N: RowNorm, R: Element<Compute = C>>(&self, plan: &Plan<'_, C>, slope: Slope<C>) -> Slope<C> {
        let Plan { task, weight, .. } = *plan;
        let (hidden, measured, eps, norm) = (task.hidden(), task.measured(), task.eps, PhantomData::<(N, R)>);
        let (x, dy) = (Run::one(&self.x), Run::one(&self.dy));
        let mut rows = [slope];
        C::enter(task.level, Correlate { hidden, measured, eps, x, dy, weight, ahead: None, rows: &mut rows, norm });
        rows[0]
    }

    /// dx but for its rounding, from x and dy; and what the row adds to `sums`.
    fn differentiate<N: RowNorm, R: Element<Compute = C>>(
        &mut self,
        plan: &Plan<'_, C>,
        slope: Slope<C>,
        mut sums: Option<&mut Sums<C>>,
    ) {
        let Plan { task, measured, weight, .. } = *plan;
        let (hidden, level, norm) = (task.hidden(), task.level, PhantomData::<(N, R)>);
        let (x, dy, rows) = (Run::one(&self.x), Run::one(&self.dy), &[slope]);
        let mut leaf = Leaf::none();
        match &mut sums {
            Some(sums) if sums.raw() > 0 => {
                let (x, y, stats) = (&self.x[..], &mut self.other[..], slope.stats);
                C::enter(level, Apply::<N::Hat<C>, C, R, C, _> { x, y, stats, affine: Plain, recipe: PhantomData });
                sums.push(&self.dy, &self.other);
            }
            Some(sums) => leaf = leaf_of(sums),
            None => {}
        }
        let went_on = leaf.dweight.is_some() || leaf.dbias.is_some();
        let (dx, way) = (RunMut::one(&mut self.dx), Way::default());
        C::enter(level, Gradients { hidden, x, dy: Some(dy), dx, weight, rows, leaf, way, norm });
        if went_on && let Some(sums) = sums {
            sums.advance(1);
        }
        // Elements of pRMSNorm that its statistics do not depend on.
        let free = self.dx.iter_mut().zip(&self.dy).zip(weight).skip(measured);
        free.for_each(|((dx, dy), weight)| *dx = R::narrow(*dy * *weight).widen() * slope.stats.inv);
    }
}

/// Rounds a row to `T` and widens it again.
fn round<T: Element>(level: Level, row: &mut [T::Compute]) {
    if T::DTYPE == <T::Compute as Element>::DTYPE {
        return;
    }
    let mut narrow = [T::default(); 256];
    for row in row.chunks_mut(narrow.len()) {
        let narrow = &mut narrow[..row.len()];
        T::Compute::enter(level, Convert { x: &*row, y: &mut *narrow });
        T::Compute::enter(level, Convert { x: &*narrow, y: row });
    }
}
