//! What is measured: the table of cells, each with its shape and the ratio it has to reach.

use clap::ValueEnum;
use serde::Serialize;

/// Added under every root, in every contestant.
pub(crate) const EPS: f32 = 1e-6;

/// The element type of a cell's tensors, parameters included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dtype {
    F32,
    Bf16,
}

impl Dtype {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }
}

/// The operation of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Op {
    RmsNorm,
    LayerNorm,
    /// `sum = x + residual`, `y = rms_norm(sum)`; both are results.
    AddRmsNorm,
    BatchNormEval,
    BatchNormTrain,
}

/// Which of its passes an operation makes; a backward pass with the parameters' gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pass {
    Forward,
    /// With statistics that a forward pass saved before.
    Backward,
    /// Forward, the statistics saved, then backward.
    ForwardBackward,
}

impl Pass {
    pub(crate) fn is_forward(self) -> bool {
        self != Pass::Backward
    }

    pub(crate) fn is_backward(self) -> bool {
        self != Pass::Forward
    }
}

/// How elements lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Layout {
    Rows,
    /// NCHW: a row is one channel's plane of one sample.
    ChannelsFirst,
    /// NHWC.
    ChannelsLast,
}

/// What a cell has to reach.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Goal {
    /// At least this share of the speed of the fastest copy of the same bytes.
    ShareOfLimit(f64),
    /// At most this many times the time of the free-order loop.
    TimesLoop(f64),
    /// Faster than every peer.
    AheadOfPeers,
}

/// One cell: an operation on one shape of one type.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) op: Op,
    pub(crate) pass: Pass,
    pub(crate) dtype: Dtype,
    pub(crate) layout: Layout,
    /// Rows; for BatchNorm samples times channels.
    pub(crate) rows: usize,
    /// Elements of a row; for BatchNorm of one plane.
    pub(crate) hidden: usize,
    /// Length of weight and bias.
    pub(crate) params: usize,
    pub(crate) goal: Goal,
}

impl Cell {
    const fn rows(op: Op, dtype: Dtype, rows: usize, hidden: usize, goal: Goal) -> Cell {
        Cell { op, pass: Pass::Forward, dtype, layout: Layout::Rows, rows, hidden, params: hidden, goal }
    }

    /// BatchNorm of 32 samples in f32.
    const fn planes(op: Op, layout: Layout, channels: usize, side: usize, goal: Goal) -> Cell {
        let (rows, hidden) = (32 * channels, side * side);
        Cell { op, pass: Pass::Forward, dtype: Dtype::F32, layout, rows, hidden, params: channels, goal }
    }

    const fn pass(self, pass: Pass) -> Cell {
        Cell { pass, ..self }
    }

    pub(crate) fn name(&self) -> String {
        let op = match self.op {
            Op::RmsNorm => "RMSNorm",
            Op::LayerNorm => "LayerNorm",
            Op::AddRmsNorm => "add + RMSNorm",
            Op::BatchNormEval => "BatchNorm eval",
            Op::BatchNormTrain => "BatchNorm",
        };
        let pass = match self.pass {
            Pass::Forward => "",
            Pass::Backward => " bwd",
            Pass::ForwardBackward => " fwd+bwd",
        };
        let dtype = match self.dtype {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
        };
        let (samples, side) = (self.rows / self.params, self.hidden.isqrt());
        let planes = format!("{samples}x{}x{side}x{side}", self.params);
        let shape = match (self.layout, self.pass) {
            (Layout::Rows, _) => format!("{}x{}", self.rows, self.hidden),
            (Layout::ChannelsFirst, Pass::Forward) => planes,
            (Layout::ChannelsFirst, _) => planes + " NCHW",
            (Layout::ChannelsLast, _) => planes + " NHWC",
        };
        format!("{op}{pass} {dtype} {shape}")
    }

    pub(crate) fn len(&self) -> usize {
        self.rows * self.hidden
    }

    /// Bytes that have to be read and written, parameters aside: forward x and y, backward x, dy and dx.
    pub(crate) fn traffic(&self) -> usize {
        let forward = match (self.pass.is_forward(), self.op) {
            (false, _) => 0,
            (true, Op::AddRmsNorm) => 4,
            (true, _) => 2,
        };
        let backward = if self.pass.is_backward() { 3 } else { 0 };
        (forward + backward) * self.len() * self.dtype.bytes()
    }

    /// Whether a loop is the yardstick. Loops run on one thread.
    pub(crate) fn has_loops(&self) -> bool {
        matches!(self.goal, Goal::TimesLoop(_))
    }

