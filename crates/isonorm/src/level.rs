//! Which instruction set runs: detected once, or pinned by [`Cpu::level`](crate::Cpu::level) or `ISONORM_LEVEL`.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::element::Compute;
use crate::error::Error;
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
pub(crate) use crate::isa::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use crate::isa::avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use crate::isa::neon::Neon;
pub(crate) use crate::isa::scalar::Scalar;

/// Code generic over the instruction set.
pub trait Kernel<C: Compute> {
    /// What `eval` returns.
    type Output;
    /// The code. `#[inline(always)]`, so that it is compiled with the set's features.
    fn eval<S: Isa<C>>(self, isa: S) -> Self::Output;
}

/// An instruction set. The bits are the same on all of them; only the time differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Plain Rust, on any CPU.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// 64-bit ARM.
    Neon,
}

const ALL: [Level; 4] = [Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon];

impl Level {
    /// The fastest level of this CPU.
    pub fn detect() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::available().last().unwrap_or(Level::Scalar))
    }

    /// The levels of this CPU, slowest first.
    pub fn available() -> impl DoubleEndedIterator<Item = Level> {
        ALL.into_iter().filter(|level| level.is_available())
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Avx512::detect().is_some(),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The level that `ISONORM_LEVEL` names, read once, or else the fastest.
    #[inline]
    pub(crate) fn from_environment() -> Result<Level, Error> {
        static PINNED: OnceLock<Result<Level, Error>> = OnceLock::new();
        match PINNED.get() {
            Some(Ok(level)) => Ok(*level),
            _ => PINNED.get_or_init(Level::read_environment).clone(),
        }
    }

    #[cold]
    fn read_environment() -> Result<Level, Error> {
        match std::env::var("ISONORM_LEVEL") {
            Ok(name) => name.parse::<Level>()?.checked(),
            Err(_) => Ok(Level::detect()),
        }
    }

    /// The level itself where this CPU has it.
    pub(crate) fn checked(self) -> Result<Level, Error> {
        if self.is_available() { Ok(self) } else { Err(Error::LevelUnavailable { level: self, best: Level::detect() }) }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Neon => "neon",
        })
    }
}

impl FromStr for Level {
    type Err = Error;
    fn from_str(name: &str) -> Result<Level, Error> {
        ALL.into_iter()
            .find(|level| level.to_string() == name)
            .ok_or_else(|| Error::LevelUnknown { found: name.to_owned() })
    }
}

/// Enters a kernel on a level; on `Scalar` where the CPU lacks it, which checked levels never do.
macro_rules! enter {
    ($level:expr, $kernel:expr) => {{
        use $crate::level::*;
        match $level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if let Some(isa) = Avx512::detect() => isa.run($kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if let Some(isa) = Avx2::detect() => isa.run($kernel),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => Neon::detect().run($kernel),
            _ => Scalar.run($kernel),
        }
    }};
}
pub(crate) use enter;
