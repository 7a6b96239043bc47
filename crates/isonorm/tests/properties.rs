//! What never changes a bit, for calls drawn at random.

mod support;

use isonorm::{Cpu, Io, Level, Rows, RowsMut};
use isonorm_testing::DType;
use isonorm_testing::oracle::Eps;
use isonorm_testing::values::Kind;
use proptest::prelude::*;
use support::{BOTH, Norm, Saved, Tensor, Which, assert_same_bits};

/// A norm with a weight or without, and rows for it.
#[derive(Clone, Debug)]
struct Call {
    norm: Norm,
    x: Tensor,
    rows: usize,
    level: Level,
}

fn call() -> impl Strategy<Value = Call> {
    let which = prop::sample::select(BOTH.to_vec());
    let dtype = prop::sample::select(DType::ALL.to_vec());
    let kind = prop::sample::select(Kind::ALL.to_vec());
    let level = prop::sample::select(Level::available().collect::<Vec<_>>());
    let hidden = prop_oneof![1..70usize, 100..300usize, 1000..1100usize];
    let eps = prop::sample::select(vec![(1e-5, false), (1e-6, true), (0.0, false)]);
    let made = (which, dtype, kind, level, hidden, 1..12usize, eps, any::<u64>(), any::<[bool; 2]>());
    made.prop_map(|(which, dtype, kind, level, hidden, rows, (value, outside), seed, [weighted, llama])| {
        let weight = weighted.then(|| Tensor::values(dtype, Kind::Normal, seed ^ 1, hidden));
        let llama = llama && which == Which::Rms;
        let norm = Norm { weight, llama, eps: Eps { value, outside }, ..Norm::new(which, hidden) };
        Call { norm, x: Tensor::values(dtype, kind, seed, rows * hidden), rows, level }
    })
}

impl Call {
    fn y(&self) -> Tensor {
        self.norm.forward(self.cpu(), &self.x, self.x.dtype())
    }
    fn cpu(&self) -> Cpu<'static> {
        Cpu::new().level(self.level)
    }
    /// These rows of a tensor.
    fn rows_of(&self, tensor: &Tensor, rows: &[usize]) -> Tensor {
        let n = self.norm.hidden;
        tensor.gather(rows.iter().flat_map(|r| r * n..(r + 1) * n))
    }
}

