//! The gradients against the slope of the forward pass, in f64: no formula for them enters.
//!
//! Along a direction u, the slope of `sum(dy * forward(x + t * u))` at t = 0 is `sum(dx * u)`; and so for weight and
//! bias. The slope is the central difference, extrapolated once (Richardson), with values that make `x + t * u` exact.

use isonorm_testing::DType;
use isonorm_testing::values::irwin_hall;

use crate::call::{Call, Norm};

/// A step in units of x's deviation. What extrapolation leaves is of size `STEP^4` = 2^-44 times a fifth derivative,
/// which is some hundreds where a row is short; rounding brings 2^-53 of y, over the step: 2^-42.
const STEP: f64 = 1.0 / 2048.0;

/// How far a slope may be from its gradient, as a part of the sum of all |products|: some 40 times the 2^-42 above,
/// ten times the largest that was measured.
const BOUND: f64 = 1e-11;

const ROWS: usize = 3;

/// Values of 24 bits, and directions of 13, so that sums of x and multiples of a direction by a step are exact.
fn values(seed: u64, n: usize, scale: f64, shift: f64) -> Vec<f64> {
    irwin_hall(seed, n).iter().map(|v| f64::from((v + shift) as f32) * scale).collect()
}

fn direction(seed: u64, n: usize, scale: f64) -> Vec<f64> {
    irwin_hall(seed, n).iter().map(|v| (v * 1024.0).round() / 1024.0 * scale).collect()
}

fn moved(from: &[f64], along: &[f64], t: f64) -> Vec<f64> {
    from.iter().zip(along).map(|(v, u)| v + t * u).collect()
}

fn products(a: &[f64], b: &[f64]) -> impl Iterator<Item = f64> {
    a.iter().zip(b).map(|(a, b)| a * b)
}

/// The slope of `sum(dy * y(t))` at 0.
fn slope(dy: &[f64], y: impl Fn(f64) -> Vec<f64>) -> f64 {
    let central = |h: f64| {
        let (after, before) = (y(h), y(-h));
        let change: Vec<f64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        products(dy, &change).sum::<f64>() / (2.0 * h)
    };
    (4.0 * central(STEP / 2.0) - central(STEP)) / 3.0
}

/// How far the slope is from the gradient along a direction.
fn distance(slope: f64, gradient: &[f64], direction: &[f64]) -> f64 {
    let size: f64 = products(gradient, direction).map(f64::abs).sum();
    (slope - products(gradient, direction).sum::<f64>()).abs() / size
}

/// The largest distance of dx, dweight and dbias from the slopes along three directions each.
fn distances(call: &Call, scale: f64, shift: f64) -> [f64; 3] {
    let n = ROWS * call.channels * call.spatial;
    let (x, dy) = (values(1, n, scale, shift), values(2, n, 1.0, 0.0));
    let found = call.backward(&x, &dy);
    let mut most = [0.0f64; 3];
    for seed in 10..13 {
        let along = direction(seed, n, scale);
        let along_channels = direction(seed + 10, call.channels, 1.0);
        let of_x = slope(&dy, |t| call.forward(&moved(&x, &along, t)));
        most[0] = most[0].max(distance(of_x, &found.dx, &along));
        for (at, gradient) in [(1, &found.dweight), (2, &found.dbias)] {
            let of = slope(&dy, |t| {
                let mut call = call.clone();
                let parameter = if at == 1 { &mut call.weight } else { &mut call.bias };
                // The gradient is the same where there is none: a weight of 1, less what is added to it; a bias of 0.
                let absent = if at == 1 { 1.0 - call.offset } else { 0.0 };
                let from = parameter.take().unwrap_or_else(|| vec![absent; call.channels]);
                *parameter = Some(moved(&from, &along_channels, t));
                call.forward(&x)
            });
            most[at] = most[at].max(distance(of, gradient, &along_channels));
        }
    }
    most
}

/// Every norm with every choice of parameters, eps and saved statistics.
fn calls(scale: f64) -> Vec<Call> {
    let norms =
        [(Norm::Rms, 37, 1), (Norm::Layer, 150, 1), (Norm::Group, 6, 7), (Norm::Instance, 5, 9), (Norm::Batch, 4, 11)];
    let mut all = Vec::new();
    for (norm, channels, spatial) in norms {
        for choice in 0..16 {
            let mut call = Call::new(norm, DType::F64, channels, spatial);
            call.groups = if norm == Norm::Group { 2 } else { call.groups };
            (call.outside, call.saves) = (choice & 1 == 1, choice & 2 == 2);
            // As large as the deviation, so that what eps does to the gradient is not lost: 0 where its square is.
            call.eps = 0.25 * if call.outside { scale } else { (scale * scale).min(1.0) };
            let with = choice >> 2;
            call.weight = (with > 0).then(|| values(3, channels, 1.0, 0.0));
            call.offset = if with == 2 { 1.0 } else { 0.0 };
            call.bias = (with == 3).then(|| values(4, channels, 1.0, 0.0));
            if norm == Norm::Rms {
                all.push(Call { partial: Some(11), ..call.clone() });
                all.push(Call { llama: true, ..call.clone() }); // f64 rounded to f64
            }
            all.push(call);
        }
    }
    all
}

fn assert_slopes(calls: &[Call], scale: f64, shift: f64) {
    let mut most = [0.0f64; 3];
    for call in calls {
        let found = distances(call, scale, shift);
        for (i, name) in crate::data::NAMES.iter().enumerate() {
            assert!(found[i] < BOUND, "{call:?} of {scale:e} N({shift}, 1): {name} is {:e} from the slope", found[i]);
            most[i] = most[i].max(found[i]);
        }
    }
    let [dx, dweight, dbias] = most;
    println!("x of {scale:e} N({shift}, 1): dx {dx:.1e}, dweight {dweight:.1e}, dbias {dbias:.1e} from the slope");
}

#[test]
fn gradients_are_slopes_of_the_forward_pass() {
    assert_slopes(&calls(1.0), 1.0, 0.0);
}

#[test]
fn gradients_are_slopes_where_the_mean_is_a_thousand_deviations() {
    let calls: Vec<Call> = calls(1.0).into_iter().filter(|call| call.norm != Norm::Rms).collect();
    assert_slopes(&calls, 1.0, 1000.0);
}

#[test]
fn gradients_are_slopes_under_the_range_rule() {
    let large = 2f64.powi(664); // 8e199: its square overflows
    for scale in [large, 1.0 / large] {
        assert_slopes(&calls(scale), scale, 0.0);
    }
}

#[test]
fn gradients_are_slopes_in_evaluation() {
    let batch = calls(1.0).into_iter().filter(|call| call.norm == Norm::Batch && !call.saves);
    let calls: Vec<Call> = batch
        .map(|mut call| {
            let var = irwin_hall(6, call.channels).iter().map(|v| v.abs() + 0.5).collect();
            call.running = Some([values(5, call.channels, 1.0, 0.0), var]);
            call
        })
        .collect();
    assert_slopes(&calls, 1.0, 0.0);
}
