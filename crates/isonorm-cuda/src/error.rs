//! What can go wrong on the way to a GPU.

/// Why a kernel cannot be had or run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call that the CPU would refuse too.
    #[error(transparent)]
    Call(#[from] isonorm::Error),
    /// An option of RMSNorm, given to LayerNorm.
    #[error("{name} is {found}, which LayerNorm does not have: leave it out, or use RowNorm::rms")]
    OfRmsNorm {
        /// Which option.
        name: &'static str,
        /// Its value.
        found: &'static str,
    },
    /// A library of CUDA is not there.
    #[error("{what} is not there: tried {tried}; {remedy}")]
    Library {
        /// Which.
        what: &'static str,
        /// The names that were tried.
        tried: String,
        /// What helps.
        remedy: &'static str,
    },
    /// A library of CUDA lacks a function.
    #[error("{what} has no function `{function}`: it is older than CUDA 12")]
    Function {
        /// Which library.
        what: &'static str,
        /// Which function.
        function: &'static str,
    },
    /// The driver is there, and no GPU.
    #[error("there is no NVIDIA GPU that this process may use: check `nvidia-smi` and CUDA_VISIBLE_DEVICES")]
    NoDevice,
    /// A GPU of a number that there is not.
    #[error("there is no GPU {found}, expected a number below {count}")]
    Ordinal {
        /// The number.
        found: usize,
        /// How many GPUs there are.
        count: usize,
    },
    /// No context is current where one is needed.
    #[error("no CUDA context is current on this thread: take a `Device::new`, or make one current")]
    NoContext,
    /// A GPU older than the kernels.
    #[error("GPU {device} has compute capability {major}.{minor}, expected 8.0 (Ampere) or later")]
    TooOld {
        /// Its number.
        device: usize,
        /// Its capability.
        major: i32,
        /// Its capability.
        minor: i32,
    },
    /// NVRTC refused a kernel.
    #[error("NVRTC does not compile {kernel} for {arch}: {log}")]
    Compile {
        /// The kernel's name.
        kernel: String,
        /// The architecture.
        arch: String,
        /// What NVRTC says.
        log: String,
    },
    /// The driver refused a call.
    #[error("CUDA refused {function}: {text} ({name}, {status})")]
    Driver {
        /// What was called.
        function: &'static str,
        /// The driver's code.
        status: i32,
        /// The code's name.
        name: String,
        /// What the driver says of it.
        text: String,
    },
    /// Rows that no launch holds.
    #[error("rows have {hidden} elements, which no kernel can do: cut them, or use the CPU")]
    TooLong {
        /// Elements of a row.
        hidden: usize,
    },
    /// Rows whose leading dimensions no kernel walks.
    #[error("the leading dimensions have strides that join to {found} dimensions, expected at most 2: copy one tensor")]
    Strides {
        /// Dimensions after joining those that can be.
        found: usize,
    },
    /// Tensors of one call that share memory and must not.
    #[error("{name} overlaps {other}: it must be apart from it, or the very same rows")]
    Overlap {
        /// What is written.
        name: &'static str,
        /// What it overlaps.
        other: &'static str,
    },
    /// Less scratch memory than a call needs.
    #[error("scratch has {found} elements, expected at least {expected}, as the norm's `scratch` says")]
    Scratch {
        /// Its elements.
        found: usize,
        /// What is needed.
        expected: usize,
    },
}
