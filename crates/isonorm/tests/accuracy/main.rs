//! Accuracy against the exact result, in ulps, and never worse than PyTorch's on the same data.
//!
//! `spec/accuracy/make_torch.py` says how the data is made, what is measured and what can be asserted.

#[path = "../support/mod.rs"]
mod support;

mod data;
mod double;

use std::collections::BTreeMap;

use data::{Case, EPS, Errors, GROUPS};
use double::Double;
use isonorm::{BatchNorm, GroupNorm, LayerNorm, PlaneIo, Planes, PlanesMut, RmsNorm};
use isonorm_testing::DType;
use isonorm_testing::values::irwin_hall;
use support::Tensor;

fn y(case: &Case, [x, weight, bias]: &[Tensor; 3]) -> Tensor {
    let mut y = Tensor::sentinel(case.dtype, x.len());
    let (channels, spatial) = (case.shape[1], case.shape[2..].iter().product());
    let planes = || Planes::channels_first(x.slice(), channels, spatial);
    let (weight, bias) = (weight.slice(), bias.slice());
    let result = match case.norm.as_str() {
        "rms_norm" => RmsNorm::new(channels).eps(EPS).weight(weight).forward(x.slice(), y.slice_mut()),
        "layer_norm" => LayerNorm::new(channels).eps(EPS).weight(weight).bias(bias).forward(x.slice(), y.slice_mut()),
        "group_norm" => {
            let to = PlanesMut::channels_first(y.slice_mut(), channels, spatial);
            GroupNorm::new(GROUPS, channels).eps(EPS).weight(weight).bias(bias).forward(planes(), to)
        }
        _ => {
            let to = PlanesMut::channels_first(y.slice_mut(), channels, spatial);
            let norm = BatchNorm::new(channels).eps(EPS).weight(weight).bias(bias);
            norm.train(PlaneIo::new(planes(), to), None)
        }
    };
    result.unwrap_or_else(|e| panic!("{case:?}: {e}"));
    y
}

/// The formula in f64, two passes; enough for all narrower types.
fn exact_f64(case: &Case, row: &[(f64, f64, f64)]) -> Vec<Double> {
    let n = row.len() as f64;
    let mean = if case.norm == "rms_norm" { 0.0 } else { row.iter().map(|r| r.0).sum::<f64>() / n };
    let var = row.iter().map(|r| (r.0 - mean) * (r.0 - mean)).sum::<f64>() / n;
    let root = (var + EPS).sqrt();
    row.iter().map(|(x, w, b)| Double::from((x - mean) / root * w + b)).collect()
}

fn exact_double(case: &Case, row: &[(f64, f64, f64)]) -> Vec<Double> {
    let n = Double::from(row.len() as f64);
    let sum = |terms: &mut dyn Iterator<Item = Double>| terms.fold(Double::from(0.0), |sum, term| sum + term);
    let mean =
        if case.norm == "rms_norm" { Double::from(0.0) } else { sum(&mut row.iter().map(|r| Double::from(r.0))) / n };
    let d: Vec<Double> = row.iter().map(|r| Double::from(r.0) - mean).collect();
    let var = sum(&mut d.iter().map(|d| *d * *d)) / n;
    let rstd = Double::from(1.0) / (var + Double::from(EPS)).sqrt();
    d.iter().zip(row).map(|(d, (_, w, b))| *d * rstd * Double::from(*w) + Double::from(*b)).collect()
}

/// One unit in the last place of a type at `scale`.
fn ulp(dtype: DType, scale: f64) -> f64 {
    let (precision, least_normal, _) = dtype.format();
    let exponent = if scale == 0.0 { least_normal } else { scale.abs().log2().floor() as i32 };
    2f64.powi(exponent.max(least_normal) - precision + 1)
}

