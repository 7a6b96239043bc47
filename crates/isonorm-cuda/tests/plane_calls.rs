//! BatchNorm, GroupNorm and InstanceNorm from options to bits: checks, kernels, launches. Driver and compiler are
//! emulated; bits are the core's.
#![allow(dead_code, unsafe_code)] // of what is shared with the core's tests; an overlap

#[path = "../../isonorm/tests/channels/call.rs"]
mod call;
#[path = "../../isonorm/tests/backward_planes/gradients.rs"]
mod gradients;
#[path = "plane_calls/placed.rs"]
mod placed;
#[path = "plane_calls/random.rs"]
mod random;
mod support;

use call::{Call, How};
use gradients::Backward;
use isonorm_cuda::kernels::ChannelLaunch;
use isonorm_cuda::{
    BatchNorm, Error, GroupNorm, PlaneBackwardIo, PlaneIo, Planes, PlanesMut, Running, Slice, SliceMut,
};
use isonorm_testing::DType;
use isonorm_testing::golden::Norm;
use isonorm_testing::oracle::forward::Channels;
use isonorm_testing::values::{Kind, SplitMix64};
use placed::{Placed, check, stream};
use random::{Family, Source};
use support::core::{Tensor, assert_same_bits};
use support::gpu::Memory;

fn both_ways(norm: Norm, sizes: [usize; 3], groups: usize, dtype: DType, last: bool) {
    let [samples, channels, spatial] = sizes;
    let shape = Channels { samples, channels, spatial };
    let mut backward = Backward::new(norm, shape, groups, dtype, Kind::Offset);
    backward.call.biased = last;
    for in_place in [false, true] {
        check(&backward, How { last, in_place });
    }
}

#[test]
fn groups_have_the_bits_of_the_core() {
    both_ways(Norm::GroupNorm, [3, 6, 49], 2, DType::Bf16, false);
    both_ways(Norm::GroupNorm, [2, 8, 128], 1, DType::Bf16, false);
    both_ways(Norm::GroupNorm, [3, 4, 5], 4, DType::F32, true);
}

#[test]
fn batches_have_the_bits_of_the_core() {
    both_ways(Norm::BatchNormTrain, [5, 3, 20], 3, DType::F32, false);
    both_ways(Norm::BatchNormTrain, [40, 24, 1], 24, DType::Bf16, true);
    // So many samples of so few channels that blocks share them.
    both_ways(Norm::BatchNormTrain, [64, 2, 3], 2, DType::F32, false);
    both_ways(Norm::BatchNormTrain, [16, 4, 33], 4, DType::F32, true);
    both_ways(Norm::BatchNormEval, [5, 3, 20], 3, DType::F32, false);
    both_ways(Norm::BatchNormEval, [3, 4, 5], 4, DType::F32, true);
}

#[test]
fn random_calls() {
    let (channels, spatial) = (&[0, 1, 2, 3, 8, 12, 33], &[0, 1, 2, 5, 9]);
    let mut source = Source(SplitMix64::new(1));
    for _ in 0..80 {
        let (call, how) = source.call(&Family { x: DType::Bf16, others: &[DType::Bf16], channels, spatial });
        check(&call, how);
    }
}

