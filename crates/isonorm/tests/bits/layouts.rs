//! Where rows lie: number, position, strides, alignment.

use isonorm::{Io, Level, Rows, RowsMut};
use isonorm_testing::DType;
use isonorm_testing::values::{Kind, SplitMix64};

use crate::support::layout::{Layout, assert_untouched, check_output};
use crate::support::{BOTH, Norm, Saved, Tensor, Which, agree, assert_same_bits, one, scalar};

fn norm_with_weight(which: Which, hidden: usize, dtype: DType) -> Norm {
    Norm { weight: Some(Tensor::values(dtype, Kind::Normal, 3, hidden)), ..Norm::new(which, hidden) }
}

#[test]
fn a_row_has_the_same_bits_among_1_to_300_rows_and_at_any_position() {
    for (dtype, hidden) in [(DType::F32, 1000), (DType::Bf16, 129), (DType::F64, 33), (DType::F16, 257)] {
        let which = if hidden % 2 == 0 { Which::Rms } else { Which::Layer };
        let norm = norm_with_weight(which, hidden, dtype);
        let x = Tensor::values(dtype, Kind::Normal, 9, 300 * hidden);
        let mut alone = Vec::new();
        for r in 0..300 {
            let mut y = Tensor::sentinel(dtype, hidden);
            norm.apply(scalar(), Io::new(x.part(r * hidden, hidden), y.slice_mut())).expect("valid");
            alone.extend(y.array().bits);
        }
        let best = Level::detect();
        for rows in (1..=300).filter(|rows| hidden < 500 || rows % 7 == 1 || *rows < 40) {
            let mut y = Tensor::sentinel(dtype, rows * hidden);
            let cpu = isonorm::Cpu::new().level(best);
            norm.apply(cpu, Io::new(x.part(0, rows * hidden), y.slice_mut())).expect("valid");
            // 300 rows are compared in full, fewer at their last row, which is where blocks end.
            let from = if rows == 300 { 0 } else { (rows - 1) * hidden };
            for (at, e) in alone.iter().enumerate().take(rows * hidden).skip(from) {
                let (e, f) = (*e, y.bits(at));
                let (row, i) = (at / hidden, at % hidden);
                assert!(agree(dtype, e, f), "{norm}: {row} of {rows} rows, element {i}: expected {e:x}, found {f:x}");
            }
        }
    }
}

#[test]
fn the_same_row_everywhere_gives_the_same_bits_everywhere() {
    for hidden in [7, 100, 1500] {
        let row = Tensor::values(DType::F32, Kind::Normal, 4, hidden);
        let norm = norm_with_weight(Which::Layer, hidden, DType::F32);
        let expected = norm.oracle(&row, DType::F32).y;
        let places = || (0..300 * hidden).map(|at| at % hidden);
        for level in Level::available() {
            let y = norm.forward(isonorm::Cpu::new().level(level), &row.gather(places()), DType::F32);
            assert_same_bits(&format!("{norm}, level {level}"), hidden, &expected.gather(places()), &y);
        }
    }
}

#[test]
fn every_alignment_of_x_and_y_gives_the_same_bits() {
    for dtype in DType::ALL {
        for (which, hidden) in BOTH.into_iter().zip([100, 33]) {
            let norm = norm_with_weight(which, hidden, dtype);
            let x = Tensor::values(dtype, Kind::Normal, 8, 17 + 2 * hidden);
            for level in Level::available() {
                for x_at in 0..=16 {
                    let from = x.gather(x_at..x_at + 2 * hidden);
                    let expected = norm.forward(scalar(), &from, dtype);
                    for y_at in 0..=16 {
                        let mut y = Tensor::sentinel(dtype, 17 + 2 * hidden);
                        let io = Io::new(x.part(x_at, 2 * hidden), y.part_mut(y_at, 2 * hidden));
                        norm.apply(one(level), io).expect("valid");
                        let label = format!("{norm}, x at {x_at}, y at {y_at}, level {level}");
                        assert_same_bits(&label, hidden, &expected, &y.gather(y_at..y_at + 2 * hidden));
                        let outside = (0..y_at).chain(y_at + 2 * hidden..y.len());
                        outside.for_each(|at| assert_untouched(&label, &y, at));
                    }
                }
            }
        }
    }
}

#[test]
fn every_alignment_of_weight_and_bias_gives_the_same_bits() {
    let hidden = 77;
    for dtype in [DType::F32, DType::Bf16] {
        let x = Tensor::values(dtype, Kind::Normal, 1, hidden);
        let (weight, bias) =
            (Tensor::values(dtype, Kind::Normal, 2, hidden + 16), Tensor::values(dtype, Kind::Normal, 3, hidden + 16));
        for at in 0..=16 {
            let part = |tensor: &Tensor| Some(tensor.gather(at..at + hidden));
            let owned = Norm { weight: part(&weight), bias: part(&bias), ..Norm::new(Which::Layer, hidden) };
            let expected = owned.forward(scalar(), &x, dtype);
            let mut y = Tensor::sentinel(dtype, hidden);
            let norm = isonorm::LayerNorm::new(hidden).weight(weight.part(at, hidden)).bias(bias.part(at, hidden));
            norm.forward(x.slice(), y.slice_mut()).expect("valid");
            assert_same_bits(&format!("parameters at {at}"), hidden, &expected, &y);
        }
    }
}

