//! RMSNorm and LayerNorm of rows in device memory: options, checks, and which kernels are launched.

use isonorm::rules::{self, Tensor};
use isonorm::{DType, Error as CallError, Recipe};

use crate::device::Stream;
use crate::error::Error;
use crate::io::Io;
use crate::kernels::{Affine, Forward, Kernel, Launch, Norm, Rows as Shared, Shape, Storage, Tensor as Argument};
use crate::launch;
use crate::memory::{Slice, SliceMut};
use crate::walk::{Grid, check_disjoint, parameter};

/// Values of a row's statistics.
pub(crate) const STATS: usize = 5;

/// RMSNorm or LayerNorm with its options: `isonorm::RmsNorm` and `isonorm::LayerNorm` on a GPU, with the same bits.
///
/// Equations, shapes, dtypes and precision are theirs. Calls return when the work is queued on the stream.
///
/// # Errors
///
/// An [`Error`] where lengths, types or options do not fit one another, tensors overlap, or CUDA fails; nothing is queued
/// then but what was queued before CUDA failed.
///
/// # Example
///
/// ```no_run
/// use isonorm_cuda::{Device, Io, RowNorm, Stream};
/// let device = Device::new(0)?;
/// let stream = Stream::new(device)?;
/// let (x, weight) = (device.upload(&[3.0f32, 4.0])?, device.upload(&[1.0f32, 2.0])?);
/// let mut y = device.allocate(8)?;
/// let norm = RowNorm::rms(2).eps(0.0).weight(weight.slice::<f32>());
/// norm.forward(&stream, Io::new(x.slice::<f32>(), y.slice_mut::<f32>()))?;
/// assert_eq!(y.read::<f32>(&stream)?, [3.0 * (1.0 / 12.5f32.sqrt()), 4.0 * (1.0 / 12.5f32.sqrt()) * 2.0]);
/// # Ok::<(), isonorm_cuda::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    norm: Norm,
    pub(crate) hidden: usize,
    partial: Option<usize>,
    eps: f64,
    eps_outside: bool,
    pub(crate) weight: Option<Slice<'a>>,
    bias: Option<Slice<'a>>,
    offset: f64,
    recipe: Recipe,
}

