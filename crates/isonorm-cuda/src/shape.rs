//! How a row is laid out over threads. No bit depends on it.

use isonorm::{BATCH_LEAF, DType, LANES, LEAF};

/// Warps that share a row, at most.
pub(crate) const MAX_WARPS: usize = 16;

/// Threads of a block whose rows take no more than a warp.
pub(crate) const SMALL_BLOCK: usize = 128;

/// Units of rows, at most: their sums are what the parameters' gradients need of memory.
const MAX_UNITS: usize = 256;

/// A thread's work, fixed when its kernel is compiled: `Shape` of `order.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Consecutive leaves whose lanes a thread owns.
    pub node: usize,
    /// Groups of threads in a warp that share a row.
    pub groups: usize,
    /// Whether rows are read again instead of kept.
    pub is_long: bool,
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
        Shape { node: 1, groups: lanes(dtype), is_long: false }
    }

    /// `most` leaves a thread at most.
    fn of(hidden: usize, dtype: DType, most: usize) -> Self {
        let groups = lanes(dtype);
        let leaves = hidden.div_ceil(LEAF).max(1);
        if leaves < groups {
            return Shape { node: 1, groups: leaves.next_power_of_two(), is_long: false };
        }
        let fits = |node: &usize| leaves <= groups * node * MAX_WARPS;
        match [1, 2].into_iter().filter(|node| *node <= most).find(fits) {
            Some(node) => Shape { node, groups, is_long: false },
            None => Shape { node: most, groups, is_long: true },
        }
    }

    /// Whether a row takes whole warps.
    pub(crate) fn is_of_whole_warps(self, dtype: DType) -> bool {
        self.groups == lanes(dtype)
    }

    /// How rows of `hidden` elements are launched in this shape, or `None` where they are too long for it.
    pub fn launch(self, hidden: usize, dtype: DType) -> Option<Launch> {
        let leaves = hidden.div_ceil(LEAF).max(1);
        let team = LANES / lanes(dtype) * self.groups;
        let per_warp = self.groups * self.node;
        if self.groups < lanes(dtype) && leaves > per_warp {
            return None;
        }
        let pieces = leaves.div_ceil(per_warp * MAX_WARPS);
        let pieces = if self.is_long { pieces.next_power_of_two() } else { 1 };
        let warps = leaves.div_ceil(per_warp * pieces);
        match warps {
            1 => Some(Launch {
                threads: SMALL_BLOCK as u32,
                warps: 1,
                pieces: pieces as i64,
                rows_per_block: (SMALL_BLOCK / team) as i32,
            }),
            2..=MAX_WARPS => Some(Launch {
                threads: 32 * warps as u32,
                warps: warps as i32,
                pieces: pieces as i64,
                rows_per_block: 1,
            }),
            _ => None,
        }
    }
}

/// How rows are cut for the parameters' gradients: units are nodes of the tree over rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// Rows of a unit.
    pub rows: usize,
    /// How many units.
    pub count: usize,
}

impl Units {
    /// Of a batch of `rows`.
    pub fn of(rows: usize) -> Self {
        let unit = BATCH_LEAF * rows.div_ceil(BATCH_LEAF).div_ceil(MAX_UNITS).next_power_of_two();
        Units { rows: unit, count: rows.div_ceil(unit) }
    }

    /// Blocks and threads of a block of the kernel that sums units.
    pub fn launch(&self, hidden: usize, x: DType) -> (u32, u32) {
        let threads = self.count * hidden.div_ceil(lanes(x));
        (threads.div_ceil(SMALL_BLOCK).max(1) as u32, SMALL_BLOCK as u32)
    }

    /// Blocks and threads of a block of the kernel that sums their sums.
    pub fn finish(hidden: usize) -> (u32, u32) {
        (hidden.div_ceil(SMALL_BLOCK).max(1) as u32, SMALL_BLOCK as u32)
    }
}
