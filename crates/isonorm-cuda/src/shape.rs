//! How a row is laid out over threads. No bit depends on it.

use std::ffi::c_void;

use isonorm::{BATCH_LEAF, DType, LANES, LEAF};

use crate::args::{Finish, Scratch, Tensor};

/// Warps that share a row, at most.
const MAX_WARPS: usize = 16;

/// Warps that share a row that is read again, each with this many pieces at most: their sums take the registers.
const LONG_WARPS: usize = 8;
const MAX_PIECES: usize = 1 << 15;

/// Threads of a block whose rows take no more than a warp.
pub(crate) const SMALL_BLOCK: usize = 128;

/// Threads of a block that sums units.
pub(crate) const FINISH_BLOCK: usize = 512;

/// Blocks that share a batch, at most, when units are summed: two for each multiprocessor of a large GPU. So the sums of
/// a row's columns take 16 MiB at most for each level of a unit's tree.
const UNIT_BLOCKS: usize = 256;

/// A thread's work, fixed when its kernel is compiled: `Shape` of `order.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Consecutive leaves whose lanes a thread owns.
    pub node: usize,
    /// Groups of threads in a warp that share a row.
    pub groups: usize,
    /// Warps that share a row, rounded up to a power of two.
    pub warps: usize,
    /// Whether rows are read again instead of kept.
    pub is_long: bool,
    /// Whether whatever a thread owns exists, and is aligned in all tensors.
    pub is_whole: bool,
}

/// The grid's side of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Threads of a block.
    pub threads: u32,
    pub(crate) warps: i32,
    pub(crate) pieces: i64,
    pub(crate) rows_per_block: i32,
}

impl Launch {
    /// Blocks of a grid that does `rows` rows at once.
    pub fn blocks(&self, rows: usize) -> u32 {
        rows.div_ceil(self.rows_per_block as usize).clamp(1, i32::MAX as usize) as u32
    }
}

/// Lanes of a thread, and so groups of a whole warp: elements of 16 bytes.
fn lanes(dtype: DType) -> usize {
    16 / dtype.size()
}

impl Shape {
    /// The shape of a forward kernel for rows of `hidden` elements of `dtype`: as few leaves a thread as fit. Four leaves
    /// (bf16 beyond 32 768, f32 beyond 16 384) would not fit the registers; such rows are read again, mostly from the
    /// second cache.
    pub fn forward(hidden: usize, dtype: DType) -> Self {
        Self::of(hidden, dtype, 2)
    }

    /// The shape of a backward kernel, which keeps dy too: half as much.
    pub fn backward(hidden: usize, dtype: DType) -> Self {
        Self::of(hidden, dtype, 1)
    }

    /// Of kernels whose threads own columns.
    pub(crate) fn of_columns(dtype: DType) -> Self {
        Shape { node: 1, groups: lanes(dtype), warps: 1, is_long: false, is_whole: false }
    }

    /// `most` leaves a thread at most.
    fn of(hidden: usize, dtype: DType, most: usize) -> Self {
        let leaves = hidden.div_ceil(LEAF).max(1);
        let shape = Shape { groups: lanes(dtype).min(leaves.next_power_of_two()), ..Self::of_columns(dtype) };
        for node in [1, 2].into_iter().filter(|node| *node <= most) {
            let warps = leaves.div_ceil(shape.groups * node).next_power_of_two();
            if warps <= MAX_WARPS {
                return Shape { node, warps, ..shape };
            }
        }
        Shape { warps: LONG_WARPS, is_long: true, ..shape }
    }

    /// This shape for a call with these tensors, where all `hidden` elements of their rows are measured: a kernel without
    /// a question about what exists, if all that its threads own does and is aligned.
    pub fn with(self, hidden: usize, tensors: &[Tensor]) -> Self {
        let is_whole = hidden > 0 && hidden.is_multiple_of(LEAF * self.per_warp());
        Shape { is_whole: is_whole && tensors.iter().all(Tensor::is_aligned), ..self }
    }

    /// Leaves that the threads of a warp, or of its part, own at once.
    fn per_warp(self) -> usize {
        self.groups * self.node
    }

