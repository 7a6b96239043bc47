//! What an instruction set is to this crate: a dictionary of primitives on vectors of 32 logical lanes.
//!
//! Every set has the same 32 lanes, in however many registers, so nothing above this file can depend on a
//! register's width. Nothing here or below knows what a row is; the order of a sum is `order.rs`'s.
//!
//! Primitives are `#[inline(always)]` and so are the kernels that use them; each set has one
//! `#[target_feature]` function, `enter`. A helper left un-inlined costs three to four times, silently:
//! `tests/disassembly.rs` looks for such calls.

use half::{bf16, f16};

use crate::element::Compute;
use crate::order::{LANES, padded};

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod float_env;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod trace;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Primitives on vectors of [`LANES`] values of the compute type `C`.
///
/// A value of the implementing type is proof that the CPU has the instructions.
pub trait Isa<C: Compute>: Copy {
    /// 32 lanes.
    type V: Copy;
    /// Leaves that are summed in registers: 16 where a vector has two of them (a seventh of a short row's time), 4
    /// where it has more, 1 where primitives are calls.
    const LEAVES: usize = 4;
    /// `value` in every lane.
    fn splat(self, value: C) -> Self::V;
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Lane `l` of `new` where `l < n`, of `old` elsewhere.
    fn take_first(self, n: usize, new: Self::V, old: Self::V) -> Self::V;
    /// Lane `l` of the result is lane `l + W` of `v` for `l < W`; the other lanes hold anything.
    fn down<const W: usize>(self, v: Self::V) -> Self::V;
    /// Lane 0.
    fn first(self, v: Self::V) -> C;
    /// 32 values of the compute type.
    fn load(self, from: &[C; LANES]) -> Self::V;
    /// 32 values of the compute type.
    fn store(self, v: Self::V, to: &mut [C; LANES]);

    /// Fewer than 32 values; the other lanes hold +0.
    #[inline(always)]
    fn load_first(self, from: &[C]) -> Self::V {
        self.load(&padded(from))
    }
    /// As many of the first lanes as `to` has.
    #[inline(always)]
    fn store_first(self, v: Self::V, to: &mut [C]) {
        let mut chunk = [C::ZERO; LANES];
        self.store(v, &mut chunk);
        to.copy_from_slice(&chunk[..to.len()]);
    }
    /// As `load_first`, widened exactly.
    #[inline(always)]
    fn load_first_f16(self, from: &[f16]) -> Self::V {
        self.load_f16(&padded(from))
    }
    /// As `load_first`, widened exactly.
    #[inline(always)]
    fn load_first_bf16(self, from: &[bf16]) -> Self::V {
        self.load_bf16(&padded(from))
    }
    /// As `store_first`, rounded as by `store_f16`.
    #[inline(always)]
    fn store_first_f16(self, v: Self::V, to: &mut [f16]) {
        let mut chunk = [f16::ZERO; LANES];
        self.store_f16(v, &mut chunk);
        to.copy_from_slice(&chunk[..to.len()]);
    }
    /// As `store_first`, rounded as by `store_bf16`.
    #[inline(always)]
    fn store_first_bf16(self, v: Self::V, to: &mut [bf16]) {
        let mut chunk = [bf16::ZERO; LANES];
        self.store_bf16(v, &mut chunk);
        to.copy_from_slice(&chunk[..to.len()]);
    }

    /// 32 f16, widened exactly.
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        let mut wide = [C::ZERO; LANES];
        for l in 0..LANES {
            wide[l] = C::from_f32(from[l].to_f32_const());
        }
        self.load(&wide)
    }
    /// 32 bf16, widened exactly.
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V {
        let mut wide = [C::ZERO; LANES];
        for l in 0..LANES {
            wide[l] = C::from_f32(from[l].to_f32_const());
        }
        self.load(&wide)
    }
    /// Rounded to nearest even; subnormals kept.
    #[inline(always)]
    fn store_f16(self, v: Self::V, to: &mut [f16; LANES]) {
        let mut wide = [C::ZERO; LANES];
        self.store(v, &mut wide);
        for l in 0..LANES {
            to[l] = f16::from_f32_const(wide[l].to_f32());
        }
    }
    /// Rounded to nearest even; subnormals kept.
    #[inline(always)]
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]) {
        let mut wide = [C::ZERO; LANES];
        self.store(v, &mut wide);
        for l in 0..LANES {
            to[l] = bf16::from_f32_const(wide[l].to_f32());
        }
    }
    /// 32 bf16, widened exactly, in whatever order of lanes costs the set least. Kernels that treat all lanes
    /// alike may stay in it; [`in_order`](Isa::in_order) leaves it.
    #[inline(always)]
    fn load_bf16_split(self, from: &[bf16; LANES]) -> Self::V {
        self.load_bf16(from)
    }
    /// As `store_bf16`, from the order of `load_bf16_split`. A NaN has to be a quiet one whose lower half is 0, as
    /// every operation on widened bf16 gives it.
    #[inline(always)]
    fn store_bf16_split(self, v: Self::V, to: &mut [bf16; LANES]) {
        self.store_bf16(v, to);
    }
    /// As `store_bf16_split`, past the caches.
    #[inline(always)]
    fn store_past_bf16_split(self, v: Self::V, to: &mut [bf16; LANES]) {
        self.store_past_bf16(v, to);
    }
    /// The lanes of `load_bf16_split` in their own order.
    #[inline(always)]
    fn in_order(self, v: Self::V) -> Self::V {
        v
    }
    /// Lanes in their own order as `load_bf16_split` would have them.
    #[inline(always)]
    fn split(self, v: Self::V) -> Self::V {
        v
    }
    /// Each lane rounded to bf16 as by `store_bf16`, and widened again.
    #[inline(always)]
    fn round_bf16(self, v: Self::V) -> Self::V {
        let mut rounded = [bf16::ZERO; LANES];
        self.store_bf16(v, &mut rounded);
        self.load_bf16(&rounded)
    }
    /// As `store`, past the caches where the set can and `to` is aligned for it.
    #[inline(always)]
    fn store_past(self, v: Self::V, to: &mut [C; LANES]) {
        self.store(v, to);
    }
    /// As `store_f16`, past the caches.
    #[inline(always)]
    fn store_past_f16(self, v: Self::V, to: &mut [f16; LANES]) {
        self.store_f16(v, to);
    }
    /// As `store_bf16`, past the caches.
    #[inline(always)]
    fn store_past_bf16(self, v: Self::V, to: &mut [bf16; LANES]) {
        self.store_bf16(v, to);
    }
    /// Asks for the chunk `ahead` elements after this one, wherever that is, into the nearest cache.
    #[inline(always)]
    fn prefetch<T>(self, _chunk: &[T; LANES], _ahead: isize) {}
    /// As `prefetch`, into the next cache but one, which spares the nearest one's lines.
    #[inline(always)]
    fn prefetch_second<T>(self, _chunk: &[T; LANES], _ahead: isize) {}
    /// Copies `from` to `to` past the caches where the set can, for results larger than the caches.
    #[inline(always)]
    fn stream<T: Copy>(self, from: &[T], to: &mut [T]) {
        to.copy_from_slice(from);
    }
    /// Orders what was written past the caches before whatever this thread writes next.
    #[inline(always)]
    fn fence(self) {}
}
