//! The norms on whole arrays. Each `y` is of the compute type, before its rounding to y's type.

use super::{Compute, Eps, Statistics, Sums, centered_statistics, inverse_root, narrow, rms_statistics};
use crate::DType;

/// Weight and bias, one value per normalized element or per channel.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, C> {
    /// Multiplies x_hat.
    pub weight: Option<&'a [C]>,
    /// Added last.
    pub bias: Option<&'a [C]>,
    /// Added to the weight, where it is not 0.
    pub weight_offset: f64,
}

impl<C: Compute> Affine<'_, C> {
    /// The weight with its offset.
    pub fn weight_at(&self, i: usize) -> Option<C> {
        let offset = C::from_f64(self.weight_offset);
        let weight = self.weight?[i];
        Some(if offset == C::count(0) { weight } else { weight + offset })
    }

    /// x_hat with the parameters of place `i`.
    pub fn apply(&self, x_hat: C, i: usize) -> C {
        match (self.weight_at(i), self.bias.map(|b| b[i])) {
            (Some(w), Some(b)) => x_hat.fma(w, b),
            (Some(w), None) => x_hat * w,
            (None, Some(b)) => x_hat + b,
            (None, None) => x_hat,
        }
    }
}

/// The options of RMSNorm.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// eps, and where it is added.
    pub eps: Eps,
    /// The first k elements alone enter the mean square.
    pub partial: Option<usize>,
    /// Recipe llama: x_hat is rounded to this type, x's, before the weight.
    pub llama: Option<DType>,
}

/// Samples, channels, spatial: the logical shape of x.
#[derive(Clone, Copy, Debug)]
pub struct Channels {
    /// N.
    pub samples: usize,
    /// C.
    pub channels: usize,
    /// All spatial axes together; 1 for (N, C).
    pub spatial: usize,
}

impl Channels {
    /// A channel's elements: samples, then spatial.
    pub fn gather<C: Copy>(&self, x: &[C], channel: usize) -> Vec<C> {
        let planes = x.chunks(self.spatial).skip(channel).step_by(self.channels);
        planes.flatten().copied().collect()
    }

    /// Per-channel lists back in (sample, channel, spatial) order.
    pub fn scatter<C: Copy>(&self, per_channel: &[Vec<C>]) -> Vec<C> {
        let mut out = Vec::new();
        for sample in 0..self.samples {
            for values in per_channel {
                out.extend_from_slice(&values[sample * self.spatial..(sample + 1) * self.spatial]);
            }
        }
        out
    }

    /// The channel of the element at this place.
    pub fn channel_of(&self, at: usize) -> usize {
        at / self.spatial % self.channels
    }
}

/// y, and the reported statistics of each row, group or channel.
#[derive(Clone, Debug, Default)]
pub struct Forward<C> {
    /// Not yet rounded to y's type.
    pub y: Vec<C>,
    /// Zeros in RMSNorm.
    pub mean: Vec<C>,
    /// The mean square in RMSNorm.
    pub var: Vec<C>,
    /// 1 over the root with eps.
    pub rstd: Vec<C>,
}

impl<C: Compute> Forward<C> {
    fn new() -> Self {
        Self { y: Vec::new(), mean: Vec::new(), var: Vec::new(), rstd: Vec::new() }
    }

    fn report(&mut self, stats: &Statistics<C>) {
        let (mean, var, rstd) = stats.reported();
        self.mean.push(mean);
        self.var.push(var);
        self.rstd.push(rstd);
    }
}

/// `x + residual` in the compute type, rounded to r's type.
pub fn residual_add<C: Compute>(x: &[C], residual: &[C], r_type: DType) -> Vec<C> {
    let sums: Vec<C> = x.iter().zip(residual).map(|(x, r)| *x + *r).collect();
    narrow(&sums, r_type)
}

