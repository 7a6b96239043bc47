//! Every shape, layout, thread count and position: the oracle's bits.

use isonorm::{BackwardIo, Cpu, Level, Rows, RowsMut};
use isonorm_testing::DType;
use isonorm_testing::values::{Kind, SplitMix64};

use crate::expected::Gradients;
use crate::support::layout::{Layout, check_output};
use crate::support::{BOTH, Norm, Tensor, Which, assert_same_bits, one};

fn norm(which: Which, hidden: usize, dtype: DType) -> Norm {
    Norm { weight: Some(Tensor::values(dtype, Kind::Normal, 2, hidden)), ..Norm::new(which, hidden) }
}

#[test]
fn every_length_has_the_oracle_s_bits() {
    let hiddens = (1..70).chain([96, 127, 128, 129, 160, 255, 257, 500, 511, 512, 513, 545, 1024, 1100, 2049, 4100]);
    for hidden in hiddens {
        for which in BOTH {
            for dtype in DType::ALL {
                let rows = if hidden < 600 { 19 } else { 5 };
                let x = Tensor::values(dtype, Kind::Normal, 3, rows * hidden);
                let dy = Tensor::values(dtype, Kind::Normal, 4, rows * hidden);
                let norm = norm(which, hidden, dtype);
                let expected = Gradients::expected(&norm, &x, &dy);
                for level in Level::available() {
                    let found = Gradients::found(&norm, one(level), &x, &dy);
                    expected.check(&format!("{norm} {dtype:?} on {level}"), hidden, &found);
                }
            }
        }
    }
}

/// Any kind of values, hostile ones too, with weights of x's type and of f32.
#[test]
fn every_kind_of_values_has_the_oracle_s_bits() {
    let (hidden, rows) = (37, 40);
    for kind in Kind::ALL {
        for (which, dtype) in BOTH.into_iter().flat_map(|which| DType::ALL.map(|dtype| (which, dtype))) {
            for weight in [dtype, crate::support::compute_type(dtype)] {
                let [x, dy] = [5, 6].map(|seed| Tensor::values(dtype, kind, seed, rows * hidden));
                let mut norm = norm(which, hidden, weight);
                norm.llama = which == Which::Rms && dtype.digits() == 4;
                let expected = Gradients::expected(&norm, &x, &dy);
                for level in Level::available() {
                    let found = Gradients::found(&norm, one(level), &x, &dy);
                    expected.check(&format!("{norm} {kind:?} {dtype:?} on {level}"), hidden, &found);
                }
            }
        }
    }
}

/// A NaN whose lower half is not 0 rounds to a NaN of bf16, wherever it comes from.
#[test]
fn a_nan_of_an_f32_weight_or_of_saved_statistics_stays_one() {
    let (hidden, nan) = (600, f32::from_bits(0x7FFF_FFFF));
    let x = vec![isonorm::bf16::ONE; 4 * hidden];
    let mut weight = vec![1.0f32; hidden];
    weight[5] = nan;
    let mut stats = [isonorm::Stats::<f32> { var: 1.0, inv: 1.0, scale: 1.0, ..Default::default() }; 4];
    stats[1].inv = nan;
    for level in Level::available() {
        let mut dx = vec![isonorm::bf16::ZERO; 4 * hidden];
        let norm = isonorm::RmsNorm::new(hidden).weight(&weight).on(one(level));
        norm.backward(BackwardIo::new(&x, &x, &mut dx)).expect("a NaN is a value");
        assert!(dx.iter().all(|dx| dx.is_nan()), "on {level}: each row's mean holds the NaN");
        let norm = isonorm::RmsNorm::new(hidden).on(one(level));
        norm.backward(BackwardIo::new(&x, &x, &mut dx).stats(&stats)).expect("a NaN is a value");
        for (r, row) in dx.chunks(hidden).enumerate() {
            assert!(row.iter().all(|dx| dx.is_nan() == (r == 1)), "row {r} on {level}");
        }
    }
}

