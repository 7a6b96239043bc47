//! candle-nn: its fused operations, which allocate their result. They find their threads in the
//! rayon pool they are called from; RMSNorm of 32 rows or fewer and BatchNorm use one thread.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{BatchNorm, ModuleT, ops};
use half::bf16;

use super::Peer;
use crate::cells::{Cell, Dtype, EPS, Op};
use crate::memory::{Buffer, Inputs, Outputs, Results};

struct Candle {
    op: Op,
    x: Tensor,
    residual: Option<Tensor>,
    weight: Tensor,
    bias: Option<Tensor>,
    batch_norm: Option<BatchNorm>,
}

pub(super) fn prepare<'a>(cell: &Cell, inputs: &'a Inputs, _threads: usize) -> Option<Box<dyn Peer + 'a>> {
    let candle = Candle::new(cell, inputs).expect("tensors of the right shapes");
    Some(Box::new(candle))
}

impl Candle {
    fn new(cell: &Cell, inputs: &Inputs) -> Result<Candle> {
        let (shape, params) = match cell.op {
            Op::BatchNormEval => (vec![cell.rows / cell.params, cell.params, cell.hidden], cell.params),
            _ => (vec![cell.rows, cell.hidden], cell.hidden),
        };
        let vector = |buffer: &Buffer| tensor(cell.dtype, buffer, &[params]);
        let weight = vector(&inputs.weight)?;
        let (mut residual, mut bias, mut batch_norm) = (None, None, None);
        match cell.op {
            Op::RmsNorm | Op::BatchNormTrain => {}
            Op::AddRmsNorm => residual = Some(tensor(cell.dtype, &inputs.residual, &shape)?),
            Op::LayerNorm => bias = Some(vector(&inputs.bias)?),
            Op::BatchNormEval => {
                let (mean, var) = (vector(&inputs.mean)?, vector(&inputs.var)?);
                let (w, b, eps) = (weight.clone(), vector(&inputs.bias)?, f64::from(EPS));
                batch_norm = Some(BatchNorm::new(params, mean, var, w, b, eps)?);
            }
        }
        let x = tensor(cell.dtype, &inputs.x, &shape)?;
        Ok(Candle { op: cell.op, x, residual, weight, bias, batch_norm })
    }

    /// The result and, where there is one, the sum.
    fn forward(&self) -> Result<(Tensor, Option<Tensor>)> {
        let y = match (self.op, &self.residual, &self.bias, &self.batch_norm) {
            (Op::AddRmsNorm, Some(residual), _, _) => {
                let sum = (&self.x + residual)?;
                return Ok((ops::rms_norm(&sum, &self.weight, EPS)?, Some(sum)));
            }
            (Op::LayerNorm, _, Some(bias), _) => ops::layer_norm(&self.x, &self.weight, bias, EPS)?,
            (Op::BatchNormEval, _, _, Some(batch_norm)) => batch_norm.forward_t(&self.x, false)?,
            _ => ops::rms_norm(&self.x, &self.weight, EPS)?,
        };
        Ok((y, None))
    }
}

impl Peer for Candle {
    fn call(&mut self, _outputs: &mut Outputs) {
        drop(std::hint::black_box(self.forward()).expect("checked before timing"));
    }

    fn result(&mut self, _outputs: &mut Outputs) -> Results {
        let y = self.forward().and_then(|(y, _)| to_vec(&y));
        Results::forward(y.expect("candle has this operation"))
    }
}

pub(super) fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

pub(super) fn tensor(dtype: Dtype, buffer: &Buffer, shape: &[usize]) -> Result<Tensor> {
    match dtype {
        Dtype::F32 => Tensor::from_slice(buffer.as_slice::<f32>(), shape, &Device::Cpu),
        Dtype::Bf16 => Tensor::from_slice(buffer.as_slice::<bf16>(), shape, &Device::Cpu),
    }
}
