//! Rows shared out over threads, for the peers that leave that to their caller.

use std::ops::Range;

use crate::memory::{Inputs, Outputs};

/// Consecutive rows: their numbers, inputs and outputs. `residual` and `sum` are empty where the
/// operation adds nothing. `Y` is what the peer writes to.
pub(super) struct Part<'a, Y> {
    pub(super) rows: Range<usize>,
    pub(super) hidden: usize,
    pub(super) x: &'a [f32],
    pub(super) residual: &'a [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) y: &'a mut [Y],
}

/// One row of a [`Part`], `sum` and `residual` as there.
pub(super) struct Row<'a, Y> {
    pub(super) number: usize,
    pub(super) x: &'a [f32],
    pub(super) residual: &'a [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) y: &'a mut [Y],
}

impl<'a, Y: Send> Part<'a, Y> {
    /// Every row, written to `y`, or to the outputs' own `y` by [`Part::all_in_place`].
    pub(super) fn all(rows: usize, inputs: &'a Inputs, sum: &'a mut [f32], y: &'a mut [Y]) -> Part<'a, Y> {
        let (x, residual) = (inputs.x.as_slice(), inputs.residual.as_slice());
        Part { rows: 0..rows, hidden: x.len() / rows, x, residual, sum, y }
    }

    /// Calls `work` on each row, in as many runs of rows at once as there are `threads`.
    pub(super) fn for_each(self, threads: usize, work: &(impl Fn(Row<'_, Y>) + Sync)) {
        if threads == 1 {
            return self.in_order(work);
        }
        let half = threads / 2;
        let (left, right) = self.split_at_share(half, threads);
        rayon::join(|| left.for_each(half, work), || right.for_each(threads - half, work));
    }

    fn in_order(self, work: &impl Fn(Row<'_, Y>)) {
        let mut sums = self.sum.chunks_mut(self.hidden);
        let mut residuals = self.residual.chunks(self.hidden);
        let rows = self.x.chunks(self.hidden).zip(self.y.chunks_mut(self.hidden));
        for (number, (x, y)) in self.rows.zip(rows) {
            let residual = residuals.next().unwrap_or_default();
            let sum = sums.next().unwrap_or_default();
            work(Row { number, x, residual, sum, y });
        }
    }

    fn split_at_share(self, share: usize, shares: usize) -> (Part<'a, Y>, Part<'a, Y>) {
        let middle = self.rows.start + self.rows.len() * share / shares;
        let at = (middle - self.rows.start) * self.hidden;
        let (x, x_right) = self.x.split_at(at);
        let (y, y_right) = self.y.split_at_mut(at);
        let (residual, residual_right) = self.residual.split_at(at.min(self.residual.len()));
        let sum_at = at.min(self.sum.len());
        let (sum, sum_right) = self.sum.split_at_mut(sum_at);
        let (rows, rows_right) = (self.rows.start..middle, middle..self.rows.end);
        let hidden = self.hidden;
        (
            Part { rows, hidden, x, residual, sum, y },
            Part { rows: rows_right, hidden, x: x_right, residual: residual_right, sum: sum_right, y: y_right },
        )
    }
}

impl<'a> Part<'a, f32> {
    /// Every row, written to the outputs' `y`.
    pub(super) fn all_in_place(rows: usize, inputs: &'a Inputs, outputs: &'a mut Outputs) -> Part<'a, f32> {
        Part::all(rows, inputs, outputs.sum.as_mut_slice(), outputs.y.as_mut_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::CELLS;

    #[test]
    fn every_row_comes_once_with_its_own_number_whatever_the_threads() {
        let mut cell = CELLS[3];
        (cell.rows, cell.hidden, cell.params) = (7, 16, 16);
        let inputs = Inputs::new(&cell);
        let mut outputs = Outputs::new(&cell, &inputs);
        for threads in 1..9 {
            outputs.scrub();
            Part::all_in_place(cell.rows, &inputs, &mut outputs).for_each(threads, &|row| {
                assert!(row.sum.is_empty() && row.residual.is_empty());
                row.y.fill(row.number as f32 + row.x[0]);
            });
            let rows = inputs.x.as_slice::<f32>().chunks(16).enumerate();
            let expected: Vec<f32> = rows.flat_map(|(r, x)| [r as f32 + x[0]; 16]).collect();
            assert_eq!(outputs.y.as_slice::<f32>(), expected, "{threads} threads");
        }
    }
}
