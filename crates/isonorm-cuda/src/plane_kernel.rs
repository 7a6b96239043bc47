//! The kernels of samples of channels: BatchNorm, GroupNorm, InstanceNorm.

use isonorm::{DType, LANES, LEAF};

use crate::args::Sharing;
use crate::kernel::{SOURCES, Storage, cpp, shape_of};
use crate::shape::{CLUSTERS, MAX_BLOCKS, SMALL_BLOCK, Shape};

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
        /// Whether the blocks of a cluster share channels.
        is_shared: bool,
    },
    /// dweight and dbias of channels: takes a [`Correlate`](crate::kernels::Correlate).
    Correlate {
        /// x's type.
        x: DType,
        /// A thread's work on a plane.
        shape: Shape,
        /// dy.
        dy: Storage,
        /// Whether the blocks of a cluster share channels.
        is_shared: bool,
    },
    /// [`Moments`](Self::Moments) where channels lie side by side.
    SideMoments {
        /// x's type.
        x: DType,
        /// Whether the blocks of a cluster share channels.
        is_shared: bool,
    },
    /// [`Correlate`](Self::Correlate) where channels lie side by side.
    SideCorrelate {
        /// x's type, and dy's.
        x: DType,
        /// Whether the blocks of a cluster share channels.
        is_shared: bool,
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
            PlaneKernel::Moments { x, shape, is_shared } => format!("{}, {is_shared}", shape_of(shape, x)),
            PlaneKernel::Correlate { x, shape, dy, is_shared } => {
                format!("{}, {}, {is_shared}", shape_of(shape, x), cpp(dy))
            }
            PlaneKernel::SideMoments { x, is_shared } | PlaneKernel::SideCorrelate { x, is_shared } => {
                format!("{}, {is_shared}", own(x))
            }
            PlaneKernel::Apply { compute, x, y } => format!("{}, {}, {}", own(compute), cpp(x), cpp(y)),
            PlaneKernel::Gradients { x, dy, dx } => format!("{}, {}, {}", own(x), cpp(dy), cpp(dx)),
            PlaneKernel::Evaluate { compute } | PlaneKernel::Instances { compute } => own(compute).into(),
        }
    }
}

/// How sums over channels are laid out over blocks and threads. No bit depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelLaunch {
    /// A thread's work on a plane, if channels do not lie side by side.
    pub shape: Option<Shape>,
    /// Blocks of the grid.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a cluster, which share channels.
    pub cluster: u32,
    pub(crate) sharing: Sharing,
}

/// Warps of a channel's block, at most: `BLOCK_WARPS` of `channels.cuh`.
const WARPS: usize = 8;
/// Its threads.
const CHANNEL_BLOCK: usize = 32 * WARPS;
/// Blocks that keep a GPU busy.
const BUSY: usize = 256;

impl ChannelLaunch {
    /// For samples, channels and positions of `dtype`: with a part of a warp for each plane, a warp, or where there are
    /// fewer planes than warps, or they are too long for one, all of these. `None` where planes are too long for these too.
    pub fn new(sizes: [usize; 3], dtype: DType, capability: (i32, i32)) -> Option<Self> {
        let [samples, channels, spatial] = sizes;
        let (whole, leaves) = (16 / dtype.size(), spatial.div_ceil(LEAF).max(1));
        let groups = leaves.next_power_of_two().min(whole);
        let is_long = leaves > whole;
        let in_warps = |warps| {
            let shape = Shape { groups, warps, is_long, ..Shape::of_columns(dtype) };
            Self::in_shape(shape, sizes, dtype, 1).map(|alone| (shape, alone))
        };
        let of_a_warp = in_warps(1).filter(|_| !is_long || samples >= WARPS);
        let (shape, alone) = of_a_warp.or_else(|| in_warps(WARPS))?;
        let teams = if shape.warps == 1 { alone.threads as usize / team(shape, dtype) } else { 1 };
        Self::in_shape(shape, sizes, dtype, cluster(channels, samples / teams.max(1), capability))
    }

    /// The same in a given shape and in clusters of this size, or `None` where planes do not fit the shape.
    pub fn in_shape(
        shape: Shape,
        [samples, channels, spatial]: [usize; 3],
        dtype: DType,
        cluster: u32,
    ) -> Option<Self> {
        let launch = shape.launch(spatial, dtype)?;
        let of_planes = samples.saturating_mul(team(shape, dtype)).clamp(1, CHANNEL_BLOCK).next_multiple_of(32);
        let threads = if shape.warps == 1 { of_planes as u32 } else { launch.threads };
        // Blocks go on to further channels.
        let blocks = u32::try_from(channels.min(i32::MAX as usize) * cluster as usize).unwrap_or(i32::MAX as u32);
        Some(ChannelLaunch { shape: Some(shape), blocks, threads, cluster, sharing: launch.sharing })
    }

    /// The same where channels lie side by side.
    pub fn side_by_side(sizes: [usize; 3], dtype: DType, capability: (i32, i32)) -> Self {
        let [samples, channels, spatial] = sizes;
        let width = spatial.next_power_of_two().clamp(1, LANES);
        let warps = spatial.div_ceil(LEAF).next_power_of_two().clamp(1, WARPS);
        let rounds = samples / (WARPS / warps * (LANES / width));
        Self::side_by_side_in(sizes, dtype, cluster(channels.div_ceil(16 / dtype.size()), rounds, capability))
    }

    /// The same in clusters of this size.
    pub fn side_by_side_in([_, channels, _]: [usize; 3], dtype: DType, cluster: u32) -> Self {
        // More than there can be are refused by the driver.
        let blocks = channels.div_ceil(16 / dtype.size()).saturating_mul(cluster as usize);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let sharing = Sharing { pieces: 1, warps: 1, blocks: 1, rows_per_block: 1 };
        ChannelLaunch { shape: None, blocks, threads: CHANNEL_BLOCK as u32, cluster, sharing }
    }

    /// The kernel of BatchNorm's statistics.
    pub fn moments(&self, x: DType) -> PlaneKernel {
        let is_shared = self.cluster > 1;
        match self.shape {
            Some(shape) => PlaneKernel::Moments { x, shape, is_shared },
            None => PlaneKernel::SideMoments { x, is_shared },
        }
    }

    /// The kernel of dweight and dbias; where channels lie side by side, dy has x's type.
    pub fn correlate(&self, x: DType, dy: Storage) -> PlaneKernel {
        let is_shared = self.cluster > 1;
        match self.shape {
            Some(shape) => PlaneKernel::Correlate { x, shape, dy, is_shared },
            None => PlaneKernel::SideCorrelate { x, is_shared },
        }
    }
}

/// Threads that share a plane, of one warp.
fn team(shape: Shape, dtype: DType) -> usize {
    LANES * dtype.size() / 16 * shape.groups
}

/// Blocks of a cluster that share a channel, or what else there are `units` of: so many that the GPU is busy, if each
/// has a round of planes at least.
fn cluster(units: usize, rounds: usize, capability: (i32, i32)) -> u32 {
    let most = if capability >= CLUSTERS { MAX_BLOCKS.min(BUSY / units.max(1)).min(rounds) } else { 1 };
    1 << most.max(1).ilog2()
}
