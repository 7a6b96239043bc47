//! candle's backpropagation, through norms made of parts. Its fused operations have no gradients:
//! `Tensor::backward` passes them over and leaves their inputs without any.
//!
//! f32 only: of bf16 it sums dweight in bf16, which is off by a tenth after 2048 rows.

use std::hint::black_box;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout as Strides, Result, Shape, Tensor, Var};
use candle_nn::{BatchNorm, ops};

use super::Peer;
use super::candle::{tensor, to_vec};
use crate::cells::{Cell, Dtype, EPS, Layout, Op};
use crate::memory::{Inputs, Outputs, Results};

struct Candle {
    op: Op,
    x: Var,
    dy: Tensor,
    weight: Var,
    bias: Option<Var>,
    batch_norm: Option<BatchNorm>,
}

/// Where backpropagation starts: the gradient of y is the tensor within.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Strides) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

pub(super) fn prepare<'a>(cell: &Cell, inputs: &'a Inputs, _threads: usize) -> Option<Box<dyn Peer + 'a>> {
    let candle = Candle::new(cell, inputs).expect("tensors of the right shapes");
    let has = cell.dtype == Dtype::F32 && matches!(cell.op, Op::RmsNorm | Op::LayerNorm | Op::BatchNormTrain);
    has.then(|| Box::new(candle) as Box<dyn Peer>)
}

impl Candle {
    fn new(cell: &Cell, inputs: &Inputs) -> Result<Candle> {
        let params = cell.params;
        let shape = match cell.layout {
            Layout::ChannelsFirst => vec![cell.rows / params, params, cell.hidden],
            Layout::Rows | Layout::ChannelsLast => vec![cell.len() / params, params],
        };
        let var = |buffer, shape: &[usize]| Var::from_tensor(&tensor(cell.dtype, buffer, shape)?);
        let weight = var(&inputs.weight, &[params])?;
        let has_bias = !inputs.bias.bytes().is_empty();
        let bias = has_bias.then(|| var(&inputs.bias, &[params])).transpose()?;
        let mut batch_norm = None;
        if let (Op::BatchNormTrain, Some(bias)) = (cell.op, &bias) {
            let (mean, one) = (weight.zeros_like()?, weight.ones_like()?);
            let (weight, bias) = (weight.as_tensor().clone(), bias.as_tensor().clone());
            batch_norm = Some(BatchNorm::new(params, mean, one, weight, bias, f64::from(EPS))?);
        }
        let (x, dy) = (var(&inputs.x, &shape)?, tensor(cell.dtype, &inputs.dy, &shape)?);
        Ok(Candle { op: cell.op, x, dy, weight, bias, batch_norm })
    }

    /// y and the gradients.
    fn step(&self) -> Result<(Tensor, GradStore)> {
        let y = match (self.op, &self.bias, &self.batch_norm) {
            (Op::LayerNorm, Some(bias), _) => ops::layer_norm_slow(&self.x, &self.weight, bias, EPS)?,
            (Op::BatchNormTrain, _, Some(batch_norm)) => batch_norm.forward_train(&self.x)?,
            _ => ops::rms_norm_slow(&self.x, &self.weight, EPS)?,
        };
        let gradients = y.apply_op1(Seed(self.dy.clone()))?.backward()?;
        Ok((y, gradients))
    }

    fn results(&self) -> Result<Results> {
        let (y, gradients) = self.step()?;
        let gradient = |var: &Var| gradients.get(var).map_or_else(|| Ok(Vec::new()), to_vec);
        let dbias = self.bias.as_ref().map_or_else(|| Ok(Vec::new()), gradient)?;
        Ok(Results { y: to_vec(&y)?, dx: gradient(&self.x)?, dweight: gradient(&self.weight)?, dbias })
    }
}

impl Peer for Candle {
    fn call(&mut self, _outputs: &mut Outputs) {
        drop(black_box(self.step()).expect("checked before timing"));
    }

    fn result(&mut self, _outputs: &mut Outputs) -> Results {
        self.results().expect("candle has this operation")
    }
}
