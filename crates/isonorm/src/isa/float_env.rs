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

    /// All of FPCR: flush-to-zero, rounding mode, the other f16 format (AHP), traps. The sticky flags are in FPSR.
    pub(super) fn control(register: Register) -> Register {
        register
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

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod tests {
    use std::hint::black_box;

    use super::*;

    /// Flush-to-zero of results, and of operands where that is a bit of its own.
    #[cfg(target_arch = "x86_64")]
    const FLUSH: Register = (1 << 15) | (1 << 6);
    #[cfg(target_arch = "aarch64")]
    const FLUSH: Register = 1 << 24;

    #[test]
    fn flush_to_zero_is_cleared_and_given_back() {
        let host = read();
        write(DEFAULT | FLUSH);
        let under_host = product(1e-40, 1.0);
        let under_guard = {
            let _env = FloatEnv::standard();
            product(1e-40, 1.0)
        };
        let after = read();
        write(host);
        assert_eq!(under_host.to_bits(), 0, "the host flushes");
        assert_eq!(under_guard.to_bits(), 1e-40f32.to_bits());
        assert_eq!(control(after), DEFAULT | FLUSH);
    }

    /// Multiplied when the program runs.
    #[inline(never)]
    fn product(a: f32, b: f32) -> f32 {
        black_box(black_box(a) * black_box(b))
    }

    #[test]
    fn every_setting_of_the_host_is_cleared_and_given_back() {
        #[cfg(target_arch = "x86_64")]
        const SETTINGS: [(&str, Register); 3] = [("flush-to-zero", 1 << 15), ("denormals", 1 << 6), ("round", 3 << 13)];
        #[cfg(target_arch = "aarch64")]
        const SETTINGS: [(&str, Register); 4] = [
            ("flush-to-zero", 1 << 24),
            ("default NaN", 1 << 25),
            ("round", 3 << 22),
            ("f16 without infinity", 1 << 26),
        ];
        let host = read();
        for (name, setting) in SETTINGS {
            write(DEFAULT | setting);
            let inside = {
                let _env = FloatEnv::standard();
                read()
            };
            let after = read();
            write(host);
            assert_eq!((control(inside), control(after)), (DEFAULT, DEFAULT | setting), "{name}");
        }
    }
}
