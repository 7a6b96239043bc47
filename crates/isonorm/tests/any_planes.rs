//! Any channels, positions, groups, lengths, types and options of the channel-wise norms: done or refused, never a
//! panic, and nothing is written by what is refused.

mod support;

use isonorm::{BatchNorm, Cpu, Error, GroupNorm, InstanceNorm, PlaneIo, Planes, PlanesMut, Running};
use isonorm_testing::DType;
use isonorm_testing::golden::Array;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use support::{Saved, Tensor};

fn size() -> impl Strategy<Value = usize> {
    let edges = vec![usize::MAX, usize::MAX - 1, isize::MAX as usize, 1 << 63, 1 << 32, 1 << 31, 1 << 62];
    prop_oneof![14 => 0..5usize, 2 => 0..40usize, 1 => prop::sample::select(edges)]
}

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F32, DType::F32, DType::F32, DType::Bf16, DType::F16, DType::F64])
}

/// The parameters' lengths are as the channels, or any.
type Parameter = Option<(DType, usize)>;

#[derive(Clone, Debug)]
struct Call {
    norm: usize,
    channels: usize,
    groups: usize,
    spatial: usize,
    x: (DType, usize),
    y: (DType, usize),
    last: [bool; 2],
    in_place: bool,
    parameters: [Parameter; 4],
    stats: Option<(bool, usize)>,
    numbers: [f64; 3],
    flags: [bool; 2],
    threads: usize,
}

fn call() -> impl Strategy<Value = Call> {
    let fitting = (1..4usize, 1..5usize, prop_oneof![Just(1usize), 0..6usize], 0..4usize, dtype());
    (fitting, any::<[bool; 5]>(), prop::bool::weighted(0.7), strange()).prop_map(|(fitting, flags, fits, mut call)| {
        let (per, groups, spatial, samples, dtype) = fitting;
        [call.in_place, call.flags[0], call.flags[1], ..] = flags;
        if fits {
            let channels = per * groups;
            (call.channels, call.groups, call.spatial) = (channels, groups, spatial);
            (call.x, call.y) = ((dtype, samples * channels * spatial), (dtype, samples * channels * spatial));
            call.last = [flags[3]; 2];
            call.parameters = [flags[4], flags[3], true, true].map(|given| given.then_some((dtype, channels)));
            (call.numbers, call.threads) = ([1e-5, 0.0, 0.1], 1);
            call.stats = None;
        }
        call
    })
}

fn strange() -> impl Strategy<Value = Call> {
    let number = || prop::sample::select(vec![1e-5, 0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 5e-324, 1e-300]);
    let parameter = || prop::option::of((dtype(), 0..40usize));
    let tensor = || (dtype(), prop_oneof![0..100usize, Just(24)]);
    let parameters = [parameter(), parameter(), parameter(), parameter()];
    let options = ([number(), number(), number()], prop::sample::select(vec![1, 2, 0, usize::MAX]));
    let stats = prop::option::of((any::<bool>(), 0..20usize));
    ((0..4usize, size(), size(), size()), tensor(), tensor(), any::<[bool; 2]>(), parameters, stats, options).prop_map(
        |((norm, channels, groups, spatial), x, y, last, parameters, stats, (numbers, threads))| {
            let (in_place, flags) = (false, [false; 2]);
            Call { norm, channels, groups, spatial, x, y, last, in_place, parameters, stats, numbers, flags, threads }
        },
    )
}

/// The options that all norms share.
macro_rules! with_options {
    ($call:expr, $parameters:expr, $norm:expr) => {{
        let cpu = Cpu::new().threads($call.threads);
        let mut norm = $norm.eps($call.numbers[0]).weight_offset($call.numbers[1]).on(cpu);
        norm = if $call.flags[0] { norm.eps_outside() } else { norm };
        norm = if let Some(weight) = &$parameters[0] { norm.weight(weight.slice()) } else { norm };
        if let Some(bias) = &$parameters[1] { norm.bias(bias.slice()) } else { norm }
    }};
}