#[test]
fn instances_move_running_statistics() {
    let (stream, shape) = (stream(), Channels { samples: 3, channels: 4, spatial: 5 });
    let call = Call::new(Norm::GroupNorm, shape, 4, DType::F32, Kind::Normal);
    let mut placed = Placed::new(&call, How { last: true, in_place: false }, &stream);
    placed.forward().expect("a valid call");
    let [mut mean, mut var] = [8, 9].map(|seed| Tensor::values(DType::F32, Kind::Normal, seed, 4));
    let [mut found_mean, mut found_var] = [&mean, &var].map(|tensor| Memory::of(stream.device(), tensor));
    let mut running = Running::new(found_mean.slice_mut(), found_var.slice_mut());
    running.instances(&stream, 0.3, placed.stats.slice(), 5).expect("a valid call");
    let Tensor::F32(saved) = placed.stats.read(&stream) else { panic!("f32 is computed in f32") };
    let stats = |[mean, delta, var, inv, scale]: &[f32; 5]| isonorm::Stats {
        mean: *mean,
        delta: *delta,
        var: *var,
        inv: *inv,
        scale: *scale,
    };
    let saved: Vec<_> = saved.as_chunks().0.iter().map(stats).collect();
    isonorm::Running::new(mean.slice_mut(), var.slice_mut()).instances(0.3, &saved, 5).expect("the core takes it");
    assert_same_bits(&"running mean", 1, &mean, &found_mean.read(&stream));
    assert_same_bits(&"running var", 1, &var, &found_var.read(&stream));
}

/// Nothing is written, but the parameters' gradients: +0.
#[test]
fn empty_batches() {
    let shape = Channels { samples: 0, channels: 3, spatial: 20 };
    for norm in [Norm::BatchNormTrain, Norm::BatchNormEval, Norm::GroupNorm] {
        let mut backward = Backward::new(norm, shape, 3, DType::F32, Kind::Normal);
        backward.dweight = Some(DType::Bf16);
        let call = &backward.call;
        let stream = stream();
        let mut placed = Placed::new(call, How { last: false, in_place: false }, &stream);
        let found = placed.forward().expect("a valid call");
        if norm == Norm::BatchNormTrain {
            let (before, after) = (call.running.as_ref(), found.running.as_ref());
            let (before, after) = (before.expect("given"), after.expect("given"));
            assert_same_bits(&"running mean", 1, &before.0, &after.0);
        }
        let found = placed.backward(&backward, false).expect("a valid call");
        let zero = Tensor::F32(vec![0.0; 3]);
        assert_same_bits(&format!("{norm:?}"), 1, &zero, &found.dbias.expect("it was asked for"));
    }
}

/// What is refused, in the core's words, before anything is queued: the output keeps what it held.
#[test]
fn refusals() {
    let stream = stream();
    let device = stream.device();
    let x = Memory::of(device, &Tensor::values(DType::F32, Kind::Normal, 1, 24));
    let wide = Memory::of(device, &Tensor::values(DType::F64, Kind::Normal, 1, 6));
    let mut y = Memory::empty(device, DType::F32, 24);
    let mut scratch = Memory::empty(device, DType::F32, 100);
    let before = y.read(&stream);
    let refused = |error: Error, expected: &str| assert!(error.to_string().contains(expected), "{error}");
    let mut group = |norm: GroupNorm<'_>, channels, expected: &str| {
        let y = PlanesMut::channels_first(y.slice_mut(), channels, 24 / channels);
        let io = PlaneIo::new(Planes::channels_first(x.slice(), channels, 24 / channels), y);
        refused(norm.forward(&stream, io).expect_err(expected), expected);
    };
    group(GroupNorm::new(4, 6), 6, "4 groups do not divide 6 channels");
    group(GroupNorm::new(2, 6), 3, "x has shape [1, 3, 8], expected [1, 6, 8] as the norm has");
    group(GroupNorm::new(2, 6).eps(-1.0), 6, "eps is -1, expected a finite number of at least 0");
    group(GroupNorm::new(2, 6).weight(wide.slice()), 6, "weight is f64, which does not go with x of f32");
    group(GroupNorm::new(2, 6).weight_offset(1.0), 6, "there is no weight to add it to");
    let planes = |spatial| Planes::channels_first(x.slice(), 24 / spatial, spatial);
    let last = PlaneIo::new(planes(4), PlanesMut::channels_last(y.slice_mut(), 6, 4));
    refused(GroupNorm::new(2, 6).forward(&stream, last).expect_err("a layout"), "y is channels last, expected");
    let io = PlaneIo::new(planes(1), PlanesMut::channels_first(y.slice_mut(), 24, 1)).scratch(scratch.slice_mut());
    refused(BatchNorm::new(24).train(&stream, io, None).expect_err("a count"), "has 1 value for each channel");
    let io = PlaneIo::new(planes(4), PlanesMut::channels_first(y.slice_mut(), 6, 4));
    let error = BatchNorm::new(6).train(&stream, io, None).expect_err("no scratch");
    assert_eq!(error, Error::Scratch { found: 0, expected: 72 });
    let io = PlaneIo::new(planes(4), PlanesMut::channels_first(y.slice_mut(), 6, 4)).scratch(scratch.slice_mut());
    let error = BatchNorm::new(6).momentum(f64::NAN).train(&stream, io, None).expect_err("a momentum");
    refused(error, "momentum is NaN, expected a finite number");
    // SAFETY: the call is refused.
    let shifted = unsafe { SliceMut::from_raw(x.slice().pointer().wrapping_byte_add(8), 20, isonorm::DType::F32) };
    // SAFETY: as above.
    let first = unsafe { Slice::from_raw(x.slice().pointer(), 20, isonorm::DType::F32) };
    let io = PlaneIo::new(Planes::channels_first(first, 2, 5), PlanesMut::channels_first(shifted, 2, 5));
    let error = GroupNorm::new(1, 2).forward(&stream, io).expect_err("an overlap");
    assert_eq!(error, Error::Overlap { name: "y", other: "x" });
    assert_same_bits(&"y", 24, &before, &y.read(&stream));
}

