//! How a row is laid out over threads. No bit depends on it.

use std::ffi::c_void;

use isonorm::{BATCH_LEAF, DType, LANES, LEAF};

use crate::args::{Finish, Scratch, Sharing, Tensor};
use crate::kernel::Gradients;

/// Warps of a block, at most.
const MAX_WARPS: usize = 16;

/// Warps of a block whose threads keep x, dy, the next row's too and sums of columns, at most.
const FULL_WARPS: usize = 8;

/// Blocks of a cluster, at most, and the architecture from which there are clusters.
pub(crate) const MAX_BLOCKS: usize = 8;
pub(crate) const CLUSTERS: (i32, i32) = (9, 0);

/// Warps that share a row that is read again.
const LONG_WARPS: usize = 8;

/// Threads of a block whose rows take no more than a warp.
pub(crate) const SMALL_BLOCK: usize = 128;

/// Threads of a block that sums units.
pub(crate) const FINISH_BLOCK: usize = 512;

/// Blocks that share a batch, at most, when units are summed: two for each multiprocessor of a large GPU. So the sums
/// of a row's columns take 16 MiB at most for each level of a unit's tree.
const UNIT_BLOCKS: usize = 256;

/// A thread's work, fixed when its kernel is compiled: `Shape` of `order.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Consecutive leaves whose lanes a thread owns.
    pub node: usize,
    /// Groups of threads in a warp that share a row.
    pub groups: usize,
    /// Warps of a block that share a row, rounded up to a power of two.
    pub warps: usize,
    /// Blocks that share a row, rounded up to a power of two: more than 1 from compute capability 9.0 on.
    pub blocks: usize,
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
    /// Blocks of a cluster.
    pub cluster: u32,
    pub(crate) sharing: Sharing,
}

impl Launch {
    /// Blocks of a grid that does `rows` rows at once.
    pub fn blocks(&self, rows: usize) -> u32 {
        let clusters = rows.div_ceil(self.sharing.rows_per_block as usize).max(1);
        (clusters * self.cluster as usize).min(i32::MAX as usize / MAX_BLOCKS * MAX_BLOCKS) as u32
    }
}

/// Lanes of a thread, and so groups of a whole warp: elements of 16 bytes.
fn lanes(dtype: DType) -> usize {
    16 / dtype.size()
}

/// Pieces of a warp's part of a row, at most: their sums take registers.
fn most_pieces(dtype: DType) -> usize {
    if dtype == DType::F64 { 1 << 11 } else { 1 << 15 }
}

impl Shape {
    /// The shape of a forward kernel for rows of `hidden` elements of `dtype` on a GPU of this compute capability: as
    /// few leaves a thread as fit, so that several rows are on their way at once. The longest rows (bf16 beyond 262 144
    /// elements, and before clusters beyond 32 768) are read again, mostly from the second cache.
    pub fn forward(hidden: usize, dtype: DType, capability: (i32, i32)) -> Self {
        let rows = Row::new(hidden, dtype);
        let kept = if capability >= CLUSTERS {
            rows.kept(1, MAX_WARPS, MAX_BLOCKS).or_else(|| rows.kept(2, MAX_WARPS, MAX_BLOCKS))
        } else {
            rows.kept(1, MAX_WARPS, 1).or_else(|| rows.kept(2, MAX_WARPS, 1))
        };
        kept.unwrap_or_else(|| rows.long())
    }

    /// The shape of a backward kernel, and which of these gradients it takes along. It keeps dy too, and for gradients
    /// the next row and sums, for which registers of large blocks do not always suffice.
    pub fn backward(hidden: usize, dtype: DType, gradients: Gradients, capability: (i32, i32)) -> (Self, Gradients) {
        let rows = Row::new(hidden, dtype);
        let blocks = if capability >= CLUSTERS { MAX_BLOCKS } else { 1 };
        if let Some(shape) = rows.kept(1, FULL_WARPS, blocks) {
            return (shape, gradients);
        }
        let is_tight = match dtype.size() {
            8 => gradients != Gradients::None,
            2 => gradients == Gradients::Both,
            _ => false,
        };
        match rows.kept(1, MAX_WARPS, blocks) {
            Some(shape) if is_tight => (shape, Gradients::None),
            Some(shape) => (shape, gradients),
            None => (rows.long(), Gradients::None),
        }
    }