impl<'a> RowNorm<'a> {
    /// RMSNorm of rows of `hidden` elements, eps 1e-6, no weight, no bias.
    pub fn rms(hidden: usize) -> Self {
        Self::new(Norm::Rms, hidden, 1e-6)
    }
    /// LayerNorm of rows of `hidden` elements, eps 1e-5, no weight, no bias.
    pub fn layer(hidden: usize) -> Self {
        Self::new(Norm::Layer, hidden, 1e-5)
    }
    fn new(norm: Norm, hidden: usize, eps: f64) -> Self {
        RowNorm {
            norm,
            hidden,
            partial: None,
            eps,
            eps_outside: false,
            weight: None,
            bias: None,
            offset: 0.0,
            recipe: Recipe::Torch,
        }
    }
    /// Added to the mean square or variance; rounded to the compute type first.
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }
    /// eps outside the root.
    pub fn eps_outside(mut self) -> Self {
        self.eps_outside = true;
        self
    }
    /// One factor for each element.
    pub fn weight(mut self, weight: Slice<'a>) -> Self {
        self.weight = Some(weight);
        self
    }
    /// One summand for each element.
    pub fn bias(mut self, bias: Slice<'a>) -> Self {
        self.bias = Some(bias);
        self
    }
    /// Added to every weight in the compute type: 1 for Gemma.
    pub fn weight_offset(mut self, offset: f64) -> Self {
        self.offset = offset;
        self
    }
    /// When x_hat is rounded; the default is [`Recipe::Torch`], the only one of LayerNorm.
    pub fn recipe(mut self, recipe: Recipe) -> Self {
        self.recipe = recipe;
        self
    }
    /// pRMSNorm: only the first `k` elements enter the mean square. RMSNorm's alone.
    pub fn partial(mut self, k: usize) -> Self {
        self.partial = Some(k);
        self
    }

    /// Queues y on `stream`: whatever `io` says.
    pub fn forward(&self, stream: &Stream<'_>, io: Io<'_>) -> Result<(), Error> {
        let normalized = io.sum.as_ref().map_or(&io.x, |(_, r)| &r.rows);
        let x = normalized.data.dtype();
        self.check(x)?;
        let grid = self.check_forward(&io, x)?;
        let eps = self.rounded_eps(x)?;
        if grid.rows() == 0 || self.hidden == 0 {
            return Ok(());
        }
        let (from, to) = (grid.argument(1, &io.x), grid.argument(0, &io.y.rows));
        let (residual, r) = match &io.sum {
            Some((residual, r)) => (grid.argument(2, residual), grid.argument(3, &r.rows)),
            None => (Argument::NONE, Argument::NONE),
        };
        let (weight, bias) = (parameter(self.weight.as_ref()), parameter(self.bias.as_ref()));
        let (shape, launch) = self.shape(
            Shape::forward(self.hidden, x, stream.device().capability()),
            x,
            &[from, to, residual, r, weight, bias],
        )?;
        let shared = self.shared(x, &grid, eps, &launch);
        let summands = io
            .sum
            .as_ref()
            .map_or(Storage::None, |(residual, _)| storage([io.x.data.dtype(), residual.data.dtype()], x));
        let y = storage([io.y.rows.data.dtype()], x);
        let params = self.params_storage(x, [self.weight, self.bias]);
        let affine = Affine::of(self.weight.is_some(), self.bias.is_some(), shared.weight_offset);
        let kernel = Kernel::Forward { norm: self.kernel(), x, shape, params, affine, y, summands };
        let stats = io.stats.map_or(std::ptr::null_mut(), |stats| stats.as_slice().pointer());
        let args = Forward { rows: shared, x: from, residual, r, weight, bias, y: to, stats };
        stream.device().within(|| stream.launch(&kernel, &args, launch::Grid::of(&launch, grid.rows())))
    }

    /// Which norm its kernels compute.
    pub(crate) fn kernel(&self) -> Norm {
        if self.recipe == Recipe::Llama { Norm::Llama } else { self.norm }
    }

    /// eps in the compute type.
    pub(crate) fn rounded_eps(&self, x: DType) -> Result<f64, Error> {
        Ok(rules::eps(self.eps, self.eps_outside, x)?)
    }

    /// The kernel's shape for these tensors, and how it is launched.
    pub(crate) fn shape(&self, shape: Shape, x: DType, tensors: &[Argument]) -> Result<(Shape, Launch), Error> {
        let is_measured = self.partial.is_none_or(|k| k == self.hidden);
        let shape = if is_measured { shape.with(self.hidden, x, tensors) } else { shape };
        let launch = shape.launch(self.hidden, x).ok_or(Error::TooLong { hidden: self.hidden })?;
        Ok((shape, launch))
    }

    /// The norm's own rules.
    pub(crate) fn check(&self, x: DType) -> Result<(), Error> {
        if self.norm == Norm::Layer && (self.recipe == Recipe::Llama || self.partial.is_some()) {
            let (name, found) = if self.partial.is_some() { ("partial", "given") } else { ("recipe", "llama") };
            return Err(Error::OfRmsNorm { name, found });
        }
        rules::check_partial(self.partial, self.hidden)?;
        let kind = |param: &Option<Slice<'_>>| param.as_ref().map(Slice::kind);
        Ok(rules::check_params(
            kind(&self.weight),
            kind(&self.bias),
            self.offset,
            self.hidden,
            "normalized element",
            x,
        )?)
    }

    /// The options as kernels take them.
    pub(crate) fn shared<const N: usize>(&self, x: DType, grid: &Grid<N>, eps: f64, launch: &Launch) -> Shared {
        Shared {
            inner: grid.inner(),
            measured: self.partial.unwrap_or(self.hidden) as i64,
            eps,
            eps_outside: self.eps_outside.into(),
            weight_offset: rules::rounded(self.offset, x),
            ..Shared::new(grid.rows(), self.hidden, launch)
        }
    }

    fn check_forward(&self, io: &Io<'_>, x: DType) -> Result<Grid<5>, Error> {
        let (y, stats) = (&io.y.rows, io.stats.as_ref().map(SliceMut::as_slice));
        check_types(io, x)?;
        check_stats(stats.as_ref(), x)?;
        let (residual, r) = io.sum.as_ref().map(|(residual, r)| (residual, &r.rows)).unzip();
        let grid = Grid::of(
            &[
                Some(y.tensor("y", true)),
                Some(io.x.tensor("x", false)),
                residual.map(|residual| residual.tensor("residual", false)),
                r.map(|r| r.tensor("r", true)),
                stats.map(|stats| Tensor::scalars("stats", stats.len() / STATS)),
            ],
            self.hidden,
        )?;
        let read = [Some((1, "x", &io.x)), residual.map(|residual| (2, "residual", residual))];
        let written = [Some((0, "y", y)), r.map(|r| (3, "r", r))];
        for written in written.into_iter().flatten() {
            for read in read.into_iter().flatten() {
                grid.check_apart(written, read)?;
            }
            self.check_params_apart(written.1, &written.2.data)?;
            if let Some(stats) = &stats {
                check_disjoint("stats", stats, written.1, &written.2.data)?;
            }
        }
        if let Some(r) = r {
            check_disjoint("y", &y.data, "r", &r.data)?;
        }
        if let Some(stats) = &stats {
            self.check_params_apart("stats", stats)?;
            read.into_iter()
                .flatten()
                .try_for_each(|(_, name, rows)| check_disjoint("stats", stats, name, &rows.data))?;
        }
        Ok(grid)
    }

    pub(crate) fn check_params_apart(&self, name: &'static str, written: &Slice<'_>) -> Result<(), Error> {
        [("weight", &self.weight), ("bias", &self.bias)]
            .into_iter()
            .filter_map(|(param, slice)| Some((param, slice.as_ref()?)))
            .try_for_each(|(param, slice)| check_disjoint(name, written, param, slice))
    }

    /// How a kernel takes its parameters.
    pub(crate) fn params_storage(&self, x: DType, params: [Option<Slice<'_>>; 2]) -> Storage {
        let mut dtypes = params.into_iter().flatten().map(|param| param.dtype());
        let Some(first) = dtypes.next() else { return Storage::Of(x) };
        let is_direct = (first == x || first == rules::compute(x)) && dtypes.all(|dtype| dtype == first);
        if is_direct { Storage::Of(first) } else { Storage::Any }
    }
}

