//! Normalization layers with the same bits everywhere, at the speed of memory.
//!
//! ```
//! use isonorm::{Io, RmsNorm};
//!
//! let x = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]; // two rows of three
//! let mut y = [0.0f32; 6];
//! RmsNorm::new(3).forward(&x, &mut y)?;
//! assert_eq!(y.map(|y| (y * 1e4).round() / 1e4), [0.4629, 0.9258, 1.3887, 0.7895, 0.9869, 1.1843]);
//! # Ok::<(), isonorm::Error>(())
//! ```
//!
//! # Choose a norm
//!
//! | norm | takes its statistics over | used in |
//! |---|---|---|
//! | [`RmsNorm`] | each row; no mean is taken off | Llama, Qwen, Gemma, Mistral |
//! | [`LayerNorm`] | each row | BERT, GPT-2, vision transformers |
//! | [`BatchNorm`] | each channel, over the batch; running statistics in evaluation | convolutional networks |
//! | [`GroupNorm`] | each group of channels of each sample | diffusion models |
//! | [`InstanceNorm`] | each channel of each sample | style transfer |
//!
//! A norm is a small value with its options: `RmsNorm::new(hidden).eps(1e-5).weight(&weight)`. `forward(x, y)` is
//! the plain call; `apply` takes an [`Io`] or [`PlaneIo`], which can be in place, add a residual and save [`Stats`].
//!
//! # Gradients
//!
//! ```
//! use isonorm::{BackwardIo, Io, RmsNorm, Stats};
//!
//! let (x, dy, weight) = ([1.0f32, 2.0, 3.0, 4.0], [0.1f32, 0.2, 0.3, 0.4], [1.0f32, 2.0]); // two rows of two
//! let (mut y, mut dx, mut dweight) = ([0.0f32; 4], [0.0f32; 4], [0.0f32; 2]);
//! let mut stats = [Stats::<f32>::default(); 2];
//! let norm = RmsNorm::new(2).weight(&weight);
//! norm.apply(Io::new(&x, &mut y).stats(&mut stats))?;
//! norm.backward(BackwardIo::new(&x, &dy, &mut dx).stats(&stats).dweight(&mut dweight))?;
//! # Ok::<(), isonorm::Error>(())
//! ```
//!
//! `backward` takes a [`BackwardIo`] or [`PlaneBackwardIo`]. The gradients of weight and bias are sums over rows in an
//! order of their own, so they too have the same bits for any number of threads, and for a batch in any pieces:
//! a [`Partial`] goes on from one micro-batch to the next, or is merged with those of other ranks.
//!
//! ```
//! use isonorm::{BackwardIo, DType, LayerNorm, Partial};
//!
//! let (x, dy) = ([1.0f32, 2.0, 4.0, 8.0, 5.0, 7.0], [0.1f32, 0.2, 0.3, 0.4, 0.5, 0.6]); // three rows of two
//! let (mut dx, mut whole, mut pieces) = ([0.0f32; 6], [0.0f32; 2], [0.0f32; 2]);
//! let norm = LayerNorm::new(2);
//! norm.backward(BackwardIo::new(&x, &dy, &mut dx).dweight(&mut whole))?;
//!
//! let mut partial = Partial::rows(DType::F32, 2, 0);
//! for rows in [0..2, 2..6] {
//!     let io = BackwardIo::new(&x[rows.clone()], &dy[rows.clone()], &mut dx[rows]);
//!     norm.backward(io.partial(&mut partial))?;
//! }
//! partial.dweight(&mut pieces)?;
//! assert_eq!(pieces.map(f32::to_bits), whole.map(f32::to_bits));
//! # Ok::<(), isonorm::Error>(())
//! ```
//!
//! # Shapes
//!
//! Slices are contiguous rows of `hidden` elements. [`Rows::strided`] has any leading dimensions and strides, the last
//! axis contiguous. [`Planes`] are `[samples, channels, positions]`, channels first (NCHW) or last (NHWC). With the
//! feature `ndarray`, array views of any axis.
//!
//! # The order
//!
//! A row is cut into leaves of [`LEAF`] elements; element i of a leaf is added to lane i mod [`LANES`]; each lane
//! adds its leaves in a left-aligned binary tree; the lanes are folded in halves. Sums over rows have leaves of
//! [`BATCH_LEAF`] rows and the same tree. No result depends on anything but values, shape and named options: not on
//! batch, position, strides, alignment, threads, or [`Level`]. NaN is NaN everywhere; which NaN is left open.
//!
//! A [`Partial`] is what is known of some rows of a longer sum. Pieces cut anywhere and merged in any pairs have the bits
//! of the whole: micro-batches, and ranks that hold rows of one batch, have its gradients.
//!
//! # Ranks
//!
//! | what lies on several ranks | how it has the bits of one process |
//! |---|---|
//! | columns of rows (tensor parallelism) | [`RmsNorm::shard`], [`LayerNorm::shard`]: a [`Shard`] |
//! | samples of a batch norm's batch | [`BatchNorm::shard`]: a [`BatchShard`] |
//! | rows (data parallelism, micro-batches) | [`BackwardIo::partial`] for the parameters' gradients; y and dx need nothing |
//!
//! Ranks may have unequal parts, cut anywhere, or none. How they exchange their [`Partial`] sums is the caller's.
//!
//! # Where it runs
//!
//! On the best [`Level`] of the CPU and on all its cores where the tensors are large enough; [`Cpu`] sets either, or
//! gives a [`Pool`] of the caller's. The environment variable `ISONORM_LEVEL` (`scalar`, `avx2`, `avx512`, `neon`)
//! sets the default level. A host's flush-to-zero setting is put aside during a call.
//!
//! # Features
//!
//! `threads` (on by default): rayon. `ndarray`: array views.

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

mod affine;
mod apply;
mod backward;
mod batch_norm;
mod call;
mod channels;
mod channels_first;
mod channels_last;
mod columns;
mod element;
mod error;
mod forward;
mod grid;
mod group_norm;
mod groups;
mod io;
mod isa;
mod layer_norm;
mod level;
mod moments;
#[cfg(feature = "ndarray")]
mod ndarray;
mod order;
mod params;
mod partial;
mod pass;
mod planes;
mod residual;
mod rms_norm;
mod rows;
#[doc(hidden)]
pub mod rules;
mod running;
mod shards;
mod side_by_side;
mod slice;
mod stats;
mod stripes;
mod tables;
mod threads;
mod tiles;

// Where a norm runs
pub use level::Level;
pub use threads::{Cpu, Pool};
// Tensors
pub use backward::{BackwardIo, Mask, PlaneBackwardIo};
pub use element::{Compute, DType, Element};
pub use io::{Io, StatsMut, StatsRef};
pub use planes::{PlaneIo, Planes, PlanesMut};
pub use rows::{MAX_DIMS, Rows, RowsMut};
pub use slice::{Slice, SliceMut};
// Norms
pub use batch_norm::{BatchNorm, BatchShard};
pub use group_norm::{GroupNorm, InstanceNorm};
pub use layer_norm::LayerNorm;
pub use params::Recipe;
pub use rms_norm::RmsNorm;
pub use running::Running;
pub use stats::Stats;
// Ranks
pub use shards::Shard;
pub use shards::measuring::{Measured, Measuring};
// Errors
pub use error::Error;
// Re-exported, so that callers use the very types that `Element` is for
pub use half::{bf16, f16};
// The order
pub use order::{BATCH_LEAF, LANES, LEAF};
pub use partial::Partial;
