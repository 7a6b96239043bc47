//! The textbook gradients in numbers of 106 bits, and the distance of others from them.

use isonorm_testing::DType;

use crate::call::{Call, Norm};
use crate::double::Double;

/// A gradient, and the size of the terms of which each element is a difference or a sum.
pub(crate) struct Exact {
    pub(crate) values: Vec<Double>,
    pub(crate) terms: Vec<f64>,
}

/// dx, dweight, dbias.
pub(crate) type ExactGradients = [Exact; 3];

fn sum(terms: impl Iterator<Item = Double>) -> Double {
    terms.fold(Double::from(0.0), |sum, term| sum + term)
}

fn mean(terms: &[Double]) -> Double {
    sum(terms.iter().copied()) / Double::from(terms.len() as f64)
}

fn products(a: &[Double], b: &[Double]) -> Vec<Double> {
    a.iter().zip(b).map(|(a, b)| *a * *b).collect()
}

/// x_hat and rstd of one normalized set.
fn normalized(call: &Call, x: &[f64], channel: usize) -> (Vec<Double>, Double) {
    let x: Vec<Double> = x.iter().copied().map(Double::from).collect();
    let (centre, var) = match &call.running {
        Some([mean, var]) => (Double::from(mean[channel]), Some(Double::from(var[channel]))),
        None if call.norm == Norm::Rms => (Double::from(0.0), None),
        None => (mean(&x), None),
    };
    let d: Vec<Double> = x.iter().map(|x| *x - centre).collect();
    let var = var.unwrap_or_else(|| mean(&products(&d, &d)));
    let rstd = Double::from(1.0) / (var + Double::from(call.eps)).sqrt();
    (d.iter().map(|d| *d * rstd).collect(), rstd)
}

/// dx of one set, and the root mean square of `g * rstd`, of which the means are taken away.
fn dx(call: &Call, g: &[Double], x_hat: &[Double], rstd: Double) -> (Vec<Double>, f64) {
    if call.running.is_some() {
        return (g.iter().map(|g| *g * rstd).collect(), 0.0);
    }
    let c1 = if call.norm == Norm::Rms { Double::from(0.0) } else { mean(g) };
    let c2 = mean(&products(g, x_hat));
    let dx = g.iter().zip(x_hat).map(|(g, x_hat)| (*g - c1 - *x_hat * c2) * rstd).collect();
    (dx, (mean(&products(g, g)).sqrt() * rstd).high)
}

/// What the gradients of `call` are, eps inside the root and nothing else chosen.
pub(crate) fn gradients(call: &Call, x: &[f64], dy: &[f64]) -> ExactGradients {
    let weight = call.weight.as_ref().expect("a weight");
    let mut out = Exact { values: vec![Double::from(0.0); x.len()], terms: vec![0.0; x.len()] };
    let mut x_hats = out.values.clone();
    for set in call.sets(x.len()) {
        let of_set = |from: &[f64]| -> Vec<f64> { set.iter().map(|(at, _)| from[*at]).collect() };
        let (x_hat, rstd) = normalized(call, &of_set(x), set[0].1);
        let times = |(at, c): &(usize, usize)| Double::from(dy[*at]) * Double::from(weight[*c]);
        let g: Vec<Double> = set.iter().map(times).collect();
        let (dx, terms) = dx(call, &g, &x_hat, rstd);
        for (i, (at, _)) in set.iter().enumerate() {
            (out.values[*at], out.terms[*at], x_hats[*at]) = (dx[i], terms, x_hat[i]);
        }
    }
    let dy: Vec<Double> = dy.iter().copied().map(Double::from).collect();
    [out, by_channel(call, &products(&dy, &x_hats)), by_channel(call, &dy)]
}

/// The sum of each channel, and the root of the sum of the squares.
fn by_channel(call: &Call, terms: &[Double]) -> Exact {
    let channels = call.weight.as_ref().expect("a weight").len();
    let mut of = vec![Vec::new(); channels];
    for set in call.sets(terms.len()) {
        set.iter().for_each(|(at, c)| of[*c].push(terms[*at]));
    }
    Exact {
        values: of.iter().map(|of| sum(of.iter().copied())).collect(),
        terms: of.iter().map(|of| sum(products(of, of).into_iter()).sqrt().high).collect(),
    }
}

/// One unit in the last place of a type at `scale`.
pub(crate) fn ulp(dtype: DType, scale: f64) -> f64 {
    let (precision, least_normal, _) = dtype.format();
    let exponent = if scale == 0.0 { least_normal } else { scale.abs().log2().floor() as i32 };
    2f64.powi(exponent.max(least_normal) - precision + 1)
}

impl Exact {
    /// One unit in the last place of the larger of element `at` and its terms.
    pub(crate) fn ulp(&self, dtype: DType, at: usize) -> f64 {
        ulp(dtype, self.values[at].high.abs().max(self.terms[at]))
    }

    /// The largest and the mean distance of `found`, in these units.
    pub(crate) fn errors(&self, dtype: DType, found: &[f64]) -> [f64; 2] {
        assert_eq!(found.len(), self.values.len());
        let (mut largest, mut total) = (0.0f64, 0.0);
        for (at, (value, exact)) in found.iter().zip(&self.values).enumerate() {
            let ulps = ((value - exact.high) - exact.low).abs() / self.ulp(dtype, at);
            assert!(ulps.is_finite(), "element {at} is {value}");
            largest = largest.max(ulps);
            total += ulps;
        }
        [largest, total / found.len() as f64]
    }
}
