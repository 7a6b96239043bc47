//! Calls over channels at random: any sizes, options and types of parameters, with and without what may be left out.

use isonorm_testing::DType;
use isonorm_testing::golden::{Array, Norm};
use isonorm_testing::oracle::Eps;
use isonorm_testing::oracle::forward::Channels;
use isonorm_testing::values::{Kind, SplitMix64};

use crate::call::How;
use crate::gradients::Backward;
use crate::support::core::Tensor;

/// What calls are made of, so that they share kernels.
pub(crate) struct Family<'a> {
    pub(crate) x: DType,
    /// y's, dy's and dx's types.
    pub(crate) others: &'a [DType],
    pub(crate) channels: &'a [usize],
    pub(crate) spatial: &'a [usize],
}

pub(crate) struct Source(pub(crate) SplitMix64);

impl Source {
    fn chance(&mut self, percent: usize) -> bool {
        self.0.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.0.below(from.len())]
    }

    /// One value for each channel, or none.
    fn param(&mut self, types: &[DType], channels: usize) -> Option<Tensor> {
        let (dtype, seed) = (self.pick(types), self.0.word());
        self.chance(75).then(|| Tensor::values(dtype, Kind::Normal, seed, channels))
    }

    /// The mean and the variance of each channel.
    fn running(&mut self, types: &[DType], channels: usize) -> (Tensor, Tensor) {
        let mean = Tensor::values(self.pick(types), Kind::Normal, self.0.word(), channels);
        let squares: Vec<_> = (0..channels).map(|_| self.0.normal().powi(2)).collect();
        (mean, Tensor::new(&Array::from_values(self.pick(types), &squares)))
    }

    /// Sizes, a norm, its groups.
    fn sizes(&mut self, family: &Family<'_>) -> (Channels, Norm, usize) {
        let (channels, spatial) = (self.pick(family.channels), self.pick(family.spatial));
        let most = [4, 20, 600][self.0.below(3)].min(20_000 / (channels * spatial).max(1));
        // Without elements there are no samples.
        let samples = if channels * spatial == 0 { 0 } else { self.0.below(most.max(1) + 1) };
        let is_one = samples * spatial == 1;
        let norms = [Norm::GroupNorm, Norm::BatchNormEval, Norm::BatchNormTrain];
        let norm = self.pick(&norms[..if is_one { 2 } else { 3 }]);
        let groups: Vec<_> = (channels.min(1)..=channels).filter(|groups| channels.is_multiple_of(*groups)).collect();
        (Channels { samples, channels, spatial }, norm, self.pick(&groups))
    }

    pub(crate) fn call(&mut self, family: &Family<'_>) -> (Backward, How) {
        let (shape, norm, groups) = self.sizes(family);
        let (x, channels, kind) = (family.x, shape.channels, self.pick(&Kind::ALL));
        let params: &[DType] = if x == DType::F64 { &DType::ALL } else { &[DType::F32, DType::F16, DType::Bf16] };
        let mut backward = Backward::new(norm, shape, groups, x, kind);
        let call = &mut backward.call;
        (call.weight, call.bias) = (self.param(params, channels), self.param(params, channels));
        call.offset = if call.weight.is_some() && self.chance(30) { 1.0 } else { 0.0 };
        call.eps = Eps { value: self.pick(&[1e-5, 1e-5, 0.0, 1e-30, 0.25]), outside: self.chance(25) };
        (call.momentum, call.biased) = (self.pick(&[0.1, 1.0, 0.0, 0.7]), self.chance(50));
        let has_running = norm == Norm::BatchNormEval || (norm == Norm::BatchNormTrain && self.chance(70));
        call.running = has_running.then(|| self.running(params, channels));
        call.y_type = self.pick(family.others);
        let dy_kind = if self.chance(50) { Kind::Normal } else { kind };
        backward.dy = Tensor::values(self.pick(family.others), dy_kind, self.0.word(), backward.call.x.len());
        backward.dx_type = self.pick(family.others);
        [backward.dweight, backward.dbias] = [0; 2].map(|_| self.chance(70).then(|| self.pick(params)));
        let how = How { last: self.chance(50), in_place: self.chance(50) };
        let can = backward.can(how) && backward.call.can(how);
        (backward, How { in_place: how.in_place && can, ..how })
    }
}
