//! The numbers of an explanation: every result and statistic is the library's, so that what is explained
//! and what is computed cannot differ.

use isonorm::{
    BatchNorm, DType, GroupNorm, InstanceNorm, Io, LayerNorm, PlaneIo, Planes, PlanesMut, Recipe, RmsNorm, Running,
    Stats, StatsMut,
};

use super::layout::{Layout, Together};
use super::values::{Values, compute_type};

/// A norm and its options, as the library takes them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) kind: Kind,
    pub(crate) eps: f64,
    pub(crate) eps_outside: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Rms { recipe: Recipe, weight_offset: f64, partial: Option<usize> },
    Layer,
    Batch,
    Group { groups: usize },
    Instance,
}

/// The statistics of one row, channel or group, widened exactly; `mean`, `var` and `inv` are of `x * scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Stat {
    pub(crate) mean: f64,
    pub(crate) delta: f64,
    pub(crate) var: f64,
    pub(crate) inv: f64,
    pub(crate) scale: f64,
    /// Of x itself: what the library reports to people.
    pub(crate) of_x: OfX,
}

/// Statistics in the scale of x.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct OfX {
    pub(crate) mean: f64,
    pub(crate) var: f64,
}

/// What the library made of x.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) y: Values,
    pub(crate) stats: Vec<Stat>,
}

/// Weight and bias, where there are any.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Affine<'a> {
    pub(crate) weight: Option<&'a Values>,
    pub(crate) bias: Option<&'a Values>,
}

/// Statistics to be written, in the compute type.
enum Store {
    F32(Vec<Stats<f32>>),
    F64(Vec<Stats<f64>>),
}

impl Store {
    fn new(dtype: DType, len: usize) -> Self {
        match compute_type(dtype) {
            DType::F64 => Store::F64(vec![Stats::default(); len]),
            _ => Store::F32(vec![Stats::default(); len]),
        }
    }

    fn stats_mut(&mut self) -> StatsMut<'_> {
        match self {
            Store::F32(stats) => stats.into(),
            Store::F64(stats) => stats.into(),
        }
    }

    fn widened(&self) -> Vec<Stat> {
        let stat = |[mean, delta, var, inv, scale]: [f64; 5], of_x| Stat { mean, delta, var, inv, scale, of_x };
        match self {
            Store::F32(stats) => stats
                .iter()
                .map(|s| {
                    let of_x = OfX { mean: f64::from(s.mean()), var: f64::from(s.var()) };
                    stat([s.mean, s.delta, s.var, s.inv, s.scale].map(f64::from), of_x)
                })
                .collect(),
            Store::F64(stats) => stats
                .iter()
                .map(|s| stat([s.mean, s.delta, s.var, s.inv, s.scale], OfX { mean: s.mean(), var: s.var() }))
                .collect(),
        }
    }
}

/// The norm of `x`; the result is stored as `dtype`.
pub(crate) fn forward(
    options: &Options,
    layout: &Layout,
    x: &Values,
    affine: Affine<'_>,
    dtype: DType,
) -> Result<Forward, isonorm::Error> {
    let mut y = Values::filled(0.0, x.len(), dtype);
    let mut stats = Store::new(x.dtype(), layout.units());
    match options.kind {
        Kind::Rms { .. } | Kind::Layer => rows(options, layout, x, affine, &mut y, &mut stats)?,
        _ => planes(options, layout, x, affine, &mut y, &mut stats)?,
    }
    Ok(Forward { y, stats: stats.widened() })
}

/// Applies the options and parameters that every norm has.
macro_rules! common {
    ($norm:expr, $options:expr, $affine:expr) => {{
        let mut norm = $norm.eps($options.eps);
        if $options.eps_outside {
            norm = norm.eps_outside();
        }
        if let Some(weight) = $affine.weight {
            norm = norm.weight(weight.as_slice());
        }
        if let Some(bias) = $affine.bias {
            norm = norm.bias(bias.as_slice());
        }
        norm
    }};
}

