//! Calls of the norms of rows: RMSNorm and LayerNorm, forward and backward.

use isonorm::{BackwardIo, Cpu, Error, Io, LayerNorm, Recipe, RmsNorm, Slice};
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::array::Array;
use super::axes::Axis;
use super::options::Wanted;
use super::output::{Others, Output};
use super::partial::Partial;
use super::rows::{Frame, Input, Target};
use super::stats::Stats;
use crate::error::raised;

/// A norm with its options, its parameters aside.
pub(super) struct RowNorm {
    pub(super) kind: Kind,
    pub(super) eps: f64,
    pub(super) eps_outside: bool,
    pub(super) weight_offset: f64,
    pub(super) cpu: Cpu<'static>,
}

pub(super) enum Kind {
    Rms { recipe: Recipe, partial: Option<usize> },
    Layer,
}

/// A norm with its parameters.
enum Ready<'a> {
    Rms(RmsNorm<'a>),
    Layer(LayerNorm<'a>),
}

impl RowNorm {
    fn ready<'a>(&self, hidden: usize, weight: Option<Slice<'a>>, bias: Option<Slice<'a>>) -> Ready<'a> {
        macro_rules! with_options {
            ($norm:expr) => {{
                let norm = $norm.eps(self.eps).weight_offset(self.weight_offset).on(self.cpu);
                let norm = if self.eps_outside { norm.eps_outside() } else { norm };
                let norm = weight.map_or(norm, |weight| norm.weight(weight));
                bias.map_or(norm, |bias| norm.bias(bias))
            }};
        }
        match self.kind {
            Kind::Rms { recipe, partial } => {
                let norm = with_options!(RmsNorm::new(hidden)).recipe(recipe);
                Ready::Rms(partial.map_or(norm, |k| norm.partial(k)))
            }
            Kind::Layer => Ready::Layer(with_options!(LayerNorm::new(hidden))),
        }
    }
}

impl Ready<'_> {
    fn apply(&self, io: Io<'_>) -> Result<(), Error> {
        match self {
            Ready::Rms(norm) => norm.apply(io),
            Ready::Layer(norm) => norm.apply(io),
        }
    }

    fn backward(&self, io: BackwardIo<'_>) -> Result<(), Error> {
        match self {
            Ready::Rms(norm) => norm.backward(io),
            Ready::Layer(norm) => norm.backward(io),
        }
    }
}

/// The arguments of a forward call.
pub(super) struct Forward<'a, 'py> {
    pub(super) norm: RowNorm,
    pub(super) x: &'a Bound<'py, PyAny>,
    pub(super) weight: Option<&'a Bound<'py, PyAny>>,
    pub(super) bias: Option<&'a Bound<'py, PyAny>>,
    pub(super) axis: Axis,
    pub(super) out: Option<&'a Bound<'py, PyAny>>,
    pub(super) return_stats: bool,
}

/// y, and the statistics where they are wanted.
pub(super) fn forward<'py>(py: Python<'py>, call: Forward<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    let x = Array::read("x", call.x, None)?;
    let frame = Frame::new(py, &call.axis, &x)?;
    let weight = frame.parameter("weight", call.weight, &x)?;
    let bias = frame.parameter("bias", call.bias, &x)?;
    let others = [("weight", weight.as_ref()), ("bias", bias.as_ref())];
    let mut y = frame.output("out", call.out, || x.descr(), Some(("x", &x)), &others)?;
    let mut stats = call.return_stats.then(|| Stats::new(x.dtype(), frame.leading())).transpose()?;
    let x = frame.input("x", x)?;

    let (weight, bias) = (weight.as_ref().map(Array::slice), bias.as_ref().map(Array::slice));
    let norm = call.norm.ready(frame.hidden, weight, bias);
    let io = if y.is_in_place() { Io::in_place(y.rows_mut()) } else { Io::new(x.rows(), y.rows_mut()) };
    let io = saving(io, &frame, stats.as_mut());
    py.detach(move || norm.apply(io)).map_err(raised)?;

    let y = frame.finish(&y)?;
    match stats {
        None => Ok(y),
        Some(stats) => Ok((y, stats).into_pyobject(py)?.into_any()),
    }
}

/// `io`, saving statistics where there are rows with elements.
fn saving<'a>(io: Io<'a>, frame: &Frame<'_>, stats: Option<&'a mut Stats>) -> Io<'a> {
    match stats {
        Some(stats) if frame.hidden > 0 => io.stats(stats.writable()),
        _ => io,
    }
}

