//! The operators over rows. The dispatcher takes some 0.2 us for each argument, so the common calls have operators of
//! few arguments of their own.

use std::ffi::CStr;

use arrayvec::ArrayVec;

use super::failure::Failure;
use super::kernel::{Dtype, Kernel};
use super::rows::{AddBackward, Backward, Forward, Params, RowNorm, gradient};
use super::tensor::{Tensor, TensorMut};

/// RMSNorm with a weight.
pub(super) struct RmsNorm;

impl Kernel for RmsNorm {
    const SCHEMA: &CStr = c"rms_norm(Tensor x, Tensor weight, float eps) -> Tensor";
    type Arguments = (Tensor, Tensor, f64);
    type Results = Tensor;

    fn run((x, weight, eps): Self::Arguments) -> Result<Tensor, Failure> {
        let dims = weight.shape()?.sizes.len() as i64;
        let norm = RowNorm { centered: false, dims, eps, weight_offset: 0.0, llama: false };
        forward(norm, x, &Params::new(Some(weight), None)?)
    }
}

/// The same with the Llama recipe.
pub(super) struct LlamaRmsNorm;

impl Kernel for LlamaRmsNorm {
    const SCHEMA: &CStr = c"llama_rms_norm(Tensor x, Tensor weight, float eps) -> Tensor";
    type Arguments = (Tensor, Tensor, f64);
    type Results = Tensor;

    fn run((x, weight, eps): Self::Arguments) -> Result<Tensor, Failure> {
        let dims = weight.shape()?.sizes.len() as i64;
        let norm = RowNorm { centered: false, dims, eps, weight_offset: 0.0, llama: true };
        forward(norm, x, &Params::new(Some(weight), None)?)
    }
}

/// LayerNorm with weight and bias.
pub(super) struct LayerNorm;

impl Kernel for LayerNorm {
    const SCHEMA: &CStr = c"layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor";
    type Arguments = (Tensor, Tensor, Tensor, f64);
    type Results = Tensor;

    fn run((x, weight, bias, eps): Self::Arguments) -> Result<Tensor, Failure> {
        let dims = weight.shape()?.sizes.len() as i64;
        let norm = RowNorm { centered: true, dims, eps, weight_offset: 0.0, llama: false };
        forward(norm, x, &Params::new(Some(weight), Some(bias))?)
    }
}

/// Either, with every option.
pub(super) struct AnyRowNorm;

impl Kernel for AnyRowNorm {
    const SCHEMA: &CStr = c"row_norm(Tensor x, Tensor? weight, Tensor? bias, int dims, bool centered, float eps, \
        float weight_offset, bool llama) -> Tensor";
    type Arguments = (Tensor, Option<Tensor>, Option<Tensor>, i64, bool, f64, f64, bool);
    type Results = Tensor;

    fn run((x, weight, bias, dims, centered, eps, weight_offset, llama): Self::Arguments) -> Result<Tensor, Failure> {
        let norm = RowNorm { centered, dims, eps, weight_offset, llama };
        forward(norm, x, &Params::new(weight, bias)?)
    }
}

pub(super) fn forward(norm: RowNorm, x: Tensor, params: &Params) -> Result<Tensor, Failure> {
    let (hidden, x) = (norm.hidden(&x, params)?, norm.readable(x)?);
    let mut y = TensorMut::new(x.shape()?.sizes, x.dtype()?, x.device())?;
    norm.forward(hidden, params, Forward { x: Some(&x), y: &mut y, sum: None })?;
    Ok(y.into_tensor())
}

/// Either, into a tensor of the caller's, which x may be.
pub(super) struct RowNormOut;

impl Kernel for RowNormOut {
    const SCHEMA: &CStr = c"row_norm.out(Tensor x, Tensor? weight, Tensor? bias, int dims, bool centered, float eps, \
        float weight_offset, bool llama, *, Tensor(a!) out) -> ()";
    type Arguments = (Tensor, Option<Tensor>, Option<Tensor>, i64, bool, f64, f64, bool, Tensor);
    type Results = ();

    fn run((x, weight, bias, dims, centered, eps, weight_offset, llama, out): Self::Arguments) -> Result<(), Failure> {
        let norm = RowNorm { centered, dims, eps, weight_offset, llama };
        forward_into(norm, x, Params::new(weight, bias)?, out)
    }
}

pub(super) fn forward_into(norm: RowNorm, x: Tensor, mut params: Params, out: Tensor) -> Result<(), Failure> {
    let mut x = norm.readable(x)?;
    let hidden = norm.hidden(&x, &params)?;
    check_out("out", &out, &x)?;
    let (mut y, in_place) = TensorMut::beside(out, &mut x, &mut params)?;
    x.device().check(y.tensor().device())?;
    if !norm.has_rows(y.tensor())? {
        let mut new = TensorMut::new(x.shape()?.sizes, y.tensor().dtype()?, x.device())?;
        norm.forward(hidden, &params, Forward { x: Some(&x), y: &mut new, sum: None })?;
        return y.copy_from(new.tensor());
    }
    norm.forward(hidden, &params, Forward { x: (!in_place).then_some(&x), y: &mut y, sum: None })
}

