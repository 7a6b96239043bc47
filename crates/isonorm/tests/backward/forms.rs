//! Every shape, layout, thread count and position: the oracle's bits.

use isonorm::{BackwardIo, Cpu, Level, Partial, Rows, RowsMut};
use isonorm_testing::DType;
use isonorm_testing::values::{Kind, SplitMix64};

use crate::expected::Gradients;
use crate::support::layout::{Layout, check_output};
use crate::support::{BOTH, Norm, Tensor, Which, assert_same_bits, one};

fn norm(which: Which, hidden: usize, dtype: DType) -> Norm {
    Norm { weight: Some(Tensor::values(dtype, Kind::Normal, 2, hidden)), ..Norm::new(which, hidden) }
}

/// Out of place and in place, of both recipes.
#[test]
fn every_length_has_the_oracle_s_bits() {
    let hiddens = (1..70).chain([96, 127, 128, 129, 160, 255, 257, 500, 511, 512, 513, 545, 1024, 1100, 2049, 4100]);
    for hidden in hiddens {
        for which in BOTH {
            for dtype in DType::ALL {
                let rows = if hidden < 600 { 19 } else { 5 };
                let x = Tensor::values(dtype, Kind::Normal, 3, rows * hidden);
                let dy = Tensor::values(dtype, Kind::Normal, 4, rows * hidden);
                let mut norm = norm(which, hidden, dtype);
                norm.llama = which == Which::Rms && hidden % 2 == 1;
                let expected = Gradients::expected(&norm, &x, &dy);
                for level in Level::available() {
                    let label = format!("{norm} {dtype:?} on {level}");
                    let mut found = Gradients::found(&norm, one(level), &x, &dy);
                    expected.check(&label, hidden, &found);
                    found.dx = dy.clone();
                    let io = BackwardIo::in_place(x.slice(), found.dx.slice_mut());
                    norm.backward(one(level), io).expect("the shapes fit");
                    expected.check(&format!("{label}, in place"), hidden, &found);
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
        let hidden = 1 + source.below(70);
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

/// dx of 16 MiB and more is written past the caches, in whole lines wherever it begins; as in pieces that are not.
#[test]
fn beyond_the_caches_the_bits_are_the_same() {
    for (which, dtype, hidden) in [(Which::Rms, DType::F32, 1040), (Which::Layer, DType::Bf16, 4096 + 3)] {
        let rows = (17 << 20) / hidden / (dtype.digits() / 2);
        let [x, dy] = [10, 11].map(|seed| {
            let few = Tensor::values(dtype, Kind::Normal, seed, 40 * hidden);
            few.gather((0..rows * hidden).map(|at| at % (40 * hidden)))
        });
        let norm = norm(which, hidden, dtype);
        let expected = in_pieces(&norm, &x, &dy, rows / 3);
        for level in Level::available().rev().take(2) {
            for offset in [0, 1] {
                let mut found = Gradients::room(&x, hidden);
                let mut dx = Tensor::sentinel(dtype, rows * hidden + 1);
                let io = BackwardIo::new(x.slice(), dy.slice(), dx.part_mut(offset, rows * hidden));
                let io = io.dweight(found.dweight.slice_mut()).dbias(found.dbias.slice_mut());
                norm.backward(Cpu::new().level(level).threads(2), io).expect("the shapes fit");
                found.dx = dx.gather(offset..offset + rows * hidden);
                expected.check(&format!("{norm} {dtype:?} from {offset} on {level}"), hidden, &found);
            }
        }
    }
}

/// As of one call, but of `few` rows at a time.
fn in_pieces(norm: &Norm, x: &Tensor, dy: &Tensor, few: usize) -> Gradients {
    let (hidden, len) = (norm.hidden, x.len());
    let mut partial = Partial::rows(isonorm::DType::F32, hidden, 0);
    let mut found = Gradients::room(x, hidden);
    for start in (0..len).step_by(few * hidden) {
        let n = (few * hidden).min(len - start);
        let io = BackwardIo::new(x.part(start, n), dy.part(start, n), found.dx.part_mut(start, n));
        norm.backward(Cpu::new().threads(1), io.partial(&mut partial)).expect("the shapes fit");
    }
    partial.dweight(found.dweight.slice_mut()).expect("the sums begin at 0");
    partial.dbias(found.dbias.slice_mut()).expect("the sums begin at 0");
    found
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
