//! BatchNorm, GroupNorm and InstanceNorm: the stored bits of `spec/golden` and what the oracle says, on every
//! level, in both layouts, in place and not, on any number of threads.

#[path = "channels/call.rs"]
mod call;
#[path = "channels/instances.rs"]
mod instances;
#[path = "channels/refused.rs"]
mod refused;
mod support;

use call::{Call, Found, How, SHAPES, WAYS, norms};
use isonorm::{Cpu, Level};
use isonorm_testing::DType;
use isonorm_testing::golden::{self, Case, Norm};
use isonorm_testing::oracle::Eps;
use isonorm_testing::oracle::forward::Channels;
use isonorm_testing::values::Kind;
use support::{Tensor, assert_same_bits, one};

/// Outputs under the names of the golden files.
fn named(found: &Found) -> Vec<(&'static str, &Tensor)> {
    let [mean, var, rstd] = &found.reported;
    let mut all = vec![("y", &found.y), ("mean", mean), ("var", var), ("rstd", rstd)];
    if let Some((mean, var)) = &found.running {
        all.extend([("running_mean", mean), ("running_var", var)]);
    }
    all
}

fn golden_call(case: &Case) -> Option<Call> {
    case.out.get("y")?;
    Call::of(case)
}

#[test]
fn the_stored_bits_on_every_level_in_every_form() {
    let mut calls = 0;
    for case in golden::forward().iter().chain(&golden::shared()) {
        let Some(call) = golden_call(case) else { continue };
        for (level, how) in Level::available().flat_map(|level| WAYS.map(|how| (level, how))) {
            if !call.can(how) {
                continue;
            }
            let found = call.run(how, one(level));
            for (name, found) in named(&found) {
                if let Some(expected) = case.out.get(name) {
                    let label = format!("{} {name}, {how:?}, level {level}", case.name);
                    assert_same_bits(&label, call.shape.spatial, &Tensor::new(expected), found);
                }
            }
            calls += 1;
        }
    }
    println!("{calls} calls");
    assert!(calls > 1000, "only {calls} calls");
}

/// Compares everything but, of an evaluation, the statistics, of which the oracle says nothing.
fn assert_same(call: &Call, label: &str, expected: &Found, found: &Found) {
    let label = format!("{:?} {:?} in {}, {:?}, {label}", call.norm, call.shape, call.groups, call.x.dtype());
    for ((name, expected), (_, found)) in named(expected).into_iter().zip(named(found)) {
        if expected.len() > 0 {
            assert_same_bits(&format!("{label}, {name}"), call.shape.spatial, expected, found);
        }
    }
}

fn assert_oracle(call: &Call) {
    let expected = call.oracle();
    for (level, how) in Level::available().flat_map(|level| WAYS.map(|how| (level, how))) {
        if call.can(how) {
            let found = call.run(how, one(level));
            assert_same(call, &format!("{how:?}, level {level}, eps {:?}", call.eps), &expected, &found);
        }
    }
}

fn shapes() -> impl Iterator<Item = Channels> {
    SHAPES.into_iter().map(|(samples, channels, spatial)| Channels { samples, channels, spatial })
}

#[test]
fn every_shape_is_as_the_oracle_says() {
    for shape in shapes() {
        for (norm, groups) in norms(shape) {
            assert_oracle(&Call::new(norm, shape, groups, DType::F32, Kind::Normal));
        }
    }
}

#[test]
fn every_kind_of_values_is_as_the_oracle_says() {
    for (samples, channels, spatial) in [(19, 6, 1), (5, 6, 7), (3, 6, 130)] {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in norms(shape) {
            for (dtype, kind) in DType::ALL.into_iter().flat_map(|dtype| Kind::ALL.map(|kind| (dtype, kind))) {
                for (value, outside) in [(1e-5, false), (0.0, false), (1e-30, true), (0.0, true)] {
                    let mut call = Call::new(norm, shape, groups, dtype, kind);
                    call.eps = Eps { value, outside };
                    assert_oracle(&call);
                }
            }
        }
    }
}

/// Channels of different sizes side by side, so that the range rule takes some lanes and leaves others.
#[test]
fn the_range_rule_is_each_channels_own() {
    for (samples, channels, spatial) in [(9, 40, 1), (5, 40, 3), (2, 40, 140), (20, 70, 24)] {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in norms(shape) {
            let mut call = Call::new(norm, shape, groups, DType::F32, Kind::Normal);
            if let Tensor::F32(x) = &mut call.x {
                for (i, x) in x.iter_mut().enumerate() {
                    *x *= [1.0, 1e30, 1e-30, 1e38, 1e-42][i / spatial % channels % 5];
                }
            }
            call.eps.value = 1e-30;
            assert_oracle(&call);
        }
    }
}

