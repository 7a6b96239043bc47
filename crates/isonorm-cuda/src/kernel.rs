//! Kernels as source text: which there are, and what they are compiled with.

use std::hint::black_box;

use isonorm::{BATCH_LEAF, DType, LANES, LEAF};

use crate::plane_kernel::PlaneKernel;
use crate::shape::{FINISH_BLOCK, SMALL_BLOCK, Shape};

/// The headers of the kernels: name and text.
pub const HEADERS: [(&str, &str); 21] = [
    ("convert.cuh", include_str!("../kernels/convert.cuh")),
    ("element.cuh", include_str!("../kernels/element.cuh")),
    ("memory.cuh", include_str!("../kernels/memory.cuh")),
    ("order.cuh", include_str!("../kernels/order.cuh")),
    ("stats.cuh", include_str!("../kernels/stats.cuh")),
    ("rows.cuh", include_str!("../kernels/rows.cuh")),
    ("rms_norm.cuh", include_str!("../kernels/rms_norm.cuh")),
    ("layer_norm.cuh", include_str!("../kernels/layer_norm.cuh")),
    ("units.cuh", include_str!("../kernels/units.cuh")),
    ("forward.cuh", include_str!("../kernels/forward.cuh")),
    ("backward.cuh", include_str!("../kernels/backward.cuh")),
    ("parameters.cuh", include_str!("../kernels/parameters.cuh")),
    ("planes.cuh", include_str!("../kernels/planes.cuh")),
    ("values.cuh", include_str!("../kernels/values.cuh")),
    ("groups.cuh", include_str!("../kernels/groups.cuh")),
    ("channels.cuh", include_str!("../kernels/channels.cuh")),
    ("moments.cuh", include_str!("../kernels/moments.cuh")),
    ("correlate.cuh", include_str!("../kernels/correlate.cuh")),
    ("side_by_side.cuh", include_str!("../kernels/side_by_side.cuh")),
    ("lines.cuh", include_str!("../kernels/lines.cuh")),
    ("running.cuh", include_str!("../kernels/running.cuh")),
];

/// The files that are compiled: name and text.
pub const SOURCES: [(&str, &str); 14] = [
    ("forward.cu", include_str!("../kernels/forward.cu")),
    ("backward.cu", include_str!("../kernels/backward.cu")),
    ("parameters.cu", include_str!("../kernels/parameters.cu")),
    ("finish.cu", include_str!("../kernels/finish.cu")),
    ("group_forward.cu", include_str!("../kernels/group_forward.cu")),
    ("group_backward.cu", include_str!("../kernels/group_backward.cu")),
    ("moments.cu", include_str!("../kernels/moments.cu")),
    ("correlate.cu", include_str!("../kernels/correlate.cu")),
    ("apply.cu", include_str!("../kernels/apply.cu")),
    ("gradients.cu", include_str!("../kernels/gradients.cu")),
    ("evaluate.cu", include_str!("../kernels/evaluate.cu")),
    ("instances.cu", include_str!("../kernels/instances.cu")),
    ("side_moments.cu", include_str!("../kernels/side_moments.cu")),
    ("side_correlate.cu", include_str!("../kernels/side_correlate.cu")),
];

/// A norm of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norm {
    /// RMSNorm.
    Rms,
    /// RMSNorm by the recipe llama: x_hat is rounded to x's type before weight multiplies it.
    Llama,
    /// LayerNorm.
    Layer,
}

/// How a kernel takes a tensor's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// There is no such tensor.
    None,
    /// This type.
    Of(DType),
    /// The type that the tensor names, element by element.
    Any,
}

/// The parameters' gradients that a kernel of dx takes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gradients {
    /// None.
    None,
    /// That of weight.
    Weight,
    /// Those of weight and bias.
    Both,
}

/// What is known of a call's parameters when its kernel is compiled: common calls need no questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Affine {
    /// Nothing.
    Open,
    /// There is a weight, without an offset, and no bias.
    Weight,
    /// There are such a weight and a bias.
    Both,
}

impl Affine {
    /// Of a call with a weight, a bias, and this offset in the compute type.
    pub fn of(has_weight: bool, has_bias: bool, offset: f64) -> Self {
        // +0 or -0, by the bits: a host may have small numbers compare as 0. Unseen, this would become a comparison.
        let has_offset = black_box(offset.to_bits()) << 1 != 0;
        match (has_weight && !has_offset, has_bias) {
            (true, false) => Affine::Weight,
            (true, true) => Affine::Both,
            (false, _) => Affine::Open,
        }
    }
}

