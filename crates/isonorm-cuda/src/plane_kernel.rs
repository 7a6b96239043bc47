//! The kernels of samples of channels: BatchNorm, GroupNorm, InstanceNorm.

use isonorm::{DType, LANES, LEAF};

use crate::args::Sharing;
use crate::kernel::{SOURCES, Storage, cpp, shape_of};
use crate::shape::{SMALL_BLOCK, Shape};

/// A kernel of samples of channels, in any layout. Weight and bias have the types that they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlaneKernel {
    /// GroupNorm's y: takes a [`GroupForward`](crate::kernels::GroupForward).
    GroupForward {
        /// x's type.
        x: DType,
        /// A thread's work.
        shape: Shape,
        /// y.
        y: Storage,
    },
    /// GroupNorm's dx: takes a [`GroupBackward`](crate::kernels::GroupBackward).
    GroupBackward {
        /// x's type.
        x: DType,
        /// A thread's work.
        shape: Shape,
        /// dy.
        dy: Storage,
        /// dx.
        dx: Storage,
    },
    /// The statistics of BatchNorm's channels: takes a [`Moments`](crate::kernels::Moments).
    Moments {
        /// x's type.
        x: DType,
        /// A thread's work on a plane.
        shape: Shape,
    },
    /// dweight and dbias of channels: takes a [`Correlate`](crate::kernels::Correlate).
    Correlate {
        /// x's type.
        x: DType,
        /// A thread's work on a plane.
        shape: Shape,
        /// dy.
        dy: Storage,
    },
    /// [`Moments`](Self::Moments) where channels lie side by side.
    SideMoments {
        /// x's type.
        x: DType,
    },
    /// [`Correlate`](Self::Correlate) where channels lie side by side.
    SideCorrelate {
        /// x's type, and dy's.
        x: DType,
    },
    /// y from the values of channels: takes an [`Apply`](crate::kernels::Apply).
    Apply {
        /// The compute type.
        compute: DType,
        /// x.
        x: Storage,
        /// y.
        y: Storage,
    },
    /// BatchNorm's dx from the values of channels: takes a [`PlaneGradients`](crate::kernels::PlaneGradients).
    Gradients {
        /// x's type.
        x: DType,
        /// dy.
        dy: Storage,
        /// dx.
        dx: Storage,
    },
    /// The values of channels from running statistics: takes an [`Evaluate`](crate::kernels::Evaluate).
    Evaluate {
        /// The compute type.
        compute: DType,
    },
    /// InstanceNorm's running statistics: takes an [`Instances`](crate::kernels::Instances).
    Instances {
        /// The compute type.
        compute: DType,
    },
}

impl PlaneKernel {
    /// Its file, and the struct that it takes.
    pub(crate) fn source(self) -> ((&'static str, &'static str), &'static str) {
        match self {
            PlaneKernel::GroupForward { .. } => (SOURCES[4], "GroupForward"),
            PlaneKernel::GroupBackward { .. } => (SOURCES[5], "GroupBackward"),
            PlaneKernel::Moments { .. } => (SOURCES[6], "Moments"),
            PlaneKernel::Correlate { .. } => (SOURCES[7], "Correlate"),
            PlaneKernel::Apply { .. } => (SOURCES[8], "Apply"),
            PlaneKernel::Gradients { .. } => (SOURCES[9], "PlaneGradients"),
            PlaneKernel::Evaluate { .. } => (SOURCES[10], "Evaluate"),
            PlaneKernel::Instances { .. } => (SOURCES[11], "Instances"),
            PlaneKernel::SideMoments { .. } => (SOURCES[12], "Moments"),
            PlaneKernel::SideCorrelate { .. } => (SOURCES[13], "Correlate"),
        }
    }

    /// Threads of a block, at most.
    pub(crate) fn threads(self) -> usize {
        match self {
            PlaneKernel::GroupForward { shape, .. } | PlaneKernel::GroupBackward { shape, .. } => shape.threads(),
            PlaneKernel::Moments { .. }
            | PlaneKernel::Correlate { .. }
            | PlaneKernel::SideMoments { .. }
            | PlaneKernel::SideCorrelate { .. } => CHANNEL_BLOCK,
            _ => SMALL_BLOCK,
        }
    }

    /// The template's arguments.
    pub(crate) fn instance(self) -> String {
        let own = |x: DType| cpp(Storage::Of(x));
        match self {
            PlaneKernel::GroupForward { x, shape, y } => format!("{}, {}", shape_of(shape, x), cpp(y)),
            PlaneKernel::GroupBackward { x, shape, dy, dx } => {
                format!("{}, {}, {}", shape_of(shape, x), cpp(dy), cpp(dx))
            }
            PlaneKernel::Moments { x, shape } => shape_of(shape, x),
            PlaneKernel::Correlate { x, shape, dy } => format!("{}, {}", shape_of(shape, x), cpp(dy)),
            PlaneKernel::SideMoments { x } | PlaneKernel::SideCorrelate { x } => own(x).into(),
            PlaneKernel::Apply { compute, x, y } => format!("{}, {}, {}", own(compute), cpp(x), cpp(y)),
            PlaneKernel::Gradients { x, dy, dx } => format!("{}, {}, {}", own(x), cpp(dy), cpp(dx)),
            PlaneKernel::Evaluate { compute } | PlaneKernel::Instances { compute } => own(compute).into(),
        }
    }
}

/// How the planes of a channel are laid out over the threads of its block. No bit depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelLaunch {
    /// A thread's work on a plane.
    pub shape: Shape,
    /// Threads of a block.
    pub threads: u32,
    pub(crate) sharing: Sharing,
}

/// Warps of a channel's block, at most: `BLOCK_WARPS` of `channels.cuh`.
const WARPS: usize = 8;
/// Its threads.
const CHANNEL_BLOCK: usize = 32 * WARPS;

impl ChannelLaunch {
    /// For planes of `spatial` elements of `dtype`: with a part of a warp for each, a warp, or where there are fewer planes
    /// than warps, or they are too long for one, all of these. `None` where planes are too long for these too.
    pub fn new(samples: usize, spatial: usize, dtype: DType) -> Option<Self> {
        let (whole, leaves) = (16 / dtype.size(), spatial.div_ceil(LEAF).max(1));
        let groups = leaves.next_power_of_two().min(whole);
        let is_long = leaves > whole;
        let in_warps = |warps| {
            Self::in_shape(Shape { groups, warps, is_long, ..Shape::of_columns(dtype) }, samples, spatial, dtype)
        };
        let of_a_warp = in_warps(1).filter(|_| !is_long || samples >= WARPS);
        of_a_warp.or_else(|| in_warps(WARPS))
    }

    /// The same in a given shape, or `None` where they do not fit it.
    pub fn in_shape(shape: Shape, samples: usize, spatial: usize, dtype: DType) -> Option<Self> {
        let launch = shape.launch(spatial, dtype)?;
        let team = LANES * dtype.size() / 16 * shape.groups;
        let of_planes = samples.saturating_mul(team).clamp(1, CHANNEL_BLOCK).next_multiple_of(32);
        let threads = if shape.warps == 1 { of_planes as u32 } else { launch.threads };
        Some(ChannelLaunch { shape, threads, sharing: launch.sharing })
    }

    /// Blocks and threads of a block for channels of `dtype` that lie side by side.
    pub fn side_by_side(channels: usize, dtype: DType) -> (u32, u32) {
        (channels.div_ceil(16 / dtype.size()).clamp(1, i32::MAX as usize) as u32, CHANNEL_BLOCK as u32)
    }
}