/// Types beside that of what is normalized.
fn check_types(io: &Io<'_>, x: DType) -> Result<(), Error> {
    let summands = io.sum.iter().flat_map(|(residual, _)| [("x", &io.x), ("residual", residual)]);
    let mut all = summands.chain([("y", &io.y.rows)]);
    Ok(all.try_for_each(|(name, rows)| rules::check_type(name, rows.data.dtype(), x)).map_err(|error| match error {
        CallError::Type { name, found, expected, .. } if io.sum.is_some() => {
            CallError::Type { name, found, like: "x + residual", expected }
        }
        other => other,
    })?)
}

/// Statistics are of the compute type, and whole.
pub(crate) fn check_stats(stats: Option<&Slice<'_>>, x: DType) -> Result<(), Error> {
    let (Some((len, found)), expected) = (stats.map(Slice::kind), rules::compute(x)) else { return Ok(()) };
    if found != expected {
        return Err(CallError::TypeIsNot { name: "stats", found, expected }.into());
    }
    if len.is_multiple_of(STATS) {
        return Ok(());
    }
    Err(CallError::NotWhole { name: "stats", what: "statistics", found: len, size: STATS }.into())
}

/// How a kernel takes a tensor beside an x of type `x`.
pub(crate) fn storage(dtypes: impl IntoIterator<Item = DType>, x: DType) -> Storage {
    if dtypes.into_iter().all(|dtype| dtype == x) { Storage::Of(x) } else { Storage::Any }
}