/// RMSNorm of each row.
pub fn rms_norm<C: Compute>(x: &[C], hidden: usize, affine: &Affine<'_, C>, options: &RmsNorm) -> Forward<C> {
    let mut out = Forward::new();
    for row in x.chunks(hidden) {
        let stats = rms_statistics(row, options.partial.unwrap_or(hidden), options.eps);
        out.report(&stats);
        let x_hat = match options.llama {
            Some(dtype) => narrow(&stats.x_hat, dtype),
            None => stats.x_hat,
        };
        out.y.extend(x_hat.iter().enumerate().map(|(i, v)| affine.apply(*v, i)));
    }
    out
}

/// LayerNorm of each row.
pub fn layer_norm<C: Compute>(x: &[C], hidden: usize, affine: &Affine<'_, C>, eps: Eps) -> Forward<C> {
    let mut out = Forward::new();
    for row in x.chunks(hidden) {
        let stats = centered_statistics(row, Sums::Row, eps);
        out.report(&stats);
        out.y.extend(stats.x_hat.iter().enumerate().map(|(i, v)| affine.apply(*v, i)));
    }
    out
}

/// GroupNorm; InstanceNorm with as many groups as channels.
pub fn group_norm<C: Compute>(x: &[C], shape: Channels, groups: usize, affine: &Affine<'_, C>, eps: Eps) -> Forward<C> {
    let mut out = Forward::new();
    for group in x.chunks(shape.channels / groups * shape.spatial) {
        let stats = centered_statistics(group, Sums::Row, eps);
        out.report(&stats);
        for v in stats.x_hat {
            out.y.push(affine.apply(v, shape.channel_of(out.y.len())));
        }
    }
    out
}

/// BatchNorm in training.
pub fn batch_norm_train<C: Compute>(x: &[C], shape: Channels, affine: &Affine<'_, C>, eps: Eps) -> Forward<C> {
    let mut out = Forward::new();
    let mut y = Vec::new();
    for channel in 0..shape.channels {
        let values = shape.gather(x, channel);
        let stats = centered_statistics(&values, Sums::Planes(shape.spatial), eps);
        out.report(&stats);
        y.push(stats.x_hat.iter().map(|v| affine.apply(*v, channel)).collect());
    }
    out.y = shape.scatter(&y);
    out
}

/// One running statistic per channel, moved towards its new value; not yet rounded to its type.
pub fn running_update<C: Compute>(running: &[C], new: &[C], momentum: f64) -> Vec<C> {
    let momentum = C::from_f64(momentum);
    let keep = C::count(1) - momentum;
    running.iter().zip(new).map(|(old, new)| momentum.fma(*new, keep * *old)).collect()
}

/// `var * (n / (n - 1))`.
pub fn unbiased<C: Compute>(var: &[C], n: usize) -> Vec<C> {
    let factor = C::count(n) / C::count(n - 1);
    var.iter().map(|v| *v * factor).collect()
}

/// What evaluation makes of one channel.
pub(super) fn evaluation_statistics<C: Compute>(x: &[C], mean: C, var: C, eps: Eps) -> Statistics<C> {
    let value = C::from_f64(eps.value);
    let (root, inv) = inverse_root(var, value, eps.outside);
    let x_hat = x.iter().map(|v| (*v - mean) * inv).collect();
    let (delta, s) = (C::count(0), C::count(1));
    Statistics { mean, delta, moment: var, root, inv, s, eps: value, x_hat }
}

/// The running statistics of BatchNorm, one value per channel.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a, C> {
    /// running_mean.
    pub mean: &'a [C],
    /// running_var.
    pub var: &'a [C],
}

/// BatchNorm in evaluation: y, before its rounding.
pub fn batch_norm_eval<C: Compute>(
    x: &[C],
    shape: Channels,
    running: Running<'_, C>,
    affine: &Affine<'_, C>,
    eps: Eps,
) -> Vec<C> {
    let mut y = Vec::new();
    for channel in 0..shape.channels {
        let values = shape.gather(x, channel);
        let (mean, var) = (running.mean[channel], running.var[channel]);
        let stats = evaluation_statistics(&values, mean, var, eps);
        y.push(stats.x_hat.iter().map(|v| affine.apply(*v, channel)).collect());
    }
    shape.scatter(&y)
}
