//! Every level's primitives: arithmetic and lanes against `Scalar`, conversions against definitions written
//! here, over every f16 and bf16 and every place where rounding to them turns.

use half::{bf16, f16};
use isonorm_testing::values::{Kind, SplitMix64, f32s, f64s};

use super::Isa;
use crate::element::{Compute, Element};
use crate::level::{Kernel, Level};
use crate::order::LANES;

/// A value's bits, the same for every NaN.
fn bits<C: Compute>(x: C) -> u64 {
    if x.to_f64().is_nan() { f64::NAN.to_bits() } else { x.to_f64().to_bits() }
}

/// Every operation on three vectors.
struct Operations<'a, C>([&'a [C; LANES]; 3]);

impl<C: Compute> Kernel<C> for Operations<'_, C> {
    type Output = Vec<(&'static str, Vec<u64>)>;

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> Self::Output {
        let [a, b, c] = self.0.map(|v| isa.load(v));
        let mut results = Vec::new();
        let mut keep = |name, v: S::V, lanes: usize| {
            let mut stored = [C::ZERO; LANES];
            isa.store(v, &mut stored);
            results.push((name, stored[..lanes].iter().copied().map(bits).collect()));
        };
        keep("load, store", a, LANES);
        keep("add", isa.add(a, b), LANES);
        keep("sub", isa.sub(a, b), LANES);
        keep("mul", isa.mul(a, b), LANES);
        keep("fma", isa.fma(a, b, c), LANES);
        keep("first, splat", isa.splat(isa.first(a)), LANES);
        keep("down 16", isa.down::<16>(a), 16);
        keep("down 8", isa.down::<8>(a), 8);
        keep("down 4", isa.down::<4>(a), 4);
        keep("down 2", isa.down::<2>(a), 2);
        keep("down 1", isa.down::<1>(a), 1);
        for n in 0..=LANES {
            keep("take_first", isa.take_first(n, a, b), LANES);
        }
        for n in 0..LANES {
            keep("load_first", isa.load_first(&self.0[0][..n]), LANES);
            let mut stored = *self.0[1];
            isa.store_first(a, &mut stored[..n]);
            keep("store_first", isa.load(&stored), LANES);
        }
        results
    }
}

fn operations_agree<C: Compute>(values: impl Fn(Kind, u64, usize) -> Vec<C>) {
    for kind in Kind::ALL {
        for seed in 0..32 {
            let values = values(kind, seed, 3 * LANES);
            let (vectors, _) = values.as_chunks::<LANES>();
            let on = |level| C::enter(level, Operations([&vectors[0], &vectors[1], &vectors[2]]));
            let expected = on(Level::Scalar);
            for level in Level::available() {
                for ((name, expected), (_, found)) in expected.iter().zip(on(level)) {
                    assert_eq!(found, *expected, "{name} on {level}, {kind:?}, seed {seed}");
                }
            }
        }
    }
}

#[test]
fn arithmetic_and_lanes_are_those_of_scalar() {
    operations_agree::<f32>(f32s);
    operations_agree::<f64>(f64s);
}

/// A 16-bit format with this many bits of fraction, and its least exponent.
struct Format {
    fraction: u32,
    least: i32,
}

impl Format {
    fn infinity(&self) -> u16 {
        (0x7FFF >> self.fraction) << self.fraction
    }

    /// The value of a pattern, by IEEE 754's definition; infinity is where the next binade would begin.
    fn magnitude(&self, pattern: u16) -> f64 {
        let fraction = f64::from(pattern & ((1 << self.fraction) - 1)) / f64::from(1 << self.fraction);
        match i32::from((pattern & 0x7FFF) >> self.fraction) {
            0 => fraction * 2f64.powi(self.least),
            exponent => (1.0 + fraction) * 2f64.powi(self.least - 1 + exponent),
        }
    }

    fn value(&self, pattern: u16) -> f64 {
        let magnitude = match pattern & 0x7FFF {
            p if p > self.infinity() => f64::NAN,
            p if p == self.infinity() => f64::INFINITY,
            p => self.magnitude(p),
        };
        if pattern >> 15 == 0 { magnitude } else { -magnitude }
    }

    /// The nearest pattern to `x`, searched for among all values; of two, the even one.
    fn nearest(&self, magnitudes: &[f64], x: f32) -> u16 {
        let x_magnitude = f64::from(x.abs()).min(magnitudes[usize::from(self.infinity())]);
        let above = magnitudes.partition_point(|&m| m < x_magnitude);
        let below = above.saturating_sub(1);
        let (to_below, to_above) = (x_magnitude - magnitudes[below], magnitudes[above] - x_magnitude);
        let goes_up = to_above < to_below || (to_above == to_below && above % 2 == 0);
        (if goes_up { above } else { below }) as u16 | if x.is_sign_negative() { 0x8000 } else { 0 }
    }
}