/// Sums of zeros of either sign: those of fewer than 32 positions end with lanes that no position reached.
#[test]
fn planes_of_zeros_have_the_signs_of_the_definition() {
    for (samples, channels, spatial) in [(3, 5, 1), (17, 33, 1), (2, 3, 2), (3, 40, 31), (2, 3, 33), (1, 4, 129)] {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in norms(shape) {
            let mut call = Call::new(norm, shape, groups, DType::F32, Kind::Normal);
            (call.weight, call.bias) = (None, None);
            let mean = (0..channels).map(|c| if c % 2 == 0 { 0.0 } else { -0.0 }).collect();
            call.running = call.running.map(|_| (Tensor::F32(mean), Tensor::F32(vec![1.0; channels])));
            for zero in [|_| -0.0f32, |_| 0.0, |i| if i % 3 == 0 { 0.0 } else { -0.0 }] {
                call.x = Tensor::F32((0..samples * channels * spatial).map(zero).collect());
                assert_oracle(&call);
            }
        }
    }
}

/// Values around 1000 that differ in their last places, so that the correction of the variance is as large as itself.
#[test]
fn planes_that_differ_by_the_rounding_of_their_mean_are_as_the_oracle_says() {
    let mut source = isonorm_testing::values::SplitMix64::new(6);
    for (samples, channels, spatial) in [(19, 40, 1), (3, 40, 7), (2, 34, 150)] {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in norms(shape) {
            let mut call = Call::new(norm, shape, groups, DType::F32, Kind::Normal);
            let mut near = || 1000.0 + 2f32.powi(-14) * source.below(4) as f32;
            call.x = Tensor::F32((0..samples * channels * spatial).map(|_| near()).collect());
            call.eps.value = 0.0;
            assert_oracle(&call);
        }
    }
}

#[test]
fn parameters_and_results_of_other_types_and_options_are_as_the_oracle_says() {
    let narrow = [DType::F32, DType::F16, DType::Bf16];
    for (samples, channels, spatial) in [(7, 6, 1), (5, 6, 9), (2, 6, 131)] {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in norms(shape) {
            for (x, parameter, y) in
                narrow.into_iter().flat_map(|x| narrow.map(|p| (x, p, narrow[(p as usize + 1) % 3])))
            {
                let mut call = Call::new(norm, shape, groups, x, Kind::Normal);
                let of = Call::new(norm, shape, groups, parameter, Kind::Normal);
                (call.weight, call.bias, call.running, call.y_type) = (of.weight, of.bias, of.running, y);
                assert_oracle(&call);
                (call.weight, call.biased, call.momentum) = (None, true, 0.75);
                assert_oracle(&call);
                call.bias = None;
                assert_oracle(&call);
                call.weight = Call::new(norm, shape, groups, parameter, Kind::Normal).weight;
                call.offset = 1.0;
                assert_oracle(&call);
            }
            let mut call = Call::new(norm, shape, groups, DType::F64, Kind::Normal);
            let of = Call::new(norm, shape, groups, DType::Bf16, Kind::Normal);
            (call.weight, call.bias, call.running) = (of.weight, of.bias, of.running);
            assert_oracle(&call);
        }
    }
}

#[test]
fn threads_change_nothing() {
    for (samples, channels, spatial) in
        [(6000, 70, 1), (64, 100, 49), (1, 40, 9000), (40, 33, 300), (3, 300, 400), (34, 520, 49)]
    {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in norms(shape) {
            let call = Call::new(norm, shape, groups, DType::F32, Kind::Offset);
            let expected = call.run(WAYS[0], Cpu::new().threads(1));
            for how in WAYS {
                for threads in 1..=4 {
                    let found = call.run(how, Cpu::new().threads(threads));
                    assert_same(&call, &format!("{how:?}, {threads} threads"), &expected, &found);
                }
            }
        }
    }
}

/// Large enough to be written past the caches, which what is done in place never is.
#[test]
fn results_beyond_the_caches_are_the_same() {
    for (samples, channels, spatial) in [(70_000, 70, 1), (16, 300, 1000), (2000, 50, 49), (40, 2100, 50)] {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in [(Norm::BatchNormTrain, channels), (Norm::BatchNormEval, channels), (Norm::GroupNorm, 10)]
        {
            let call = Call::new(norm, shape, groups, DType::F32, Kind::Normal);
            let expected = call.run(How { last: false, in_place: true }, Cpu::new());
            for how in [WAYS[0], WAYS[1]] {
                assert_same(&call, &format!("{how:?}"), &expected, &call.run(how, Cpu::new()));
            }
        }
    }
}
