//! Calls that are refused, of which nothing is written, and calls on nothing.

use isonorm::{BatchNorm, Cpu, DType, Error, GroupNorm, InstanceNorm, PlaneIo, Planes, PlanesMut, Running, Stats};

const X: [f32; 12] = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 1.0, 2.0, 3.0, 5.0, 8.0, 14.0];

fn x() -> Planes<'static> {
    Planes::channels_first(&X, 3, 2)
}

/// The error of a call that gets y, running mean, running variance and statistics of three channels.
fn refusal(call: impl FnOnce(PlaneIo<'_>, Running<'_>) -> Result<(), Error>) -> String {
    let (mut y, mut mean, mut var) = ([7.0f32; 12], [7.0f32; 3], [7.0f32; 3]);
    let mut stats = [Stats { mean: 7.0f32, ..Stats::default() }; 3];
    let io = PlaneIo::new(x(), PlanesMut::channels_first(&mut y, 3, 2)).stats(&mut stats);
    let refused = call(io, Running::new(&mut mean, &mut var)).expect_err("a call that must be refused");
    let written = y.iter().chain(&mean).chain(&var).chain(stats.iter().map(|s| &s.mean)).any(|v| *v != 7.0);
    assert!(!written, "something was written: {refused}");
    refused.to_string()
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let norm = BatchNorm::new(3);
    let train = |norm: BatchNorm<'_>| refusal(|io, running| norm.train(io, Some(running)));
    let evaluate = |norm: BatchNorm<'_>, mean: &[f32]| refusal(|io, _| norm.evaluate(io, mean, &[1.0f32; 3]));
    let five = [1.0f32; 5];
    let wide = [1.0f64; 3];
    assert_eq!(train(norm.weight(&five)), "weight has 5 elements, expected 3: one for each channel");
    assert_eq!(evaluate(norm.bias(&five), &five[..3]), "bias has 5 elements, expected 3: one for each channel");
    assert_eq!(evaluate(norm, &five), "running_mean has 5 elements, expected 3: one for each channel");
    assert_eq!(
        train(norm.weight(&wide)),
        "weight is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 weight needs x in f64"
    );
    assert_eq!(train(norm.eps(-1.0)), "eps is -1, expected a finite number of at least 0");
    assert_eq!(evaluate(norm.eps(f64::NAN), &five[..3]), "eps is NaN, expected a finite number of at least 0");
    assert_eq!(train(norm.momentum(f64::INFINITY)), "momentum is inf, expected a finite number");
    assert_eq!(
        train(norm.momentum(1e39)),
        "momentum is 1000000000000000000000000000000000000000, expected a finite number"
    );
    assert_eq!(train(norm.on(Cpu::new().threads(0))), "threads is 0, expected at least 1");
    assert!(train(norm.weight_offset(1.0)).starts_with("weight_offset is 1, but there is no weight"));
    assert_eq!(train(BatchNorm::new(4)), "x has shape [2, 3, 2], expected [2, 4, 2] as the norm has");
    let var = refusal(|io, running| {
        let mut wide = [7.0f64; 3];
        norm.train(io, Some(Running::new(running.mean, &mut wide)))
    });
    assert!(var.starts_with("running_var is f64, which does not go with x of f32"), "{var}");
}

#[test]
fn groups_that_do_not_divide_the_channels_are_refused() {
    let groups = |groups| refusal(|io, _| GroupNorm::new(groups, 3).apply(io));
    assert_eq!(groups(2), "2 groups do not divide 3 channels: choose a divisor of 3");
    assert_eq!(groups(0), "0 groups do not divide 3 channels: choose a divisor of 3");
    assert_eq!(groups(6), "6 groups do not divide 3 channels: choose a divisor of 3");
    assert_eq!(groups(1), "stats has 3 elements, expected 2: one for each group of each sample");
    let norm = refusal(|io, _| InstanceNorm::new(3).apply(io));
    assert_eq!(norm, "stats has 3 elements, expected 6: one for each group of each sample");
}

#[test]
fn one_value_for_each_channel_is_refused_in_training_alone() {
    let (x, mut y) = ([1.0f32, 2.0, 3.0], [7.0f32; 3]);
    fn io<'a>(x: &'a [f32; 3], y: &'a mut [f32; 3]) -> PlaneIo<'a> {
        PlaneIo::new(Planes::channels_first(x, 3, 1), PlanesMut::channels_first(y, 3, 1))
    }
    assert_eq!(BatchNorm::new(3).train(io(&x, &mut y), None), Err(Error::TooFewValues { count: 1 }));
    assert_eq!(y, [7.0; 3]);
    let norm = BatchNorm::new(3).eps(0.0);
    assert_eq!(norm.evaluate(io(&x, &mut y), &[0.0f32; 3], &[1.0f32; 3]), Ok(()));
    assert_eq!(y, x);
}

#[test]
fn statistics_of_the_other_compute_type_are_refused() {
    let (mut y, mut stats) = (X, [Stats::<f64>::default(); 3]);
    let io = PlaneIo::in_place(PlanesMut::channels_first(&mut y, 3, 2)).stats(&mut stats);
    let refused = Err(Error::TypeIsNot { name: "stats", found: DType::F64, expected: DType::F32 });
    assert_eq!(BatchNorm::new(3).train(io, None), refused);
    assert_eq!(y, X);
}

#[test]
fn an_empty_batch_changes_nothing() {
    for (channels, spatial) in [(3, 2), (3, 0), (0, 2), (0, 0), (usize::MAX, 2)] {
        for last in [false, true] {
            let (mut mean, mut var) = (vec![7.0f32; channels.min(3)], vec![7.0f32; channels.min(3)]);
            let x = [0.0f32; 0];
            let io = || match last {
                true => PlaneIo::new(
                    Planes::channels_last(&x, channels, spatial),
                    PlanesMut::channels_last(&mut [0.0f32; 0], channels, spatial),
                ),
                false => PlaneIo::new(
                    Planes::channels_first(&x, channels, spatial),
                    PlanesMut::channels_first(&mut [0.0f32; 0], channels, spatial),
                ),
            };
            let norm = BatchNorm::new(channels);
            assert_eq!(norm.train(io(), None), Ok(()), "{channels} {spatial}");
            assert_eq!(InstanceNorm::new(channels).apply(io()), Ok(()), "{channels} {spatial}");
            if channels <= 3 {
                assert_eq!(norm.train(io(), Some(Running::new(&mut mean, &mut var))), Ok(()), "{channels} {spatial}");
                assert_eq!(norm.evaluate(io(), &mean, &var), Ok(()), "{channels} {spatial}");
                assert!(mean.iter().chain(&var).all(|v| *v == 7.0), "{channels} {spatial}");
            }
        }
    }
}

#[test]
fn a_cumulative_average_is_the_mean_of_all_batches() {
    let batches = [[1.0f32, 3.0], [5.0, 7.0], [3.0, 11.0]];
    let (mut mean, mut var) = ([9.0f32], [9.0f32]);
    for (seen, mut batch) in batches.into_iter().enumerate() {
        let io = PlaneIo::in_place(PlanesMut::channels_first(&mut batch, 1, 1));
        let norm = BatchNorm::new(1).cumulative(seen as u64).biased_running_var();
        norm.train(io, Some(Running::new(&mut mean, &mut var))).expect("valid");
    }
    // Means 2, 6, 7 and variances 1, 1, 16.
    assert!((mean[0] - 5.0).abs() < 1e-6 && (var[0] - 6.0).abs() < 1e-6, "{mean:?} {var:?}");
}