fn check_out(name: &str, out: &Tensor, x: &Tensor) -> Result<(), Failure> {
    let (expected, found) = (x.shape()?.sizes, out.shape()?.sizes);
    if expected == found {
        return Ok(());
    }
    Err(Failure::new(format!("{name} has shape {found:?}, expected {expected:?} as the input has")))
}

/// The gradients of either; those not asked for are empty.
pub(super) struct RowNormBackward;

impl Kernel for RowNormBackward {
    const SCHEMA: &CStr = c"row_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, int dims, \
        bool centered, float eps, float weight_offset, bool llama, bool dweight, bool dbias) \
        -> (Tensor dx, Tensor dweight, Tensor dbias)";
    type Arguments = (Tensor, Tensor, Option<Tensor>, Option<Tensor>, i64, bool, f64, f64, bool, bool, bool);
    type Results = [Tensor; 3];

    fn run(arguments: Self::Arguments) -> Result<[Tensor; 3], Failure> {
        let (dy, x, weight, bias, dims, centered, eps, weight_offset, llama, dweight, dbias) = arguments;
        let norm = RowNorm { centered, dims, eps, weight_offset, llama };
        let (dtype, device) = (x.dtype()?, x.device());
        let [dx, dweight, dbias] = backward(norm, dy, x, &Params::new(weight, bias)?, [dweight, dbias])?;
        let or_nothing = |gradient: Option<TensorMut>| gradient.map_or_else(|| TensorMut::nothing(dtype, device), Ok);
        Ok([or_nothing(dx)?, or_nothing(dweight)?, or_nothing(dbias)?].map(TensorMut::into_tensor))
    }
}

/// All gradients of RMSNorm with a weight.
pub(super) struct RmsNormBackward;

impl Kernel for RmsNormBackward {
    const SCHEMA: &CStr =
        c"rms_norm_backward(Tensor dy, Tensor x, Tensor weight, float eps, bool llama) -> (Tensor dx, Tensor dweight)";
    type Arguments = (Tensor, Tensor, Tensor, f64, bool);
    type Results = [Tensor; 2];

    fn run((dy, x, weight, eps, llama): Self::Arguments) -> Result<[Tensor; 2], Failure> {
        let dims = weight.shape()?.sizes.len() as i64;
        let norm = RowNorm { centered: false, dims, eps, weight_offset: 0.0, llama };
        let found = backward(norm, dy, x, &Params::new(Some(weight), None)?, [true, false])?;
        all(found)
    }
}

/// All gradients of LayerNorm with weight and bias.
pub(super) struct LayerNormBackward;

impl Kernel for LayerNormBackward {
    const SCHEMA: &CStr = c"layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor bias, float eps) \
        -> (Tensor dx, Tensor dweight, Tensor dbias)";
    type Arguments = (Tensor, Tensor, Tensor, Tensor, f64);
    type Results = [Tensor; 3];

    fn run((dy, x, weight, bias, eps): Self::Arguments) -> Result<[Tensor; 3], Failure> {
        let dims = weight.shape()?.sizes.len() as i64;
        let norm = RowNorm { centered: true, dims, eps, weight_offset: 0.0, llama: false };
        all(backward(norm, dy, x, &Params::new(Some(weight), Some(bias))?, [true, true])?)
    }
}

/// The first gradients, which have been asked for.
fn all<const N: usize>(found: [Option<TensorMut>; 3]) -> Result<[Tensor; N], Failure> {
    let found = found.into_iter().flatten().map(TensorMut::into_tensor).collect::<ArrayVec<_, N>>();
    found.into_inner().map_err(|_| Failure::new("isonorm: a gradient is missing"))
}

/// dx, dweight and dbias, of those that are wanted.
fn backward(
    norm: RowNorm,
    dy: Tensor,
    x: Tensor,
    params: &Params,
    [wants_dweight, wants_dbias]: [bool; 2],
) -> Result<[Option<TensorMut>; 3], Failure> {
    let (hidden, dy, x) = (norm.hidden(&x, params)?, norm.readable(dy)?, norm.readable(x)?);
    let new = |param: &Option<Tensor>, is_wanted: bool| match param {
        Some(param) if is_wanted => TensorMut::new(param.shape()?.sizes, param.dtype()?, x.device()).map(Some),
        _ => Ok(None),
    };
    let mut dx = TensorMut::new(x.shape()?.sizes, x.dtype()?, x.device())?;
    let (mut dweight, mut dbias) = (new(&params.weight, wants_dweight)?, new(&params.bias, wants_dbias)?);
    let (x, dy, to) = (&x, &dy, (dweight.as_mut(), dbias.as_mut()));
    let call = Backward { x, dy, dx: &mut dx, dresidual: None, dr: None, dweight: to.0, dbias: to.1 };
    norm.backward(hidden, params, call)?;
    Ok([Some(dx), dweight, dbias])
}

