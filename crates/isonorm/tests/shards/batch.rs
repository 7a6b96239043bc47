//! BatchNorm where ranks have any number of samples, against the same norm over the whole batch.

use std::ops::Range;

use isonorm::{
    BatchNorm, BatchShard, Cpu, Error, Level, PlaneBackwardIo, PlaneIo, Planes, PlanesMut, Running, Slice, SliceMut,
};
use isonorm_testing::DType;
use isonorm_testing::golden::Array;
use isonorm_testing::values::{Kind, SplitMix64, values};

use super::{assert_same_stats, cuts, exchange, measure};
use crate::support::{Saved, Tensor, assert_same_bits, one};

const TYPES: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::Bf16];

/// A batch, its tensors in memory's order.
struct Batch {
    samples: usize,
    channels: usize,
    spatial: usize,
    last: bool,
    eps: f64,
    outside: bool,
    biased: bool,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    offset: f64,
    running: [Tensor; 2],
    x: Tensor,
    dy: Tensor,
    y_type: DType,
}

/// y, running mean and variance, dx, dweight and dbias.
struct Found {
    y: Tensor,
    running: [Tensor; 2],
    dx: Tensor,
    gradients: [Tensor; 2],
}

impl Batch {
    /// Options and values at random; each channel is of another kind.
    fn random(dtype: DType, [samples, channels, spatial]: [usize; 3], last: bool, source: &mut SplitMix64) -> Self {
        let mut flip = |of: usize| source.below(of) == 0;
        let (eps, outside, biased) = (if flip(2) { 0.0 } else { 1e-5 }, flip(3), flip(2));
        let (weight, bias, offset, other) = (!flip(4), flip(2), flip(3), flip(4) && dtype != DType::F64);
        let parameter = if flip(3) && dtype != DType::F64 { DType::F32 } else { dtype };
        let mut tensor = |dtype, n| Tensor::values(dtype, Kind::Normal, source.word(), n);
        let other = if other { DType::F32 } else { dtype };
        let dy = tensor(other, samples * channels * spatial);
        let (weight, bias) = (weight.then(|| tensor(parameter, channels)), bias.then(|| tensor(parameter, channels)));
        let running = [tensor(parameter, channels), tensor(parameter, channels)];
        let x = if source.below(4) == 0 {
            Kind::ALL.map(|_| Kind::Normal)
        } else {
            std::array::from_fn(|_| Kind::ALL[source.below(8)])
        };
        let x: Vec<Vec<f64>> =
            (0..channels).map(|c| values(dtype, x[c % 8], source.word(), samples * spatial)).collect();
        let place = |at: usize| {
            let (n, rest) = (at / (channels * spatial), at % (channels * spatial));
            let (c, s) = if last { (rest % channels, rest / channels) } else { (rest / spatial, rest % spatial) };
            x[c][n * spatial + s]
        };
        let x: Vec<f64> = (0..samples * channels * spatial).map(place).collect();
        let x = Tensor::new(&Array::from_values(dtype, &x));
        let offset = if weight.is_some() && offset { 1.0 } else { 0.0 };
        Batch {
            samples,
            channels,
            spatial,
            last,
            eps,
            outside,
            biased,
            weight,
            bias,
            offset,
            running,
            x,
            dy,
            y_type: other,
        }
    }

    fn norm<'a>(&'a self, cpu: Cpu<'a>) -> BatchNorm<'a> {
        let mut norm = BatchNorm::new(self.channels).eps(self.eps).momentum(0.3).weight_offset(self.offset).on(cpu);
        if self.outside {
            norm = norm.eps_outside();
        }
        if self.biased {
            norm = norm.biased_running_var();
        }
        if let Some(weight) = &self.weight {
            norm = norm.weight(weight.slice());
        }
        if let Some(bias) = &self.bias {
            norm = norm.bias(bias.slice());
        }
        norm
    }

