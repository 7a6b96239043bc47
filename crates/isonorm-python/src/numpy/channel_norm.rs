//! Calls of the norms of channels: BatchNorm, GroupNorm and InstanceNorm, forward and backward.

use isonorm::{BatchNorm, Cpu, Error, GroupNorm, PlaneBackwardIo, PlaneIo, Running, Slice};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::array::Array;
use super::axes::Axis;
use super::options::Wanted;
use super::output::Output;
use super::planes::Frame;
use super::row_norm::Gradient;
use super::stats::Stats;
use crate::error::raised;

/// A norm with its options, its parameters aside.
pub(super) struct ChannelNorm<'a, 'py> {
    pub(super) kind: Kind<'a, 'py>,
    pub(super) eps: f64,
    pub(super) eps_outside: bool,
    pub(super) weight_offset: f64,
    pub(super) cpu: Cpu<'static>,
}

pub(super) enum Kind<'a, 'py> {
    Batch(Batch<'a, 'py>),
    Group { groups: usize },
    Instance,
}

/// What BatchNorm alone has.
pub(super) struct Batch<'a, 'py> {
    pub(super) is_training: bool,
    pub(super) mean: Option<&'a Bound<'py, PyAny>>,
    pub(super) var: Option<&'a Bound<'py, PyAny>>,
    pub(super) momentum: f64,
    pub(super) is_biased: bool,
}

/// The arguments of a forward call.
pub(super) struct Forward<'a, 'py> {
    pub(super) norm: ChannelNorm<'a, 'py>,
    pub(super) x: &'a Bound<'py, PyAny>,
    pub(super) weight: Option<&'a Bound<'py, PyAny>>,
    pub(super) bias: Option<&'a Bound<'py, PyAny>>,
    pub(super) axis: Axis,
    pub(super) out: Option<&'a Bound<'py, PyAny>>,
    pub(super) return_stats: bool,
}

/// Running statistics: updated in training, read in evaluation.
enum Held<'py> {
    None,
    Updated { mean: Output<'py>, var: Output<'py> },
    Read { mean: Array<'py>, var: Array<'py> },
}

/// A norm with its parameters.
enum Ready<'a> {
    Train(BatchNorm<'a>, Option<Running<'a>>),
    Evaluate(BatchNorm<'a>, Slice<'a>, Slice<'a>),
    Group(GroupNorm<'a>),
}

/// y, and the statistics where they are wanted.
pub(super) fn forward<'py>(py: Python<'py>, call: Forward<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    let x = Array::read("x", call.x, None)?;
    let frame = Frame::new(py, &call.axis, &x)?;
    let weight = frame.parameter("weight", call.weight, &x)?;
    let bias = frame.parameter("bias", call.bias, &x)?;
    let mut held = Held::new(&call.norm.kind, &frame, &x, [weight.as_ref(), bias.as_ref()])?;
    let [mean, var] = held.arrays();
    let others = [("weight", weight.as_ref()), ("bias", bias.as_ref()), ("running_mean", mean), ("running_var", var)];
    let mut y = frame.output("out", call.out, || x.descr(), Some(("x", &x)), &others)?;
    let mut stats = call.return_stats.then(|| call.norm.stats(&frame, &x)).transpose()?;
    let x = frame.input("x", x)?;

    let params = [weight.as_ref().map(Array::slice), bias.as_ref().map(Array::slice)];
    let norm = call.norm.ready(frame.channels, params, &mut held);
    let in_place = y.output.in_place;
    let to = frame.planes_mut(&mut y);
    let mut io = if in_place { PlaneIo::in_place(to) } else { PlaneIo::new(frame.planes(&x), to) };
    if let Some(stats) = stats.as_mut().filter(|_| !frame.is_empty()) {
        io = io.stats(stats.writable());
    }
    py.detach(move || norm.apply(io)).map_err(raised)?;

    held.finish()?;
    let y = frame.finish(&y)?;
    match stats {
        None => Ok(y),
        Some(stats) => Ok((y, stats).into_pyobject(py)?.into_any()),
    }
}