/// Either norm of the sum of x and a residual, which is kept in the residual's type.
pub(super) struct AddRowNorm;

impl Kernel for AddRowNorm {
    const SCHEMA: &CStr = c"add_row_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, int dims, \
        bool centered, float eps, float weight_offset, bool llama) -> (Tensor y, Tensor r)";
    type Arguments = (Tensor, Tensor, Option<Tensor>, Option<Tensor>, i64, bool, f64, f64, bool);
    type Results = [Tensor; 2];

    fn run(arguments: Self::Arguments) -> Result<[Tensor; 2], Failure> {
        let (x, residual, weight, bias, dims, centered, eps, weight_offset, llama) = arguments;
        let norm = RowNorm { centered, dims, eps, weight_offset, llama };
        let params = Params::new(weight, bias)?;
        check_out("residual", &residual, &x)?;
        let (hidden, x, residual) = (norm.hidden(&x, &params)?, norm.readable(x)?, norm.readable(residual)?);
        let sizes = x.shape()?.sizes;
        let new = |dtype| TensorMut::new(sizes, dtype, x.device());
        let (mut y, mut r) = (new(x.dtype()?)?, new(residual.dtype()?)?);
        let call = Forward { x: Some(&x), y: &mut y, sum: Some((Some(&residual), &mut r)) };
        norm.forward(hidden, &params, call)?;
        Ok([y.into_tensor(), r.into_tensor()])
    }
}

/// The same with x and residual overwritten by y and the sum.
pub(super) struct AddRowNormInPlace;

impl Kernel for AddRowNormInPlace {
    const SCHEMA: &CStr = c"add_row_norm_(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, Tensor? bias, int dims, \
        bool centered, float eps, float weight_offset, bool llama) -> ()";
    type Arguments = (Tensor, Tensor, Option<Tensor>, Option<Tensor>, i64, bool, f64, f64, bool);
    type Results = ();

    fn run(arguments: Self::Arguments) -> Result<(), Failure> {
        let (x, residual, weight, bias, dims, centered, eps, weight_offset, llama) = arguments;
        let norm = RowNorm { centered, dims, eps, weight_offset, llama };
        let mut params = Params::new(weight, bias)?;
        check_out("residual", &residual, &x)?;
        let hidden = norm.hidden(&x, &params)?;
        if !norm.has_rows(&x)? || !norm.has_rows(&residual)? {
            return Err(Failure::new("isonorm: in place, the normalized dimensions of x and residual are contiguous"));
        }
        let (mut y, mut r) = (TensorMut::of(x, &mut params)?, TensorMut::of(residual, &mut params)?);
        if y.overlaps(&r)? {
            return Err(Failure::new("isonorm: in place, x and residual share memory: one of them must be a copy"));
        }
        norm.forward(hidden, &params, Forward { x: None, y: &mut y, sum: Some((None, &mut r)) })
    }
}

/// The gradients of it: dx in x's type, and dresidual where the residual has another one, else empty (it is dx).
pub(super) struct AddRowNormBackward;

impl Kernel for AddRowNormBackward {
    const SCHEMA: &CStr =
        c"add_row_norm_backward(Tensor dy, Tensor? dr, Tensor r, Tensor? weight, Tensor? bias, int dims, \
        bool centered, float eps, float weight_offset, bool llama, ScalarType x_dtype, bool dweight, bool dbias) \
        -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)";
    #[rustfmt::skip]
    type Arguments = (
        Tensor, Option<Tensor>, Tensor, Option<Tensor>, Option<Tensor>, i64, bool, f64, f64, bool, Dtype, bool, bool,
    );
    type Results = [Tensor; 4];

    fn run(arguments: Self::Arguments) -> Result<[Tensor; 4], Failure> {
        let (dy, dr, r, weight, bias, dims, centered, eps, weight_offset, llama, x_dtype, dweight, dbias) = arguments;
        let norm = RowNorm { centered, dims, eps, weight_offset, llama };
        let (params, x_dtype) = (Params::new(weight, bias)?, x_dtype.known()?);
        let wanted = [dweight && params.weight.is_some(), dbias && params.bias.is_some()];
        let mut dweight = gradient(&params.weight, wanted[0], r.dtype()?, r.device())?;
        let mut dbias = gradient(&params.bias, wanted[1], r.dtype()?, r.device())?;
        let [dx, dresidual] = AddBackward { norm, dy, dr, r, x_dtype }.run(&params, |hidden, call| {
            let (dweight, dbias) = (wanted[0].then_some(&mut dweight), wanted[1].then_some(&mut dbias));
            norm.backward(hidden, &params, Backward { dweight, dbias, ..call })
        })?;
        Ok([dx, dresidual, dweight, dbias].map(TensorMut::into_tensor))
    }
}
