//! What the kernels of samples of channels are given, laid out as their C++ structs are.

use std::ffi::c_void;

use isonorm::DType;

use crate::args::{Rows, Sharing, Tensor, number};
use crate::plane_kernel::ChannelLaunch;
use crate::shape::SMALL_BLOCK;

/// A tensor of samples of channels of positions. Element `(n, c, p)` lies `n * sample + c * channel + p * position`
/// elements after `data`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Planes {
    data: *mut c_void,
    sample: i64,
    channel: i64,
    position: i64,
    dtype: i32,
}

impl Planes {
    /// No tensor.
    pub const NONE: Planes = Planes { data: std::ptr::null_mut(), sample: 0, channel: 0, position: 0, dtype: 0 };

    /// Elements of `dtype` at a device's address, by the strides of samples, channels and positions.
    pub fn new(data: *mut c_void, dtype: DType, [sample, channel, position]: [i64; 3]) -> Self {
        Planes { data, sample, channel, position, dtype: number(dtype) }
    }
}

/// Groups of channels as rows: row `r` is group `r % groups` of sample `r / groups`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Groups {
    /// Shape and options of the rows.
    pub rows: Rows,
    /// Groups of a sample.
    pub groups: i64,
    /// Channels of a group.
    pub per: i64,
    /// Positions of a channel.
    pub spatial: i64,
}

/// GroupNorm's forward call.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GroupForward {
    /// Shape and options.
    pub groups: Groups,
    /// What is normalized.
    pub x: Planes,
    /// The result, or none: statistics alone.
    pub y: Planes,
    /// One for each channel.
    pub weight: Tensor,
    /// One for each channel.
    pub bias: Tensor,
    /// Where mean, delta, var, inv and scale of each row go, or null.
    pub stats: *mut c_void,
}

/// GroupNorm's dx.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GroupBackward {
    /// Shape and options.
    pub groups: Groups,
    /// What was normalized.
    pub x: Planes,
    /// The gradient of y.
    pub dy: Planes,
    /// The result.
    pub dx: Planes,
    /// As in forward.
    pub weight: Tensor,
    /// Statistics that forward saved, or null.
    pub known: *const c_void,
    /// Where they go, or null.
    pub stats: *mut c_void,
}

/// What all calls over channels have in common.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Channels {
    /// How many samples.
    pub samples: i64,
    /// Of a sample.
    pub channels: i64,
    /// Positions of a channel.
    pub spatial: i64,
    /// Who shares a plane.
    pub sharing: Sharing,
    /// Blocks of a cluster that share a channel.
    pub blocks: i32,
    /// Whether eps is outside the root.
    pub eps_outside: i32,
    /// Rounded to the compute type.
    pub eps: f64,
    /// Rounded to the compute type.
    pub weight_offset: f64,
}

impl Channels {
    /// Samples, channels and positions, for this launch; eps 0 inside the root.
    pub fn new([samples, channels, spatial]: [usize; 3], launch: &ChannelLaunch) -> Self {
        Channels {
            samples: samples as i64,
            channels: channels as i64,
            spatial: spatial as i64,
            sharing: launch.sharing,
            blocks: launch.cluster as i32,
            eps_outside: 0,
            eps: 0.0,
            weight_offset: 0.0,
        }
    }
}

/// Running statistics, which training moves.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Running {
    /// One for each channel, or none.
    pub mean: Tensor,
    /// One for each channel, or none.
    pub var: Tensor,
    /// Rounded to the compute type.
    pub momentum: f64,
    /// Whether the variance is taken as it is, without `n / (n - 1)`.
    pub biased: i32,
}

/// The statistics of BatchNorm's channels in training.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Moments {
    /// Shape and options.
    pub channels: Channels,
    /// What is normalized.
    pub x: Planes,
    /// One for each channel.
    pub weight: Tensor,
    /// One for each channel.
    pub bias: Tensor,
    /// What they move.
    pub running: Running,
    /// Where mean, delta, var, inv and scale of each channel go, or null.
    pub stats: *mut c_void,
    /// Where the values of y go, [`VALUES`](Apply::VALUES) for each channel; or null.
    pub values: *mut c_void,
}

