//! The storage types `f32 f64 f16 bf16` and the two compute types.
//!
//! A new storage type is added here and in `slice.rs`; its loads and stores are in `isa.rs`.

use half::{bf16, f16};

use crate::io::{StatsMut, StatsRef};
use crate::isa::Isa;
use crate::level::{Kernel, Level};
use crate::order::LANES;
use crate::slice::{Slice, SliceMut};
use crate::stats::{Range, Stats};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// The name of a storage type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary64; the only type whose norms are computed in f64.
    F64,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F16 | DType::Bf16 => 2,
            DType::F32 => 4,
            DType::F64 => 8,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        })
    }
}

/// A type in which tensors are stored: `f32`, `f64`, [`f16`](struct@f16) or [`bf16`]. Sealed.
pub trait Element: sealed::Sealed + Copy + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static {
    /// The type in which its norms are computed: `f64` for `f64`, else `f32`.
    type Compute: Compute;
    /// Its name.
    const DTYPE: DType;
    /// The exact value in the compute type.
    fn widen(self) -> Self::Compute;
    /// The nearest value to `value`, ties to even; subnormals are kept, NaN becomes a quiet NaN.
    fn narrow(value: Self::Compute) -> Self;
    #[doc(hidden)]
    fn load<S: Isa<Self::Compute>>(isa: S, from: &[Self; LANES]) -> S::V;
    #[doc(hidden)]
    fn store<S: Isa<Self::Compute>>(isa: S, v: S::V, to: &mut [Self; LANES]);
    #[doc(hidden)]
    fn load_first<S: Isa<Self::Compute>>(isa: S, from: &[Self]) -> S::V;
    #[doc(hidden)]
    fn store_first<S: Isa<Self::Compute>>(isa: S, v: S::V, to: &mut [Self]);
    #[doc(hidden)]
    fn store_past<S: Isa<Self::Compute>>(isa: S, v: S::V, to: &mut [Self; LANES]);
    #[doc(hidden)]
    fn load_split<S: Isa<Self::Compute>>(isa: S, from: &[Self; LANES]) -> S::V;
    #[doc(hidden)]
    fn store_split<S: Isa<Self::Compute>>(isa: S, v: S::V, to: &mut [Self; LANES]);
    #[doc(hidden)]
    fn store_past_split<S: Isa<Self::Compute>>(isa: S, v: S::V, to: &mut [Self; LANES]);
    /// What `load_split` read, its lanes in order.
    #[doc(hidden)]
    #[inline(always)]
    fn in_order<S: Isa<Self::Compute>>(isa: S, v: S::V) -> S::V {
        if Self::DTYPE == DType::Bf16 { isa.in_order(v) } else { v }
    }
    /// Lanes in order as `load_split` has them.
    #[doc(hidden)]
    #[inline(always)]
    fn split<S: Isa<Self::Compute>>(isa: S, v: S::V) -> S::V {
        if Self::DTYPE == DType::Bf16 { isa.split(v) } else { v }
    }
    /// Rounded to this type and widened again.
    #[doc(hidden)]
    #[inline(always)]
    fn round<S: Isa<Self::Compute>>(isa: S, v: S::V) -> S::V {
        match Self::DTYPE {
            DType::F32 | DType::F64 => v,
            DType::Bf16 => isa.round_bf16(v),
            DType::F16 => {
                let mut rounded = [Self::default(); LANES];
                Self::store(isa, v, &mut rounded);
                Self::load(isa, &rounded)
            }
        }
    }
    #[doc(hidden)]
    fn slice(slice: &[Self]) -> Slice<'_>;
    #[doc(hidden)]
    fn slice_mut(slice: &mut [Self]) -> SliceMut<'_>;
    #[doc(hidden)]
    fn of<'a>(slice: &Slice<'a>) -> Option<&'a [Self]>;
    #[doc(hidden)]
    fn of_mut<'a>(slice: SliceMut<'a>) -> Option<&'a mut [Self]>;
}

