//! burn with the flex backend: the fused LayerNorm; BatchNorm and `nn::RmsNorm`, which are chains
//! of tensor operations. Results are allocated. What runs on several threads finds them in the
//! rayon pool it is called from.

use std::hint::black_box;

use burn::module::Param;
use burn::nn::RmsNorm;
use burn::tensor::{DType, Device, Tensor, TensorData, module};
use half::bf16;

use super::Peer;
use crate::cells::{Cell, Dtype, EPS, Op};
use crate::memory::{Buffer, Inputs, Outputs, Results};

struct Burn {
    /// The result and, where there is one, the sum.
    forward: Box<dyn Fn() -> (Tensor<2>, Option<Tensor<2>>) + Send>,
}

pub(super) fn prepare<'a>(cell: &Cell, inputs: &'a Inputs, _threads: usize) -> Option<Box<dyn Peer + 'a>> {
    let shape = [cell.rows, cell.hidden];
    let [x, residual] = [&inputs.x, &inputs.residual]
        .map(|buffer| (!buffer.bytes().is_empty()).then(|| tensor(cell.dtype, buffer, shape)));
    let [weight, bias, mean, var] = [&inputs.weight, &inputs.bias, &inputs.mean, &inputs.var]
        .map(|buffer| (!buffer.bytes().is_empty()).then(|| tensor(cell.dtype, buffer, [cell.params])));
    let (x, weight, eps) = (x?, weight?, f64::from(EPS));
    let norm = RmsNorm { gamma: Param::from_tensor(weight.clone()), epsilon: eps };
    let forward: Box<dyn Fn() -> (Tensor<2>, Option<Tensor<2>>) + Send> = match cell.op {
        Op::RmsNorm => Box::new(move || (norm.forward(x.clone()), None)),
        Op::AddRmsNorm => {
            let residual = residual?;
            Box::new(move || {
                let sum = x.clone() + residual.clone();
                (norm.forward(sum.clone()), Some(sum))
            })
        }
        Op::BatchNormTrain => return None,
        Op::LayerNorm => Box::new(move || (module::layer_norm(x.clone(), weight.clone(), bias.clone(), eps), None)),
        Op::BatchNormEval => {
            let planes = x.reshape([cell.rows / cell.params, cell.params, cell.hidden]);
            let (bias, mean, var) = (bias?, mean?, var?);
            Box::new(move || {
                let (x, bias) = (planes.clone(), bias.clone());
                let y = module::batch_norm(x, weight.clone(), bias, mean.clone(), var.clone(), eps);
                (y.reshape(shape), None)
            })
        }
    };
    Some(Box::new(Burn { forward }))
}

impl Peer for Burn {
    fn call(&mut self, _outputs: &mut Outputs) {
        drop(black_box((self.forward)()));
    }

    fn result(&mut self, _outputs: &mut Outputs) -> Results {
        let (y, _) = (self.forward)();
        Results::forward(to_vec(y))
    }
}

pub(super) fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(DType::F32).into_data().try_to_vec().expect("cast to f32 just now")
}

fn tensor<const D: usize>(dtype: Dtype, buffer: &Buffer, shape: [usize; D]) -> Tensor<D> {
    tensor_on(&Device::flex(), dtype, buffer, shape)
}

pub(super) fn tensor_on<const D: usize>(
    device: &Device,
    dtype: Dtype,
    buffer: &Buffer,
    shape: [usize; D],
) -> Tensor<D> {
    match dtype {
        Dtype::F32 => {
            let data = TensorData::new(buffer.as_slice::<f32>().to_vec(), shape);
            Tensor::from_data(data, (device, DType::F32))
        }
        Dtype::Bf16 => {
            let data = TensorData::new(buffer.as_slice::<bf16>().to_vec(), shape);
            Tensor::from_data(data, (device, DType::BF16))
        }
    }
}
