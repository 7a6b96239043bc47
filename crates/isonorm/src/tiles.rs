//! What the kernels cannot do in place, done tile by tile in the compute type: rows under the range rule,
//! parameters and outputs of other types.

use std::marker::PhantomData;
use std::ops::Range;

use crate::affine::WeightBias;
use crate::apply::{Apply, Convert, ScaledHat, narrow_tile};
use crate::element::{Compute, Element};
use crate::forward::Task;
use crate::grid::Place;
use crate::params::Recipe;
use crate::rows::{AnyIn, AnyOut};
use crate::slice::SliceMut;
use crate::stats::Stats;

/// Elements of a tile: a few of them, of any type, fit the nearest cache.
pub(crate) const TILE: usize = 1024;

/// The columns of a row of `hidden` elements, tile by tile.
pub(crate) fn tiles(hidden: usize) -> impl Iterator<Item = Range<usize>> {
    (0..hidden).step_by(TILE).map(move |start| start..(start + TILE).min(hidden))
}

/// One row of y from x, or from what y holds.
pub(crate) fn apply_row<T: Element>(
    task: &Task<'_, T::Compute>,
    row: usize,
    x: Option<AnyIn<'_>>,
    y: &mut AnyOut<'_>,
    stats: Stats<T::Compute>,
) {
    for columns in tiles(task.hidden()) {
        let mut wide = [T::Compute::ZERO; TILE];
        let wide = &mut wide[..columns.len()];
        let from = x.unwrap_or(y.as_in()).row(row, columns.clone());
        let Some(from) = T::of(&from) else { return };
        T::Compute::enter(task.level, Convert { x: from, y: &mut *wide });
        apply_tile::<T>(task, wide, y.row(row, columns.clone()), columns.start, stats);
    }
}

/// One row of y from x of the same type.
pub(crate) fn apply_row_alone<T: Element>(task: &Task<'_, T::Compute>, x: &[T], y: &mut [T], stats: Stats<T::Compute>) {
    let place = Place::contiguous(task.hidden());
    let mut y = AnyOut::new(T::slice_mut(y), place);
    apply_row::<T>(task, 0, Some(AnyIn::new(T::slice(x), place)), &mut y, stats);
}

/// One tile of y, the columns from `start` on, from x in the compute type.
fn apply_tile<T: Element>(
    task: &Task<'_, T::Compute>,
    x: &[T::Compute],
    y: SliceMut<'_>,
    start: usize,
    stats: Stats<T::Compute>,
) {
    let [mut weight, mut bias, mut out] = [[T::Compute::ZERO; TILE]; 3];
    let (weight, bias, out) = (&mut weight[..x.len()], &mut bias[..x.len()], &mut out[..x.len()]);
    task.call.params.widen(start, weight, bias);
    let affine = WeightBias(&*weight, &*bias);
    match task.call.recipe {
        Recipe::Torch => T::Compute::enter(
            task.level,
            Apply::<ScaledHat, _, T::Compute, _, _> { x, y: &mut *out, stats, affine, recipe: PhantomData },
        ),
        Recipe::Llama => T::Compute::enter(
            task.level,
            Apply::<ScaledHat, _, T, _, _> { x, y: &mut *out, stats, affine, recipe: PhantomData },
        ),
    }
    narrow_tile(task.level, out, y);
}
