//! tract-linalg: kernels in place, so each row is copied first and then worked on in the cache.
//!
//! f32 only (its f16 has no bf16 beside it). LayerNorm is the fused RMSNorm of the centred row.
//! Threads are its caller's: rows go in one run to each.

use tract_linalg::Func;
use tract_linalg::by_scalar::ByScalarImpl;
use tract_linalg::element_wise::ElementWise;
use tract_linalg::generic::by_scalar::SAddByScalar4;
use tract_linalg::generic::unicast::{SUnicastAdd4, SUnicastMul4};
use tract_linalg::reduce::Reduce;
use tract_linalg::routines::rms_norm_f32;
use tract_linalg::unicast::{Unicast, UnicastImpl};

use super::Peer;
use super::parts::{Part, Row};
use crate::cells::{Cell, Dtype, EPS, Op};
use crate::memory::{Inputs, Outputs, Results};

struct Tract<'a> {
    cell: Cell,
    inputs: &'a Inputs,
    kernels: Kernels,
    threads: usize,
}

/// The kernels tract picks for this machine.
struct Kernels {
    rms_norm: fn(&mut [f32], f32),
    sum: Box<dyn Reduce<f32>>,
    scale: Box<dyn ElementWise<f32, f32>>,
    shift: Box<dyn ElementWise<f32, f32>>,
    multiply: Box<dyn Unicast<f32>>,
    add: Box<dyn Unicast<f32>>,
}

pub(super) fn prepare<'a>(cell: &Cell, inputs: &'a Inputs, threads: usize) -> Option<Box<dyn Peer + 'a>> {
    let kernels = Kernels {
        rms_norm: rms_norm_f32().ok()?,
        sum: Func::ReduceSum.reduce_f32().ok()?,
        scale: Func::MulByScalar.ew_f32_param().ok()?,
        shift: Box::new(ByScalarImpl::<SAddByScalar4, f32>::new()),
        multiply: Box::new(UnicastImpl::<SUnicastMul4, f32>::new()),
        add: Box::new(UnicastImpl::<SUnicastAdd4, f32>::new()),
    };
    let tract = Tract { cell: *cell, inputs, kernels, threads };
    (cell.dtype == Dtype::F32).then(|| Box::new(tract) as Box<dyn Peer>)
}

impl Peer for Tract<'_> {
    fn call(&mut self, outputs: &mut Outputs) {
        Part::all_in_place(self.cell.rows, self.inputs, outputs).for_each(self.threads, &|row| {
            self.normalize(row).expect("tract has this machine's kernels");
        });
    }

    fn result(&mut self, outputs: &mut Outputs) -> Results {
        self.call(outputs);
        outputs.results()
    }
}

impl Tract<'_> {
    fn normalize(&self, row: Row<'_, f32>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Kernels { rms_norm, sum, scale, shift, multiply, add } = &self.kernels;
        let (weight, bias) = (self.inputs.weight.as_slice(), self.inputs.bias.as_slice::<f32>());
        let y = row.y;
        y.copy_from_slice(row.x);
        match self.cell.op {
            Op::RmsNorm => rms_norm(y, EPS),
            Op::AddRmsNorm => {
                add.run(y, row.residual)?;
                row.sum.copy_from_slice(y);
                rms_norm(y, EPS);
            }
            Op::LayerNorm => {
                shift.run_with_params(y, -sum.run(row.x)? / row.x.len() as f32)?;
                rms_norm(y, EPS);
            }
            Op::BatchNormTrain => unreachable!("not for inference"),
            Op::BatchNormEval => {
                let channel = row.number % weight.len();
                let at = |values: &[f32]| values[channel];
                let var = at(self.inputs.var.as_slice());
                let factor = at(weight) / (var + EPS).sqrt();
                scale.run_with_params(y, factor)?;
                shift.run_with_params(y, at(bias) - at(self.inputs.mean.as_slice()) * factor)?;
                return Ok(());
            }
        }
        multiply.run(y, weight)?;
        if self.cell.op == Op::LayerNorm {
            add.run(y, bias)?;
        }
        Ok(())
    }
}