    /// Of kernels whose threads own columns.
    pub(crate) fn of_columns(dtype: DType) -> Self {
        Shape { node: 1, groups: lanes(dtype), warps: 1, blocks: 1, is_long: false, is_whole: false }
    }

    /// This shape for a call with these tensors, where all `hidden` elements of their rows are measured: a kernel
    /// without a question about what exists, if all that its threads own does and is aligned.
    pub fn with(self, hidden: usize, x: DType, tensors: &[Tensor]) -> Self {
        let whole = Shape { is_whole: true, ..self };
        let is_whole = hidden > 0 && whole.launch(hidden, x).is_some() && tensors.iter().all(Tensor::is_aligned);
        Shape { is_whole, ..self }
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
        let nodes = hidden.div_ceil(LEAF).max(1).div_ceil(self.per_warp());
        let pieces = if self.is_long { nodes.div_ceil(self.warps).next_power_of_two() } else { 1 };
        let needed = nodes.div_ceil(pieces);
        let (warps, blocks) = if self.blocks > 1 { (self.warps, needed.div_ceil(self.warps)) } else { (needed, 1) };
        let are_whole = hidden.is_multiple_of(LEAF * self.per_warp()) && warps * blocks == needed;
        if warps > self.warps || blocks > self.blocks || pieces > most_pieces(dtype) || (self.is_whole && !are_whole) {
            return None;
        }
        let team = LANES / lanes(dtype) * self.groups;
        let (threads, rows) = if self.warps == 1 { (SMALL_BLOCK, SMALL_BLOCK / team) } else { (32 * warps, 1) };
        let sharing =
            Sharing { pieces: pieces as i64, warps: warps as i32, blocks: blocks as i32, rows_per_block: rows as i32 };
        Some(Launch { threads: threads as u32, cluster: blocks as u32, sharing })
    }
}

/// Rows of so many elements, in leaves.
struct Row {
    leaves: usize,
    /// The smallest shape.
    shape: Shape,
}

impl Row {
    fn new(hidden: usize, dtype: DType) -> Self {
        let leaves = hidden.div_ceil(LEAF).max(1);
        let groups = lanes(dtype).min(leaves.next_power_of_two());
        Row { leaves, shape: Shape { groups, ..Shape::of_columns(dtype) } }
    }

    /// Kept in the registers of at most so many warps of at most so many blocks, `node` leaves a thread.
    fn kept(&self, node: usize, most_warps: usize, most_blocks: usize) -> Option<Shape> {
        let needed = self.leaves.div_ceil(self.shape.groups * node);
        if needed <= most_warps {
            return Some(Shape { node, warps: needed.next_power_of_two(), ..self.shape });
        }
        // As few idle warps as there can be, in as few blocks.
        let sizes = [1, 2, 4].map(|part| most_warps / part);
        let warps = sizes.into_iter().min_by_key(|warps| needed.next_multiple_of(*warps)).unwrap_or(most_warps);
        let warps = if needed.div_ceil(warps) <= most_blocks { warps } else { most_warps };
        let blocks = needed.div_ceil(warps);
        (blocks <= most_blocks).then(|| Shape { node, warps, blocks: blocks.next_power_of_two(), ..self.shape })
    }

    /// Read again.
    fn long(&self) -> Shape {
        Shape { warps: LONG_WARPS, is_long: true, ..self.shape }
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
        let side_by_side = launch.sharing.rows_per_block as usize;
        let most = UNIT_BLOCKS / launch.cluster as usize * side_by_side;
        Self::new(rows, rows.div_ceil(BATCH_LEAF).div_ceil(most), side_by_side)
    }

    /// Of a batch of `rows`, for [`Kernel::Parameters`](crate::kernels::Kernel).
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
        (self.count * self.slots * 2).saturating_mul(hidden)
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

    /// Blocks and threads of a block of [`Kernel::Parameters`](crate::kernels::Kernel).
    pub fn launch(&self, hidden: usize, x: DType) -> (u32, u32) {
        let threads = self.count * hidden.div_ceil(lanes(x));
        (threads.div_ceil(SMALL_BLOCK).max(1) as u32, SMALL_BLOCK as u32)
    }

    /// Blocks and threads of a block of [`Kernel::Finish`](crate::kernels::Kernel).
    pub fn finish(hidden: usize) -> (u32, u32) {
        ((2 * hidden).div_ceil(32).max(1) as u32, FINISH_BLOCK as u32)
    }
}