/// A kernel, for one norm, shape and set of types. `x` is the type of what is normalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// y: takes a [`Forward`](crate::kernels::Forward).
    Forward {
        /// The norm.
        norm: Norm,
        /// x's type, or that of its sum with a residual.
        x: DType,
        /// A thread's work.
        shape: Shape,
        /// Weight and bias.
        params: Storage,
        /// What is known of these.
        affine: Affine,
        /// y; none where statistics are all that is wanted.
        y: Storage,
        /// x and the residual, where their sum is normalized.
        summands: Storage,
    },
    /// dx: takes a [`Backward`](crate::kernels::Backward).
    Backward {
        /// The norm.
        norm: Norm,
        /// x's type.
        x: DType,
        /// A thread's work.
        shape: Shape,
        /// The weight.
        params: Storage,
        /// What is known of it.
        affine: Affine,
        /// dy.
        dy: Storage,
        /// dx, dr and dresidual.
        others: Storage,
        /// The sums that it takes along; none where rows are long.
        gradients: Gradients,
    },
    /// The sums of units of rows for dweight and dbias: takes a [`Parameters`](crate::kernels::Parameters).
    Parameters {
        /// The norm.
        norm: Norm,
        /// x's type.
        x: DType,
        /// dy.
        dy: Storage,
    },
    /// dweight and dbias from these: takes a [`Finish`](crate::kernels::Finish).
    Finish {
        /// The compute type.
        compute: DType,
    },
    /// One of samples of channels.
    Planes(PlaneKernel),
}

impl Kernel {
    /// Its file, and the struct that it takes.
    pub fn source(&self) -> ((&'static str, &'static str), &'static str) {
        match self {
            Kernel::Forward { .. } => (SOURCES[0], "Forward"),
            Kernel::Backward { .. } => (SOURCES[1], "Backward"),
            Kernel::Parameters { .. } => (SOURCES[2], "Parameters"),
            Kernel::Finish { .. } => (SOURCES[3], "Finish"),
            Kernel::Planes(kernel) => kernel.source(),
        }
    }

    /// The name of its function: what it is compiled with, in letters.
    pub fn name(&self) -> String {
        let ((file, _), _) = self.source();
        let words = format!("{} {}", file.trim_end_matches(".cu"), self.instance());
        let letters = words.replace(|c: char| !c.is_ascii_alphanumeric(), " ");
        letters.split_whitespace().collect::<Vec<_>>().join("_").to_lowercase()
    }

    /// The macros that it is compiled with: name and value. Threads of a block are at most `THREADS`.
    pub fn macros(&self) -> [(&'static str, String); 6] {
        let threads = match self {
            Kernel::Forward { shape, .. } | Kernel::Backward { shape, .. } => shape.threads(),
            Kernel::Parameters { .. } => SMALL_BLOCK,
            Kernel::Finish { .. } => FINISH_BLOCK,
            Kernel::Planes(kernel) => kernel.threads(),
        };
        [
            ("LANES", LANES.to_string()),
            ("LEAF", LEAF.to_string()),
            ("BATCH_LEAF", BATCH_LEAF.to_string()),
            ("THREADS", threads.to_string()),
            ("KERNEL", self.name()),
            ("INSTANCE", self.instance()),
        ]
    }

    /// The template's arguments.
    fn instance(&self) -> String {
        let typed = |storages: &[Storage]| storages.iter().copied().map(cpp).collect::<Vec<_>>().join(", ");
        match self {
            Kernel::Forward { norm, x, shape, params, affine, y, summands } => {
                let params = params_of(*params, *affine);
                format!("{}, {}, {params}, {}", class(*norm), shape_of(*shape, *x), typed(&[*y, *summands]))
            }
            Kernel::Backward { norm, x, shape, params, affine, dy, others, gradients } => {
                let (params, types) = (params_of(*params, *affine), typed(&[*dy, *others]));
                format!("{}, {}, {params}, {types}, {}", class(*norm), shape_of(*shape, *x), *gradients as usize)
            }
            Kernel::Parameters { norm, x, dy } => {
                format!("{}, {}, {}", class(*norm), shape_of(Shape::of_columns(*x), *x), cpp(*dy))
            }
            Kernel::Finish { compute } => format!("{}, {}", cpp(Storage::Of(*compute)), FINISH_BLOCK / 32),
            Kernel::Planes(kernel) => kernel.instance(),
        }
    }
}

/// The name of a norm in the kernels.
fn class(norm: Norm) -> &'static str {
    match norm {
        Norm::Rms => "RmsNorm",
        Norm::Llama => "LlamaNorm",
        Norm::Layer => "LayerNorm",
    }
}

fn params_of(storage: Storage, affine: Affine) -> String {
    let known = match affine {
        Affine::Open => "OPEN",
        Affine::Weight => "WEIGHT",
        Affine::Both => "BOTH",
    };
    format!("Params<{}, Affine::{known}>", cpp(storage))
}

pub(crate) fn shape_of(Shape { node, groups, warps, blocks, is_long, is_whole }: Shape, x: DType) -> String {
    format!("Shape<{}, {node}, {groups}, {warps}, {blocks}, {is_long}, {is_whole}>", cpp(Storage::Of(x)))
}

/// The name of a type in the kernels.
pub(crate) fn cpp(storage: Storage) -> &'static str {
    match storage {
        Storage::None => "void",
        Storage::Of(DType::F32) => "float",
        Storage::Of(DType::F64) => "double",
        Storage::Of(DType::F16) => "f16",
        Storage::Of(DType::Bf16) => "bf16",
        Storage::Any => "Any",
    }
}