    fn planes<'t>(&self, data: Slice<'t>) -> Planes<'t> {
        let layout = if self.last { Planes::channels_last } else { Planes::channels_first };
        layout(data, self.channels, self.spatial)
    }

    fn planes_mut<'t>(&self, data: SliceMut<'t>) -> PlanesMut<'t> {
        let layout = if self.last { PlanesMut::channels_last } else { PlanesMut::channels_first };
        layout(data, self.channels, self.spatial)
    }

    /// Elements of samples.
    fn part<'t>(&self, tensor: &'t Tensor, samples: &Range<usize>) -> Slice<'t> {
        let sample = self.channels * self.spatial;
        tensor.part(samples.start * sample, samples.len() * sample)
    }

    /// Room for what a rank writes.
    fn room(&self, samples: usize) -> Found {
        let n = samples * self.channels * self.spatial;
        let gradient = || Tensor::sentinel(self.running[0].dtype(), self.channels);
        Found {
            y: Tensor::sentinel(self.y_type, n),
            running: self.running.clone(),
            dx: Tensor::sentinel(self.x.dtype(), n),
            gradients: [gradient(), gradient()],
        }
    }

    fn whole(&self, cpu: Cpu<'_>) -> (Found, Saved) {
        let (norm, mut found) = (self.norm(cpu), self.room(self.samples));
        let mut stats = Saved::new(self.x.dtype(), self.channels);
        let io = PlaneIo::new(self.planes(self.x.slice()), self.planes_mut(found.y.slice_mut()));
        let [mean, var] = found.running.each_mut().map(Tensor::slice_mut);
        norm.train(io.stats(stats.stats_mut()), Some(Running::new(mean, var))).expect("valid");
        let (x, dy) = (self.planes(self.x.slice()), self.planes(self.dy.slice()));
        let io = PlaneBackwardIo::new(x, dy, self.planes_mut(found.dx.slice_mut()));
        let [dweight, dbias] = found.gradients.each_mut().map(Tensor::slice_mut);
        norm.train_backward(io.dweight(dweight).dbias(dbias)).expect("valid");
        (found, stats)
    }

    /// What the ranks compute together is what one process does; how many rounds they measured in.
    fn check(&self, cpu: Cpu<'_>, cuts: &[usize], source: &mut SplitMix64) -> usize {
        let Batch { samples, channels, spatial, last, .. } = self;
        let label = format!("{samples} x {channels} x {spatial}, last {last}, {:?} cut at {cuts:?}", self.x.dtype());
        let (expected, stats) = self.whole(cpu);
        let ranks: Vec<Range<usize>> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
        let norm = self.norm(cpu);
        let each = || ranks.iter().map(|samples| (norm.shard(samples.start), samples));
        let x = |samples: &Range<usize>| self.planes(self.part(&self.x, samples));
        let dy = |samples: &Range<usize>| self.planes(self.part(&self.dy, samples));
        let measuring = each().map(|(shard, samples)| shard.measure(x(samples)).expect("planes")).collect();
        let (measured, rounds) = measure(measuring, source);
        for measured in &measured {
            assert_same_stats(&label, &stats, measured.stats());
            assert_eq!(measured.count(), samples * spatial);
        }
        let measured = &measured[0];
        let correlate = |(shard, samples): (BatchShard<'_>, &Range<usize>)| {
            shard.correlate(x(samples), dy(samples), measured).expect("planes")
        };
        let merged = exchange(each().map(correlate), source);
        for (shard, samples) in each() {
            let label = format!("{label}, samples {samples:?}");
            let mut found = self.room(samples.len());
            let io = PlaneIo::new(x(samples), self.planes_mut(found.y.slice_mut()));
            let [mean, var] = found.running.each_mut().map(Tensor::slice_mut);
            shard.train(io, measured, Some(Running::new(mean, var))).expect("planes");
            let io = PlaneBackwardIo::new(x(samples), dy(samples), self.planes_mut(found.dx.slice_mut()));
            let [dweight, dbias] = found.gradients.each_mut().map(Tensor::slice_mut);
            shard.train_backward(io.dweight(dweight).dbias(dbias), measured, &merged).expect("planes");
            let sample = channels * spatial;
            let part = |of: &Tensor| of.gather(samples.start * sample..samples.end * sample);
            assert_same_bits(&format!("{label}, y"), sample, &part(&expected.y), &found.y);
            assert_same_bits(&format!("{label}, dx"), sample, &part(&expected.dx), &found.dx);
            for i in 0..2 {
                assert_same_bits(&format!("{label}, running {i}"), 1, &expected.running[i], &found.running[i]);
                assert_same_bits(&format!("{label}, gradient {i}"), 1, &expected.gradients[i], &found.gradients[i]);
            }
        }
        rounds
    }
}

