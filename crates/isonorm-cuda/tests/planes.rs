//! The kernels of BatchNorm, GroupNorm and InstanceNorm, run on the CPU: the stored bits of `spec/golden`, and the
//! core's for any shape, layout, type and launch.
#![allow(dead_code)] // of what is shared with the core's tests

#[path = "../../isonorm/tests/channels/call.rs"]
mod call;
#[path = "../../isonorm/tests/backward_planes/gradients.rs"]
mod gradients;
#[path = "planes/launch.rs"]
mod launch;
mod support;

use call::{Call, WAYS};
use gradients::Backward;
use isonorm::{Level, Running};
use isonorm_testing::DType;
use isonorm_testing::golden::{self, Norm};
use isonorm_testing::oracle::Eps;
use isonorm_testing::oracle::forward::Channels;
use isonorm_testing::values::Kind;
use launch::{Gpu, instances};
use support::core::{Tensor, assert_same_bits, one};
use support::planes::PlaneLayout;

fn layouts(shape: Channels) -> [PlaneLayout; 4] {
    [
        PlaneLayout::first(shape),
        PlaneLayout::last(shape),
        PlaneLayout::with_gaps(shape),
        PlaneLayout::last_with_gaps(shape),
    ]
}

#[test]
fn golden_bits_of_forward() {
    let mut count = 0;
    for case in golden::forward().into_iter().chain(golden::shared()) {
        let Some(call) = Call::of(&case).filter(|_| case.out.contains_key("y")) else { continue };
        let layout = layouts(call.shape)[count % 4];
        let found = Gpu { layout, is_in_place: false, choice: count / 4 }.forward(&call);
        let running = found.running.iter().flat_map(|(mean, var)| [("running_mean", mean), ("running_var", var)]);
        let reported = ["mean", "var", "rstd"].into_iter().zip(&found.reported);
        for (name, found) in std::iter::once(("y", &found.y)).chain(reported).chain(running) {
            if let Some(expected) = case.out.get(name) {
                let label = format!("{} {name}, {layout:?}", case.name);
                assert_same_bits(&label, call.shape.spatial, &Tensor::new(expected), found);
            }
        }
        count += 1;
    }
    assert!(count > 100, "only {count} calls");
}

#[test]
fn golden_bits_of_backward() {
    let mut count = 0;
    for case in golden::backward().into_iter().chain(golden::shared()) {
        let Some((call, dy)) = Call::of(&case).zip(case.input("dy").map(Tensor::new)) else { continue };
        let dtype = |name: &str| case.out.get(name).map(|array| array.dtype);
        let Some(dx_type) = dtype("dx") else { continue };
        let backward = Backward { call, dy, dx_type, dweight: dtype("dweight"), dbias: dtype("dbias") };
        let layout = layouts(backward.call.shape)[count % 4];
        let found = Gpu { layout, is_in_place: false, choice: count / 4 }.backward(&backward, count % 3 == 0);
        for (name, found) in found.named() {
            let label = format!("{} {name}, {layout:?}", case.name);
            assert_same_bits(&label, backward.call.shape.spatial, &Tensor::new(&case.out[name]), found);
        }
        count += 1;
    }
    assert!(count > 100, "only {count} calls");
}

/// As the core has it: forward and backward.
fn check(backward: &Backward, gpu: Gpu) {
    let call = &backward.call;
    let label =
        format!("{:?} {:?} in {}, {:?}, {:?}, {gpu:?}", call.norm, call.shape, call.groups, call.x.dtype(), call.eps);
    let (expected, found) = (call.run(WAYS[0], one(Level::detect())), gpu.forward(call));
    assert_same_bits(&format!("{label}, y"), call.shape.spatial, &expected.y, &found.y);
    for (name, (expected, found)) in ["mean", "var", "rstd"].iter().zip(expected.reported.iter().zip(&found.reported)) {
        assert_same_bits(&format!("{label}, {name}"), 1, expected, found);
    }
    if let (Some(expected), Some(found)) = (&expected.running, &found.running) {
        assert_same_bits(&format!("{label}, running mean"), 1, &expected.0, &found.0);
        assert_same_bits(&format!("{label}, running var"), 1, &expected.1, &found.1);
    }
    let expected = backward.run(WAYS[0], one(Level::detect()), false);
    let found = gpu.backward(backward, gpu.choice.is_multiple_of(2));
    for ((name, expected), (_, found)) in expected.named().into_iter().zip(found.named()) {
        assert_same_bits(&format!("{label}, {name}"), call.shape.spatial, expected, found);
    }
}

