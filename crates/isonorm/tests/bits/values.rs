//! Every length, type, option and hostile value, on every level, against the oracle.

use isonorm::{Io, Level};
use isonorm_testing::DType;
use isonorm_testing::golden::Array;
use isonorm_testing::oracle::Eps;
use isonorm_testing::values::{Kind, SplitMix64};

use crate::support::{BOTH, Norm, Saved, Tensor, Which, assert_same_bits, one};

/// Around every boundary of the order: lanes, leaves, groups of four leaves, tiles, blocks.
pub(crate) const SIZES: [usize; 23] =
    [1, 2, 31, 32, 33, 63, 64, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 2049, 4095, 4096, 4097];

/// Types that y, a weight or a bias may have with an x of `dtype`.
fn partners(dtype: DType) -> &'static [DType] {
    if dtype == DType::F64 { &DType::ALL[1..2] } else { &[DType::F32, DType::F16, DType::Bf16] }
}

/// Types that a parameter may have: f64 with f64 alone, but narrower ones with f64 too.
fn parameters(dtype: DType) -> &'static [DType] {
    if dtype == DType::F64 { &DType::ALL } else { partners(dtype) }
}

/// Options drawn at random; the label names them all.
fn any_norm(which: Which, hidden: usize, dtype: DType, source: &mut SplitMix64) -> Norm {
    let mut norm = Norm::new(which, hidden);
    let eps = [1e-5, 1e-6, 0.0, 1e-30, 1e-45, 1.0, 1e30][source.below(7)];
    norm.eps = Eps { value: eps, outside: source.below(3) == 0 };
    let types = parameters(dtype);
    let mut parameter = |one_in| {
        let (given, of, seed) = (source.below(one_in) > 0, types[source.below(types.len())], source.word());
        let kind = if seed % 5 == 0 { Kind::Hostile } else { Kind::Normal };
        given.then(|| Tensor::values(of, kind, seed, hidden))
    };
    (norm.weight, norm.bias) = (parameter(4), parameter(2));
    if norm.weight.is_some() && source.below(3) == 0 {
        norm.offset = [1.0, -0.5, 1e-40][source.below(3)];
    }
    if which == Which::Rms {
        norm.llama = source.below(3) == 0;
        norm.partial = (source.below(4) == 0).then(|| 1 + source.below(hidden));
    }
    norm
}

/// Every level, out of place and in place, against the oracle.
fn check(norm: &Norm, kind: Kind, x: &Tensor, y_type: DType) {
    let expected = norm.oracle(x, y_type);
    for level in Level::available() {
        let label = format!("{norm}, {kind:?}, {:?} to {y_type:?}, level {level}", x.dtype());
        let mut y = Tensor::sentinel(y_type, x.len());
        let mut saved = Saved::new(x.dtype(), x.len() / norm.hidden);
        let io = Io::new(x.slice(), y.slice_mut()).stats(saved.stats_mut());
        norm.apply(one(level), io).unwrap_or_else(|e| panic!("{label}: {e}"));
        assert_same_bits(&label, norm.hidden, &expected.y, &y);
        saved.assert_reports(&label, &expected);
        if y_type == x.dtype() {
            let mut y = x.clone();
            let mut again = Saved::new(x.dtype(), x.len() / norm.hidden);
            let io = Io::in_place(y.slice_mut()).stats(again.stats_mut());
            norm.apply(one(level), io).unwrap_or_else(|e| panic!("{label}: {e}"));
            assert_same_bits(&format!("{label}, in place"), norm.hidden, &expected.y, &y);
            again.assert_reports(&format!("{label}, in place"), &expected);
        }
    }
}

#[test]
fn every_length_type_and_kind_of_value_matches_the_oracle() {
    for (s, n) in SIZES.into_iter().enumerate() {
        for (t, dtype) in DType::ALL.into_iter().enumerate() {
            for (k, kind) in Kind::ALL.into_iter().enumerate() {
                for which in BOTH {
                    let seed = (s * 1000 + t * 100 + k * 10) as u64 + u64::from(which == Which::Layer);
                    let mut source = SplitMix64::new(seed);
                    let x = Tensor::values(dtype, kind, seed, 2 * n);
                    let norm = any_norm(which, n, dtype, &mut source);
                    check(&norm, kind, &x, partners(dtype)[source.below(partners(dtype).len())]);
                    check(&Norm::new(which, n), kind, &x, dtype);
                }
            }
        }
    }
}

#[test]
fn every_option_with_every_other_matches_the_oracle() {
    let mut source = SplitMix64::new(77);
    for dtype in DType::ALL {
        for which in BOTH {
            for round in 0..150 {
                let n = [5, 33, 160, 300][round % 4];
                let norm = any_norm(which, n, dtype, &mut source);
                let kind = Kind::ALL[source.below(Kind::ALL.len())];
                let x = Tensor::values(dtype, kind, source.word(), 3 * n);
                check(&norm, kind, &x, partners(dtype)[source.below(partners(dtype).len())]);
            }
        }
    }
}