mod backward;

pub(crate) use backward::{Backward, backward};

fn rows(
    options: &Options,
    layout: &Layout,
    x: &Values,
    affine: Affine<'_>,
    y: &mut Values,
    stats: &mut Store,
) -> Result<(), isonorm::Error> {
    let hidden = layout.computed[2];
    let io = Io::new(x.as_slice(), y.as_slice_mut()).stats(stats.stats_mut());
    let Kind::Rms { recipe, weight_offset, partial } = options.kind else {
        return common!(LayerNorm::new(hidden), options, affine).apply(io);
    };
    rms(options, hidden, affine, (recipe, weight_offset, partial)).apply(io)
}

fn rms<'a>(
    options: &Options,
    hidden: usize,
    affine: Affine<'a>,
    (recipe, weight_offset, partial): (Recipe, f64, Option<usize>),
) -> RmsNorm<'a> {
    let mut norm = common!(RmsNorm::new(hidden), options, affine).recipe(recipe);
    if affine.weight.is_some() {
        norm = norm.weight_offset(weight_offset);
    }
    partial.map_or(norm, |k| norm.partial(k))
}

/// Channels and the elements of each in a sample.
fn channels(layout: &Layout) -> (usize, usize) {
    let [_, rows, columns] = layout.computed;
    if layout.together == Together::Column { (columns, 1) } else { (rows, columns) }
}

fn planes(
    options: &Options,
    layout: &Layout,
    x: &Values,
    affine: Affine<'_>,
    y: &mut Values,
    stats: &mut Store,
) -> Result<(), isonorm::Error> {
    let (channels, spatial) = channels(layout);
    let x = Planes::channels_first(x.as_slice(), channels, spatial);
    let y = PlanesMut::channels_first(y.as_slice_mut(), channels, spatial);
    let io = PlaneIo::new(x, y).stats(stats.stats_mut());
    match options.kind {
        Kind::Group { groups } => common!(GroupNorm::new(groups, channels), options, affine).apply(io),
        Kind::Instance => common!(InstanceNorm::new(channels), options, affine).apply(io),
        _ => common!(BatchNorm::new(channels), options, affine).train(io, None),
    }
}

/// Running statistics, one for each channel.
#[derive(Debug)]
pub(crate) struct RunningStats {
    pub(crate) mean: Values,
    pub(crate) var: Values,
}

/// The running statistics that one batch leaves, from a running mean of 0 and variance of 1.
pub(crate) fn running(
    options: &Options,
    layout: &Layout,
    x: &Values,
    momentum: f64,
    biased: bool,
) -> Result<RunningStats, isonorm::Error> {
    let (channels, spatial) = channels(layout);
    let dtype = compute_type(x.dtype());
    let mut mean = Values::filled(0.0, channels, dtype);
    let mut var = Values::filled(1.0, channels, dtype);
    let mut y = Values::filled(0.0, x.len(), x.dtype());
    let mut norm = BatchNorm::new(channels).eps(options.eps).momentum(momentum);
    if biased {
        norm = norm.biased_running_var();
    }
    let io = PlaneIo::new(
        Planes::channels_first(x.as_slice(), channels, spatial),
        PlanesMut::channels_first(y.as_slice_mut(), channels, spatial),
    );
    norm.train(io, Some(Running { mean: mean.as_slice_mut(), var: var.as_slice_mut() }))?;
    Ok(RunningStats { mean, var })
}

/// What evaluation makes of `x` with these running statistics.
pub(crate) fn evaluate(
    options: &Options,
    layout: &Layout,
    x: &Values,
    affine: Affine<'_>,
    running: &RunningStats,
) -> Result<Values, isonorm::Error> {
    let (channels, spatial) = channels(layout);
    let mut y = Values::filled(0.0, x.len(), x.dtype());
    let io = PlaneIo::new(
        Planes::channels_first(x.as_slice(), channels, spatial),
        PlanesMut::channels_first(y.as_slice_mut(), channels, spatial),
    );
    common!(BatchNorm::new(channels), options, affine).evaluate(io, running.mean.as_slice(), running.var.as_slice())?;
    Ok(y)
}