/// The arguments of a backward call.
pub(super) struct Backward<'a, 'py> {
    pub(super) norm: ChannelNorm<'a, 'py>,
    pub(super) dy: &'a Bound<'py, PyAny>,
    pub(super) x: &'a Bound<'py, PyAny>,
    pub(super) weight: Option<&'a Bound<'py, PyAny>>,
    pub(super) axis: Axis,
    pub(super) out: Option<&'a Bound<'py, PyAny>>,
    pub(super) dweight: Wanted<'py>,
    pub(super) dbias: Wanted<'py>,
    pub(super) stats: Option<&'a Stats>,
}

/// dx, dweight, dbias.
pub(super) fn backward<'py>(py: Python<'py>, call: Backward<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    let x = Array::read("x", call.x, None)?;
    let dy = Array::read("dy", call.dy, Some(&x))?;
    let frame = Frame::new(py, &call.axis, &x)?;
    frame.check("dy", &dy)?;
    let weight = frame.parameter("weight", call.weight, &x)?;
    let mut held = Held::read(&call.norm.kind, &frame, &x)?;
    let saved = call.stats.map(|stats| stats.saved(&call.norm.stats_shape(&frame))).transpose()?;

    let [mean, var] = held.arrays();
    let inputs = [("x", Some(&x)), ("weight", weight.as_ref()), ("running_mean", mean), ("running_var", var)];
    let mut dx = frame.output("out", call.out, || x.descr(), Some(("dy", &dy)), &inputs)?;
    let inputs = [inputs[0], inputs[1], inputs[2], inputs[3], ("dy", Some(&dy)), ("out", dx.given())];
    let (shape, like) = ([frame.channels], weight.as_ref().unwrap_or(&x));
    let mut dweight = Gradient::new("dweight", call.dweight, &shape, like, &inputs)?;
    let beside = ("dweight", dweight.as_ref().and_then(Gradient::given));
    let inputs = [inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], inputs[5], beside];
    let mut dbias = Gradient::new("dbias", call.dbias, &shape, like, &inputs)?;
    let (x, dy) = (frame.input("x", x)?, frame.input("dy", dy)?);

    let norm = call.norm.ready(frame.channels, [weight.as_ref().map(Array::slice), None], &mut held);
    let in_place = dx.output.in_place && dy.dtype() == x.dtype();
    // dy of another type than x's cannot become dx where it is.
    let dy = if dx.output.in_place && !in_place { dy.copied()? } else { dy };
    let (from, to) = (frame.planes(&x), frame.planes_mut(&mut dx));
    let mut io = match in_place {
        true => PlaneBackwardIo::in_place(from, to),
        false => PlaneBackwardIo::new(from, frame.planes(&dy), to),
    };
    if let Some(dweight) = &mut dweight {
        io = io.dweight(dweight.output.slice_mut());
    }
    if let Some(dbias) = &mut dbias {
        io = io.dbias(dbias.output.slice_mut());
    }
    if let Some(saved) = saved.filter(|_| !frame.is_empty()) {
        io = io.stats(saved);
    }
    py.detach(move || norm.backward(io)).map_err(raised)?;

    let dx = frame.finish(&dx)?;
    Ok((dx, Gradient::finish(dweight)?, Gradient::finish(dbias)?).into_pyobject(py)?.into_any())
}

impl<'py> ChannelNorm<'_, 'py> {
    fn ready<'a>(&self, channels: usize, [weight, bias]: [Option<Slice<'a>>; 2], held: &'a mut Held<'py>) -> Ready<'a> {
        macro_rules! with_options {
            ($norm:expr) => {{
                let norm = $norm.eps(self.eps).weight_offset(self.weight_offset).on(self.cpu);
                let norm = if self.eps_outside { norm.eps_outside() } else { norm };
                let norm = weight.map_or(norm, |weight| norm.weight(weight));
                bias.map_or(norm, |bias| norm.bias(bias))
            }};
        }
        let batch = match &self.kind {
            Kind::Group { groups } => return Ready::Group(with_options!(GroupNorm::new(*groups, channels))),
            Kind::Instance => return Ready::Group(with_options!(GroupNorm::new(channels, channels))),
            Kind::Batch(batch) => batch,
        };
        let norm = with_options!(BatchNorm::new(channels)).momentum(batch.momentum);
        let norm = if batch.is_biased { norm.biased_running_var() } else { norm };
        match held {
            Held::Read { mean, var } => Ready::Evaluate(norm, mean.slice(), var.slice()),
            Held::Updated { mean, var } => Ready::Train(norm, Some(Running::new(mean.slice_mut(), var.slice_mut()))),
            Held::None => Ready::Train(norm, None),
        }
    }

    fn stats_shape(&self, frame: &Frame<'_>) -> Vec<usize> {
        match self.kind {
            Kind::Batch(_) => vec![frame.channels],
            Kind::Group { groups } => vec![frame.samples, groups],
            Kind::Instance => vec![frame.samples, frame.channels],
        }
    }

    /// Room for the statistics that a call saves.
    fn stats(&self, frame: &Frame<'_>, x: &Array<'_>) -> PyResult<Stats> {
        match &self.kind {
            Kind::Batch(Batch { is_training: false, .. }) => {
                let advice = "expected False: in evaluation the statistics are the running ones";
                Err(PyValueError::new_err(format!("return_stats is True, {advice}")))
            }
            Kind::Group { groups } if *groups > frame.channels => {
                Err(raised(Error::Groups { groups: *groups, channels: frame.channels }))
            }
            _ => Stats::new(x.dtype(), &self.stats_shape(frame)),
        }
    }
}

