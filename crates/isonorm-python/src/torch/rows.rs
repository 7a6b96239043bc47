//! The norms of rows: what a call's tensors are to the core.

use isonorm::{BackwardIo, Cpu, DType, Error, Io, LayerNorm, MAX_DIMS, Recipe, RmsNorm, Rows, RowsMut, Slice};

use super::cuda;
use super::device::Device;
use super::failure::Failure;
use super::pool::cpu;
use super::shape::contiguous_strides;
use super::tensor::{Tensor, TensorMut};

/// A norm over the last `dims` dimensions.
#[derive(Clone, Copy)]
pub(super) struct RowNorm {
    /// LayerNorm; else RMSNorm.
    pub(super) centered: bool,
    pub(super) dims: i64,
    pub(super) eps: f64,
    pub(super) weight_offset: f64,
    pub(super) llama: bool,
}

/// Weight and bias, contiguous.
pub(super) struct Params {
    pub(super) weight: Option<Tensor>,
    pub(super) bias: Option<Tensor>,
}

/// The core's norm.
pub(super) enum Norm<'a> {
    Rms(RmsNorm<'a>),
    Layer(LayerNorm<'a>),
}

impl Norm<'_> {
    pub(super) fn apply(&self, io: Io<'_>) -> Result<(), Error> {
        match self {
            Norm::Rms(norm) => norm.apply(io),
            Norm::Layer(norm) => norm.apply(io),
        }
    }

    pub(super) fn backward(&self, io: BackwardIo<'_>) -> Result<(), Error> {
        match self {
            Norm::Rms(norm) => norm.backward(io),
            Norm::Layer(norm) => norm.backward(io),
        }
    }
}

impl Params {
    pub(super) fn new(weight: Option<Tensor>, bias: Option<Tensor>) -> Result<Params, Failure> {
        Ok(Params {
            weight: weight.map(Tensor::contiguous).transpose()?,
            bias: bias.map(Tensor::contiguous).transpose()?,
        })
    }
}

pub(super) fn slice_of(tensor: &Option<Tensor>) -> Result<Option<Slice<'_>>, Failure> {
    tensor.as_ref().map(Tensor::slice).transpose()
}

impl RowNorm {
    /// The elements of a row of `x`, whose last dimensions must be those of the parameters.
    pub(super) fn hidden(&self, x: &Tensor, params: &Params) -> Result<usize, Failure> {
        let sizes = x.shape()?.sizes;
        let normalized = match (&params.weight, &params.bias) {
            (Some(param), _) | (None, Some(param)) => param.shape()?.sizes,
            (None, None) => sizes.len().checked_sub(self.dims as usize).map_or(&[][..], |at| &sizes[at..]),
        };
        if normalized.is_empty() || normalized.len() != self.dims as usize {
            return Err(Failure::new(format!(
                "Expected normalized_shape to be at least 1-dimensional and of the parameters' shape, but got {} \
                 normalized dimensions, parameters of shape {normalized:?} and input of size {sizes:?}",
                self.dims
            )));
        }
        if !sizes.ends_with(normalized) {
            let sizes_of = normalized.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(Failure::new(format!(
                "Given normalized_shape={normalized:?}, expected input with shape [*, {sizes_of}], but got input of \
                 size{sizes:?}"
            )));
        }
        if let (Some(weight), Some(bias)) = (&params.weight, &params.bias)
            && weight.shape()?.sizes != bias.shape()?.sizes
        {
            return Err(Failure::new(format!(
                "Expected bias to be of same shape as normalized_shape, but got bias of shape {:?} and \
                 normalized_shape = {normalized:?}",
                bias.shape()?.sizes
            )));
        }
        Ok(normalized.iter().product::<i64>() as usize)
    }

    /// The core's norm for rows of `hidden` elements.
    pub(super) fn norm<'a>(&self, hidden: usize, params: &'a Params, cpu: Cpu<'a>) -> Result<Norm<'a>, Failure> {
        let (weight, bias) = (slice_of(&params.weight)?, slice_of(&params.bias)?);
        // Without a weight torch's modules have nothing that an offset could be added to.
        let offset = if weight.is_some() { self.weight_offset } else { 0.0 };
        if self.centered {
            let mut norm = LayerNorm::new(hidden).eps(self.eps).weight_offset(offset).on(cpu);
            norm = weight.map_or(norm, |weight| norm.weight(weight));
            return Ok(Norm::Layer(bias.map_or(norm, |bias| norm.bias(bias))));
        }
        let recipe = if self.llama { Recipe::Llama } else { Recipe::Torch };
        let mut norm = RmsNorm::new(hidden).eps(self.eps).weight_offset(offset).recipe(recipe).on(cpu);
        norm = weight.map_or(norm, |weight| norm.weight(weight));
        Ok(Norm::Rms(bias.map_or(norm, |bias| norm.bias(bias))))
    }

