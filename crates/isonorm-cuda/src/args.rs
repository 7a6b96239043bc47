//! What a kernel is given, laid out as its C++ structs are.

use std::ffi::c_void;

use isonorm::DType;

use crate::shape::Launch;

/// A tensor of rows whose elements lie side by side, or a parameter. Row `(o, i)` begins `o * outer + i * inner`
/// elements after `data`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Tensor {
    data: *mut c_void,
    outer: i64,
    inner: i64,
    dtype: i32,
}

impl Tensor {
    /// No tensor.
    pub const NONE: Tensor = Tensor { data: std::ptr::null_mut(), outer: 0, inner: 0, dtype: 0 };

    /// Rows of elements of `dtype` at a device's address, `outer` and `inner` elements apart.
    pub fn new(data: *mut c_void, dtype: DType, outer: i64, inner: i64) -> Self {
        Tensor { data, outer, inner, dtype: number(dtype) }
    }

    /// Whether all rows begin at multiples of 16 bytes.
    pub(crate) fn is_aligned(&self) -> bool {
        let size = [1, 4, 8, 2, 2][self.dtype as usize];
        self.data.addr().is_multiple_of(16) && self.outer * size % 16 == 0 && self.inner * size % 16 == 0
    }
}

/// As `DType` of `element.cuh`.
pub(crate) fn number(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 1,
        DType::F64 => 2,
        DType::F16 => 3,
        DType::Bf16 => 4,
    }
}

/// Who shares a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sharing {
    /// Pieces of a warp's part of a row, which it reads one after another.
    pub pieces: i64,
    /// Warps of a row's part in a block.
    pub warps: i32,
    /// Blocks of a row.
    pub blocks: i32,
    /// Rows of a block.
    pub rows_per_block: i32,
}

/// What all calls over rows have in common.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Rows {
    /// How many.
    pub rows: i64,
    /// Rows for which a tensor's `outer` stride counts once.
    pub inner: i64,
    /// Elements of a row.
    pub hidden: i64,
    /// Elements of a row that enter the statistics.
    pub measured: i64,
    /// Who shares a row.
    pub sharing: Sharing,
    /// Whether eps is outside the root.
    pub eps_outside: i32,
    /// Rounded to the compute type.
    pub eps: f64,
    /// Rounded to the compute type.
    pub weight_offset: f64,
}

impl Rows {
    /// Rows of `hidden` elements, for a launch of this shape; eps 0 inside the root.
    pub fn new(rows: usize, hidden: usize, launch: &Launch) -> Self {
        Rows {
            rows: rows as i64,
            inner: 1,
            hidden: hidden as i64,
            measured: hidden as i64,
            sharing: launch.sharing,
            eps_outside: 0,
            eps: 0.0,
            weight_offset: 0.0,
        }
    }
}

/// A forward call.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Forward {
    /// Shape and options.
    pub rows: Rows,
    /// What is normalized, or a summand of it.
    pub x: Tensor,
    /// The other summand.
    pub residual: Tensor,
    /// Their sum.
    pub r: Tensor,
    /// One for each element of a row.
    pub weight: Tensor,
    /// One for each element of a row.
    pub bias: Tensor,
    /// The result.
    pub y: Tensor,
    /// Where mean, delta, var, inv and scale of each row go, or null.
    pub stats: *mut c_void,
}

/// Where the parameters' gradients are summed: see [`Units`](crate::kernels::Units).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch {
    /// Of each unit `slots` times `2 * hidden` values of the compute type.
    pub nodes: *mut c_void,
    /// Rows of a unit; 1 where nothing is summed.
    pub rows: i64,
    /// As many as a unit needs.
    pub slots: i64,
}

impl Scratch {
    /// Nothing is summed.
    pub const NONE: Scratch = Scratch { nodes: std::ptr::null_mut(), rows: 1, slots: 0 };
}

/// A backward call: dx, and the sums of units of rows for dweight and dbias.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Backward {
    /// Shape and options.
    pub rows: Rows,
    /// What was normalized.
    pub x: Tensor,
    /// The gradient of y.
    pub dy: Tensor,
    /// As in forward.
    pub weight: Tensor,
    /// The gradient that reaches x from elsewhere, after a residual add.
    pub dresidual: Tensor,
    /// The result.
    pub dx: Tensor,
    /// The result once more: the residual's.
    pub dr: Tensor,
    /// Statistics that forward saved, or null.
    pub known: *const c_void,
    /// Where mean, delta, var, inv and scale of each row go, or null.
    pub stats: *mut c_void,
    /// Where units are summed.
    pub scratch: Scratch,
}

/// The sums of units of rows for dweight and dbias, where the kernel of dx does not take them along.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Parameters {
    /// Shape and options.
    pub rows: Rows,
    /// What was normalized.
    pub x: Tensor,
    /// The gradient of y.
    pub dy: Tensor,
    /// Statistics of each row.
    pub stats: *const c_void,
    /// Where units are summed.
    pub scratch: Scratch,
}

/// dweight and dbias from the sums of units.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Finish {
    /// Of each unit the sums of `dy * x_hat`, then those of dy.
    pub nodes: *const c_void,
    /// How many units.
    pub units: i64,
    /// Values of the compute type from a unit to the next.
    pub stride: i64,
    /// Columns.
    pub hidden: i64,
    /// One value for each column.
    pub dweight: Tensor,
    /// One value for each column.
    pub dbias: Tensor,
}
