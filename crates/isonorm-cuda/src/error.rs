//! What can go wrong on the way to a GPU.

/// Why a kernel cannot be had or run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
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
}
