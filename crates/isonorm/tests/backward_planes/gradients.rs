//! One backward call of a channel-wise norm: in any layout, in place or not, beside what the oracle says of it.

use isonorm::{BatchNorm, Cpu, Error, GroupNorm, InstanceNorm, PlaneBackwardIo, PlaneIo, Planes, PlanesMut};
use isonorm_testing::DType;
use isonorm_testing::golden::{Array, Norm};
use isonorm_testing::oracle::backward as oracle;
use isonorm_testing::oracle::forward::{Affine, Channels, Running};
use isonorm_testing::oracle::{Compute, Eps};
use isonorm_testing::values::Kind;

use crate::call::{Call, How};
use crate::support::{Saved, Tensor, with_options};

/// A forward call, and what backward takes and returns besides.
#[derive(Clone, Debug)]
pub(crate) struct Backward {
    pub(crate) call: Call,
    pub(crate) dy: Tensor,
    pub(crate) dx_type: DType,
    pub(crate) dweight: Option<DType>,
    pub(crate) dbias: Option<DType>,
}

/// dx in logical order, and the parameters' gradients; none of those that nobody asked for.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) dx: Tensor,
    pub(crate) dweight: Option<Tensor>,
    pub(crate) dbias: Option<Tensor>,
}

impl Found {
    pub(crate) fn named(&self) -> Vec<(&'static str, &Tensor)> {
        let all = [("dx", Some(&self.dx)), ("dweight", self.dweight.as_ref()), ("dbias", self.dbias.as_ref())];
        all.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))).collect()
    }
}

impl Backward {
    /// Every gradient of a call on values of one kind, all of one type.
    pub(crate) fn new(norm: Norm, shape: Channels, groups: usize, dtype: DType, kind: Kind) -> Self {
        let call = Call::new(norm, shape, groups, dtype, kind);
        let dy = Tensor::values(dtype, if kind == Kind::Offset { Kind::Normal } else { kind }, 6, call.x.len());
        Backward { call, dy, dx_type: dtype, dweight: Some(dtype), dbias: Some(dtype) }
    }

    pub(crate) fn can(&self, how: How) -> bool {
        let x = self.call.x.dtype();
        !how.in_place || (self.dy.dtype() == x && self.dx_type == x)
    }

    pub(crate) fn run(&self, how: How, cpu: Cpu<'_>, saved: bool) -> Found {
        let Call { norm, shape, .. } = &self.call;
        self.try_run(how, cpu, saved).unwrap_or_else(|e| panic!("{norm:?} {shape:?} {how:?}: {e}"))
    }

    fn try_run(&self, how: How, cpu: Cpu<'_>, saved: bool) -> Result<Found, Error> {
        let Call { shape: Channels { channels, spatial, .. }, x, .. } = &self.call;
        let (x, dy) = (self.call.placed(how, x), self.call.placed(how, &self.dy));
        let mut dx = if how.in_place { dy.clone() } else { Tensor::sentinel(self.dx_type, x.len()) };
        let [mut dweight, mut dbias] =
            [self.dweight, self.dbias].map(|dtype| dtype.map(|dtype| Tensor::sentinel(dtype, *channels)));
        let planes = if how.last { Planes::channels_last } else { Planes::channels_first };
        let planes_mut = if how.last { PlanesMut::channels_last } else { PlanesMut::channels_first };
        let [x_planes, dy] = [&x, &dy].map(|tensor| planes(tensor.slice(), *channels, *spatial));
        let out = planes_mut(dx.slice_mut(), *channels, *spatial);
        let mut io = if how.in_place {
            PlaneBackwardIo::in_place(x_planes, out)
        } else {
            PlaneBackwardIo::new(x_planes, dy, out)
        };
        let stats = saved.then(|| self.saved(how, cpu, &x));
        if let Some(stats) = &stats {
            io = io.stats(stats.stats_ref());
        }
        if let Some(dweight) = &mut dweight {
            io = io.dweight(dweight.slice_mut());
        }
        if let Some(dbias) = &mut dbias {
            io = io.dbias(dbias.slice_mut());
        }
        self.apply(cpu, io)?;
        Ok(Found { dx: self.call.logical(how, &dx), dweight, dbias })
    }

