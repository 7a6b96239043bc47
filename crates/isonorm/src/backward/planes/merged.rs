//! dx of BatchNorm in training from sums that are known: those of all ranks.

use crate::backward::planes::factors::{Columns, Factors, Output, batch_factors};
use crate::backward::planes::io::PlaneBackwardIo;
use crate::channels::{TILE, Task};
use crate::element::{Compute, Element};
use crate::groups::NARROW;
use crate::isa::float_env::FloatEnv;
use crate::planes::Shape;
use crate::slice::{Slice, SliceMut};
use crate::stats::Stats;
use crate::threads::{self, Cpu, Job};

/// dx of a rank's samples. `samples` are those of all ranks, over which the sums of dy, and of dy and x_hat, are.
pub(crate) fn backward_merged<T: Element>(
    task: Task<'_, T::Compute>,
    cpu: &Cpu<'_>,
    io: PlaneBackwardIo<'_>,
    samples: usize,
    stats: &[Stats<T::Compute>],
    sums: [&[T::Compute]; 2],
) {
    let (shape, rounded) = (task.shape, io.rounded());
    let Some(x) = T::of(&io.x.data) else { return };
    let mut factors = vec![Factors::default(); shape.channels];
    {
        let _env = FloatEnv::standard();
        let whole = Task { shape: Shape { samples, ..shape }, ..task };
        batch_factors(&whole, 0, stats, sums, &mut factors);
        for factors in &mut factors {
            // Other ranks' sums may hold any NaN.
            (factors.k1, factors.k2) = (factors.k1.quiet(), factors.k2.quiet());
        }
    }
    let task = Task { rounded, ..task };
    let job = MergedJob { task, x, dy: io.dy.map(|dy| dy.data), dx: io.dx.data, factors: &factors };
    threads::run(cpu, job, shape.bytes(size_of::<T>()) / 2 * 3);
}

/// Samples, or positions of channels that lie side by side.
struct MergedJob<'a, T: Element> {
    task: Task<'a, T::Compute>,
    x: &'a [T],
    /// `None`: what dx holds.
    dy: Option<Slice<'a>>,
    dx: SliceMut<'a>,
    factors: &'a [Factors<T::Compute>],
}

impl<T: Element> MergedJob<'_, T> {
    /// Elements of a unit.
    fn each(&self) -> usize {
        if self.task.shape.last { self.task.shape.channels } else { self.task.shape.sample() }
    }

    /// Columns that are as many values in memory's order, each of `repeat` elements.
    fn columns(&mut self, repeat: usize, output: &mut Output<T>) {
        let (stride, rows) = (self.each(), self.units());
        let most = (TILE / repeat).max(1);
        let mut columns = Columns::new(stride);
        for first in (0..self.factors.len()).step_by(most) {
            let some = &self.factors[first..self.factors.len().min(first + most)];
            columns.clear(stride);
            columns.extend(some, repeat);
            columns.join_rows(rows);
            // From the first column of the first row to the last column of the last.
            let from = first * repeat;
            let n = self.x.len() - stride + some.len() * repeat;
            let dy = self.dy.map(|dy| dy.part(from, n));
            output.columns(&self.x[from..from + n], dy, self.dx.reborrow().part(from, n), &columns);
        }
    }
}

impl<T: Element> Job for MergedJob<'_, T> {
    fn units(&self) -> usize {
        self.x.len() / self.each()
    }

    fn split(self, units: usize) -> (Self, Self) {
        let at = units * self.each();
        let MergedJob { task, x, dy, dx, factors } = self;
        let ((x, x_rest), (dx, dx_rest)) = (x.split_at(at), dx.split(at));
        let (dy, dy_rest) = dy.map(|dy| (dy.part(0, at), dy.part(at, dy.len() - at))).unzip();
        let first = MergedJob { task, x, dy, dx, factors };
        (first, MergedJob { task, x: x_rest, dy: dy_rest, dx: dx_rest, factors })
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let shape = self.task.shape;
        let mut output = Output::<T>::new(&self.task);
        if shape.last {
            self.columns(1, &mut output);
        } else if shape.spatial < NARROW {
            self.columns(shape.spatial, &mut output);
        } else {
            let sample = shape.sample();
            for (n, x) in self.x.chunks_exact(sample).enumerate() {
                let dy = self.dy.map(|dy| dy.part(n * sample, sample));
                output.planes(x, dy, self.dx.reborrow().part(n * sample, sample), shape.spatial, self.factors);
            }
        }
        output.finish();
    }
}