/// Rows that are too long are refused before the first of a call's kernels is queued: nobody reads the tensors, which are
/// not there. Planes are a block's where they are too long for a warp.
#[test]
fn the_longest_rows() {
    let stream = stream();
    let (device, len) = (stream.device(), 1 << 28);
    // SAFETY: the calls are refused.
    let slice = |at: usize, len| unsafe {
        Slice::from_raw(std::ptr::without_provenance_mut(at << 40), len, isonorm::DType::F32)
    };
    // SAFETY: as above.
    let out =
        |at: usize| unsafe { SliceMut::from_raw(std::ptr::without_provenance_mut(at << 40), len, isonorm::DType::F32) };
    let planes = |at, channels: usize| Planes::channels_first(slice(at, len), channels, len / channels);
    let mut dweight = Memory::empty(device, DType::F32, 1 << 10);
    let mut scratch = Memory::empty(device, DType::F32, 1 << 14);
    let before = scratch.read(&stream);
    let io = PlaneBackwardIo::new(
        planes(1, 1 << 10),
        planes(2, 1 << 10),
        PlanesMut::channels_first(out(3), 1 << 10, len >> 10),
    );
    let io = io.dweight(dweight.slice_mut()).stats(slice(4, 5));
    assert_eq!(GroupNorm::new(1, 1 << 10).backward(&stream, io), Err(Error::TooLong { hidden: len }));
    let mut dweight = Memory::empty(device, DType::F32, 1);
    let io = PlaneBackwardIo::new(planes(1, 1), planes(2, 1), PlanesMut::channels_first(out(3), 1, len));
    let io = io.dweight(dweight.slice_mut()).scratch(scratch.slice_mut());
    let result = BatchNorm::new(1).evaluate_backward(&stream, io, slice(4, 1), slice(5, 1));
    assert_eq!(result, Err(Error::TooLong { hidden: len }));
    assert_same_bits(&"scratch", 1, &before, &scratch.read(&stream));
    for samples in [1, 7, 8, 100] {
        let launch = ChannelLaunch::new([samples, 1, 1 << 25], isonorm::DType::F32, (8, 0))
            .expect("a plane that a block can do");
        assert_eq!(launch.shape.map(|shape| shape.warps), Some(8), "{samples} samples");
    }
    assert_eq!(GroupNorm::new(usize::MAX, usize::MAX).scratch(usize::MAX), usize::MAX);
    assert_eq!(BatchNorm::new(usize::MAX).scratch(), usize::MAX);
}
