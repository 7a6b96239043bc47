//! What the kernels cannot do in place, done tile by tile in the compute type: rows under the range rule,
//! parameters and outputs of other types.

use std::ops::Range;

use crate::affine::WeightBias;
use crate::apply::{Apply, Convert, ScaledHat, narrow_tile};
use crate::element::{Compute, Element, SliceMut};
use crate::forward::Task;
use crate::params::Recipe;
use crate::rows::{AnyIn, AnyOut, In, Out};
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
    for columns in tiles(task.hidden) {
        let mut wide = [T::Compute::ZERO; TILE];
        let wide = &mut wide[..columns.len()];
        let from = x.unwrap_or(y.as_in()).row(row, columns.clone());
        let Some(from) = T::of(&from) else { return };
        T::Compute::enter(task.level, Convert { x: from, y: &mut *wide });
        apply_tile::<T>(task, wide, y.row(row, columns.clone()), columns.start, stats);
    }
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
    task.params.widen(start, weight, bias);
    let (x, wide_y) = (In::one(x), Out::one(&mut *out));
    let (stats, affine) = ([stats], WeightBias(&*weight, &*bias));
    match task.recipe {
        Recipe::Torch => {
            let apply = Apply::<ScaledHat, _, T::Compute, T::Compute, _>::new(x, wide_y, 0..1, &stats, affine);
            T::Compute::enter(task.level, apply);
        }
        Recipe::Llama => {
            let apply = Apply::<ScaledHat, _, T, T::Compute, _>::new(x, wide_y, 0..1, &stats, affine);
            T::Compute::enter(task.level, apply);
        }
    }
    narrow_tile(task.level, out, y);
}