/// The two types that are converted.
trait Narrow: Element<Compute = f32> {
    const FORMAT: Format;
    fn from_pattern(pattern: u16) -> Self;
    fn pattern(self) -> u16;
}

impl Narrow for f16 {
    const FORMAT: Format = Format { fraction: 10, least: -14 };
    fn from_pattern(pattern: u16) -> Self {
        f16::from_bits(pattern)
    }
    fn pattern(self) -> u16 {
        self.to_bits()
    }
}

impl Narrow for bf16 {
    const FORMAT: Format = Format { fraction: 7, least: -126 };
    fn from_pattern(pattern: u16) -> Self {
        bf16::from_bits(pattern)
    }
    fn pattern(self) -> u16 {
        self.to_bits()
    }
}

struct Widen<'a, T>(&'a [T; LANES]);

impl<T: Narrow> Kernel<f32> for Widen<'_, T> {
    type Output = [f32; LANES];
    #[inline(always)]
    fn eval<S: Isa<f32>>(self, isa: S) -> [f32; LANES] {
        let mut wide = [0.0; LANES];
        isa.store(T::load(isa, self.0), &mut wide);
        wide
    }
}

fn widening_is_exact<T: Narrow>() {
    let patterns: Vec<u16> = (0..=u16::MAX).collect();
    for level in Level::available() {
        for patterns in patterns.as_chunks::<LANES>().0 {
            let wide = f32::enter(level, Widen(&patterns.map(T::from_pattern)));
            for (&pattern, wide) in patterns.iter().zip(wide) {
                let expected = T::FORMAT.value(pattern) as f32;
                assert_eq!(bits(wide), bits(expected), "{} {pattern:#06x} on {level}", T::DTYPE);
            }
        }
    }
}

#[test]
fn every_f16_widens_exactly() {
    widening_is_exact::<f16>();
}

#[test]
fn every_bf16_widens_exactly() {
    widening_is_exact::<bf16>();
}

struct Round<'a, T>(&'a [f32; LANES], &'a mut [T; LANES]);

impl<T: Narrow> Kernel<f32> for Round<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Isa<f32>>(self, isa: S) {
        T::store(isa, isa.load(self.0), self.1);
    }
}

/// Every value of the format, every midpoint, the f32 on either side of it, and anything.
fn turning_points(format: &Format, magnitudes: &[f64]) -> Vec<f32> {
    let mut points = vec![f32::INFINITY, f32::NAN, f32::from_bits(0x7F80_0001), f32::from_bits(0x7FBF_FFFF)];
    points.extend([f32::MAX, f32::from_bits(1), f32::from_bits(0x007F_FFFF), f32::MIN_POSITIVE]);
    for pattern in 0..usize::from(format.infinity()) {
        let middle = ((magnitudes[pattern] + magnitudes[pattern + 1]) / 2.0) as f32;
        points.extend([magnitudes[pattern] as f32, middle, middle.next_up(), middle.next_down()]);
    }
    let mut source = SplitMix64::new(16);
    points.extend((0..50_000).map(|_| f32::from_bits(source.word() as u32)));
    points.iter().flat_map(|&x| [x, -x]).collect()
}

fn rounding_is_to_nearest_even<T: Narrow>() {
    let format = T::FORMAT;
    let magnitudes: Vec<f64> = (0..=format.infinity()).map(|p| format.magnitude(p)).collect();
    let mut points = turning_points(&format, &magnitudes);
    points.resize(points.len().next_multiple_of(LANES), 0.0);
    for level in Level::available() {
        for points in points.as_chunks::<LANES>().0 {
            let mut rounded = [T::default(); LANES];
            f32::enter(level, Round(points, &mut rounded));
            for (&x, rounded) in points.iter().zip(rounded.map(T::pattern)) {
                let name = format!("{} of {x:e} ({:#010x}) on {level}", T::DTYPE, x.to_bits());
                if x.is_nan() {
                    let quiet = format.infinity() | (1 << (format.fraction - 1));
                    assert_eq!(rounded & quiet, quiet, "{name}: {rounded:#06x} is no quiet NaN");
                } else {
                    let nearest = format.nearest(&magnitudes, x);
                    assert_eq!(rounded, nearest, "{name}: {rounded:#06x}, nearest is {nearest:#06x}");
                }
            }
        }
    }
}

#[test]
fn f16_is_rounded_to_nearest_even() {
    rounding_is_to_nearest_even::<f16>();
}

#[test]
fn bf16_is_rounded_to_nearest_even() {
    rounding_is_to_nearest_even::<bf16>();
}

/// The product of two chunks and its sum with the first, rounded: by way of `load_split`, and in order; and in order
/// without the rounding by `store`.
struct Split<'a, T>(&'a [T; LANES], &'a [T; LANES]);

