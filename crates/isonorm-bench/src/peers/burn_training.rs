//! burn's autodiff over the flex backend. What autodiff lacks a gradient for in one piece it builds
//! of parts: LayerNorm and RMSNorm; BatchNorm has one.
//!
//! `Tensor::backward` starts from ones, so it starts at `y * dy`.

use std::hint::black_box;

use burn::module::Param;
use burn::nn::RmsNorm;
use burn::tensor::{Device, Tensor, module};

use super::Peer;
use super::burn::{tensor_on, to_vec};
use crate::cells::{Cell, EPS, Layout, Op};
use crate::memory::{Buffer, Inputs, Outputs, Results};

struct Burn<const D: usize> {
    x: Tensor<D>,
    dy: Tensor<D>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    norm: Box<dyn Fn(Tensor<D>) -> Tensor<D> + Send>,
}

pub(super) fn prepare<'a>(cell: &Cell, inputs: &'a Inputs, _threads: usize) -> Option<Box<dyn Peer + 'a>> {
    let (rows, planes) = (cell.len() / cell.params, cell.rows / cell.params);
    Some(match cell.layout {
        Layout::ChannelsFirst => Box::new(Burn::new(cell, inputs, [planes, cell.params, cell.hidden])?),
        Layout::Rows | Layout::ChannelsLast => Box::new(Burn::new(cell, inputs, [rows, cell.params])?),
    })
}

impl<const D: usize> Burn<D> {
    fn new(cell: &Cell, inputs: &Inputs, shape: [usize; D]) -> Option<Burn<D>> {
        let device = Device::flex().autodiff();
        let vector = |buffer: &Buffer| tensor_on(&device, cell.dtype, buffer, [cell.params]).require_grad();
        let weight = vector(&inputs.weight);
        let bias = (!inputs.bias.bytes().is_empty()).then(|| vector(&inputs.bias));
        let (gamma, beta, eps) = (weight.clone(), bias.clone(), f64::from(EPS));
        let norm: Box<dyn Fn(Tensor<D>) -> Tensor<D> + Send> = match cell.op {
            Op::RmsNorm => {
                let norm = RmsNorm { gamma: Param::from_tensor(gamma), epsilon: eps };
                Box::new(move |x| norm.forward(x))
            }
            Op::LayerNorm => Box::new(move |x| module::layer_norm(x, gamma.clone(), beta.clone(), eps)),
            Op::BatchNormTrain => {
                let beta = beta?;
                Box::new(move |x| module::batch_norm_train(x, gamma.clone(), beta.clone(), eps).output)
            }
            Op::AddRmsNorm | Op::BatchNormEval => return None,
        };
        let [x, dy] = [&inputs.x, &inputs.dy].map(|buffer| tensor_on(&device, cell.dtype, buffer, shape));
        Some(Burn { x: x.require_grad(), dy, weight, bias, norm })
    }

    /// y, dx and the parameters' gradients.
    fn step(&self) -> (Tensor<D>, [Option<Tensor<D>>; 1], [Option<Tensor<1>>; 2]) {
        let y = (self.norm)(self.x.clone());
        let mut gradients = (y.clone() * self.dy.clone()).backward();
        let dx = self.x.grad_remove(&mut gradients);
        let dweight = self.weight.grad_remove(&mut gradients);
        let dbias = self.bias.as_ref().and_then(|bias| bias.grad_remove(&mut gradients));
        (y, [dx], [dweight, dbias])
    }
}

impl<const D: usize> Peer for Burn<D> {
    fn call(&mut self, _outputs: &mut Outputs) {
        drop(black_box(self.step()));
    }

    fn result(&mut self, _outputs: &mut Outputs) -> Results {
        let (y, [dx], params) = self.step();
        let [dweight, dbias] = params.map(|gradient| gradient.map_or_else(Vec::new, to_vec));
        Results { y: to_vec(y), dx: dx.map_or_else(Vec::new, to_vec), dweight, dbias }
    }
}