/// One call on random layouts, in four forms, against contiguous rows.
fn check_layouts(round: usize, source: &mut SplitMix64) {
    let dims = source.below(5);
    let shape: Vec<usize> = (0..dims).map(|_| 1 + source.below(5)).collect();
    let rows: usize = shape.iter().product();
    let hidden = [1, 5, 32, 45, 130][source.below(5)];
    let dtype = DType::ALL[source.below(4)];
    let mut norm = norm_with_weight(BOTH[round % 2], hidden, dtype);
    norm.llama = norm.which == Which::Rms && round.is_multiple_of(3);
    let level = Level::available().nth(round % Level::available().count()).expect("a level");
    let input = Layout::of_an_input(&shape, hidden, source);
    let [output, second] = [0; 2].map(|_| Layout::of_an_output(&shape, hidden, source));
    let label =
        format!("round {round}, {norm}, {dtype:?}, shape {shape:?}, x {:?}, y {:?}", input.strides, output.strides);
    let x = Tensor::values(dtype, Kind::Normal, source.word(), input.len);
    let logical_x = x.gather(input.places(&shape, hidden));
    let rows_of_x = || Rows::strided(x.slice(), input.offset, &shape, &input.strides);
    let expected = norm.oracle(&logical_x, dtype);

    let (mut y, mut saved) = (Tensor::sentinel(dtype, output.len), Saved::new(dtype, rows));
    let to = RowsMut::strided(y.slice_mut(), output.offset, &shape, &output.strides);
    norm.apply(one(level), Io::new(rows_of_x(), to).stats(saved.stats_mut()))
        .unwrap_or_else(|e| panic!("{label}: {e}"));
    check_output(&label, &expected.y, &y, &output.places(&shape, hidden), hidden);
    saved.assert_reports(&label, &expected);

    let mut y = output.holding(&logical_x, &shape, hidden);
    let (mut saved, strides) = (Saved::new(dtype, rows), &output.strides);
    let here = RowsMut::strided(y.slice_mut(), output.offset, &shape, strides);
    norm.apply(one(level), Io::in_place(here).stats(saved.stats_mut())).unwrap_or_else(|e| panic!("{label}: {e}"));
    check_output(&format!("{label}, in place"), &expected.y, &y, &output.places(&shape, hidden), hidden);
    saved.assert_reports(&label, &expected);

    let residual = Tensor::values(dtype, Kind::Normal, source.word(), rows * hidden);
    let (mut r, mut y) = (Tensor::sentinel(dtype, second.len), Tensor::sentinel(dtype, output.len));
    let mut saved = Saved::new(dtype, rows);
    let keep = RowsMut::strided(r.slice_mut(), second.offset, &shape, &second.strides);
    let to = RowsMut::strided(y.slice_mut(), output.offset, &shape, &output.strides);
    let io = Io::add(rows_of_x(), residual.slice(), keep, to).stats(saved.stats_mut());
    norm.apply(one(level), io).unwrap_or_else(|e| panic!("{label}: {e}"));
    let sum = super::residual::sum(&logical_x, &residual, dtype);
    let expected = norm.oracle(&sum, dtype);
    check_output(&format!("{label}, r"), &sum, &r, &second.places(&shape, hidden), hidden);
    check_output(&format!("{label}, y after r"), &expected.y, &y, &output.places(&shape, hidden), hidden);
    saved.assert_reports(&format!("{label}, after r"), &expected);
}

#[test]
fn any_strides_give_the_same_bits_and_touch_nothing_else() {
    let mut source = SplitMix64::new(2026);
    (0..600).for_each(|round| check_layouts(round, &mut source));
}

#[test]
fn eight_leading_dimensions_are_walked_in_logical_order() {
    let (shape, hidden) = ([2, 1, 3, 1, 2, 2, 1, 2], 5);
    let strides = [24 * 7, 3, 8 * 7, 0, 4 * 7, 2 * 7, -1, 7];
    let x = Tensor::values(DType::F32, Kind::Normal, 1, 48 * 7);
    let places: Vec<usize> = (0..48 * hidden).map(|at| at / hidden * 7 + at % hidden).collect();
    let norm = Norm::new(Which::Layer, hidden);
    let mut y = Tensor::sentinel(DType::F32, 48 * hidden);
    norm.apply(scalar(), Io::new(Rows::strided(x.slice(), 0, &shape, &strides), y.slice_mut())).expect("valid");
    assert_same_bits(&norm, hidden, &norm.oracle(&x.gather(places), DType::F32).y, &y);
}

#[test]
fn heads_of_a_packed_qkv_are_normalized_in_place_and_the_rest_is_kept() {
    let (tokens, heads, hidden) = (9, 3, 64);
    let packed = Tensor::values(DType::Bf16, Kind::Normal, 5, tokens * 3 * heads * hidden);
    let norm = norm_with_weight(Which::Rms, hidden, DType::Bf16);
    let mut found = packed.clone();
    let strides = [(3 * heads * hidden) as isize, hidden as isize];
    let shape = [tokens, heads];
    let k = RowsMut::strided(found.slice_mut(), heads * hidden, &shape, &strides);
    norm.apply(scalar(), Io::in_place(k)).expect("valid");
    let expected = norm.oracle(&packed, DType::Bf16).y;
    for at in 0..packed.len() {
        let is_k = at / (heads * hidden) % 3 == 1;
        let e = if is_k { expected.bits(at) } else { packed.bits(at) };
        assert_eq!(found.bits(at), e, "element {at}, of k: {is_k}");
    }
}