/// Leading dimensions of any order, direction and gaps for dx, of any kind for x and dy.
#[test]
fn every_layout_has_the_bits_of_contiguous_rows() {
    let mut source = SplitMix64::new(7);
    for round in 0..150 {
        let shape: Vec<usize> = (0..1 + source.below(3)).map(|_| 1 + source.below(5)).collect();
        let (hidden, rows) = (1 + source.below(70), shape.iter().product::<usize>());
        let dtype = DType::ALL[source.below(4)];
        let norm = norm(BOTH[source.below(2)], hidden, dtype);
        let [from_x, from_dy] = [(); 2].map(|()| Layout::of_an_input(&shape, hidden, &mut source));
        let to = Layout::of_an_output(&shape, hidden, &mut source);
        let [x, dy] = [&from_x, &from_dy].map(|layout| {
            let seed = source.word();
            let places = layout.places(&shape, hidden);
            let data = Tensor::values(dtype, Kind::Normal, seed, layout.len);
            (data.gather(places), data)
        });
        let expected = Gradients::expected(&norm, &x.0, &dy.0);
        for is_summed in [true, false] {
            let mut found = Gradients::room(&x.0, hidden);
            let mut dx = Tensor::sentinel(dtype, to.len);
            let io = BackwardIo::new(
                Rows::strided(x.1.slice(), from_x.offset, &shape, &from_x.strides),
                Rows::strided(dy.1.slice(), from_dy.offset, &shape, &from_dy.strides),
                RowsMut::strided(dx.slice_mut(), to.offset, &shape, &to.strides),
            );
            let label = format!("round {round}: {norm} {shape:?}, summed: {is_summed}");
            let cpu = Cpu::new().threads(1 + source.below(3));
            if is_summed {
                let io = io.dweight(found.dweight.slice_mut()).dbias(found.dbias.slice_mut());
                norm.backward(cpu, io).expect("the layouts fit");
                assert_same_bits(&format!("{label}: dweight"), hidden, &expected.dweight, &found.dweight);
                assert_same_bits(&format!("{label}: dbias"), hidden, &expected.dbias, &found.dbias);
            } else {
                norm.backward(cpu, io).expect("the layouts fit");
            }
            check_output(&label, &expected.dx, &dx, &to.places(&shape, hidden), hidden);
        }
        assert_eq!(rows, x.0.len() / hidden);
    }
}

#[test]
fn one_to_eight_threads_give_the_same_bits() {
    let (hidden, rows) = (1000, 1037);
    for (which, dtype) in [(Which::Rms, DType::F32), (Which::Layer, DType::Bf16), (Which::Layer, DType::F64)] {
        let [x, dy] = [8, 9].map(|seed| Tensor::values(dtype, Kind::Normal, seed, rows * hidden));
        let norm = norm(which, hidden, dtype);
        let expected = Gradients::expected(&norm, &x, &dy);
        for threads in [1, 2, 3, 5, 8] {
            let found = Gradients::found(&norm, Cpu::new().threads(threads), &x, &dy);
            expected.check(&format!("{norm} {dtype:?}, {threads} threads"), hidden, &found);
        }
    }
}

/// dx of 16 MiB and more is written past the caches: lines are whole wherever it begins.
#[test]
fn beyond_the_caches_dx_has_the_same_bits() {
    for (which, dtype, hidden) in [(Which::Rms, DType::F32, 1040), (Which::Layer, DType::Bf16, 4096 + 3)] {
        let rows = (17 << 20) / hidden / (dtype.digits() / 2);
        let [row_x, row_dy] = [10, 11].map(|seed| Tensor::values(dtype, Kind::Normal, seed, 40 * hidden));
        let [x, dy] = [&row_x, &row_dy].map(|few| few.gather((0..rows * hidden).map(|at| at % (40 * hidden))));
        let norm = norm(which, hidden, dtype);
        let expected = Gradients::expected(&norm, &row_x, &row_dy);
        let wanted = expected.dx.gather((0..rows * hidden).map(|at| at % (40 * hidden)));
        for level in Level::available().rev().take(2) {
            for offset in [0, 1] {
                let mut dx = Tensor::sentinel(dtype, rows * hidden + 1);
                let cpu = Cpu::new().level(level).threads(2);
                let io = BackwardIo::new(x.slice(), dy.slice(), dx.part_mut(offset, rows * hidden));
                norm.backward(cpu, io).expect("the shapes fit");
                let found = dx.gather(offset..offset + rows * hidden);
                assert_same_bits(&format!("{norm} {dtype:?} from {offset} on {level}"), hidden, &wanted, &found);
            }
        }
    }
}

#[test]
fn zero_rows_give_gradients_of_plus_zero() {
    for (which, dtype) in BOTH.into_iter().flat_map(|which| DType::ALL.map(|dtype| (which, dtype))) {
        let nothing = Tensor::sentinel(dtype, 0);
        let found = Gradients::found(&norm(which, 7, dtype), Cpu::new(), &nothing, &nothing);
        for gradient in [&found.dweight, &found.dbias] {
            assert!((0..7).all(|i| gradient.bits(i) == 0), "{which:?} {dtype:?}: {gradient:?}");
        }
    }
}
