//! One call of a channel-wise norm: in any layout, in place or not, beside what the oracle says of it.

use isonorm::{BatchNorm, Cpu, Error, GroupNorm, InstanceNorm, PlaneIo, Planes, PlanesMut, Running};
use isonorm_testing::DType;
use isonorm_testing::golden::{Array, Case, Norm, Shape};
use isonorm_testing::oracle::forward::{self as oracle, Affine, Channels};
use isonorm_testing::oracle::{Compute, Eps};
use isonorm_testing::values::Kind;

use crate::support::{Saved, Tensor, with_options};

/// A norm, its options and its tensors in logical order.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) norm: Norm,
    pub(crate) shape: Channels,
    pub(crate) groups: usize,
    pub(crate) eps: Eps,
    pub(crate) weight: Option<Tensor>,
    pub(crate) bias: Option<Tensor>,
    pub(crate) offset: f64,
    pub(crate) momentum: f64,
    pub(crate) biased: bool,
    pub(crate) running: Option<(Tensor, Tensor)>,
    pub(crate) x: Tensor,
    pub(crate) y_type: DType,
}

/// What it returns, in logical order: y, the reported mean, var and rstd, the running mean and variance.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) y: Tensor,
    pub(crate) reported: [Tensor; 3],
    pub(crate) running: Option<(Tensor, Tensor)>,
}

/// How it is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) last: bool,
    pub(crate) in_place: bool,
}

pub(crate) const WAYS: [How; 4] = [
    How { last: false, in_place: false },
    How { last: true, in_place: false },
    How { last: false, in_place: true },
    How { last: true, in_place: true },
];

/// Shapes at the edges of leaves, lanes, tiles, windows, stripes and the narrow planes' bound.
pub(crate) const SHAPES: [(usize, usize, usize); 29] = [
    (2, 1, 1),
    (1, 1, 2),
    (1, 3, 2),
    (3, 31, 1),
    (16, 32, 1),
    (17, 33, 1),
    (49, 65, 1),
    (5, 257, 1),
    (3, 1030, 1),
    (2, 3, 31),
    (4, 5, 32),
    (6, 17, 33),
    (33, 4, 9),
    (65, 3, 2),
    (4, 70, 16),
    (5, 66, 49),
    (3, 40, 63),
    (4, 3, 64),
    (1, 66, 65),
    (2, 34, 127),
    (2, 3, 128),
    (3, 5, 129),
    (2, 2, 512),
    (1, 3, 1025),
    (2, 33, 300),
    (2, 300, 5),
    (1, 2, 5000),
    (1, 4, 1024),
    (3, 130, 17),
];

/// Every norm, and every sensible number of groups.
pub(crate) fn norms(shape: Channels) -> Vec<(Norm, usize)> {
    let c = shape.channels;
    let groups = (1..=c).filter(|g| c.is_multiple_of(*g) && (*g <= 3 || *g == c || g * 2 == c));
    let groups = groups.map(|groups| (Norm::GroupNorm, groups));
    let mut norms = vec![(Norm::BatchNormEval, c)];
    if shape.samples * shape.spatial > 1 {
        norms.push((Norm::BatchNormTrain, c));
    }
    norms.into_iter().chain(groups).collect()
}

impl Call {
    /// The call of a golden case of channels.
    pub(crate) fn of(case: &Case) -> Option<Self> {
        let Shape::Channels(shape) = case.shape else { return None };
        let input = |name| case.input(name).map(Tensor::new);
        Some(Call {
            norm: case.norm,
            shape,
            groups: case.groups.unwrap_or(shape.channels),
            eps: case.eps,
            weight: input("weight"),
            bias: input("bias"),
            offset: case.weight_offset,
            momentum: case.momentum.unwrap_or(0.1),
            biased: case.biased_running_var,
            running: input("running_mean").zip(input("running_var")),
            x: Tensor::new(case.x()),
            y_type: case.y_type,
        })
    }

    /// A call of `norm` on values of one kind, with weight, bias and running statistics of x's type.
    pub(crate) fn new(norm: Norm, shape: Channels, groups: usize, dtype: DType, kind: Kind) -> Self {
        let Channels { samples, channels, spatial } = shape;
        let parameter = |seed| Tensor::values(dtype, Kind::Normal, seed, channels);
        let squares = |tensor: Tensor| {
            let values: Vec<f64> = tensor.array().widened::<f64>().iter().map(|v| v * v).collect();
            Tensor::new(&Array::from_values(dtype, &values))
        };
        Call {
            norm,
            shape,
            groups,
            eps: Eps { value: 1e-5, outside: false },
            weight: Some(parameter(2)),
            bias: Some(parameter(3)),
            offset: 0.0,
            momentum: 0.1,
            biased: false,
            running: (norm != Norm::GroupNorm).then(|| (parameter(4), squares(parameter(5)))),
            x: Tensor::values(dtype, kind, 1, samples * channels * spatial),
            y_type: dtype,
        }
    }

    /// From logical order to that of memory.
    pub(crate) fn placed(&self, how: How, tensor: &Tensor) -> Tensor {
        if !how.last {
            return tensor.clone();
        }
        let Channels { samples, channels, spatial } = self.shape;
        let place = |n, s, c| (n * channels + c) * spatial + s;
        let positions = (0..samples).flat_map(|n| (0..spatial).map(move |s| (n, s)));
        tensor.gather(positions.flat_map(|(n, s)| (0..channels).map(move |c| place(n, s, c))))
    }

