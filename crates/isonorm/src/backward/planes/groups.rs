//! The gradients of GroupNorm and InstanceNorm.
//!
//! ```text
//! g  = dy * weight[c]
//! k1 = rowsum(g) / n, k2 = (rowdot(g, x_hat) / n) * q         over a group, channel by channel
//! dx = T((fma(-x_hat, k2, g - k1) * inv) * scale)
//! [dbias, dweight] = the samples' plane sums of dy, dy * x_hat, in batch order
//! ```
//!
//! Threads share the groups of all samples (channels last: the samples); each leaves the sums of its planes in a table
//! of all samples and channels, which is summed over the samples in the end.

use std::ops::Range;

use crate::backward::planes::factors::{Columns, Output};
use crate::backward::planes::io::{Gradients, PlaneBackwardIo};
use crate::backward::planes::window::{SETS, Window};
use crate::channels::Task;
use crate::element::{Compute, Element};
use crate::isa::float_env::FloatEnv;
use crate::partial::Partial;
use crate::planes::Shape;
use crate::slice::{Slice, SliceMut};
use crate::stats::Stats;
use crate::tables::sum_rows;
use crate::threads::{self, Cpu, Job};

/// All gradients.
pub(crate) fn backward_groups<T: Element>(
    task: Task<'_, T::Compute>,
    cpu: &Cpu<'_>,
    groups: usize,
    io: PlaneBackwardIo<'_>,
) {
    let shape = task.shape;
    let Some(x) = T::of(&io.x.data) else { return };
    let planes = shape.samples * shape.channels;
    let (mut gradients, partial) = (io.gradients, io.partial);
    let planes = if gradients.are_wanted() || partial.is_some() { planes } else { 0 };
    let mut table = vec![T::Compute::ZERO; 2 * planes];
    let (dbias, dweight) = table.split_at_mut(planes);
    let saved = io.stats.and_then(T::Compute::saved);
    let (dy, dx) = (io.dy.map(|dy| dy.data), io.dx.data);
    let job = GroupsJob { task, per: shape.channels / groups, first: 0, x, dy, dx, saved, dbias, dweight };
    threads::run(cpu, job, shape.bytes(size_of::<T>()) / 2 * 3);
    if let Some(partial) = partial {
        return add_samples(partial, &table, &mut gradients);
    }
    if !gradients.are_wanted() {
        return;
    }
    let mut sums = vec![T::Compute::ZERO; 2 * shape.channels];
    for (table, sums) in table.chunks_exact(planes.max(1)).zip(sums.chunks_exact_mut(shape.channels)) {
        sum_rows(task.level, table, sums);
    }
    let (dbias, dweight) = sums.split_at(shape.channels);
    gradients.write(0, shape.channels, [dbias, dweight]);
}

/// Adds the rows of a table `[dbias: samples][dweight: samples]` to a partial sum, and rounds what it has then.
pub(crate) fn add_samples<C: Compute>(partial: &mut Partial, table: &[C], gradients: &mut Gradients<'_>) {
    let _env = FloatEnv::standard();
    let Some(sums) = partial.sums_mut::<C>() else { return };
    let channels = sums.columns();
    let (dbias, dweight) = table.split_at(table.len() / 2);
    for (dbias, dweight) in dbias.chunks_exact(channels.max(1)).zip(dweight.chunks_exact(channels.max(1))) {
        sums.push(dbias, dweight);
    }
    if gradients.are_wanted() {
        let root = sums.root();
        let (dweight, dbias) = root.split_at(channels);
        gradients.write(0, channels, [dbias, dweight]);
    }
}

