//! Backward calls that are refused, of which nothing is written, and calls on nothing.

use isonorm::{
    BatchNorm, Cpu, Error, GroupNorm, InstanceNorm, PlaneBackwardIo, Planes, PlanesMut, Slice, SliceMut, Stats,
};

const X: [f32; 12] = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 1.0, 2.0, 3.0, 5.0, 8.0, 14.0];

fn x() -> Planes<'static> {
    Planes::channels_first(&X, 3, 2)
}

/// The error of a call that gets x, dy and dx of three channels and two positions, and gradients of three.
fn refusal(call: impl FnOnce(PlaneBackwardIo<'_>) -> Result<(), Error>) -> String {
    let (mut dx, mut dweight, mut dbias) = ([7.0f32; 12], [7.0f32; 3], [7.0f32; 3]);
    let io = PlaneBackwardIo::new(x(), x(), PlanesMut::channels_first(&mut dx, 3, 2));
    let refused = call(io.dweight(&mut dweight).dbias(&mut dbias)).expect_err("a call that must be refused");
    let written = dx.iter().chain(&dweight).chain(&dbias).any(|v| *v != 7.0);
    assert!(!written, "something was written: {refused}");
    refused.to_string()
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let replaced = |dy: Planes<'_>, dx: PlanesMut<'_>| {
        let io = PlaneBackwardIo::new(x(), dy, dx);
        InstanceNorm::new(3).backward(io).expect_err("a call that must be refused").to_string()
    };
    let (mut dx, wide) = ([7.0f32; 18], [1.0f64; 12]);
    fn first(dx: &mut [f32]) -> PlanesMut<'_> {
        PlanesMut::channels_first(dx, 3, 2)
    }
    let six = || Planes::channels_first(&X[..6], 3, 2);
    assert_eq!(replaced(six(), first(&mut dx[..12])), "dy has shape [1, 3, 2], expected [2, 3, 2] as x has");
    assert_eq!(replaced(x(), first(&mut dx)), "dx has shape [3, 3, 2], expected [2, 3, 2] as x has");
    let other = Planes::channels_first(&X, 2, 3);
    assert_eq!(replaced(other, first(&mut dx[..12])), "dy has shape [2, 2, 3], expected [2, 3, 3] as the norm has");
    let last = Planes::channels_last(&X, 3, 2);
    assert_eq!(replaced(last, first(&mut dx[..12])), "dy is channels last, expected channels first as x is");
    let odd = "dy has 11 elements, which is not a whole number of samples of 6 elements";
    assert_eq!(replaced(Planes::channels_first(&X[..11], 3, 2), first(&mut dx[..12])), odd);
    let message = replaced(Planes::channels_first(&wide, 3, 2), first(&mut dx[..12]));
    assert_eq!(
        message,
        "dy is f64, which does not go with x of f32: f64 goes with f64 alone, and an f64 dy needs x in f64"
    );
    let mut wide = [7.0f64; 12];
    let message = replaced(x(), PlanesMut::channels_first(&mut wide, 3, 2));
    assert!(message.starts_with("dx is f64, which does not go with x of f32"), "{message}");
    let layout = PlanesMut::channels_last(&mut dx[..12], 3, 2);
    assert_eq!(replaced(x(), layout), "dx is channels last, expected channels first as x is");
    assert!(dx.iter().all(|v| *v == 7.0) && wide.iter().all(|v| *v == 7.0));
    let mut dy = [half::bf16::ONE; 12];
    let io = PlaneBackwardIo::in_place(x(), PlanesMut::channels_first(&mut dy, 3, 2));
    let refused = BatchNorm::new(3).train_backward(io).expect_err("dy of another type");
    assert_eq!(refused.to_string(), "dy is bf16, expected f32");
    let io = PlaneBackwardIo::in_place(x(), PlanesMut::channels_first(&mut dx[..6], 3, 2));
    let refused = BatchNorm::new(3).train_backward(io).expect_err("a dy that is too short");
    assert_eq!(refused.to_string(), "dy has shape [1, 3, 2], expected [2, 3, 2] as x has");
    assert_eq!(dy, [half::bf16::ONE; 12]);
}