/// dweight and dbias of channels.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Correlate {
    /// Shape and options.
    pub channels: Channels,
    /// What was normalized.
    pub x: Planes,
    /// The gradient of y.
    pub dy: Planes,
    /// Groups of a sample, each with statistics of its own; 0: the channels have them.
    pub groups: i64,
    /// Statistics.
    pub stats: *const c_void,
    /// As in forward.
    pub weight: Tensor,
    /// One value for each channel.
    pub dweight: Tensor,
    /// One value for each channel.
    pub dbias: Tensor,
    /// Where the values of BatchNorm's dx go, [`VALUES`](PlaneGradients::VALUES) for each channel; or null.
    pub values: *mut c_void,
}

/// Elements in the order of memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Lines {
    lines: i64,
    length: i64,
    repeat: i64,
    per_sample: i64,
}

/// `TOGETHER` of `lines.cuh`.
const TOGETHER: i64 = 4;

impl Lines {
    /// Samples, channels and positions; whether the channels lie side by side.
    pub fn new([samples, channels, spatial]: [usize; 3], is_last: bool) -> Self {
        let [samples, channels, spatial] = [samples, channels, spatial].map(|n| n as i64);
        if is_last {
            Lines { lines: samples * spatial, length: channels, repeat: 1, per_sample: spatial }
        } else {
            Lines { lines: samples, length: channels * spatial, repeat: spatial, per_sample: 1 }
        }
    }

    /// Blocks and threads of a block for vectors of `vector` elements.
    pub fn launch(&self, vector: usize) -> (u32, u32) {
        let units = (self.length as u64).div_ceil(vector as u64) * (self.lines as u64).div_ceil(TOGETHER as u64);
        let blocks = units.div_ceil(SMALL_BLOCK as u64);
        (blocks.clamp(1, i32::MAX as u64) as u32, SMALL_BLOCK as u32)
    }
}

/// y from the values of channels.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Apply {
    /// The order.
    pub lines: Lines,
    /// What is normalized.
    pub x: Planes,
    /// The result.
    pub y: Planes,
    /// Of all channels.
    pub values: *const c_void,
    /// How many.
    pub channels: i64,
    rounded: i32,
}

impl Apply {
    /// Values that a channel needs.
    pub const VALUES: usize = 6;

    /// x to y; each element is rounded to `rounded` before it is rounded to y's type.
    pub fn new(
        lines: Lines,
        x: Planes,
        y: Planes,
        values: *const c_void,
        channels: usize,
        rounded: Option<DType>,
    ) -> Self {
        Apply { lines, x, y, values, channels: channels as i64, rounded: rounded.map_or(0, number) }
    }
}

/// BatchNorm's dx from the values of channels.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PlaneGradients {
    /// The order.
    pub lines: Lines,
    /// What was normalized.
    pub x: Planes,
    /// The gradient of y.
    pub dy: Planes,
    /// The result.
    pub dx: Planes,
    /// Of all channels.
    pub values: *const c_void,
    /// How many.
    pub channels: i64,
}

impl PlaneGradients {
    /// Values that a channel needs.
    pub const VALUES: usize = 7;
}

/// What evaluation makes of running statistics.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Evaluate {
    /// How many.
    pub channels: i64,
    /// Whether eps is outside the root.
    pub eps_outside: i32,
    /// Whether the values are those of dx as a y of dy.
    pub is_backward: i32,
    /// Rounded to the compute type.
    pub eps: f64,
    /// Rounded to the compute type.
    pub weight_offset: f64,
    /// One for each channel.
    pub mean: Tensor,
    /// One for each channel.
    pub var: Tensor,
    /// One for each channel.
    pub weight: Tensor,
    /// One for each channel.
    pub bias: Tensor,
    /// Where the statistics of each channel go, or null.
    pub stats: *mut c_void,
    /// Where the values of y go, or null.
    pub values: *mut c_void,
}

/// InstanceNorm's running statistics.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Instances {
    /// How many.
    pub samples: i64,
    /// Of a sample.
    pub channels: i64,
    /// Positions of a channel.
    pub spatial: i64,
    /// Statistics of each sample's channels.
    pub stats: *const c_void,
    /// What they move.
    pub running: Running,
}