impl Call {
    /// The call, and whatever it may have written.
    fn run(&self) -> (Result<(), Error>, Vec<Array>, Vec<Array>) {
        let x = Tensor::sentinel(self.x.0, self.x.1);
        let mut y = Tensor::sentinel(self.y.0, self.y.1);
        let given = self.parameters.map(|p| p.map(|(dtype, len)| Tensor::sentinel(dtype, len)));
        let mut running = [2, 3].map(|i| given[i].clone().unwrap_or(Tensor::F32(vec![])));
        let (wide, sets) = self.stats.unwrap_or_default();
        let mut saved = Saved::new(if wide { DType::F64 } else { DType::F32 }, sets);
        let written = |y: &Tensor, running: &[Tensor; 2], saved: &Saved| {
            [&[y.array()][..], &running.each_ref().map(Tensor::array), &saved.reported().map(|s| s.array())].concat()
        };
        let before = written(&y, &running, &saved);
        let from = if self.last[0] { Planes::channels_last } else { Planes::channels_first };
        let to = if self.last[1] { PlanesMut::channels_last } else { PlanesMut::channels_first };
        let to = to(y.slice_mut(), self.channels, self.spatial);
        let x = from(x.slice(), self.channels, self.spatial);
        let io = if self.in_place { PlaneIo::in_place(to) } else { PlaneIo::new(x, to) };
        let io = if self.stats.is_some() { io.stats(saved.stats_mut()) } else { io };
        let batch = with_options!(self, given, BatchNorm::new(self.channels)).momentum(self.numbers[2]);
        let [mean, var] = &mut running;
        let result = match self.norm {
            0 => with_options!(self, given, GroupNorm::new(self.groups, self.channels)).apply(io),
            1 => with_options!(self, given, InstanceNorm::new(self.channels)).apply(io),
            2 => batch.evaluate(io, mean.slice(), var.slice()),
            _ if self.flags[1] => batch.train(io, None),
            _ => batch.train(io, Some(Running::new(mean.slice_mut(), var.slice_mut()))),
        };
        (result, before, written(&y, &running, &saved))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_call_is_done_or_refused(call in call()) {
        if let (Err(error), before, after) = call.run() {
            prop_assert_eq!(before, after, "written, then refused: {}", error);
            prop_assert!(!error.to_string().is_empty());
        }
    }
}

/// Both kinds must occur often, or the test above tests one of them alone.
#[test]
fn a_good_part_of_the_calls_is_done_and_a_good_part_refused() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let done = (0..1000).filter(|_| call().new_tree(&mut runner).expect("a call").current().run().0.is_ok()).count();
    assert!((300..800).contains(&done), "{done} of 1000 calls were done");
}

/// The very ends of the number line, one by one.
#[test]
fn the_largest_numbers_do_not_overflow() {
    let ends = [0, 1, 2, 3, 1 << 31, 1 << 32, 1 << 62, 1 << 63, isize::MAX as usize, usize::MAX];
    for (channels, spatial) in ends.into_iter().flat_map(|c| ends.map(|s| (c, s))) {
        for len in [0, 1, 6] {
            for last in [false, true] {
                for groups in [0, 1, channels / 2, channels] {
                    let (dtype, none) = (DType::F32, None);
                    let call = Call {
                        norm: 0,
                        channels,
                        groups,
                        spatial,
                        x: (dtype, len),
                        y: (dtype, len),
                        last: [last; 2],
                        in_place: false,
                        parameters: [none, none, Some((dtype, channels.min(6))), Some((dtype, channels.min(6)))],
                        stats: None,
                        numbers: [1e-5, 0.0, 0.1],
                        flags: [false; 2],
                        threads: 1,
                    };
                    for norm in 0..4 {
                        let _ = Call { norm, ..call.clone() }.run();
                    }
                }
            }
        }
    }
}
