//! The gradients of BatchNorm, GroupNorm and InstanceNorm: the stored bits of `spec/golden` and what the oracle says, on
//! every level, in both layouts, in place and not, with saved statistics and without, on any number of threads.
#![allow(dead_code)] // of what is shared with `channels.rs`

#[path = "channels/call.rs"]
mod call;
#[path = "backward_planes/gradients.rs"]
mod gradients;
#[path = "backward_planes/micro_batches.rs"]
mod micro_batches;
#[path = "backward_planes/refused.rs"]
mod refused;
mod support;

use call::{Call, How, SHAPES, WAYS, norms};
use gradients::{Backward, Found};
use isonorm::{Cpu, Level};
use isonorm_testing::DType;
use isonorm_testing::golden::{self, Case, Norm};
use isonorm_testing::oracle::Eps;
use isonorm_testing::oracle::forward::Channels;
use isonorm_testing::values::Kind;
use proptest::prelude::*;
use support::{Tensor, assert_same_bits, one};

fn golden_call(case: &Case) -> Option<Backward> {
    let call = Call::of(case)?;
    let dy = case.input("dy").map(Tensor::new)?;
    let dtype = |name: &str| case.out.get(name).map(|array| array.dtype);
    Some(Backward { call, dy, dx_type: dtype("dx")?, dweight: dtype("dweight"), dbias: dtype("dbias") })
}

#[test]
fn the_stored_bits_on_every_level_in_every_form() {
    let mut calls = 0;
    for case in golden::backward().iter().chain(&golden::shared()) {
        let Some(backward) = golden_call(case) else { continue };
        for (level, how) in Level::available().flat_map(|level| WAYS.map(|how| (level, how))) {
            for saved in [false, true].into_iter().filter(|_| backward.can(how)) {
                for (name, found) in backward.run(how, one(level), saved).named() {
                    let label = format!("{} {name}, {how:?}, saved {saved}, level {level}", case.name);
                    assert_same_bits(&label, backward.call.shape.spatial, &Tensor::new(&case.out[name]), found);
                }
                calls += 1;
            }
        }
    }
    println!("{calls} calls");
    assert!(calls > 4000, "only {calls} calls");
}

fn assert_same(backward: &Backward, label: &str, expected: &Found, found: &Found) {
    let Call { norm, shape, groups, x, eps, .. } = &backward.call;
    let label = format!("{norm:?} {shape:?} in {groups}, {:?}, {eps:?}, {label}", x.dtype());
    for ((name, expected), (_, found)) in expected.named().into_iter().zip(found.named()) {
        assert_same_bits(&format!("{label}, {name}"), shape.spatial, expected, found);
    }
}

/// On every level, in every form, each with saved statistics or without.
fn assert_oracle(backward: &Backward) {
    let expected = backward.oracle();
    for (i, (level, how)) in Level::available().flat_map(|level| WAYS.map(|how| (level, how))).enumerate() {
        if backward.can(how) {
            let found = backward.run(how, one(level), i % 2 == 0);
            assert_same(backward, &format!("{how:?}, level {level}"), &expected, &found);
        }
    }
}

#[test]
fn every_shape_is_as_the_oracle_says() {
    for (samples, channels, spatial) in SHAPES {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in norms(shape) {
            assert_oracle(&Backward::new(norm, shape, groups, DType::F32, Kind::Normal));
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
                    let mut backward = Backward::new(norm, shape, groups, dtype, kind);
                    backward.call.eps = Eps { value, outside };
                    assert_oracle(&backward);
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
            let mut backward = Backward::new(norm, shape, groups, DType::F32, Kind::Normal);
            if let Tensor::F32(x) = &mut backward.call.x {
                for (i, x) in x.iter_mut().enumerate() {
                    *x *= [1.0, 1e30, 1e-30, 1e38, 1e-42][i / spatial % channels % 5];
                }
            }
            for (value, outside) in [(1e-30, false), (0.0, true), (1e-20, true)] {
                backward.call.eps = Eps { value, outside };
                assert_oracle(&backward);
            }
        }
    }
}

/// Sums and products that vanish: the signs of zeros are those of the definition.
#[test]
fn zeros_have_the_signs_of_the_definition() {
    for (samples, channels, spatial) in [(3, 5, 1), (17, 33, 1), (2, 3, 2), (3, 40, 31), (2, 3, 33), (1, 4, 129)] {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in norms(shape) {
            let mut backward = Backward::new(norm, shape, groups, DType::F32, Kind::Normal);
            backward.call.weight = None;
            for dy in [|_| -0.0f32, |_| 0.0, |i| [0.0, -0.0, -0.0][i % 3], |i| [1e-45, -1e-45, -0.0, 0.0][i % 4]] {
                backward.dy = Tensor::F32((0..samples * channels * spatial).map(dy).collect());
                assert_oracle(&backward);
            }
            backward.call.x =
                Tensor::F32((0..samples * channels * spatial).map(|i| [1e-3, 0.0, -0.0][i % 3]).collect());
            backward.call.eps.value = 1e30;
            assert_oracle(&backward);
        }
    }
}