#[test]
fn a_row_of_100_003_matches_the_oracle() {
    let n = 100_003;
    for dtype in DType::ALL {
        for which in BOTH {
            let kind = if dtype == DType::F32 { Kind::Offset } else { Kind::Normal };
            let x = Tensor::values(dtype, kind, 5, n);
            let mut norm = Norm::new(which, n);
            norm.weight = Some(Tensor::values(dtype, Kind::Normal, 6, n));
            check(&norm, kind, &x, dtype);
        }
    }
}

/// One value out of 1e38, both zeros, subnormals, infinities and NaN at every position of a short row.
#[test]
fn one_hostile_value_at_any_position_matches_the_oracle() {
    let n = 37;
    let hostile = [0.0, -0.0, 1e-45, -1e-39, 1e38, -3.4e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for which in BOTH {
        let norm = Norm { weight: Some(Tensor::values(DType::F32, Kind::Normal, 1, n)), ..Norm::new(which, n) };
        let Tensor::F32(plain) = Tensor::values(DType::F32, Kind::Normal, 2, n) else { unreachable!() };
        let mut rows = Vec::new();
        for value in hostile {
            for at in 0..n {
                let mut row = plain.clone();
                row[at] = value;
                rows.extend(row);
            }
        }
        check(&norm, Kind::Hostile, &Tensor::F32(rows), DType::F32);
    }
}

/// Rows of one value only: all zero, all -0, all infinite, all NaN, all 1e38, all 1e-45.
#[test]
fn rows_of_one_value_match_the_oracle() {
    for which in BOTH {
        for n in [1, 2, 32, 129] {
            for eps in [0.0, 1e-5] {
                let values = [0.0, -0.0, 1e-45, 1e38, -1e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0];
                let rows = values.into_iter().flat_map(|value| vec![value; n]).collect();
                let mut norm = Norm::new(which, n);
                norm.eps.value = eps;
                check(&norm, Kind::Constant, &Tensor::F32(rows), DType::F32);
            }
        }
    }
}

/// Rows around 1000 that differ in their last places, so that the correction of the variance is as large as itself.
#[test]
fn rows_that_differ_by_the_rounding_of_their_mean_match_the_oracle() {
    let mut source = SplitMix64::new(5);
    let last_place = 2f32.powi(-14);
    for n in (2..70).chain([129, 300, 1025]) {
        let rows = (0..20 * n).map(|_| 1000.0 + last_place * source.below(4) as f32).collect();
        let mut norm = Norm::new(Which::Layer, n);
        norm.eps.value = 0.0;
        check(&norm, Kind::Offset, &Tensor::F32(rows), DType::F32);
    }
}

#[test]
fn no_rows_and_no_elements_are_not_an_error_and_write_nothing() {
    for which in BOTH {
        for level in Level::available() {
            for (hidden, len) in [(0, 0), (1, 0), (33, 0), (4096, 0)] {
                let (x, mut y) = (Tensor::sentinel(DType::F32, len), Tensor::sentinel(DType::F32, len));
                let result = Norm::new(which, hidden).apply(one(level), Io::new(x.slice(), y.slice_mut()));
                assert_eq!(result, Ok(()), "{which:?} hidden {hidden} of {len} elements");
            }
        }
    }
}

/// Every f16 and bf16 pattern, given as a bias to rows of -0, comes out unchanged.
#[test]
fn every_16_bit_pattern_is_read_and_written_exactly() {
    for dtype in [DType::F16, DType::Bf16] {
        let all = Tensor::new(&Array { dtype, bits: (0..=0xffff).collect() });
        let zeros = Tensor::new(&Array { dtype, bits: vec![0x8000; 0x1_0000] });
        let norm = Norm { bias: Some(all.clone()), ..Norm::new(Which::Rms, 0x1_0000) };
        for level in Level::available() {
            let y = norm.forward(one(level), &zeros, dtype);
            assert_same_bits(&format!("bias alone, {dtype:?}, level {level}"), 0x1_0000, &all, &y);
        }
    }
}

/// y's rounding: f32 values around every halfway point of the 16-bit types.
#[test]
fn halfway_values_are_rounded_to_even_on_every_level() {
    for dtype in [DType::F16, DType::Bf16] {
        let mut wide = Vec::new();
        for bits in (0..0xffffu64).filter(|bits| bits & 0x7fff < if dtype == DType::F16 { 0x7bff } else { 0x7f7f }) {
            let (low, high) = (dtype.value(bits), dtype.value(bits + 1));
            let half = (low + (high - low) / 2.0) as f32;
            wide.extend([half, half.next_up(), half.next_down()]);
        }
        let zeros = Tensor::F32(vec![-0.0; wide.len()]);
        let norm = Norm { bias: Some(Tensor::F32(wide)), ..Norm::new(Which::Rms, zeros.len()) };
        let expected = norm.oracle(&zeros, dtype);
        for level in Level::available() {
            let y = norm.forward(one(level), &zeros, dtype);
            assert_same_bits(&format!("bias alone to {dtype:?}, level {level}"), zeros.len(), &expected.y, &y);
        }
        let x = Tensor::new(&Array { dtype, bits: vec![0x8000; zeros.len()] });
        for level in Level::available() {
            let y = norm.forward(one(level), &x, dtype);
            assert_same_bits(&format!("bias alone, x and y {dtype:?}, level {level}"), zeros.len(), &expected.y, &y);
        }
    }
}