fn errors(case: &Case) -> Errors {
    let inputs = case.inputs();
    let y = y(case, &inputs).array().widened::<f64>();
    let [x, weight, bias] = inputs.map(|tensor| tensor.array().widened::<f64>());
    let mut found = Errors { max_ulps: 0.0, mean_ulps: 0.0, max_row: 0.0, max_bounded: 0.0 };
    for places in case.rows() {
        let row: Vec<(f64, f64, f64)> = places.iter().map(|(at, p)| (x[*at], weight[*p], bias[*p])).collect();
        let exact = if case.dtype == DType::F64 { exact_double(case, &row) } else { exact_f64(case, &row) };
        let largest = exact.iter().fold(0.0, |most: f64, v| most.max(v.high.abs()));
        for (((at, _), (_, w, b)), exact) in places.iter().zip(&row).zip(&exact) {
            let error = ((y[*at] - exact.high) - exact.low).abs();
            assert!(error.is_finite(), "{case:?}: y[{at}] is {}", y[*at]);
            let scale = exact.high.abs().max(b.abs());
            let ulps = error / ulp(case.dtype, scale);
            found.max_ulps = found.max_ulps.max(ulps);
            let x_hat_of_1 = if case.norm == "rms_norm" { 0.0 } else { w.abs() };
            found.max_bounded = found.max_bounded.max(error / ulp(case.dtype, scale.max(x_hat_of_1)));
            found.mean_ulps += ulps / y.len() as f64;
            found.max_row = found.max_row.max(error / largest);
        }
    }
    found
}

#[test]
fn the_data_is_what_pytorch_saw() {
    let file = data::file();
    let first = irwin_hall(0, 3);
    for (i, value) in first.into_iter().enumerate() {
        assert_eq!(Some(value), file["first_values_of_seed_0"][i].as_f64(), "value {i}");
    }
    assert_eq!(data::cases().len(), 4 * 4 * 2 * 4);
}

/// The most that any result may be off, in ulps of the largest of |y|, |bias| and, where there is a mean, |weight|:
/// next to the mean x_hat cancels, so that its error, of a size with an x_hat of 1, stands beside a small y.
///
/// - 16-bit types: everything before the one rounding is f32, so half an ulp and f32's few ulps, which are
///   2^-13 of f16's and 2^-16 of bf16's.
/// - f32 and f64, RMSNorm: the mean square is off by a few roundings, which the root halves; root, reciprocal and
///   two products are a rounding of half an ulp each, of up to one ulp where the result is just above a power of
///   two: 5, if all fell the same way.
/// - f32 and f64, the others: the same, and `x - mean`, `- delta` and the sum with the bias are rounded too: 8.
fn bound(norm: &str, dtype: DType) -> f64 {
    match (dtype, norm) {
        (DType::F16, _) => 0.503,
        (DType::Bf16, _) => 0.501,
        (_, "rms_norm") => 5.0,
        _ => 8.0,
    }
}

#[test]
fn every_norm_is_within_its_bound_and_never_worse_than_pytorch() {
    let mut worst: BTreeMap<(String, String), [f64; 2]> = BTreeMap::new();
    let mut failures = Vec::new();
    for case in data::cases() {
        let found = errors(&case);
        let label = format!("{} {:?} {} n = {}", case.norm, case.dtype, case.kind, case.n);
        let Errors { max_ulps, mean_ulps, max_row, max_bounded } = found;
        let torch = case.torch;
        println!(
            "{label}: {max_bounded:.4} ulps of the terms; PyTorch's in brackets: max {max_ulps:.4} ({})",
            torch.max_ulps
        );
        println!(
            "    mean {mean_ulps:.4} ({}), of the row's largest {max_row:.3e} ({:.3e})",
            torch.mean_ulps, torch.max_row
        );
        let bound = bound(&case.norm, case.dtype);
        if max_bounded > bound {
            failures.push(format!("{label}: {max_bounded} ulps, bound {bound}"));
        }
        // A root, a quotient and two products are four roundings of at most 2^-p each.
        let allowed = torch.max_row.max(4.0 * 2f64.powi(-case.dtype.format().0));
        if max_row > allowed {
            failures.push(format!("{label}: {max_row:e} of the row's largest, allowed {allowed:e}"));
        }
        let worst = worst.entry((case.norm, format!("{:?}", case.dtype))).or_default();
        *worst = [worst[0].max(max_ulps), worst[1].max(torch.max_ulps)];
    }
    for ((norm, dtype), [ours, torch]) in worst {
        println!("| {norm} | {dtype} | {ours:.4} | {torch} |");
        if ours > torch {
            failures.push(format!("{norm} {dtype}: {ours} ulps, PyTorch {torch}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