#[test]
fn tensors_of_other_types_are_as_the_oracle_says() {
    let narrow = [DType::F32, DType::F16, DType::Bf16];
    let at = |i: usize| narrow[i % 3];
    for (samples, channels, spatial) in [(7, 6, 1), (5, 6, 9), (2, 6, 1031), (2, 40, 65)] {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in norms(shape) {
            for i in 0..27 {
                let (x, dy, dx) = (at(i), at(i / 3), at(i / 9));
                let mut backward = Backward::new(norm, shape, groups, x, Kind::Normal);
                backward.dy = Backward::new(norm, shape, groups, dy, Kind::Normal).dy;
                backward.dx_type = dx;
                (backward.dweight, backward.dbias) = (Some(at(i + 1)), Some(at(i + 2)));
                backward.call.weight = Call::new(norm, shape, groups, at(i + i / 3), Kind::Normal).weight;
                backward.call.offset = if i % 2 == 0 { 0.0 } else { 1.0 };
                assert_oracle(&backward);
            }
            let mut backward = Backward::new(norm, shape, groups, DType::F64, Kind::Normal);
            backward.call.weight = Call::new(norm, shape, groups, DType::Bf16, Kind::Normal).weight;
            (backward.dweight, backward.dbias) = (Some(DType::F16), None);
            assert_oracle(&backward);
            backward.call.weight = Call::new(norm, shape, groups, DType::F32, Kind::Normal).weight;
            (backward.dweight, backward.dbias) = (None, Some(DType::F32));
            assert_oracle(&backward);
            (backward.call.weight, backward.dbias) = (None, None);
            assert_oracle(&backward);
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
            let backward = Backward::new(norm, shape, groups, DType::F32, Kind::Offset);
            let expected = backward.run(WAYS[0], Cpu::new().threads(1), false);
            for (i, how) in WAYS.into_iter().enumerate() {
                for threads in 1..=4 {
                    let found = backward.run(how, Cpu::new().threads(threads), (i + threads) % 2 == 0);
                    assert_same(&backward, &format!("{how:?}, {threads} threads"), &expected, &found);
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
            let backward = Backward::new(norm, shape, groups, DType::F32, Kind::Normal);
            let expected = backward.run(How { last: false, in_place: true }, Cpu::new(), true);
            for how in [WAYS[0], WAYS[1]] {
                assert_same(&backward, &format!("{how:?}"), &expected, &backward.run(how, Cpu::new(), true));
            }
        }
    }
}

prop_compose! {
    fn any_backward()(
        (per, groups, samples) in (1..9usize, 1..9usize, 1..20usize),
        spatial in prop_oneof![Just(1usize), 2..70usize, 100..1100usize],
        (norm, kind, types) in (0..3usize, 0..Kind::ALL.len(), prop::array::uniform6(0..3usize)),
        flags in any::<[bool; 6]>(),
        eps in prop::sample::select(vec![1e-5, 0.0, 1.0, 1e-30]),
    ) -> Backward {
        let narrow = [DType::F32, DType::F16, DType::Bf16];
        let wide = flags[0] && flags[1];
        let dtype = |i: usize| if wide { DType::F64 } else { narrow[types[i]] };
        let norm = [Norm::GroupNorm, Norm::BatchNormTrain, Norm::BatchNormEval][norm];
        let samples = if norm == Norm::BatchNormTrain { samples + 1 } else { samples };
        let shape = Channels { samples, channels: per * groups, spatial };
        let groups = if norm == Norm::GroupNorm { groups } else { shape.channels };
        let of = |i| Backward::new(norm, shape, groups, dtype(i), Kind::ALL[kind]);
        let mut backward = of(0);
        backward.dy = if flags[2] { of(0).dy } else { of(1).dy };
        backward.dx_type = if flags[2] { dtype(0) } else { dtype(2) };
        backward.call.eps = Eps { value: eps, outside: flags[3] };
        backward.call.weight = if flags[4] { of(3).call.weight } else { None };
        backward.call.offset = if flags[4] && flags[5] { 1.0 } else { 0.0 };
        backward.dweight = (types[4] > 0).then(|| dtype(4));
        backward.dbias = (types[5] > 0).then(|| dtype(5));
        backward
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_call_is_as_the_oracle_says(backward in any_backward(), way in 0..4usize, threads in 1..4usize, saved: bool) {
        let how = if backward.can(WAYS[way]) { WAYS[way] } else { How { in_place: false, ..WAYS[way] } };
        let found = backward.run(how, Cpu::new().threads(threads), saved);
        assert_same(&backward, &format!("{how:?}, saved {saved}"), &backward.oracle(), &found);
    }
}
