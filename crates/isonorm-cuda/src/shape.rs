//! How a row is laid out over threads. No bit depends on it.

use isonorm::{DType, LANES, LEAF};

/// Warps that share a row, at most: `MAX_WARPS` of `order.cuh`.
pub const MAX_WARPS: usize = 16;

/// Threads of a block whose rows take no more than a warp.
const SMALL_BLOCK: usize = 128;

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
    /// The shape for rows of `hidden` elements of `dtype`: as few leaves a thread as fit. Four
    /// leaves (bf16 beyond 32 768, f32 beyond 16 384) would not fit the registers; such rows are read again, mostly from
    /// the second cache.
    pub fn of(hidden: usize, dtype: DType) -> Self {
        let groups = lanes(dtype);
        let leaves = hidden.div_ceil(LEAF).max(1);
        if leaves < groups {
            return Shape { node: 1, groups: leaves.next_power_of_two(), is_long: false };
        }
        for node in [1, 2] {
            if leaves <= groups * node * MAX_WARPS {
                return Shape { node, groups, is_long: false };
            }
        }
        Shape { node: 2, groups, is_long: true }
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
            2..=MAX_WARPS => Some(Launch { threads: 32 * warps as u32, warps: warps as i32, pieces: pieces as i64, rows_per_block: 1 }),
            _ => None,
        }
    }
}