/// Groups of contiguous elements, or samples whose channels lie side by side, from number `first` on.
struct GroupsJob<'a, T: Element> {
    task: Task<'a, T::Compute>,
    /// Channels of a group.
    per: usize,
    first: usize,
    x: &'a [T],
    /// `None`: what dx holds.
    dy: Option<Slice<'a>>,
    dx: SliceMut<'a>,
    /// Of all groups of all samples.
    saved: Option<&'a [Stats<T::Compute>]>,
    /// One sum for each plane; empty where nobody wants them.
    dbias: &'a mut [T::Compute],
    dweight: &'a mut [T::Compute],
}

impl<T: Element> GroupsJob<'_, T> {
    /// Channels of a unit.
    fn unit(&self) -> usize {
        if self.task.shape.last { self.task.shape.channels } else { self.per }
    }
}

impl<T: Element> Job for GroupsJob<'_, T> {
    fn units(&self) -> usize {
        self.x.len() / (self.unit() * self.task.shape.spatial)
    }

    fn split(self, units: usize) -> (Self, Self) {
        let planes = units * self.unit();
        let at = planes * self.task.shape.spatial;
        let GroupsJob { task, per, first, x, dy, dx, saved, dbias, dweight } = self;
        let ((x, x_rest), (dx, dx_rest)) = (x.split_at(at), dx.split(at));
        let (dy, dy_rest) = dy.map(|dy| (dy.part(0, at), dy.part(at, dy.len() - at))).unzip();
        let (dbias, dbias_rest) = dbias.split_at_mut(planes.min(dbias.len()));
        let (dweight, dweight_rest) = dweight.split_at_mut(planes.min(dweight.len()));
        let rest = GroupsJob {
            task,
            per,
            first: first + units,
            x: x_rest,
            dy: dy_rest,
            dx: dx_rest,
            saved,
            dbias: dbias_rest,
            dweight: dweight_rest,
        };
        (GroupsJob { task, per, first, x, dy, dx, saved, dbias, dweight }, rest)
    }

    fn run(&mut self) {
        let _env = FloatEnv::standard();
        let groups = self.task.shape.channels / self.per;
        let mut output = Output::<T>::new(&self.task);
        let mut columns = Columns::new(self.task.shape.channels);
        for unit in 0..self.units() {
            let number = self.first + unit;
            if !self.task.shape.last {
                self.groups(unit, number, number % groups..number % groups + 1, &mut output, &mut columns);
                continue;
            }
            let most = (SETS / self.per).max(1);
            for group in (0..groups).step_by(most) {
                let some = group..groups.min(group + most);
                self.groups(unit, number * groups + group, some, &mut output, &mut columns);
            }
        }
        output.finish();
    }
}

impl<T: Element> GroupsJob<'_, T> {
    /// Some groups of a unit: those of number `number` on, `groups` of their sample.
    fn groups(
        &mut self,
        unit: usize,
        number: usize,
        groups: Range<usize>,
        output: &mut Output<T>,
        columns: &mut Columns<T::Compute>,
    ) {
        let (task, per, planes) = (self.task, self.per, self.unit());
        let shape = Shape { samples: 1, channels: planes, ..task.shape };
        let (at, size) = (unit * shape.sample(), shape.sample());
        let (x, dy) = (&self.x[at..at + size], self.dy.map(|dy| dy.part(at, size)));
        let first = if shape.last { groups.start * per } else { 0 };
        let channels = first..first + groups.len() * per;
        let window = Window { task, per, weights: groups.start * per, channels, x, shape, dy };
        let stats = match self.saved {
            Some(saved) => saved[number..number + groups.len()].iter().copied().collect(),
            None => window.measure(),
        };
        // Where dy is what dx holds, it is read here and overwritten below.
        let own = self.dx.as_slice().part(at, size);
        if !self.dbias.is_empty() {
            let table = unit * planes + window.channels.start..unit * planes + window.channels.end;
            window.plane_sums(own, &stats, [&mut self.dbias[table.clone()], &mut self.dweight[table]]);
        }
        let factors = window.factors(own, &stats);
        window.write(self.dx.reborrow().part(at, size), &factors, output, columns);
    }
}
