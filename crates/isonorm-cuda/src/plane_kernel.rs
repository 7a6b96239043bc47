//! The kernels of samples of channels: BatchNorm, GroupNorm, InstanceNorm.

use isonorm::{DType, LANES, LEAF};

use crate::kernel::{SOURCES, Storage, cpp, shape_of};
use crate::shape::{MAX_WARPS, SMALL_BLOCK, Shape};

/// A kernel of samples of channels, in any layout. Weight and bias have the types that they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlaneKernel {
    /// GroupNorm's y: takes a [`GroupForward`](crate::GroupForward).
    GroupForward {
        /// x's type.
        x: DType,
        /// A thread's work.
        shape: Shape,
        /// y.
        y: Storage,
    },
    /// GroupNorm's dx: takes a [`GroupBackward`](crate::GroupBackward).
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
    /// The statistics of BatchNorm's channels: takes a [`Moments`](crate::Moments).
    Moments {
        /// x's type.
        x: DType,
        /// A thread's work on a plane.
        shape: Shape,
    },
    /// dweight and dbias of channels: takes a [`Correlate`](crate::Correlate).
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
        /// x's type.
        x: DType,
        /// dy.
        dy: Storage,
    },
    /// y from the values of channels: takes an [`Apply`](crate::Apply).
    Apply {
        /// The compute type.
        compute: DType,
        /// x.
        x: Storage,
        /// y.
        y: Storage,
    },
    /// BatchNorm's dx from the values of channels: takes a [`Gradients`](crate::Gradients).
    Gradients {
        /// x's type.
        x: DType,
        /// dy.
        dy: Storage,
        /// dx.
        dx: Storage,
    },
    /// The values of channels from running statistics: takes an [`Evaluate`](crate::Evaluate).
    Evaluate {
        /// The compute type.
        compute: DType,
    },
    /// InstanceNorm's running statistics: takes an [`Instances`](crate::Instances).
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
            PlaneKernel::Gradients { .. } => (SOURCES[9], "Gradients"),
            PlaneKernel::Evaluate { .. } => (SOURCES[10], "Evaluate"),
            PlaneKernel::Instances { .. } => (SOURCES[11], "Instances"),
            PlaneKernel::SideMoments { .. } => (SOURCES[12], "Moments"),
            PlaneKernel::SideCorrelate { .. } => (SOURCES[13], "Correlate"),
        }
    }

    /// Threads of a block, at most.
    pub(crate) fn threads(self) -> usize {
        match self {
            PlaneKernel::GroupForward { x, shape, .. } | PlaneKernel::GroupBackward { x, shape, .. }
                if !shape.is_of_whole_warps(x) =>
            {
                SMALL_BLOCK
            }
            PlaneKernel::GroupForward { .. }
            | PlaneKernel::GroupBackward { .. }
            | PlaneKernel::Moments { .. }
            | PlaneKernel::Correlate { .. } => 32 * MAX_WARPS,
            PlaneKernel::SideMoments { .. } | PlaneKernel::SideCorrelate { .. } => SIDE_BLOCK,
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
            PlaneKernel::SideMoments { x } => own(x).into(),
            PlaneKernel::SideCorrelate { x, dy } => format!("{}, {}", own(x), cpp(dy)),
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
    pub(crate) warps: i32,
    pub(crate) pieces: i64,
}

/// Threads of a block whose channels lie side by side: `SIDE_WARPS` of `side_by_side.cuh`.
const SIDE_BLOCK: usize = 256;

/// Samples from which each warp has planes of its own, however long they are.
const MANY_SAMPLES: usize = 8;

impl ChannelLaunch {
    /// For planes of `spatial` elements of `dtype`.
    pub fn new(samples: usize, spatial: usize, dtype: DType) -> Self {
        let (whole, leaves) = (16 / dtype.size(), spatial.div_ceil(LEAF).max(1));
        let groups = leaves.next_power_of_two().min(whole);
        Self::laid_out(Shape { node: 1, groups, is_long: leaves > whole }, samples, leaves, whole)
    }

    /// The same in a given shape, or `None` where they are too long for it.
    pub fn in_shape(shape: Shape, samples: usize, spatial: usize, dtype: DType) -> Option<Self> {
        let (whole, leaves) = (16 / dtype.size(), spatial.div_ceil(LEAF).max(1));
        let fits = shape.is_long || leaves <= shape.groups;
        (fits && shape.node == 1).then(|| Self::laid_out(shape, samples, leaves, whole))
    }

    /// Blocks and threads of a block for channels of `dtype` that lie side by side.
    pub fn side_by_side(channels: usize, dtype: DType) -> (u32, u32) {
        (channels.div_ceil(16 / dtype.size()).clamp(1, i32::MAX as usize) as u32, SIDE_BLOCK as u32)
    }

    fn laid_out(shape: Shape, samples: usize, leaves: usize, whole: usize) -> Self {
        if leaves > whole && samples < MANY_SAMPLES {
            let pieces = leaves.div_ceil(whole * MAX_WARPS).next_power_of_two();
            let warps = leaves.div_ceil(whole * pieces);
            return ChannelLaunch { shape, threads: 32 * warps as u32, warps: warps as i32, pieces: pieces as i64 };
        }
        let threads = samples.saturating_mul(LANES / whole * shape.groups);
        let threads = threads.clamp(1, 32 * MAX_WARPS).next_multiple_of(32) as u32;
        ChannelLaunch { shape, threads, warps: 1, pieces: leaves.div_ceil(whole) as i64 }
    }
}
