//! Kernels as source text: which there are, and what they are compiled with.

use isonorm::{BATCH_LEAF, DType, LANES, LEAF};

use crate::shape::{MAX_WARPS, Shape};

/// The headers of the kernels: name and text.
pub const HEADERS: [(&str, &str); 9] = [
    ("convert.cuh", include_str!("../kernels/convert.cuh")),
    ("element.cuh", include_str!("../kernels/element.cuh")),
    ("memory.cuh", include_str!("../kernels/memory.cuh")),
    ("order.cuh", include_str!("../kernels/order.cuh")),
    ("stats.cuh", include_str!("../kernels/stats.cuh")),
    ("rows.cuh", include_str!("../kernels/rows.cuh")),
    ("rms_norm.cuh", include_str!("../kernels/rms_norm.cuh")),
    ("layer_norm.cuh", include_str!("../kernels/layer_norm.cuh")),
    ("forward.cuh", include_str!("../kernels/forward.cuh")),
];

/// A file of kernels: what is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// `forward.cu`
    Forward,
}

impl Source {
    /// Every file.
    pub const ALL: [Source; 1] = [Source::Forward];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Source::Forward => "forward.cu",
        }
    }

    /// The struct that its kernels take: its name, here and there.
    pub fn args(self) -> &'static str {
        match self {
            Source::Forward => "Forward",
        }
    }

    /// Its text.
    pub fn text(self) -> &'static str {
        match self {
            Source::Forward => include_str!("../kernels/forward.cu"),
        }
    }
}

/// A norm of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norm {
    /// RMSNorm.
    Rms,
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

impl Storage {
    /// The storage of a tensor of `dtype` in a kernel whose fast types are those in `fast`.
    pub fn fast(dtype: DType, fast: &[DType]) -> Self {
        if fast.contains(&dtype) { Storage::Of(dtype) } else { Storage::Any }
    }
}

/// A kernel: a source, for one norm, shape and set of types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The file.
    pub source: Source,
    /// The norm.
    pub norm: Norm,
    /// The type of what is normalized.
    pub x: DType,
    /// A thread's work.
    pub shape: Shape,
    /// Weight and bias.
    pub params: Storage,
    /// y.
    pub y: Storage,
    /// x and the residual, where their sum is normalized.
    pub summands: Storage,
}

impl Kernel {
    /// The name of its function: what it is compiled with, in letters.
    pub fn name(&self) -> String {
        let Kernel { source, norm, x, shape, params, y, summands } = self;
        let Shape { node, groups, is_long } = shape;
        let long = if *is_long { "_long" } else { "" };
        let types = [*params, *y, *summands].map(cpp).join("_");
        format!("{source:?}_{norm:?}_{x}_{node}_{groups}{long}_{types}").to_lowercase()
    }

    /// The macros that it is compiled with: name and value. Threads of a block are at most `THREADS`.
    pub fn macros(&self) -> Vec<(&'static str, String)> {
        let Shape { node, groups, is_long } = self.shape;
        let norm = match self.norm {
            Norm::Rms => "RmsNorm",
            Norm::Layer => "LayerNorm",
        };
        let x = cpp(Storage::Of(self.x));
        let [params, y, summands] = [self.params, self.y, self.summands].map(cpp);
        let instance = format!("{norm}, Shape<{x}, {node}, {groups}, {is_long}>, {params}, {y}, {summands}");
        let is_small = self.shape.groups < 16 / self.x.size();
        let threads = if is_small { 128 } else { 32 * MAX_WARPS };
        vec![
            ("LANES", LANES.to_string()),
            ("LEAF", LEAF.to_string()),
            ("BATCH_LEAF", BATCH_LEAF.to_string()),
            ("THREADS", threads.to_string()),
            ("KERNEL", self.name()),
            ("INSTANCE", instance),
        ]
    }
}

/// The name of a type in the kernels.
fn cpp(storage: Storage) -> &'static str {
    match storage {
        Storage::None => "void",
        Storage::Of(DType::F32) => "float",
        Storage::Of(DType::F64) => "double",
        Storage::Of(DType::F16) => "f16",
        Storage::Of(DType::Bf16) => "bf16",
        Storage::Any => "Any",
    }
}