impl Ready<'_> {
    fn apply(self, io: PlaneIo<'_>) -> Result<(), Error> {
        match self {
            Ready::Train(norm, running) => norm.train(io, running),
            Ready::Evaluate(norm, mean, var) => norm.evaluate(io, mean, var),
            Ready::Group(norm) => norm.apply(io),
        }
    }

    fn backward(self, io: PlaneBackwardIo<'_>) -> Result<(), Error> {
        match self {
            Ready::Train(norm, _) => norm.train_backward(io),
            Ready::Evaluate(norm, mean, var) => norm.evaluate_backward(io, mean, var),
            Ready::Group(norm) => norm.backward(io),
        }
    }
}

impl<'py> Held<'py> {
    /// The running statistics of a forward call.
    fn new(
        kind: &Kind<'_, 'py>,
        frame: &Frame<'py>,
        x: &Array<'py>,
        [weight, bias]: [Option<&Array<'py>>; 2],
    ) -> PyResult<Self> {
        let Kind::Batch(Batch { is_training: true, mean, var, .. }) = kind else { return Held::read(kind, frame, x) };
        let (mean, var) = match (mean, var) {
            (None, None) => return Ok(Held::None),
            (Some(mean), Some(var)) => (mean, var),
            _ => return Err(alone()),
        };
        let shape = [frame.channels];
        let others = [("x", Some(x)), ("weight", weight), ("bias", bias)];
        let mean = Output::given("running_mean", mean, &shape, None, &others)?.contiguous()?;
        let others = [others[0], others[1], others[2], ("running_mean", Some(mean.memory()))];
        let var = Output::given("running_var", var, &shape, None, &others)?.contiguous()?;
        mean.fill()?;
        var.fill()?;
        Ok(Held::Updated { mean, var })
    }

    /// Those that are read: in evaluation, and in its backward pass.
    fn read(kind: &Kind<'_, 'py>, frame: &Frame<'py>, x: &Array<'py>) -> PyResult<Self> {
        let Kind::Batch(Batch { is_training: false, mean, var, .. }) = kind else { return Ok(Held::None) };
        let mean = frame.parameter("running_mean", *mean, x)?;
        let var = frame.parameter("running_var", *var, x)?;
        match (mean, var) {
            (Some(mean), Some(var)) => Ok(Held::Read { mean, var }),
            (None, None) => Err(PyTypeError::new_err(
                "running_mean and running_var are missing, expected both in evaluation: give them, or training=True",
            )),
            _ => Err(alone()),
        }
    }

    fn arrays(&self) -> [Option<&Array<'py>>; 2] {
        match self {
            Held::None => [None, None],
            Held::Updated { mean, var } => [Some(mean.memory()), Some(var.memory())],
            Held::Read { mean, var } => [Some(mean), Some(var)],
        }
    }

    fn finish(&self) -> PyResult<()> {
        match self {
            Held::Updated { mean, var } => mean.finish().and_then(|()| var.finish()),
            _ => Ok(()),
        }
    }
}

fn alone() -> PyErr {
    PyTypeError::new_err("one of running_mean and running_var is missing, expected both or neither")
}