    pub(crate) fn wants_threads(&self, threads: usize) -> bool {
        threads == 1 || !self.has_loops()
    }

    /// The row or channel whose statistics element `i` is normalized with.
    pub(crate) fn group(&self, i: usize) -> usize {
        match self.layout {
            Layout::Rows => i / self.hidden,
            _ => self.param(i),
        }
    }

    /// The element of weight and bias that belongs to element `i`.
    pub(crate) fn param(&self, i: usize) -> usize {
        match self.layout {
            Layout::ChannelsFirst => i / self.hidden % self.params,
            Layout::Rows | Layout::ChannelsLast => i % self.params,
        }
    }

    /// How many groups there are.
    pub(crate) fn groups(&self) -> usize {
        if self.layout == Layout::Rows { self.rows } else { self.params }
    }
}

/// Every cell, in the order of the table.
pub(crate) const CELLS: [Cell; 28] = {
    use Dtype::{Bf16, F32};
    use Goal::{AheadOfPeers, ShareOfLimit, TimesLoop};
    use Layout::{ChannelsFirst, ChannelsLast};
    use Op::{AddRmsNorm, BatchNormEval, BatchNormTrain, LayerNorm, RmsNorm};
    use Pass::{Backward, ForwardBackward as Both};
    [
        Cell::rows(RmsNorm, F32, 1, 2048, TimesLoop(1.10)),
        Cell::rows(RmsNorm, F32, 1, 4096, TimesLoop(1.10)),
        Cell::rows(LayerNorm, F32, 1, 4096, TimesLoop(1.25)),
        Cell::rows(RmsNorm, Bf16, 1, 4096, TimesLoop(1.10)),
        Cell::rows(RmsNorm, F32, 32, 4096, ShareOfLimit(0.75)),
        Cell::rows(RmsNorm, F32, 512, 4096, ShareOfLimit(0.90)),
        Cell::rows(RmsNorm, F32, 4096, 4096, ShareOfLimit(0.90)),
        Cell::rows(RmsNorm, Bf16, 4096, 4096, ShareOfLimit(0.75)),
        Cell::rows(LayerNorm, F32, 4096, 4096, ShareOfLimit(0.85)),
        Cell::rows(AddRmsNorm, F32, 4096, 4096, ShareOfLimit(0.90)),
        Cell::rows(RmsNorm, F32, 65536, 128, ShareOfLimit(0.80)),
        Cell::rows(RmsNorm, Bf16, 65536, 128, ShareOfLimit(0.70)),
        Cell::planes(BatchNormEval, ChannelsFirst, 64, 56, ShareOfLimit(0.85)),
        Cell::rows(RmsNorm, F32, 2048, 4096, ShareOfLimit(0.80)).pass(Both),
        Cell::rows(LayerNorm, F32, 2048, 4096, ShareOfLimit(0.75)).pass(Both),
        Cell::rows(RmsNorm, Bf16, 2048, 4096, ShareOfLimit(0.60)).pass(Both),
        Cell::rows(LayerNorm, Bf16, 2048, 4096, ShareOfLimit(0.55)).pass(Both),
        Cell::planes(BatchNormTrain, ChannelsFirst, 64, 56, ShareOfLimit(0.65)).pass(Both),
        Cell::planes(BatchNormTrain, ChannelsLast, 64, 56, ShareOfLimit(0.65)).pass(Both),
        Cell::planes(BatchNormTrain, ChannelsFirst, 512, 7, ShareOfLimit(0.60)).pass(Both),
        Cell::planes(BatchNormTrain, ChannelsLast, 512, 7, ShareOfLimit(0.60)).pass(Both),
        Cell::rows(RmsNorm, F32, 32, 4096, AheadOfPeers).pass(Both),
        Cell::rows(LayerNorm, F32, 32, 4096, AheadOfPeers).pass(Both),
        Cell::rows(RmsNorm, F32, 65536, 128, AheadOfPeers).pass(Both),
        Cell::rows(LayerNorm, F32, 65536, 128, AheadOfPeers).pass(Both),
        Cell::rows(RmsNorm, F32, 16384, 1024, AheadOfPeers).pass(Both),
        Cell::rows(LayerNorm, F32, 16384, 1024, AheadOfPeers).pass(Both),
        // What the order of the sum over rows costs.
        Cell::rows(RmsNorm, F32, 2048, 4096, TimesLoop(1.05)).pass(Backward),
    ]
};
