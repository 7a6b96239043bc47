//! Valid calls over planes: every norm, type, option, layout, level and number of threads has the oracle's bits.
#![no_main]

#[path = "../../crates/isonorm/tests/channels/call.rs"]
mod call;
#[path = "options.rs"]
#[allow(dead_code)] // a residual is of rows alone
mod options;
#[path = "../../crates/isonorm/tests/support/mod.rs"]
mod support;

use arbitrary::Arbitrary;
use call::{Call, Found, How, WAYS};
use isonorm::Cpu;
use isonorm_testing::golden::Norm;
use isonorm_testing::oracle::forward::Channels;
use isonorm_testing::values::Kind;
use libfuzzer_sys::fuzz_target;
use options::{Affine, MANY, Place, Values};
use support::{Tensor, assert_same_bits};

#[derive(Arbitrary, Debug)]
struct Input {
    norm: u8,
    samples: u8,
    channels: u8,
    spatial: u16,
    groups: u8,
    x: Values,
    y_type: u8,
    affine: Affine,
    momentum: u8,
    biased: bool,
    running: bool,
    way: u8,
    place: Place,
}

fuzz_target!(|input: Input| {
    let norm = [Norm::GroupNorm, Norm::BatchNormTrain, Norm::BatchNormEval][usize::from(input.norm % 3)];
    let call = input.call(norm);
    let way = WAYS[usize::from(input.way % 4)];
    if !call.can(way) {
        return;
    }
    let label = format!("{way:?} of {input:?}");
    let expected = call.oracle();
    check(&label, &expected, &call.run(way, input.place.cpu()));
    if input.place.many() {
        repeated(&label, &call, way, input.place.cpu());
    }
});

impl Input {
    fn call(&self, norm: Norm) -> Call {
        let (samples, channels) = (1 + usize::from(self.samples % 40), 1 + usize::from(self.channels % 80));
        let most = (6000 / (samples * channels)).max(1);
        let mut shape = Channels { samples, channels, spatial: 1 + usize::from(self.spatial) % most };
        if norm == Norm::BatchNormTrain && samples * shape.spatial == 1 {
            shape.samples = 2;
        }
        let x = self.x.tensor(shape.samples * channels * shape.spatial);
        let dtype = x.dtype();
        let divisors: Vec<usize> = (1..=channels).filter(|groups| channels % groups == 0).collect();
        let groups =
            if norm == Norm::GroupNorm { divisors[usize::from(self.groups) % divisors.len()] } else { channels };
        let mut call = Call::new(norm, shape, groups, dtype, Kind::Normal);
        (call.x, call.eps, call.offset) = (x, self.affine.eps(), self.affine.offset());
        (call.weight, call.bias) =
            (self.affine.parameter(0, dtype, channels), self.affine.parameter(1, dtype, channels));
        (call.momentum, call.biased) = ([0.1, 0.0, 1.0, 0.75][usize::from(self.momentum % 4)], self.biased);
        if norm == Norm::BatchNormTrain && !self.running {
            call.running = None;
        }
        call.y_type = options::partner(dtype, self.y_type);
        call
    }
}

fn named(found: &Found) -> Vec<(&'static str, &Tensor)> {
    let [mean, var, rstd] = &found.reported;
    let mut all = vec![("y", &found.y), ("mean", mean), ("var", var), ("rstd", rstd)];
    if let Some((mean, var)) = &found.running {
        all.extend([("running_mean", mean), ("running_var", var)]);
    }
    all
}

/// All but, of an evaluation, the statistics, of which the oracle says nothing.
fn check(label: &str, expected: &Found, found: &Found) {
    for ((name, expected), (_, found)) in named(expected).into_iter().zip(named(found)) {
        if expected.len() > 0 {
            assert_same_bits(&format!("{name}, {label}"), 1, expected, found);
        }
    }
}

/// One sample over and over, so that threads share the samples: one thread's bits.
fn repeated(label: &str, call: &Call, way: How, cpu: Cpu<'_>) {
    let len = call.shape.channels * call.shape.spatial;
    let times = MANY / len + 2;
    let x = call.x.gather((0..times * len).map(|at| at % len));
    let call = Call { shape: Channels { samples: times, ..call.shape }, x, ..call.clone() };
    let expected = call.run(way, cpu.threads(1));
    check(&format!("many samples, {label}"), &expected, &call.run(way, cpu));
}