#[test]
fn samples_shared_out_anyhow_have_the_bits_of_the_whole_batch() {
    let source = &mut SplitMix64::new(6);
    let mut rounds = [0; 8];
    for dtype in TYPES {
        for ranks in [1, 2, 3, 5] {
            for (last, evenly) in [(false, false), (false, true), (true, false), (true, true)] {
                let samples = [2, 7, 16, 40, 70][source.below(5)];
                let channels = [1, 3, 32, 40, 70][source.below(5)];
                let spatial = [1, 2, 9, 64, 150][source.below(5)];
                let batch = Batch::random(dtype, [samples, channels, spatial], last, source);
                let level = Level::available().nth(source.below(Level::available().count())).expect("a level");
                let cuts = cuts(samples, ranks, evenly, source);
                rounds[batch.check(one(level), &cuts, source)] += 1;
            }
        }
    }
    // Two; where the largest were wanted, one more; where some channels were scaled, the two again.
    assert!(rounds[2] > 0 && rounds[5] > 0, "{rounds:?}");
}

#[test]
fn empty_ranks_anywhere_change_no_bit() {
    let source = &mut SplitMix64::new(7);
    for last in [false, true] {
        let batch = Batch::random(DType::F32, [20, 5, 6], last, source);
        for cuts in [[0, 0, 0, 20, 20, 20], [0, 7, 7, 7, 16, 20], [0, 20, 20, 20, 20, 20], [0, 0, 1, 19, 19, 20]] {
            batch.check(one(Level::detect()), &cuts, source);
        }
    }
}

#[test]
fn threads_and_long_batches_change_no_bit() {
    let source = &mut SplitMix64::new(8);
    for last in [false, true] {
        for shape in [[600, 300, 3], [3000, 200, 1], [9, 40, 3000]] {
            let batch = Batch::random(DType::Bf16, shape, last, source);
            batch.check(Cpu::new().threads(3), &[0, shape[0] / 3, shape[0] / 2, shape[0]], source);
        }
    }
}

#[test]
fn one_value_on_all_ranks_is_refused_and_none_changes_nothing() {
    let norm = BatchNorm::new(2);
    let x = [1.0f32, 2.0];
    let mut rank = norm.shard(0).measure(Planes::channels_last(&x, 2, 1)).expect("planes");
    let sums = rank.partial().expect("the first round");
    assert_eq!(rank.take(sums), Err(Error::TooFewValues { count: 1 }));
    let none = [0.0f32; 0];
    let mut rank = norm.shard(0).measure(Planes::channels_first(&none, 2, 3)).expect("planes");
    let sums = rank.partial().expect("the first round");
    rank.take(sums).expect("no samples");
    assert!(rank.partial().is_none());
    let measured = rank.finish().expect("no round is left");
    assert_eq!(measured.count(), 0);
    let (mut y, mut dx) = ([0.0f32; 0], [0.0f32; 0]);
    let ([mut mean, mut var], [mut dweight, mut dbias]) = ([[3.0f32; 2]; 2], [[-0.0f32; 2]; 2]);
    let io = PlaneIo::new(Planes::channels_first(&none, 2, 3), PlanesMut::channels_first(&mut y, 2, 3));
    norm.shard(0).train(io, &measured, Some(Running::new(&mut mean, &mut var))).expect("no samples");
    assert_eq!((mean, var), ([3.0; 2], [3.0; 2]));
    let planes = || Planes::channels_first(&none, 2, 3);
    let merged = norm.shard(0).correlate(planes(), planes(), &measured).expect("no samples");
    let io = PlaneBackwardIo::new(planes(), planes(), PlanesMut::channels_first(&mut dx, 2, 3));
    let io = io.dweight(&mut dweight).dbias(&mut dbias);
    norm.shard(0).train_backward(io, &measured, &merged).expect("no samples");
    assert_eq!([dweight, dbias].map(|gradient| gradient.map(f32::to_bits)), [[0; 2]; 2]);
}