    /// x as kernels can read its rows: itself, or a contiguous copy.
    pub(super) fn readable(&self, x: Tensor) -> Result<Tensor, Failure> {
        if self.has_rows(&x)? { Ok(x) } else { x.copied(&contiguous_strides(x.shape()?.sizes)) }
    }

    /// Whether rows can be read and written where `tensor` has them.
    pub(super) fn has_rows(&self, tensor: &Tensor) -> Result<bool, Failure> {
        let (shape, dims) = (tensor.shape()?, self.dims as usize);
        let is_there = dims <= shape.sizes.len() && shape.has_rows(dims) && tensor.is_aligned()?;
        Ok(is_there && (tensor.device() == Device::Cpu || shape.has_two_strides(dims)))
    }

    /// Computes y, where the tensors are.
    pub(super) fn forward(&self, hidden: usize, params: &Params, call: Forward<'_>) -> Result<(), Failure> {
        let Device::Cpu = call.y.tensor().device() else { return cuda::forward(self, hidden, params, call) };
        let Forward { x, y, sum } = call;
        let norm = self.norm(hidden, params, cpu())?;
        let x = x.map(|x| View::of(x, self.dims)).transpose()?;
        let of_y = Leading::of(y.tensor(), self.dims)?;
        let Some((residual, r)) = sum else {
            let y = of_y.rows_of(y)?;
            return Ok(norm.apply(match &x {
                Some(x) => Io::new(x.rows(), y),
                None => Io::in_place(y),
            })?);
        };
        let residual = residual.map(|residual| View::of(residual, self.dims)).transpose()?;
        let of_r = Leading::of(r.tensor(), self.dims)?;
        let (y, r) = (of_y.rows_of(y)?, of_r.rows_of(r)?);
        Ok(norm.apply(match (&x, &residual) {
            (Some(x), Some(residual)) => Io::add(x.rows(), residual.rows(), r, y),
            _ => Io::add_in_place(y, r),
        })?)
    }

    /// Computes dx and whatever gradients are asked for, where the tensors are.
    pub(super) fn backward(&self, hidden: usize, params: &Params, call: Backward<'_>) -> Result<(), Failure> {
        match call.x.device() {
            Device::Cpu => call.on_cpu(self, hidden, params, |norm, io| Ok(norm.backward(io)?)),
            _ => cuda::backward(self, hidden, params, call),
        }
    }
}

/// The tensors of a forward call.
pub(super) struct Forward<'a> {
    /// `None`: what y holds.
    pub(super) x: Option<&'a Tensor>,
    pub(super) y: &'a mut TensorMut,
    /// The residual, or `None` for what r holds; and r, their sum.
    pub(super) sum: Option<(Option<&'a Tensor>, &'a mut TensorMut)>,
}

/// The tensors of a backward call.
pub(super) struct Backward<'a> {
    pub(super) x: &'a Tensor,
    pub(super) dy: &'a Tensor,
    pub(super) dx: &'a mut TensorMut,
    pub(super) dresidual: Option<&'a Tensor>,
    pub(super) dr: Option<&'a mut TensorMut>,
    pub(super) dweight: Option<&'a mut TensorMut>,
    pub(super) dbias: Option<&'a mut TensorMut>,
}

impl Backward<'_> {
    /// Tells `backward` the core's norm and the tensors as it takes them.
    pub(super) fn on_cpu(
        self,
        norm: &RowNorm,
        hidden: usize,
        params: &Params,
        backward: impl FnOnce(Norm<'_>, BackwardIo<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (x, dy) = (View::of(self.x, norm.dims)?, View::of(self.dy, norm.dims)?);
        let dresidual = self.dresidual.map(|dresidual| View::of(dresidual, norm.dims)).transpose()?;
        let mut io = BackwardIo::new(x.rows(), dy.rows(), self.dx.slice()?);
        if let Some(dresidual) = &dresidual {
            io = io.dresidual(dresidual.rows());
        }
        if let Some(dr) = self.dr {
            io = io.dr(dr.slice()?);
        }
        if let Some(dweight) = self.dweight {
            io = io.dweight(dweight.slice()?);
        }
        if let Some(dbias) = self.dbias {
            io = io.dbias(dbias.slice()?);
        }
        backward(norm.norm(hidden, params, cpu())?, io)
    }
}