/// A type in which norms are computed: `f32` or `f64`. Sealed.
pub trait Compute:
    Element<Compute = Self>
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
{
    /// +0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The positive infinity.
    const INFINITY: Self;
    /// -0, which added to anything changes neither its value nor its sign.
    const NEG_ZERO: Self;
    #[doc(hidden)]
    const RANGE: Range<Self>;
    /// The nearest value to `value`.
    fn from_f64(value: f64) -> Self;
    /// The nearest value to the integer `count`.
    fn from_count(count: usize) -> Self;
    /// The value in f64, exactly.
    fn to_f64(self) -> f64;
    /// The exact value of an f32.
    fn from_f32(value: f32) -> Self;
    /// The nearest f32, ties to even.
    fn to_f32(self) -> f32;
    #[doc(hidden)]
    fn root(self) -> Self;
    #[doc(hidden)]
    fn fused(self, b: Self, c: Self) -> Self;
    #[doc(hidden)]
    fn magnitude(self) -> Self;
    #[doc(hidden)]
    fn finite(self) -> bool;
    #[doc(hidden)]
    fn nan(self) -> bool;
    /// The same value; of NaN one that `store_split` takes.
    #[doc(hidden)]
    fn quiet(self) -> Self;
    #[doc(hidden)]
    fn stats(stats: StatsMut<'_>) -> Option<&mut [Stats<Self>]>;
    #[doc(hidden)]
    fn saved(stats: StatsRef<'_>) -> Option<&[Stats<Self>]>;
    #[doc(hidden)]
    fn enter<K: Kernel<Self>>(level: Level, kernel: K) -> K::Output;
}

macro_rules! element {
    (
        $type:ty, $compute:ty, $variant:ident, $widen:expr, $narrow:expr,
        $load:ident, $store:ident, $load_first:ident, $store_first:ident, $past:ident, $load_split:ident, $store_split:ident, $past_split:ident
    ) => {
        impl Element for $type {
            type Compute = $compute;
            const DTYPE: DType = DType::$variant;
            #[inline(always)]
            fn widen(self) -> $compute {
                $widen(self)
            }
            #[inline(always)]
            fn narrow(value: $compute) -> Self {
                $narrow(value)
            }
            #[inline(always)]
            fn load<S: Isa<$compute>>(isa: S, from: &[Self; LANES]) -> S::V {
                isa.$load(from)
            }
            #[inline(always)]
            fn store<S: Isa<$compute>>(isa: S, v: S::V, to: &mut [Self; LANES]) {
                isa.$store(v, to)
            }
            #[inline(always)]
            fn load_first<S: Isa<$compute>>(isa: S, from: &[Self]) -> S::V {
                isa.$load_first(from)
            }
            #[inline(always)]
            fn store_first<S: Isa<$compute>>(isa: S, v: S::V, to: &mut [Self]) {
                isa.$store_first(v, to)
            }
            #[inline(always)]
            fn store_past<S: Isa<$compute>>(isa: S, v: S::V, to: &mut [Self; LANES]) {
                isa.$past(v, to)
            }
            #[inline(always)]
            fn load_split<S: Isa<$compute>>(isa: S, from: &[Self; LANES]) -> S::V {
                isa.$load_split(from)
            }
            #[inline(always)]
            fn store_split<S: Isa<$compute>>(isa: S, v: S::V, to: &mut [Self; LANES]) {
                isa.$store_split(v, to)
            }
            #[inline(always)]
            fn store_past_split<S: Isa<$compute>>(isa: S, v: S::V, to: &mut [Self; LANES]) {
                isa.$past_split(v, to)
            }
            fn slice(slice: &[Self]) -> Slice<'_> {
                Slice::$variant(slice)
            }
            fn slice_mut(slice: &mut [Self]) -> SliceMut<'_> {
                SliceMut::$variant(slice)
            }
            fn of<'a>(slice: &Slice<'a>) -> Option<&'a [Self]> {
                if let Slice::$variant(slice) = slice { Some(slice) } else { None }
            }
            fn of_mut<'a>(slice: SliceMut<'a>) -> Option<&'a mut [Self]> {
                if let SliceMut::$variant(slice) = slice { Some(slice) } else { None }
            }
        }
    };
}

element!(f32, f32, F32, |x| x, |x| x, load, store, load_first, store_first, store_past, load, store, store_past);
element!(f64, f64, F64, |x| x, |x| x, load, store, load_first, store_first, store_past, load, store, store_past);
element!(
    f16,
    f32,
    F16,
    f16::to_f32_const,
    f16::from_f32_const,
    load_f16,
    store_f16,
    load_first_f16,
    store_first_f16,
    store_past_f16,
    load_f16,
    store_f16,
    store_past_f16
);
element!(
    bf16,
    f32,
    Bf16,
    bf16::to_f32_const,
    bf16::from_f32_const,
    load_bf16,
    store_bf16,
    load_first_bf16,
    store_first_bf16,
    store_past_bf16,
    load_bf16_split,
    store_bf16_split,
    store_past_bf16_split
);

macro_rules! compute {
    ($type:ident, $variant:ident) => {
        impl Compute for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const INFINITY: Self = $type::INFINITY;
            const NEG_ZERO: Self = -0.0;
            const RANGE: Range<Self> = Range::$type();
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn from_count(count: usize) -> Self {
                count as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                $type::from(value)
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn root(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn fused(self, b: Self, c: Self) -> Self {
                self.mul_add(b, c)
            }
            #[inline(always)]
            fn magnitude(self) -> Self {
                self.abs()
            }
            #[inline(always)]
            fn finite(self) -> bool {
                self.is_finite()
            }
            #[inline(always)]
            fn nan(self) -> bool {
                self.is_nan()
            }
            #[inline(always)]
            fn quiet(self) -> Self {
                if self.is_nan() { $type::NAN } else { self }
            }
            fn stats(stats: StatsMut<'_>) -> Option<&mut [Stats<Self>]> {
                if let StatsMut::$variant(stats) = stats { Some(stats) } else { None }
            }
            fn saved(stats: StatsRef<'_>) -> Option<&[Stats<Self>]> {
                if let StatsRef::$variant(stats) = stats { Some(stats) } else { None }
            }
            #[inline(always)]
            fn enter<K: Kernel<Self>>(level: Level, kernel: K) -> K::Output {
                crate::level::enter!(level, kernel)
            }
        }
    };
}

compute!(f32, F32);
compute!(f64, F64);

/// Runs `$body` with `$type` bound to the storage type named by `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $type:ident => $body:expr) => {
        match $dtype {
            $crate::element::DType::F32 => {
                type $type = f32;
                $body
            }
            $crate::element::DType::F64 => {
                type $type = f64;
                $body
            }
            $crate::element::DType::F16 => {
                type $type = half::f16;
                $body
            }
            $crate::element::DType::Bf16 => {
                type $type = half::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_element;
