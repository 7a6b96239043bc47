//! The gradients on whole arrays: dx rounded to T, dweight and dbias not yet rounded.

use super::forward::{Affine, Channels, RmsNorm, Running, evaluation_statistics};
use super::{
    Compute, Eps, Statistics, Sums, batch_dot, batch_sum, centered_statistics, narrow, rms_statistics, row_dot, row_sum,
};
use crate::DType;

/// The gradients of one call.
#[derive(Clone, Debug)]
pub struct Backward<C> {
    /// Rounded to x's (after a residual add r's) type.
    pub dx: Vec<C>,
    /// Not yet rounded to the weight's type.
    pub dweight: Vec<C>,
    /// Not yet rounded to the bias's type.
    pub dbias: Vec<C>,
}

/// `(total / count) * q`; with eps inside the root there is no q.
fn mean_product<C: Compute>(total: C, count: usize, stats: &Statistics<C>, outside: bool) -> C {
    let mean = total / C::count(count);
    let zero = C::count(0);
    match (outside, stats.root == zero) {
        (false, _) => mean,
        (true, true) => mean * zero,
        (true, false) => mean * ((stats.root + stats.eps) / stats.root),
    }
}

/// dy times the weight of each place.
fn weighted<C: Compute>(dy: &[C], affine: &Affine<'_, C>, place: impl Fn(usize) -> usize) -> Vec<C> {
    let times = |(i, d): (usize, &C)| affine.weight_at(place(i)).map_or(*d, |w| *d * w);
    dy.iter().enumerate().map(times).collect()
}

fn centered_dx<C: Compute>(g: &[C], stats: &Statistics<C>, outside: bool) -> Vec<C> {
    let c1 = row_sum(g) / C::count(g.len());
    let c2 = mean_product(row_dot(g, &stats.x_hat), g.len(), stats, outside);
    let dx = |(g, x_hat): (&C, &C)| ((-*x_hat).fma(c2, *g - c1) * stats.inv) * stats.s;
    g.iter().zip(&stats.x_hat).map(dx).collect()
}

fn columns<C: Compute>(dx: Vec<C>, dy: &[C], x_hat: &[C], hidden: usize) -> Backward<C> {
    let column = |table: &[C], i: usize| -> Vec<C> { table[i..].iter().step_by(hidden).copied().collect() };
    let dweight = |i| batch_dot(&column(dy, i), &column(x_hat, i));
    let dbias = |i| batch_sum(&column(dy, i));
    Backward { dx, dweight: (0..hidden).map(dweight).collect(), dbias: (0..hidden).map(dbias).collect() }
}

/// RMSNorm, x of type `x_type`.
pub fn rms_norm<C: Compute>(
    x: &[C],
    dy: &[C],
    hidden: usize,
    affine: &Affine<'_, C>,
    options: &RmsNorm,
    x_type: DType,
) -> Backward<C> {
    let (mut dx, mut x_hats) = (Vec::new(), Vec::new());
    let k = options.partial.unwrap_or(hidden);
    for (row, dy) in x.chunks(hidden).zip(dy.chunks(hidden)) {
        let stats = rms_statistics(row, k, options.eps);
        let mut g = weighted(dy, affine, |i| i);
        if let Some(dtype) = options.llama {
            g = narrow(&g, dtype);
        }
        let c = mean_product(row_dot(&g, &stats.x_hat), k, &stats, options.eps.outside);
        for (i, g) in g.into_iter().enumerate() {
            let inner = if i < k { (-stats.x_hat[i]).fma(c, g) } else { g };
            dx.push((inner * stats.inv) * stats.s);
        }
        x_hats.extend(match options.llama {
            Some(dtype) => narrow(&stats.x_hat, dtype),
            None => stats.x_hat,
        });
    }
    columns(narrow(&dx, x_type), dy, &x_hats, hidden)
}

/// LayerNorm, x of type `x_type`.
pub fn layer_norm<C: Compute>(
    x: &[C],
    dy: &[C],
    hidden: usize,
    affine: &Affine<'_, C>,
    eps: Eps,
    x_type: DType,
) -> Backward<C> {
    let (mut dx, mut x_hats) = (Vec::new(), Vec::new());
    for (row, dy) in x.chunks(hidden).zip(dy.chunks(hidden)) {
        let stats = centered_statistics(row, Sums::Row, eps);
        dx.extend(centered_dx(&weighted(dy, affine, |i| i), &stats, eps.outside));
        x_hats.extend(stats.x_hat);
    }
    columns(narrow(&dx, x_type), dy, &x_hats, hidden)
}

/// GroupNorm; InstanceNorm with as many groups as channels.
pub fn group_norm<C: Compute>(
    x: &[C],
    dy: &[C],
    (shape, groups): (Channels, usize),
    affine: &Affine<'_, C>,
    eps: Eps,
    x_type: DType,
) -> Backward<C> {
    let (mut dx, mut x_hats) = (Vec::new(), Vec::new());
    let size = shape.channels / groups * shape.spatial;
    let g = weighted(dy, affine, |at| shape.channel_of(at));
    for (group, g) in x.chunks(size).zip(g.chunks(size)) {
        let stats = centered_statistics(group, Sums::Row, eps);
        dx.extend(centered_dx(g, &stats, eps.outside));
        x_hats.extend(stats.x_hat);
    }
    let sums = Sums::Planes(shape.spatial);
    let dweight = |ch| sums.dot(&shape.gather(dy, ch), &shape.gather(&x_hats, ch));
    let dbias = |ch| sums.sum(&shape.gather(dy, ch));
    Backward {
        dx: narrow(&dx, x_type),
        dweight: (0..shape.channels).map(dweight).collect(),
        dbias: (0..shape.channels).map(dbias).collect(),
    }
}

/// BatchNorm: in evaluation where `running` is given, else in training.
pub fn batch_norm<C: Compute>(
    x: &[C],
    dy: &[C],
    (shape, running): (Channels, Option<Running<'_, C>>),
    affine: &Affine<'_, C>,
    eps: Eps,
    x_type: DType,
) -> Backward<C> {
    let sums = Sums::Planes(shape.spatial);
    let mut out = Backward { dx: Vec::new(), dweight: Vec::new(), dbias: Vec::new() };
    let mut per_channel: Vec<Vec<C>> = Vec::new();
    for ch in 0..shape.channels {
        let (x, dy) = (shape.gather(x, ch), shape.gather(dy, ch));
        let stats = match running {
            Some(running) => evaluation_statistics(&x, running.mean[ch], running.var[ch], eps),
            None => centered_statistics(&x, sums, eps),
        };
        let (dweight, dbias) = (sums.dot(&dy, &stats.x_hat), sums.sum(&dy));
        let a = affine.weight_at(ch).map_or(stats.inv, |w| w * stats.inv);
        let k1 = dbias / C::count(x.len());
        let k2 = mean_product(dweight, x.len(), &stats, eps.outside);
        let training = |(d, x_hat): (&C, &C)| ((-*x_hat).fma(k2, *d - k1) * a) * stats.s;
        per_channel.push(match running {
            Some(_) => dy.iter().map(|d| *d * a).collect(),
            None => dy.iter().zip(&stats.x_hat).map(training).collect(),
        });
        out.dweight.push(dweight);
        out.dbias.push(dbias);
    }
    out.dx = narrow(&shape.scatter(&per_channel), x_type);
    out
}