/// Every norm of a shape: the groups are of all, of some and of single channels.
fn norms(shape: Channels) -> Vec<(Norm, usize)> {
    let c = shape.channels;
    let groups = (1..=c).filter(|g| c.is_multiple_of(*g) && (*g < 3 || *g == c || g * 2 == c));
    let mut norms: Vec<_> = groups.map(|groups| (Norm::GroupNorm, groups)).collect();
    norms.push((Norm::BatchNormEval, c));
    if shape.samples * shape.spatial > 1 {
        norms.push((Norm::BatchNormTrain, c));
    }
    norms
}

/// At the edges of vectors, leaves, warps and blocks.
const SHAPES: [(usize, usize, usize); 16] = [
    (2, 1, 1),
    (1, 3, 2),
    (17, 12, 1),
    (10, 6, 7),
    (33, 2, 9),
    (3, 10, 49),
    (2, 6, 127),
    (3, 4, 129),
    (20, 2, 31),
    (2, 2, 700),
    (1, 2, 1025),
    (9, 1, 1100),
    (2, 2, 3136),
    (1, 1, 9000),
    (514, 1, 2),
    (2, 8, 256),
];

fn any_shape(dtype: DType) {
    for (i, (samples, channels, spatial)) in SHAPES.into_iter().enumerate() {
        let shape = Channels { samples, channels, spatial };
        for (j, (norm, groups)) in norms(shape).into_iter().enumerate() {
            let kind = Kind::ALL[(i + j) % Kind::ALL.len()];
            let mut backward = Backward::new(norm, shape, groups, dtype, kind);
            backward.call.eps = Eps { value: [1e-5, 0.0, 1e-30][(i + j) % 3], outside: (i + j / 2) % 2 == 1 };
            backward.call.offset = f64::from(u8::from((i + j) % 4 == 1));
            if (i + j) % 4 == 3 {
                (backward.call.weight, backward.call.bias) = (None, None);
            }
            // Channels first and last.
            for k in [i + j, i + j + 1] {
                let layout = layouts(shape)[k % 4];
                check(&backward, Gpu { layout, is_in_place: k % 3 == 0, choice: i / 2 + j });
            }
        }
    }
}

#[test]
fn any_shape_f32() {
    any_shape(DType::F32);
}

#[test]
fn any_shape_f64() {
    any_shape(DType::F64);
}

#[test]
fn any_shape_f16() {
    any_shape(DType::F16);
}

#[test]
fn any_shape_bf16() {
    any_shape(DType::Bf16);
}

/// Channels of different sizes side by side, so that the range rule takes some and leaves others.
#[test]
fn the_range_rule_is_each_channels_own() {
    for (samples, channels, spatial) in [(9, 8, 1), (5, 8, 3), (2, 6, 140)] {
        let shape = Channels { samples, channels, spatial };
        for (norm, groups) in norms(shape) {
            let mut backward = Backward::new(norm, shape, groups, DType::F32, Kind::Normal);
            if let Tensor::F32(x) = &mut backward.call.x {
                for (i, x) in x.iter_mut().enumerate() {
                    *x *= [1.0, 1e30, 1e-30, 1e38, 1e-42][i / spatial % channels % 5];
                }
            }
            for (i, (value, outside)) in [(1e-30, false), (0.0, true)].into_iter().enumerate() {
                backward.call.eps = Eps { value, outside };
                check(&backward, Gpu { layout: layouts(shape)[i], is_in_place: false, choice: i });
            }
        }
    }
}