    /// From memory's order to the logical one.
    pub(crate) fn logical(&self, how: How, tensor: &Tensor) -> Tensor {
        if !how.last {
            return tensor.clone();
        }
        let Channels { samples, channels, spatial } = self.shape;
        let place = |n, c, s| (n * spatial + s) * channels + c;
        let planes = (0..samples).flat_map(|n| (0..channels).map(move |c| (n, c)));
        tensor.gather(planes.flat_map(|(n, c)| (0..spatial).map(move |s| place(n, c, s))))
    }

    pub(crate) fn can(&self, how: How) -> bool {
        !how.in_place || self.x.dtype() == self.y_type
    }

    pub(crate) fn run(&self, how: How, cpu: Cpu<'_>) -> Found {
        self.try_run(how, cpu).unwrap_or_else(|e| panic!("{:?} {:?} {how:?}: {e}", self.norm, self.shape))
    }

    pub(crate) fn try_run(&self, how: How, cpu: Cpu<'_>) -> Result<Found, Error> {
        let Channels { samples, channels, spatial } = self.shape;
        let x = self.placed(how, &self.x);
        let mut y = if how.in_place { x.clone() } else { Tensor::sentinel(self.y_type, x.len()) };
        let sets = if self.norm == Norm::GroupNorm { samples * self.groups } else { channels };
        let mut saved = Saved::new(x.dtype(), sets);
        let mut running = self.running.clone();
        let out = y.slice_mut();
        let out = if how.last {
            PlanesMut::channels_last(out, channels, spatial)
        } else {
            PlanesMut::channels_first(out, channels, spatial)
        };
        let io = match how {
            How { in_place: true, .. } => PlaneIo::in_place(out),
            How { last: true, .. } => PlaneIo::new(Planes::channels_last(x.slice(), channels, spatial), out),
            How { last: false, .. } => PlaneIo::new(Planes::channels_first(x.slice(), channels, spatial), out),
        };
        self.apply(cpu, io.stats(saved.stats_mut()), &mut running)?;
        Ok(Found { y: self.logical(how, &y), reported: saved.reported(), running })
    }

    fn apply(&self, cpu: Cpu<'_>, io: PlaneIo<'_>, running: &mut Option<(Tensor, Tensor)>) -> Result<(), Error> {
        let channels = self.shape.channels;
        if self.norm == Norm::GroupNorm {
            return if self.groups == channels {
                with_options!(self, cpu, InstanceNorm::new(channels)).apply(io)
            } else {
                with_options!(self, cpu, GroupNorm::new(self.groups, channels)).apply(io)
            };
        }
        let mut norm = with_options!(self, cpu, BatchNorm::new(channels)).momentum(self.momentum);
        if self.biased {
            norm = norm.biased_running_var();
        }
        match (self.norm, running) {
            (Norm::BatchNormEval, Some((mean, var))) => norm.evaluate(io, mean.slice(), var.slice()),
            (_, Some((mean, var))) => norm.train(io, Some(Running::new(mean.slice_mut(), var.slice_mut()))),
            (_, None) => norm.train(io, None),
        }
    }

    /// What the oracle says.
    pub(crate) fn oracle(&self) -> Found {
        if self.x.dtype() == DType::F64 { self.oracle_in::<f64>() } else { self.oracle_in::<f32>() }
    }

    fn oracle_in<C: Compute>(&self) -> Found {
        let widened = |tensor: &Tensor| tensor.array().widened::<C>();
        let (weight, bias) = (self.weight.as_ref().map(widened), self.bias.as_ref().map(widened));
        let affine = Affine { weight: weight.as_deref(), bias: bias.as_deref(), weight_offset: self.offset };
        let (x, shape, eps) = (widened(&self.x), self.shape, self.eps);
        let tensor = |dtype, values: &[C]| Tensor::new(&Array::from_values(dtype, values));
        let out = match (self.norm, &self.running) {
            (Norm::GroupNorm, _) => oracle::group_norm(&x, shape, self.groups, &affine, eps),
            (Norm::BatchNormEval, Some((mean, var))) => {
                let (mean, var) = (widened(mean), widened(var));
                let running = oracle::Running { mean: &mean, var: &var };
                let y = oracle::batch_norm_eval(&x, shape, running, &affine, eps);
                oracle::Forward { y, mean: vec![], var: vec![], rstd: vec![] }
            }
            _ => oracle::batch_norm_train(&x, shape, &affine, eps),
        };
        let updated = |(mean, var): &(Tensor, Tensor)| {
            let n = shape.samples * shape.spatial;
            let new_var = if self.biased { out.var.clone() } else { oracle::unbiased(&out.var, n) };
            let moved = |old: &Tensor, new: &[C]| {
                tensor(old.dtype(), &oracle::running_update(&widened(old), new, self.momentum))
            };
            (moved(mean, &out.mean), moved(var, &new_var))
        };
        let running = self.running.as_ref();
        Found {
            y: tensor(self.y_type, &out.y),
            reported: [&out.mean, &out.var, &out.rstd].map(|values| tensor(C::DTYPE, values)),
            running: if self.norm == Norm::BatchNormTrain { running.map(updated) } else { running.cloned() },
        }
    }
}