/// y and r of a norm after a residual add, and the statistics where they are wanted.
pub(super) fn forward_add<'py>(
    py: Python<'py>,
    call: Forward<'_, 'py>,
    residual: &Bound<'py, PyAny>,
    residual_out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let x = Array::read("x", call.x, None)?;
    let residual = Array::read("residual", residual, Some(&x))?;
    let frame = Frame::new(py, &call.axis, &x)?;
    frame.check("residual", &residual)?;
    let weight = frame.parameter("weight", call.weight, &residual)?;
    let bias = frame.parameter("bias", call.bias, &residual)?;
    let params = [("weight", weight.as_ref()), ("bias", bias.as_ref())];
    let others = [params[0], params[1], ("residual", Some(&residual))];
    let mut y = frame.output("out", call.out, || x.descr(), Some(("x", &x)), &others)?;
    let others = [params[0], params[1], ("x", Some(&x)), ("out", call.out.map(|_| y.memory()))];
    let place = Some(("residual", &residual));
    let mut r = frame.output("residual_out", residual_out, || residual.descr(), place, &others)?;
    let mut stats = call.return_stats.then(|| Stats::new(r.memory().dtype(), frame.leading())).transpose()?;
    let (mut x, mut residual) = (frame.input("x", x)?, frame.input("residual", residual)?);

    let (weight, bias) = (weight.as_ref().map(Array::slice), bias.as_ref().map(Array::slice));
    let norm = call.norm.ready(frame.hidden, weight, bias);
    let io = match (y.is_in_place(), r.is_in_place()) {
        (true, true) => Io::add_in_place(y.rows_mut(), r.rows_mut()),
        (y_takes_x, r_takes_residual) => {
            // The library adds in place in both or in neither.
            if y_takes_x {
                x = x.copied()?;
            }
            if r_takes_residual {
                residual = residual.copied()?;
            }
            Io::add(x.rows(), residual.rows(), r.rows_mut(), y.rows_mut())
        }
    };
    let io = saving(io, &frame, stats.as_mut());
    py.detach(move || norm.apply(io)).map_err(raised)?;

    let (y, r) = (frame.finish(&y)?, frame.finish(&r)?);
    match stats {
        None => Ok((y, r).into_pyobject(py)?.into_any()),
        Some(stats) => Ok((y, r, stats).into_pyobject(py)?.into_any()),
    }
}

/// The arguments of a backward call.
pub(super) struct Backward<'a, 'py> {
    pub(super) norm: RowNorm,
    pub(super) dy: &'a Bound<'py, PyAny>,
    /// What was normalized: `("x", x)`, after a residual add `("r", r)`.
    pub(super) x: (&'a str, &'a Bound<'py, PyAny>),
    pub(super) weight: Option<&'a Bound<'py, PyAny>>,
    pub(super) axis: Axis,
    pub(super) out: Option<&'a Bound<'py, PyAny>>,
    /// The gradient that reaches r from elsewhere.
    pub(super) dresidual: Option<&'a Bound<'py, PyAny>>,
    /// Whether the gradient of the residual is wanted, too.
    pub(super) is_after_add: bool,
    pub(super) dweight: Option<Bound<'py, PyAny>>,
    pub(super) dbias: Option<Bound<'py, PyAny>>,
    pub(super) stats: Option<&'a Stats>,
    pub(super) mask: Option<&'a Bound<'py, PyAny>>,
    pub(super) accumulate: Option<PyRefMut<'py, Partial>>,
}

impl<'py> Backward<'_, 'py> {
    /// dweight and dbias: what the norm's parameters commonly are, unless a sum takes both.
    fn wanted(&mut self) -> PyResult<[Wanted<'py>; 2]> {
        let is_taken = self.accumulate.is_some();
        let has_bias = matches!(self.norm.kind, Kind::Layer);
        let dweight = Wanted::of("dweight", self.dweight.take(), !is_taken)?;
        Ok([dweight, Wanted::of("dbias", self.dbias.take(), has_bias && !is_taken)?])
    }
}