    /// What forward saves.
    fn saved(&self, how: How, cpu: Cpu<'_>, x: &Tensor) -> Saved {
        let Call { norm, shape: Channels { samples, channels, spatial }, groups, .. } = self.call;
        let mut saved = Saved::new(x.dtype(), if norm == Norm::GroupNorm { samples * groups } else { channels });
        let mut y = x.clone();
        let layout = if how.last { PlanesMut::channels_last } else { PlanesMut::channels_first };
        let io = PlaneIo::in_place(layout(y.slice_mut(), channels, spatial)).stats(saved.stats_mut());
        self.forward(cpu, io).expect("a valid forward call");
        saved
    }

    fn forward(&self, cpu: Cpu<'_>, io: PlaneIo<'_>) -> Result<(), Error> {
        let Call { norm, shape: Channels { channels, .. }, groups, running, .. } = &self.call;
        match (norm, running) {
            (Norm::GroupNorm, _) => with_options!(self.call, cpu, GroupNorm::new(*groups, *channels)).apply(io),
            (Norm::BatchNormEval, Some((mean, var))) => {
                with_options!(self.call, cpu, BatchNorm::new(*channels)).evaluate(io, mean.slice(), var.slice())
            }
            _ => with_options!(self.call, cpu, BatchNorm::new(*channels)).train(io, None),
        }
    }

    fn apply(&self, cpu: Cpu<'_>, io: PlaneBackwardIo<'_>) -> Result<(), Error> {
        let Call { norm, shape: Channels { channels, .. }, groups, running, .. } = &self.call;
        match (norm, running) {
            (Norm::GroupNorm, _) if groups == channels => {
                with_options!(self.call, cpu, InstanceNorm::new(*channels)).backward(io)
            }
            (Norm::GroupNorm, _) => with_options!(self.call, cpu, GroupNorm::new(*groups, *channels)).backward(io),
            (Norm::BatchNormEval, Some((mean, var))) => with_options!(self.call, cpu, BatchNorm::new(*channels))
                .evaluate_backward(io, mean.slice(), var.slice()),
            _ => with_options!(self.call, cpu, BatchNorm::new(*channels)).train_backward(io),
        }
    }

    /// What the oracle says.
    pub(crate) fn oracle(&self) -> Found {
        if self.call.x.dtype() == DType::F64 { self.oracle_in::<f64>() } else { self.oracle_in::<f32>() }
    }

    fn oracle_in<C: Compute>(&self) -> Found {
        let Call { norm, shape, groups, eps, weight, offset, running, x, .. } = &self.call;
        let widened = |tensor: &Tensor| tensor.array().widened::<C>();
        let weight = weight.as_ref().map(widened);
        let affine = Affine { weight: weight.as_deref(), bias: None, weight_offset: *offset };
        let (values, dy, eps): (_, _, Eps) = (widened(x), widened(&self.dy), *eps);
        let running = running.as_ref().map(|(mean, var)| (widened(mean), widened(var)));
        let running = running.as_ref().map(|(mean, var)| Running { mean, var });
        let running = running.filter(|_| *norm == Norm::BatchNormEval);
        let out = match norm {
            Norm::GroupNorm => oracle::group_norm(&values, &dy, (*shape, *groups), &affine, eps, x.dtype()),
            _ => oracle::batch_norm(&values, &dy, (*shape, running), &affine, eps, x.dtype()),
        };
        let tensor = |dtype, values: &[C]| Tensor::new(&Array::from_values(dtype, values));
        Found {
            dx: tensor(self.dx_type, &out.dx),
            dweight: self.dweight.map(|dtype| tensor(dtype, &out.dweight)),
            dbias: self.dbias.map(|dtype| tensor(dtype, &out.dbias)),
        }
    }
}