/// Samples that differ in size, on several blocks.
#[test]
fn the_range_rule_sees_all_samples() {
    let shape = Channels { samples: 70, channels: 2, spatial: 3 };
    let mut backward = Backward::new(Norm::BatchNormTrain, shape, 2, DType::F32, Kind::Normal);
    if let Tensor::F32(x) = &mut backward.call.x {
        x[64 * 2 * 3..].iter_mut().for_each(|x| *x *= 1e30);
    }
    for choice in [0, 1, 2, 4] {
        let layout = if choice == 4 { PlaneLayout::first(shape) } else { PlaneLayout::last(shape) };
        check(&backward, Gpu { layout, is_in_place: false, choice });
    }
}

#[test]
fn tensors_of_other_types() {
    let narrow = [DType::F32, DType::F16, DType::Bf16];
    let at = |i: usize| narrow[i % 3];
    let shape = Channels { samples: 3, channels: 6, spatial: 19 };
    for (norm, groups) in norms(shape) {
        for i in 0..9 {
            let of = |dtype| Backward::new(norm, shape, groups, dtype, Kind::Normal);
            let mut backward = of(at(i));
            (backward.dy, backward.dx_type) = (of(at(i / 3)).dy, at(i + 1));
            (backward.dweight, backward.dbias) = (Some(at(i + 1)), Some(at(i + 2)));
            backward.call.y_type = at(i / 3);
            (backward.call.weight, backward.call.bias) = (of(at(i + 2)).call.weight, of(at(i + 1)).call.bias);
            backward.call.running = of(at(i + 1)).call.running;
            check(&backward, Gpu { layout: layouts(shape)[i % 4], is_in_place: false, choice: 0 });
        }
        let mut backward = Backward::new(norm, shape, groups, DType::F64, Kind::Normal);
        backward.call.weight = Backward::new(norm, shape, groups, DType::Bf16, Kind::Normal).call.weight;
        backward.call.running = Backward::new(norm, shape, groups, DType::F16, Kind::Normal).call.running;
        (backward.dweight, backward.dbias) = (Some(DType::F16), Some(DType::F32));
        check(&backward, Gpu { layout: PlaneLayout::first(shape), is_in_place: false, choice: 0 });
    }
}

#[test]
fn running_statistics_of_instances() {
    for (i, dtype) in DType::ALL.into_iter().enumerate() {
        for (samples, momentum) in [(1, 0.3), (16, 1.0), (33, 1.0), (300, 0.1)] {
            let shape = Channels { samples, channels: 5, spatial: 3 };
            let kind = [Kind::Normal, Kind::Tiny, Kind::Offset][i % 3];
            let call = Call::new(Norm::GroupNorm, shape, shape.channels, dtype, kind);
            let mut saved = Gpu { layout: PlaneLayout::first(shape), is_in_place: false, choice: 0 }.statistics(&call);
            let other = if dtype == DType::F64 { DType::F32 } else { DType::Bf16 };
            let expected = [dtype, other].map(|dtype| Tensor::values(dtype, Kind::Normal, 8, shape.channels));
            let found = instances(&mut saved, shape, momentum, &expected);
            let [mut mean, mut var] = expected;
            let stats = saved.stats_ref();
            let mut running = Running::new(mean.slice_mut(), var.slice_mut());
            running.instances(momentum, stats, shape.spatial).expect("the core takes the call");
            assert_same_bits(&format!("{shape:?} {dtype:?}, running mean"), 1, &mean, &found[0]);
            assert_same_bits(&format!("{shape:?} {dtype:?}, running var"), 1, &var, &found[1]);
        }
    }
}

#[test]
fn an_empty_batch_has_gradients_of_plus_zero() {
    let shape = Channels { samples: 0, channels: 3, spatial: 4 };
    let mut backward = Backward::new(Norm::BatchNormTrain, shape, 3, DType::F32, Kind::Normal);
    backward.dy = Tensor::sentinel(DType::F32, 0);
    let found = Gpu { layout: PlaneLayout::first(shape), is_in_place: false, choice: 0 }.backward(&backward, true);
    let zero = Tensor::F32(vec![0.0; 3]);
    for (name, found) in found.named().into_iter().filter(|(name, _)| *name != "dx") {
        assert_same_bits(&name, 1, &zero, found);
    }
}