/// The gradients of a call: dx, that of the residual after an add, dweight, dbias.
pub(super) fn backward<'py>(py: Python<'py>, mut call: Backward<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    let [dweight, dbias] = call.wanted()?;
    let x = Array::read(call.x.0, call.x.1, None)?;
    let dy = Array::read("dy", call.dy, Some(&x))?;
    let dresidual = call.dresidual.map(|object| Array::read("dresidual", object, Some(&x))).transpose()?;
    let frame = Frame::new(py, &call.axis, &x)?;
    frame.check("dy", &dy)?;
    let weight = frame.parameter("weight", call.weight, &x)?;
    let saved = call.stats.map(|stats| stats.saved(frame.leading())).transpose()?;
    let mask = call.mask.map(|mask| read_mask(mask, &frame)).transpose()?;

    let inputs = [(call.x.0, Some(&x)), ("weight", weight.as_ref()), ("dresidual", dresidual.as_ref())];
    let dx_descr = || if call.is_after_add { dy.descr() } else { x.descr() };
    let mut dx = frame.output("out", call.out, dx_descr, Some(("dy", &dy)), &inputs)?;
    let mut dr = match call.is_after_add && dx.memory().dtype() != x.dtype() {
        true => Some(frame.output("dr", None, || x.descr(), None, &[])?),
        false => None,
    };
    let inputs = [inputs[0], inputs[1], inputs[2], ("dy", Some(&dy)), ("out", call.out.map(|_| dx.memory()))];
    let like = weight.as_ref().unwrap_or(&x);
    let mut dweight = Gradient::new("dweight", dweight, frame.normalized(), like, &inputs)?;
    let beside = ("dweight", dweight.as_ref().and_then(Gradient::given));
    let inputs = [inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], beside];
    let mut dbias = Gradient::new("dbias", dbias, frame.normalized(), like, &inputs)?;

    let (x, dy) = (frame.input(call.x.0, x)?, frame.input("dy", dy)?);
    let dresidual = dresidual.map(|dresidual| frame.input("dresidual", dresidual)).transpose()?;
    let norm = call.norm.ready(frame.hidden, weight.as_ref().map(Array::slice), None);
    let mut io = start(&x, &dy, &mut dx, dresidual.as_ref(), dr.as_mut());
    if let Some(dweight) = &mut dweight {
        io = io.dweight(dweight.output.slice_mut());
    }
    if let Some(dbias) = &mut dbias {
        io = io.dbias(dbias.output.slice_mut());
    }
    if let Some(saved) = saved.filter(|_| frame.hidden > 0) {
        io = io.stats(saved);
    }
    if let Some(mask) = mask.as_ref().filter(|_| frame.hidden > 0) {
        io = io.mask(mask);
    }
    if let Some(partial) = &mut call.accumulate {
        io = io.partial(&mut partial.sums);
    }
    py.detach(move || norm.backward(io)).map_err(raised)?;

    let dx = frame.finish(&dx)?;
    let (dweight, dbias) = (Gradient::finish(dweight)?, Gradient::finish(dbias)?);
    if !call.is_after_add {
        return Ok((dx, dweight, dbias).into_pyobject(py)?.into_any());
    }
    let dr = dr.map(|dr| frame.finish(&dr)).transpose()?.unwrap_or_else(|| dx.clone());
    Ok((dx, dr, dweight, dbias).into_pyobject(py)?.into_any())
}

/// The rows of a backward call.
fn start<'a>(
    x: &'a Input<'_>,
    dy: &'a Input<'_>,
    dx: &'a mut Target<'_>,
    dresidual: Option<&'a Input<'_>>,
    dr: Option<&'a mut Target<'_>>,
) -> BackwardIo<'a> {
    let is_in_place = dx.is_in_place();
    let dx = dx.rows_mut();
    let mut io =
        if is_in_place { BackwardIo::in_place(x.rows(), dx) } else { BackwardIo::new(x.rows(), dy.rows(), dx) };
    if let Some(dresidual) = dresidual {
        io = io.dresidual(dresidual.rows());
    }
    if let Some(dr) = dr {
        io = io.dr(dr.rows_mut());
    }
    io
}

/// Which rows are the batch: any non-zero byte of a `bool` array is true.
fn read_mask(mask: &Bound<'_, PyAny>, frame: &Frame<'_>) -> PyResult<Vec<bool>> {
    let mask = mask.py().import("numpy")?.call_method1("asarray", (mask,))?.cast_into::<numpy::PyUntypedArray>()?;
    if mask.dtype().to_string() != "bool" {
        return Err(PyTypeError::new_err(format!("mask has dtype {}, expected bool", mask.dtype())));
    }
    if mask.shape() != frame.leading() {
        let message = format!("mask has shape {:?}, expected {:?}: one for each row", mask.shape(), frame.leading());
        return Err(pyo3::exceptions::PyValueError::new_err(message));
    }
    let bytes: Vec<u8> = mask.call_method0("tobytes")?.extract()?;
    Ok(bytes.into_iter().map(|byte| byte != 0).collect())
}

/// A parameter's gradient that is wanted.
pub(super) struct Gradient<'py> {
    pub(super) output: Output<'py>,
    object: Option<Bound<'py, PyAny>>,
}

impl<'py> Gradient<'py> {
    /// Of `shape`, in `like`'s type where it is new.
    pub(super) fn new(
        name: &str,
        wanted: Wanted<'py>,
        shape: &[usize],
        like: &Array<'py>,
        others: &Others<'_, 'py>,
    ) -> PyResult<Option<Self>> {
        match wanted {
            Wanted::No => Ok(None),
            Wanted::New => {
                let output = Output::new(like.py(), shape, like.descr())?;
                Ok(Some(Gradient { output, object: None }))
            }
            Wanted::Into(object) => {
                let output = Output::given(name, &object, shape, None, others)?.contiguous()?;
                Ok(Some(Gradient { output, object: Some(object) }))
            }
        }
    }

    /// The caller's array, if it is one.
    pub(super) fn given(&self) -> Option<&Array<'py>> {
        self.object.as_ref().map(|_| self.output.memory())
    }

    /// What the caller gets; `None` for a gradient that was not wanted.
    pub(super) fn finish(gradient: Option<Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(Gradient { output, object }) = gradient else { return Ok(None) };
        output.finish()?;
        Ok(Some(object.unwrap_or_else(|| output.array().object().clone().into_any())))
    }
}