/// A call that is large enough for threads: its rows over and over.
fn repeated(call: &Call) -> Tensor {
    let n = call.norm.hidden;
    let rows = 600_000 / n;
    let order: Vec<usize> = (0..rows).map(|r| r % call.rows).collect();
    call.rows_of(&call.x, &order)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_the_rows_changes_no_bit(call in call(), seed in any::<u64>()) {
        let mut order: Vec<usize> = (0..call.rows).collect();
        let mut source = isonorm_testing::values::SplitMix64::new(seed);
        (1..order.len()).rev().for_each(|i| order.swap(i, source.below(i + 1)));
        let x = call.rows_of(&call.x, &order);
        let y = call.norm.forward(call.cpu(), &x, x.dtype());
        assert_same_bits(&format!("{}, rows {order:?}", call.norm), call.norm.hidden, &call.rows_of(&call.y(), &order), &y);
    }

    #[test]
    fn splitting_the_batch_changes_no_bit(call in call(), at in any::<prop::sample::Index>()) {
        let at = at.index(call.rows + 1);
        let n = call.norm.hidden;
        let mut y = Tensor::sentinel(call.x.dtype(), call.x.len());
        for (start, end) in [(0, at), (at, call.rows)] {
            let io = Io::new(call.x.part(start * n, (end - start) * n), y.part_mut(start * n, (end - start) * n));
            call.norm.apply(call.cpu(), io).expect("valid");
        }
        assert_same_bits(&format!("{}, split at row {at}", call.norm), n, &call.y(), &y);
    }

    #[test]
    fn padding_changes_no_bit(call in call(), pads in [0..9usize, 0..9usize], dims in 0..3usize) {
        let (n, [x_pad, y_pad]) = (call.norm.hidden, pads);
        let padded = |pad: usize| (0..call.rows * (n + pad)).map(move |at| at / (n + pad) * n + (at % (n + pad)).min(n - 1));
        let x = call.x.gather(padded(x_pad));
        let mut y = Tensor::sentinel(x.dtype(), call.rows * (n + y_pad));
        // The same rows in one, two or three dimensions.
        let full = [1, call.rows, 1];
        let shape = [&full[1..2], &full[..2], &full[..]][dims];
        let [x_strides, y_strides] = [x_pad, y_pad].map(|pad| vec![(n + pad) as isize; shape.len()]);
        let from = Rows::strided(x.slice(), 0, shape, &x_strides);
        let to = RowsMut::strided(y.slice_mut(), 0, shape, &y_strides);
        call.norm.apply(call.cpu(), Io::new(from, to)).expect("valid");
        let places = (0..call.rows * n).map(|at| at / n * (n + y_pad) + at % n);
        assert_same_bits(&format!("{}, padded by {pads:?}", call.norm), n, &call.y(), &y.gather(places));
    }

    #[test]
    fn a_weight_of_one_and_a_bias_of_minus_zero_change_no_bit(call in call()) {
        let (n, dtype) = (call.norm.hidden, call.x.dtype());
        let constant = |value: f64| Some(Tensor::new(&isonorm_testing::golden::Array::from_values(dtype, &vec![value; n])));
        let norm = |weight, bias| Norm { weight, bias, ..call.norm.clone() };
        let plain = norm(None, None).forward(call.cpu(), &call.x, dtype);
        for (what, norm) in [
            ("weight 1", norm(constant(1.0), None)),
            ("weight 1, bias -0", norm(constant(1.0), constant(-0.0))),
            ("bias -0", norm(None, constant(-0.0))),
            ("weight 0 + 1", Norm { offset: 1.0, ..norm(constant(0.0), None) }),
        ] {
            assert_same_bits(&format!("{norm}: {what}"), n, &plain, &norm.forward(call.cpu(), &call.x, dtype));
        }
    }

    #[test]
    fn a_partial_of_the_whole_row_changes_no_bit(call in call()) {
        if call.norm.which == Which::Rms {
            let norm = Norm { partial: Some(call.norm.hidden), ..call.norm.clone() };
            assert_same_bits(&norm, norm.hidden, &call.y(), &norm.forward(call.cpu(), &call.x, call.x.dtype()));
        }
    }

    /// Without eps, x * 2^e has the y of x, and statistics that are scaled exactly.
    #[test]
    fn a_power_of_two_scales_exactly(call in call(), exponent in -40..40i32, wide in any::<bool>()) {
        let dtype = if wide { DType::F64 } else { DType::F32 };
        let (n, factor) = (call.norm.hidden, 2f64.powi(exponent));
        let weight = call.norm.weight.is_some().then(|| Tensor::values(dtype, Kind::Normal, 1, n));
        let norm = Norm { eps: Eps { value: 0.0, outside: call.norm.eps.outside }, weight, ..call.norm.clone() };
        let values = isonorm_testing::values::values(dtype, Kind::Normal, 9 + n as u64, call.rows * n);
        let tensor = |factor: f64| {
            let values: Vec<f64> = values.iter().map(|v| v * factor).collect();
            Tensor::new(&isonorm_testing::golden::Array::from_values(dtype, &values))
        };
        let run = |x: &Tensor| {
            let (mut y, mut saved) = (Tensor::sentinel(dtype, x.len()), Saved::new(dtype, call.rows));
            norm.apply(call.cpu(), Io::new(x.slice(), y.slice_mut()).stats(saved.stats_mut())).expect("valid");
            (y, saved.reported())
        };
        let ((y, [mean, var, rstd]), (scaled, [mean_scaled, var_scaled, rstd_scaled])) = (run(&tensor(1.0)), run(&tensor(factor)));
        assert_same_bits(&format!("{norm}, x * 2^{exponent}"), n, &y, &scaled);
        let times = |tensor: &Tensor, factor: f64| {
            let values: Vec<f64> = tensor.array().widened::<f64>().iter().map(|v| v * factor).collect();
            Tensor::new(&isonorm_testing::golden::Array::from_values(dtype, &values))
        };
        assert_same_bits(&format!("{norm}, mean * 2^{exponent}"), 1, &times(&mean, factor), &mean_scaled);
        assert_same_bits(&format!("{norm}, var * 4^{exponent}"), 1, &times(&var, factor * factor), &var_scaled);
        assert_same_bits(&format!("{norm}, rstd / 2^{exponent}"), 1, &times(&rstd, 1.0 / factor), &rstd_scaled);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_number_of_threads_changes_no_bit(call in call(), threads in 2..9usize) {
        let x = repeated(&call);
        let expected = call.norm.forward(call.cpu().threads(1), &x, x.dtype());
        let y = call.norm.forward(call.cpu().threads(threads), &x, x.dtype());
        assert_same_bits(&format!("{}, {threads} threads", call.norm), call.norm.hidden, &expected, &y);
    }
}