    /// Threads of a block, at most.
    pub(crate) fn threads(self) -> usize {
        if self.warps == 1 { SMALL_BLOCK } else { 32 * self.warps }
    }

    /// How rows of `hidden` elements are launched in this shape, or `None` where they do not fit it.
    pub fn launch(self, hidden: usize, dtype: DType) -> Option<Launch> {
        let leaves = hidden.div_ceil(LEAF).max(1);
        let pieces = leaves.div_ceil(self.per_warp() * self.warps);
        let pieces = if self.is_long { pieces.next_power_of_two() } else { 1 };
        let warps = leaves.div_ceil(self.per_warp() * pieces);
        if warps > self.warps
            || pieces > MAX_PIECES
            || (self.is_whole && !hidden.is_multiple_of(LEAF * self.per_warp()))
        {
            return None;
        }
        let team = LANES / lanes(dtype) * self.groups;
        let (threads, rows) = if self.warps == 1 { (SMALL_BLOCK, SMALL_BLOCK / team) } else { (32 * warps, 1) };
        Some(Launch {
            threads: threads as u32,
            warps: warps as i32,
            pieces: pieces as i64,
            rows_per_block: rows as i32,
        })
    }
}

/// How rows are cut for the parameters' gradients: units are nodes of the tree over rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// Rows of a unit.
    pub rows: usize,
    /// How many units.
    pub count: usize,
    /// Slots of scratch memory of a unit.
    pub slots: usize,
    /// Units whose sum is left, too: those of a block.
    pub side_by_side: usize,
}

impl Units {
    /// Of a batch of `rows`, for a kernel of dx that takes the gradients along.
    pub fn of(rows: usize, launch: &Launch) -> Self {
        let side_by_side = launch.rows_per_block as usize;
        Self::new(rows, rows.div_ceil(BATCH_LEAF).div_ceil(UNIT_BLOCKS * side_by_side), side_by_side)
    }

    /// Of a batch of `rows`, for [`Kernel::Parameters`](crate::Kernel).
    pub fn of_columns(rows: usize) -> Self {
        Self::new(rows, rows.div_ceil(BATCH_LEAF).div_ceil(UNIT_BLOCKS), 1)
    }

    /// Units of at least as many leaves.
    pub fn new(rows: usize, leaves: usize, side_by_side: usize) -> Self {
        let leaves = leaves.next_power_of_two();
        let unit = BATCH_LEAF * leaves;
        Units { rows: unit, count: rows.div_ceil(unit), slots: leaves.ilog2().max(1) as usize, side_by_side }
    }

    /// Values of the compute type that scratch memory has.
    pub fn values(&self, hidden: usize) -> usize {
        self.count * self.slots * 2 * hidden
    }

    /// As a kernel takes scratch memory of as many values.
    pub fn scratch(&self, nodes: *mut c_void) -> Scratch {
        Scratch { nodes, rows: self.rows as i64, slots: self.slots as i64 }
    }

    /// What then sums the units.
    pub fn sums(&self, nodes: *const c_void, hidden: usize, dweight: Tensor, dbias: Tensor) -> Finish {
        let stride = (self.side_by_side * self.slots * 2 * hidden) as i64;
        Finish {
            nodes,
            units: self.count.div_ceil(self.side_by_side) as i64,
            stride,
            hidden: hidden as i64,
            dweight,
            dbias,
        }
    }

    /// Blocks and threads of a block of [`Kernel::Parameters`](crate::Kernel).
    pub fn launch(&self, hidden: usize, x: DType) -> (u32, u32) {
        let threads = self.count * hidden.div_ceil(lanes(x));
        (threads.div_ceil(SMALL_BLOCK).max(1) as u32, SMALL_BLOCK as u32)
    }

    /// Blocks and threads of a block of [`Kernel::Finish`](crate::Kernel).
    pub fn finish(hidden: usize) -> (u32, u32) {
        ((2 * hidden).div_ceil(32).max(1) as u32, FINISH_BLOCK as u32)
    }
}