/// The leading dimensions of a tensor of rows; `None` where rows follow one another.
pub(super) struct Leading(Option<([usize; MAX_DIMS], [isize; MAX_DIMS], usize)>);

impl Leading {
    pub(super) fn of(tensor: &Tensor, dims: i64) -> Result<Leading, Failure> {
        let shape = tensor.shape()?;
        if shape.is_contiguous() {
            return Ok(Leading(None));
        }
        let (mut lens, mut strides) = ([0; MAX_DIMS], [0; MAX_DIMS]);
        let leading = shape.sizes.len() - dims as usize;
        for d in 0..leading {
            lens[d] = shape.sizes[d] as usize;
            strides[d] = shape.strides[d] as isize;
        }
        Ok(Leading(Some((lens, strides, leading))))
    }

    /// Their lengths and strides, where rows do not follow one another.
    pub(super) fn dims(&self) -> Option<(&[usize], &[isize])> {
        self.0.as_ref().map(|(lens, strides, leading)| (&lens[..*leading], &strides[..*leading]))
    }

    /// The rows of a tensor that is written.
    pub(super) fn rows_of<'a>(&'a self, tensor: &'a mut TensorMut) -> Result<RowsMut<'a>, Failure> {
        let data = tensor.slice()?;
        Ok(match self.dims() {
            None => data.into(),
            Some((lens, strides)) => RowsMut::strided(data, 0, lens, strides),
        })
    }
}

/// The rows of a tensor that is read.
pub(super) struct View<'a> {
    data: Slice<'a>,
    leading: Leading,
}

impl<'a> View<'a> {
    pub(super) fn of(tensor: &'a Tensor, dims: i64) -> Result<View<'a>, Failure> {
        Ok(View { data: tensor.slice()?, leading: Leading::of(tensor, dims)? })
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        match self.leading.dims() {
            None => self.data.into(),
            Some((lens, strides)) => Rows::strided(self.data, 0, lens, strides),
        }
    }
}

/// A new tensor for the gradient of a parameter: of its shape and type, or of nothing where it is not asked for.
pub(super) fn gradient(param: &Option<Tensor>, wanted: bool, x: DType, device: Device) -> Result<TensorMut, Failure> {
    match param {
        Some(param) if wanted => TensorMut::new(param.shape()?.sizes, param.dtype()?, device),
        _ => TensorMut::nothing(x, device),
    }
}

/// What a backward call after a residual add reads besides the parameters.
pub(super) struct AddBackward {
    pub(super) norm: RowNorm,
    pub(super) dy: Tensor,
    pub(super) dr: Option<Tensor>,
    pub(super) r: Tensor,
    pub(super) x_dtype: DType,
}

impl AddBackward {
    /// dx in x's type, and dresidual where the residual has another one, else nothing (it is dx); `backward` is told
    /// the length of rows and the call's tensors.
    pub(super) fn run(
        self,
        params: &Params,
        backward: impl FnOnce(usize, Backward<'_>) -> Result<(), Failure>,
    ) -> Result<[TensorMut; 2], Failure> {
        let AddBackward { norm, dy, dr, r, x_dtype } = self;
        let (hidden, dy, r) = (norm.hidden(&r, params)?, norm.readable(dy)?, norm.readable(r)?);
        let dr = dr.map(|dr| norm.readable(dr)).transpose()?;
        let (sizes, r_dtype) = (r.shape()?.sizes, r.dtype()?);
        let (device, is_one_type) = (r.device(), x_dtype == r_dtype);
        let mut dx = TensorMut::new(sizes, x_dtype, device)?;
        let mut dresidual = TensorMut::new(if is_one_type { &[0] } else { sizes }, r_dtype, device)?;
        let call = Backward {
            x: &r,
            dy: &dy,
            dx: &mut dx,
            dresidual: dr.as_ref(),
            dr: (!is_one_type).then_some(&mut dresidual),
            dweight: None,
            dbias: None,
        };
        backward(hidden, call)?;
        Ok([dx, dresidual])
    }
}