impl<T: Narrow> Kernel<f32> for Split<'_, T> {
    type Output = [[T; LANES]; 5];
    #[inline(always)]
    fn eval<S: Isa<f32>>(self, isa: S) -> [[T; LANES]; 5] {
        let mut results = [[T::default(); LANES]; 5];
        let [split, past, ordered, rounded, later] = &mut results;
        let fma = |a, b| isa.fma(a, b, a);
        let v = fma(T::load_split(isa, self.0), T::load_split(isa, self.1));
        T::store_split(isa, v, split);
        T::store_past_split(isa, v, past);
        isa.fence();
        T::store(isa, T::in_order(isa, v), ordered);
        T::store_split(isa, T::split(isa, T::in_order(isa, v)), later);
        T::store(isa, T::round(isa, fma(T::load(isa, self.0), T::load(isa, self.1))), rounded);
        results
    }
}

fn split_lanes_are_the_same<T: Narrow>() {
    let mut source = SplitMix64::new(32);
    let patterns = |source: &mut SplitMix64| std::array::from_fn(|_| T::from_pattern(source.word() as u16));
    let rounded = |x: T| if x.widen().is_nan() { T::FORMAT.infinity() | 1 } else { x.pattern() };
    for _ in 0..20_000 {
        let (a, b): ([T; LANES], [T; LANES]) = (patterns(&mut source), patterns(&mut source));
        let expected: [T; LANES] = std::array::from_fn(|l| {
            let (a, b) = (a[l].widen(), b[l].widen());
            T::narrow(a.mul_add(b, a))
        });
        for level in Level::available() {
            for (way, found) in f32::enter(level, Split(&a, &b)).into_iter().enumerate() {
                let name = format!("{} by way {way} on {level}", T::DTYPE);
                assert_eq!(found.map(rounded), expected.map(rounded), "{name}: {a:?} * {b:?}");
            }
        }
    }
}

#[test]
fn split_lanes_hold_the_same_values_and_round_alike() {
    split_lanes_are_the_same::<bf16>();
    split_lanes_are_the_same::<f16>();
}

/// Every NaN of bf16 as x, as a weight or both stays one.
#[test]
fn a_nan_of_bf16_stays_one() {
    let one = bf16::ONE;
    for pattern in (0..=u16::MAX).map(bf16::from_bits).filter(|x| x.is_nan()) {
        for (a, b) in [(pattern, one), (one, pattern), (pattern, pattern)] {
            for level in Level::available() {
                for found in f32::enter(level, Split(&[a; LANES], &[b; LANES])) {
                    assert!(found.iter().all(|x| x.is_nan()), "{a:?} * {b:?} on {level}: {found:?}");
                }
            }
        }
    }
}

struct Stream<'a>(&'a [u16], &'a mut [u16]);

impl Kernel<f32> for Stream<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Isa<f32>>(self, isa: S) {
        isa.stream(self.0, self.1);
        isa.fence();
    }
}

#[test]
fn streaming_copies_just_what_it_is_given() {
    let from: Vec<u16> = (1..=400).collect();
    for level in Level::available() {
        for start in 0..64 {
            for len in (0..100).chain([255, 256, 257]) {
                let mut to = [0; 400];
                f32::enter(level, Stream(&from[3..3 + len], &mut to[start..start + len]));
                assert_eq!(to[start..start + len], from[3..3 + len], "{len} elements to {start} on {level}");
                let around = to[..start].iter().chain(&to[start + len..]);
                assert_eq!(around.max(), Some(&0), "beside {len} elements to {start} on {level}");
            }
        }
    }
}

struct StorePast<'a, T: Element>(&'a [T::Compute; LANES], &'a mut [T; LANES]);

impl<T: Element> Kernel<T::Compute> for StorePast<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Isa<T::Compute>>(self, isa: S) {
        isa.prefetch(self.0, 0);
        isa.prefetch_second(self.0, isize::MAX / 16);
        T::store_past(isa, isa.load(self.0), self.1);
        isa.fence();
    }
}

/// Anywhere in a cache line, since sets store past the caches to whole lines alone.
fn stores_past_the_caches<T: Element>() {
    let values: [T::Compute; LANES] = std::array::from_fn(|l| T::Compute::from_f64(0.1 + l as f64));
    for level in Level::available() {
        for start in 0..128 {
            let mut to = [T::default(); 160];
            let (chunks, _) = to[start..].as_chunks_mut::<LANES>();
            T::Compute::enter(level, StorePast(&values, &mut chunks[0]));
            let found = to.iter().skip(start).take(LANES);
            assert!(found.copied().eq(values.map(T::narrow)), "{} at {start} on {level}", T::DTYPE);
            let around = to.iter().take(start).chain(&to[start + LANES..]);
            assert!(around.copied().all(|x| x == T::default()), "beside {} at {start} on {level}", T::DTYPE);
        }
    }
}

#[test]
fn stores_past_the_caches_store_the_same() {
    stores_past_the_caches::<f32>();
    stores_past_the_caches::<f64>();
    stores_past_the_caches::<f16>();
    stores_past_the_caches::<bf16>();
}