/// Single operations of the compute type, for the steps between the library's numbers. Each has one right
/// result, so these are the library's too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arithmetic(pub(crate) DType);

impl Arithmetic {
    /// The arithmetic of norms of `dtype`.
    pub(crate) fn of(dtype: DType) -> Self {
        Arithmetic(compute_type(dtype))
    }

    pub(crate) fn round(self, value: f64) -> f64 {
        if self.0 == DType::F64 { value } else { f64::from(value as f32) }
    }

    pub(crate) fn add(self, a: f64, b: f64) -> f64 {
        if self.0 == DType::F64 { a + b } else { f64::from(a as f32 + b as f32) }
    }

    pub(crate) fn sub(self, a: f64, b: f64) -> f64 {
        self.add(a, -b)
    }

    pub(crate) fn mul(self, a: f64, b: f64) -> f64 {
        if self.0 == DType::F64 { a * b } else { f64::from(a as f32 * b as f32) }
    }

    pub(crate) fn div(self, a: f64, b: f64) -> f64 {
        if self.0 == DType::F64 { a / b } else { f64::from(a as f32 / b as f32) }
    }

    pub(crate) fn fma(self, a: f64, b: f64, c: f64) -> f64 {
        if self.0 == DType::F64 { a.mul_add(b, c) } else { f64::from((a as f32).mul_add(b as f32, c as f32)) }
    }

    pub(crate) fn sqrt(self, a: f64) -> f64 {
        if self.0 == DType::F64 { a.sqrt() } else { f64::from((a as f32).sqrt()) }
    }

    /// eps as the computation of a row with this scale uses it.
    pub(crate) fn eps(self, options: &Options, scale: f64) -> f64 {
        let once = self.mul(self.round(options.eps), scale);
        if options.eps_outside { once } else { self.mul(once, scale) }
    }

    /// What `inv` is one over.
    pub(crate) fn root(self, options: &Options, stat: &Stat) -> f64 {
        let eps = self.eps(options, stat.scale);
        if options.eps_outside { self.add(self.sqrt(stat.var), eps) } else { self.sqrt(self.add(stat.var, eps)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shown root is not the library's own number; what is one over it must be.
    #[test]
    fn one_over_the_shown_root_is_the_librarys_inv() {
        let rows = [[1.0, 2.0, 3.0], [1e30, -2e30, 5e29], [1e-30, 3e-30, 0.0], [0.1, 0.7, -0.3], [5.0, 5.0, 5.0]];
        for dtype in [DType::F32, DType::F64, DType::F16, DType::Bf16] {
            let layout = Layout {
                computed: [1, rows.len(), 3],
                whole: [1, rows.len(), 3],
                names: ["", "row", "hidden"],
                together: Together::Row,
                unit: "row",
            };
            let x = Values::rounded(rows.iter().flatten().copied(), dtype);
            let rms = Kind::Rms { recipe: Recipe::Torch, weight_offset: 0.0, partial: None };
            for (kind, eps_outside, eps) in
                [(rms, false, 1e-6), (rms, true, 1e-6), (Kind::Layer, false, 1e-5), (Kind::Layer, true, 0.0)]
            {
                let options = Options { kind, eps, eps_outside };
                let made = forward(&options, &layout, &x, Affine::default(), dtype).expect("a forward");
                let arithmetic = Arithmetic::of(dtype);
                for (stat, row) in made.stats.iter().zip(rows) {
                    let inv = arithmetic.div(1.0, arithmetic.root(&options, stat));
                    assert_eq!(inv.to_bits(), stat.inv.to_bits(), "{dtype} {kind:?} eps {eps} {row:?}");
                }
            }
        }
    }
}
