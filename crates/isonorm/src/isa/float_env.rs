//! The floating-point environment of the contract: round to nearest even, subnormals kept.
//!
//! A host may have set flush-to-zero (PyTorch's `set_flush_denormal`, audio programs, `-ffast-math`
//! libraries). A guard sets the default and restores the host's setting when it is dropped.
#![allow(unsafe_code)] // reads and writes the control register

/// While it lives, this thread computes as IEEE 754 says.
pub(crate) struct FloatEnv {
    host: Register,
}

impl FloatEnv {
    #[inline]
    pub(crate) fn standard() -> Self {
        let host = read();
        if control(host) != DEFAULT {
            write(DEFAULT);
        }
        FloatEnv { host }
    }
}

impl Drop for FloatEnv {
    #[inline]
    fn drop(&mut self) {
        if control(self.host) != DEFAULT {
            write(self.host);
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod register {
    use std::arch::asm;

    pub(super) type Register = u32;
    /// MXCSR: all exceptions masked, round to nearest, no flush-to-zero, no denormals-are-zero.
    pub(super) const DEFAULT: Register = 0x1F80;

    /// Without the sticky exception flags.
    pub(super) fn control(register: Register) -> Register {
        register & !0x3F
    }

    #[inline]
    pub(super) fn read() -> Register {
        let mut register: Register = 0;
        // SAFETY: stores MXCSR, which every x86-64 has, into a local variable.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut register, options(nostack)) };
        register
    }

    #[inline]
    pub(super) fn write(register: Register) {
        // SAFETY: loads a value read from MXCSR or its power-on default, so no reserved bit is set.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const register, options(nostack)) };
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod register {
    use std::arch::asm;

    pub(super) type Register = u64;
    pub(super) const DEFAULT: Register = 0;

    /// FPCR without AHP and the trap enables: rounding mode, flush-to-zero, default NaN, FIZ and AH.
    pub(super) fn control(register: Register) -> Register {
        register & ((0b11 << 22) | (1 << 24) | (1 << 25) | (1 << 19) | 0b111)
    }

    #[inline]
    pub(super) fn read() -> Register {
        let register: Register;
        // SAFETY: reads FPCR, which every aarch64 CPU has.
        unsafe { asm!("mrs {}, fpcr", out(reg) register, options(nostack)) };
        register
    }

    #[inline]
    pub(super) fn write(register: Register) {
        // SAFETY: writes FPCR with a value read from it, or its architectural default.
        unsafe { asm!("msr fpcr, {}", in(reg) register, options(nostack)) };
    }
}

#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod register {
    pub(super) type Register = u32;
    pub(super) const DEFAULT: Register = 0;
    pub(super) fn control(register: Register) -> Register {
        register
    }
    pub(super) fn read() -> Register {
        DEFAULT
    }
    pub(super) fn write(_: Register) {}
}

use register::{DEFAULT, Register, control, read, write};

#[cfg(all(test, target_arch = "x86_64", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn flush_to_zero_is_cleared_and_given_back() {
        let host = read();
        write(DEFAULT | (1 << 15) | (1 << 6));
        let tiny = std::hint::black_box(1e-40f32);
        assert_eq!(std::hint::black_box(tiny * 1.0).to_bits(), 0, "the host flushes");
        {
            let _env = FloatEnv::standard();
            assert_eq!(std::hint::black_box(tiny * 1.0).to_bits(), 1e-40f32.to_bits());
        }
        assert_eq!(control(read()), DEFAULT | (1 << 15) | (1 << 6));
        write(host);
    }
}
