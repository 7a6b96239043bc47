//! The running statistics of InstanceNorm: what the oracle says, of either layout, on any number of threads.

use isonorm::{Cpu, Error, InstanceNorm, PlaneIo, Planes, PlanesMut, Running, Stats};
use isonorm_testing::DType;
use isonorm_testing::golden::{Array, Norm};
use isonorm_testing::oracle::forward::{self as oracle, Channels};
use isonorm_testing::oracle::{Compute, batch_sum};
use isonorm_testing::values::Kind;

use crate::call::{Call, How, SHAPES};
use crate::support::{Saved, Tensor, assert_same_bits};

/// The means over the samples of the reported statistics, in batch order, and how the running ones follow them.
fn expected<C: Compute>(call: &Call, running: &[Tensor; 2]) -> [Tensor; 2] {
    let Channels { samples, channels, spatial } = call.shape;
    let [mean, var, _] = call.oracle().reported;
    let average = |of: &Tensor| -> Vec<C> {
        let of = of.array().widened::<C>();
        let channel = |c: usize| of.iter().skip(c).step_by(channels).copied().collect::<Vec<C>>();
        (0..channels).map(|c| batch_sum(&channel(c)) / C::count(samples)).collect()
    };
    let new = [average(&mean), oracle::unbiased(&average(&var), spatial)];
    let moved = |old: &Tensor, new: &[C]| {
        let moved = oracle::running_update(&old.array().widened::<C>(), new, call.momentum);
        Tensor::new(&Array::from_values(old.dtype(), &moved))
    };
    [moved(&running[0], &new[0]), moved(&running[1], &new[1])]
}

fn found(call: &Call, running: &[Tensor; 2], last: bool, cpu: Cpu<'_>) -> [Tensor; 2] {
    let Channels { samples, channels, spatial } = call.shape;
    let x = call.placed(How { last, in_place: false }, &call.x);
    let (mut y, mut saved) = (x.clone(), Saved::new(x.dtype(), samples * channels));
    let io = match last {
        true => PlaneIo::new(
            Planes::channels_last(x.slice(), channels, spatial),
            PlanesMut::channels_last(y.slice_mut(), channels, spatial),
        ),
        false => PlaneIo::new(
            Planes::channels_first(x.slice(), channels, spatial),
            PlanesMut::channels_first(y.slice_mut(), channels, spatial),
        ),
    };
    InstanceNorm::new(channels).on(cpu).apply(io.stats(saved.stats_mut())).expect("valid");
    let [mut mean, mut var] = running.clone();
    let mut both = Running::new(mean.slice_mut(), var.slice_mut());
    both.instances(call.momentum, saved.stats_ref(), spatial).expect("valid");
    [mean, var]
}

#[test]
fn instances_move_running_statistics_as_the_oracle_says() {
    let shapes = SHAPES.map(|(samples, channels, spatial)| Channels { samples, channels, spatial });
    for shape in shapes.into_iter().filter(|shape| shape.spatial > 1) {
        for (x, running) in [
            (DType::F32, DType::F32),
            (DType::F16, DType::Bf16),
            (DType::Bf16, DType::F32),
            (DType::F32, DType::F16),
            (DType::F64, DType::F64),
            (DType::F64, DType::F32),
        ] {
            // With a momentum of 1 every bit of the sums is seen.
            for (kind, momentum) in [(Kind::Normal, 0.3), (Kind::Offset, 1.0), (Kind::Tiny, 1.0)] {
                let call = Call { momentum, ..Call::new(Norm::GroupNorm, shape, shape.channels, x, kind) };
                let running = [8, 9].map(|seed| Tensor::values(running, Kind::Normal, seed, shape.channels));
                let is_f64 = x == DType::F64;
                let expected = if is_f64 { expected::<f64>(&call, &running) } else { expected::<f32>(&call, &running) };
                for (last, threads) in [(false, 1), (true, 1), (false, 3), (true, 2)] {
                    let found = found(&call, &running, last, Cpu::new().threads(threads));
                    for (name, expected, found) in [("mean", &expected[0], &found[0]), ("var", &expected[1], &found[1])]
                    {
                        let label = format!("{name}, {shape:?}, {x:?}, {kind:?}, last {last}, {threads} threads");
                        assert_same_bits(&label, shape.channels, expected, found);
                    }
                }
            }
        }
    }
}

#[test]
fn instances_that_do_not_fit_are_refused_and_nothing_is_written() {
    let stats = [Stats { scale: 1.0f32, ..Stats::default() }; 6];
    let refused = |momentum: f64, stats: &[Stats<f32>], count: usize| {
        let (mut mean, mut var) = ([7.0f32; 3], [7.0f32; 3]);
        let refused = Running::new(&mut mean, &mut var).instances(momentum, stats, count);
        assert_eq!((mean, var), ([7.0; 3], [7.0; 3]));
        refused.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(refused(0.1, &stats[..4], 2).starts_with("stats has 4 elements, which is not a whole number of samples"));
    assert_eq!(refused(f64::NAN, &stats, 2), "momentum is NaN, expected a finite number");
    assert_eq!(refused(f64::NAN, &[], 2), "momentum is NaN, expected a finite number");
    assert_eq!(refused(0.1, &stats, 1), Error::TooFewValues { count: 1 }.to_string());
    assert_eq!(refused(0.1, &[], 0), "", "no samples are no error");
    let (mut short, mut wide, mut var) = ([7.0f32; 2], [7.0f64; 3], [7.0f32; 3]);
    let mut both = Running::new(&mut wide, &mut var);
    assert!(matches!(both.instances(0.1, &stats, 2), Err(Error::Type { name: "running_mean", .. })));
    let mut both = Running::new(&mut var, &mut short);
    assert!(matches!(both.instances(0.1, &stats, 2), Err(Error::ParameterLen { name: "running_var", .. })));
    assert_eq!((short, wide, var), ([7.0; 2], [7.0; 3], [7.0; 3]));
}