#[test]
fn gradients_of_parameters_that_do_not_fit_are_refused() {
    let (mut four, mut wide) = ([7.0f32; 4], [7.0f64; 3]);
    let (four_ref, wide_ref) = (std::cell::RefCell::new(&mut four), std::cell::RefCell::new(&mut wide));
    let one = |call: &dyn Fn(PlaneBackwardIo<'_>) -> Result<(), Error>| refusal(call);
    let message = one(&|io| BatchNorm::new(3).train_backward(io.dweight(&mut **four_ref.borrow_mut())));
    assert_eq!(message, "dweight has 4 elements, expected 3: one for each channel");
    let message = one(&|io| InstanceNorm::new(3).backward(io.dbias(&mut **four_ref.borrow_mut())));
    assert_eq!(message, "dbias has 4 elements, expected 3: one for each channel");
    let message = one(&|io| GroupNorm::new(1, 3).backward(io.dbias(&mut **wide_ref.borrow_mut())));
    assert!(message.starts_with("dbias is f64, which does not go with x of f32"), "{message}");
    assert!(four == [7.0; 4] && wide == [7.0; 3]);
}

#[test]
fn statistics_that_do_not_fit_are_refused() {
    let (four, wide) = ([Stats::<f32>::default(); 4], [Stats::<f64>::default(); 3]);
    let (batch, ones) = (BatchNorm::new(3), [1.0f32; 3]);
    let of_f64 = [
        refusal(|io| batch.train_backward(io.stats(&wide))),
        refusal(|io| batch.evaluate_backward(io.stats(&wide), &ones, &ones)),
        refusal(|io| GroupNorm::new(3, 3).backward(io.stats(&wide))),
    ];
    assert_eq!(of_f64, ["stats is f64, expected f32"; 3]);
    let batch = refusal(|io| BatchNorm::new(3).train_backward(io.stats(&four)));
    assert_eq!(batch, "stats has 4 elements, expected 3: one for each channel");
    let evaluated = refusal(|io| BatchNorm::new(3).evaluate_backward(io.stats(&four), &[0.0f32; 3], &[1.0f32; 3]));
    assert_eq!(evaluated, batch);
    let groups = refusal(|io| GroupNorm::new(1, 3).backward(io.stats(&four)));
    assert_eq!(groups, "stats has 4 elements, expected 2: one for each group of each sample");
    let instances = refusal(|io| InstanceNorm::new(3).backward(io.stats(&four)));
    assert_eq!(instances, "stats has 4 elements, expected 6: one for each group of each sample");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let (five, wide, ones) = ([1.0f32; 5], [1.0f64; 3], [1.0f32; 3]);
    let train = |norm: BatchNorm<'_>| refusal(|io| norm.train_backward(io));
    let evaluate = |norm: BatchNorm<'_>, mean: &[f32]| refusal(|io| norm.evaluate_backward(io, mean, &ones));
    let group = |norm: GroupNorm<'_>| refusal(|io| norm.backward(io));
    let (batch, groups) = (BatchNorm::new(3), GroupNorm::new(1, 3));
    let eps = "eps is -1, expected a finite number of at least 0";
    assert_eq!([train(batch.eps(-1.0)), evaluate(batch.eps(-1.0), &ones), group(groups.eps(-1.0))], [eps; 3]);
    let threads = Cpu::new().threads(0);
    let message = "threads is 0, expected at least 1";
    assert_eq!([train(batch.on(threads)), evaluate(batch.on(threads), &ones), group(groups.on(threads))], [message; 3]);
    let weight = "weight has 5 elements, expected 3: one for each channel";
    assert_eq!(
        [train(batch.weight(&five)), evaluate(batch.weight(&five), &ones), group(groups.weight(&five))],
        [weight; 3]
    );
    assert_eq!(evaluate(batch, &five), "running_mean has 5 elements, expected 3: one for each channel");
    assert!(train(batch.weight(&wide)).starts_with("weight is f64, which does not go with x of f32"));
    assert!(group(groups.weight_offset(1.0)).starts_with("weight_offset is 1, but there is no weight"));
    assert_eq!(train(BatchNorm::new(4)), "x has shape [2, 3, 2], expected [2, 4, 2] as the norm has");
    assert_eq!(group(GroupNorm::new(2, 3)), "2 groups do not divide 3 channels: choose a divisor of 3");
    assert_eq!(group(GroupNorm::new(0, 3)), "0 groups do not divide 3 channels: choose a divisor of 3");
    let var = refusal(|io| batch.evaluate_backward(io, &ones, &wide));
    assert!(var.starts_with("running_var is f64, which does not go with x of f32"), "{var}");
}

#[test]
fn one_value_for_each_channel_is_refused_in_training_alone() {
    let (x, mut dx) = ([1.0f32, 2.0, 3.0], [7.0f32; 3]);
    fn io<'a>(x: &'a [f32; 3], dx: &'a mut [f32; 3]) -> PlaneBackwardIo<'a> {
        let planes = || Planes::channels_first(x, 3, 1);
        PlaneBackwardIo::new(planes(), planes(), PlanesMut::channels_first(dx, 3, 1))
    }
    let norm = BatchNorm::new(3).eps(0.0);
    assert_eq!(norm.train_backward(io(&x, &mut dx)), Err(Error::TooFewValues { count: 1 }));
    assert_eq!(dx, [7.0; 3]);
    assert_eq!(norm.evaluate_backward(io(&x, &mut dx), &[0.0f32; 3], &[0.25f32; 3]), Ok(()));
    assert_eq!(dx, [2.0, 4.0, 6.0]);
}

trait Backward: Fn(PlaneBackwardIo<'_>) -> Result<(), Error> {}
impl<F: Fn(PlaneBackwardIo<'_>) -> Result<(), Error>> Backward for F {}

#[test]
fn gradients_over_no_sample_are_positive_zeros() {
    for (channels, spatial) in [(3, 2), (3, 0), (40, 1), (0, 2), (0, 0)] {
        for last in [false, true] {
            let (ones, none) = (vec![1.0f32; channels], [0.0f32; 0]);
            let calls: [&dyn Backward; 4] = [
                &|io| BatchNorm::new(channels).train_backward(io),
                &|io| BatchNorm::new(channels).evaluate_backward(io, &ones, &ones),
                &|io| InstanceNorm::new(channels).backward(io),
                &|io| GroupNorm::new(channels.min(1), channels).backward(io),
            ];
            for (i, call) in calls.into_iter().enumerate() {
                let (mut dweight, mut dbias) = (vec![-0.0f32; channels], vec![half::f16::ONE; channels]);
                let mut dx = [0.0f32; 0];
                let layout = if last { Planes::channels_last } else { Planes::channels_first };
                let planes = || layout(Slice::from(&none), channels, spatial);
                let layout = if last { PlanesMut::channels_last } else { PlanesMut::channels_first };
                let io = PlaneBackwardIo::new(planes(), planes(), layout(SliceMut::from(&mut dx), channels, spatial));
                let result = call(io.dweight(&mut dweight).dbias(&mut dbias));
                assert_eq!(result, Ok(()), "call {i}, {channels} channels, {spatial} positions");
                assert!(dweight.iter().all(|v| v.to_bits() == 0) && dbias.iter().all(|v| v.to_bits() == 0), "call {i}");
            }
        }
    }
}
