//! What the tests share: tensors of any type, and norms of rows beside their oracle.
#![allow(dead_code, unused_imports)] // each test uses a part of it

pub(crate) mod layout;

use std::ops::Range;

use half::{bf16, f16};
use isonorm::{
    BackwardIo, Cpu, Error, Io, LayerNorm, Level, Recipe, RmsNorm, Shard, Slice, SliceMut, Stats, StatsMut, StatsRef,
};
use isonorm_testing::DType;
use isonorm_testing::golden::{self, Array, Case};
use isonorm_testing::oracle::forward::{self as oracle, Affine};
use isonorm_testing::oracle::{Compute, Eps};
use isonorm_testing::values::{Kind, values};

/// An owned tensor of any storage type.
#[derive(Clone, Debug)]
pub(crate) enum Tensor {
    F32(Vec<f32>),
    F64(Vec<f64>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Runs `$body` with `$v` bound to the vector of `$tensor`.
macro_rules! with_vec {
    ($tensor:expr, $v:ident => $body:expr) => {
        match $tensor {
            Tensor::F32($v) => $body,
            Tensor::F64($v) => $body,
            Tensor::F16($v) => $body,
            Tensor::Bf16($v) => $body,
        }
    };
}

impl Tensor {
    pub(crate) fn new(array: &Array) -> Self {
        match array.dtype {
            DType::F32 => Tensor::F32(array.f32s()),
            DType::F64 => Tensor::F64(array.f64s()),
            DType::F16 => Tensor::F16(array.f16s()),
            DType::Bf16 => Tensor::Bf16(array.bf16s()),
        }
    }

    pub(crate) fn values(dtype: DType, kind: Kind, seed: u64, n: usize) -> Self {
        Self::new(&Array::from_values(dtype, &values(dtype, kind, seed, n)))
    }

    /// `n` values that no norm writes by accident: a NaN with a payload of its own.
    pub(crate) fn sentinel(dtype: DType, n: usize) -> Self {
        match dtype {
            DType::F32 => Tensor::F32(vec![f32::from_bits(0x7fe5_a5a5); n]),
            DType::F64 => Tensor::F64(vec![f64::from_bits(0x7ffe_5a5a_5a5a_5a5a); n]),
            DType::F16 => Tensor::F16(vec![f16::from_bits(0x7f5a); n]),
            DType::Bf16 => Tensor::Bf16(vec![bf16::from_bits(0x7fd5); n]),
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        match self {
            Tensor::F32(_) => DType::F32,
            Tensor::F64(_) => DType::F64,
            Tensor::F16(_) => DType::F16,
            Tensor::Bf16(_) => DType::Bf16,
        }
    }

    pub(crate) fn len(&self) -> usize {
        with_vec!(self, v => v.len())
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        with_vec!(self, v => v.into())
    }

    pub(crate) fn slice_mut(&mut self) -> SliceMut<'_> {
        with_vec!(self, v => v.into())
    }

    /// Elements `start .. start + len`.
    pub(crate) fn part(&self, start: usize, len: usize) -> Slice<'_> {
        with_vec!(self, v => (&v[start..start + len]).into())
    }

    /// Elements `start .. start + len`.
    pub(crate) fn part_mut(&mut self, start: usize, len: usize) -> SliceMut<'_> {
        with_vec!(self, v => (&mut v[start..start + len]).into())
    }

    /// The storage pattern of one element.
    pub(crate) fn bits(&self, at: usize) -> u64 {
        match self {
            Tensor::F32(v) => v[at].to_bits().into(),
            Tensor::F64(v) => v[at].to_bits(),
            Tensor::F16(v) => v[at].to_bits().into(),
            Tensor::Bf16(v) => v[at].to_bits().into(),
        }
    }

    pub(crate) fn array(&self) -> Array {
        Array { dtype: self.dtype(), bits: (0..self.len()).map(|at| self.bits(at)).collect() }
    }

    /// The elements at these places, in this order.
    pub(crate) fn gather(&self, places: impl IntoIterator<Item = usize>) -> Self {
        fn pick<T: Copy>(from: &[T], places: impl IntoIterator<Item = usize>) -> Vec<T> {
            places.into_iter().map(|at| from[at]).collect()
        }
        match self {
            Tensor::F32(v) => Tensor::F32(pick(v, places)),
            Tensor::F64(v) => Tensor::F64(pick(v, places)),
            Tensor::F16(v) => Tensor::F16(pick(v, places)),
            Tensor::Bf16(v) => Tensor::Bf16(pick(v, places)),
        }
    }
}

/// Whether two patterns agree; any NaN agrees with any NaN.
pub(crate) fn agree(dtype: DType, a: u64, b: u64) -> bool {
    a == b || (dtype.value(a).is_nan() && dtype.value(b).is_nan())
}

/// Panics with the norm, n, the row, the position and both patterns where a bit differs.
pub(crate) fn assert_same_bits(label: &dyn std::fmt::Display, n: usize, expected: &Tensor, found: &Tensor) {
    let dtype = expected.dtype();
    assert_eq!((dtype, expected.len()), (found.dtype(), found.len()), "{label}: type and length");
    for at in 0..expected.len() {
        let (e, f) = (expected.bits(at), found.bits(at));
        if !agree(dtype, e, f) {
            let (row, i, digits) = (at / n.max(1), at % n.max(1), dtype.digits());
            panic!(
                "{label}: n = {n}, row {row}, element {i} (lane {}): expected {e:0digits$x}, found {f:0digits$x}",
                i % 32
            );
        }
    }
}

/// Which norm of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Rms,
    Layer,
}

pub(crate) const BOTH: [Which; 2] = [Which::Rms, Which::Layer];

/// A norm of rows with all its options.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) which: Which,
    pub(crate) hidden: usize,
    pub(crate) eps: Eps,
    pub(crate) weight: Option<Tensor>,
    pub(crate) bias: Option<Tensor>,
    pub(crate) offset: f64,
    pub(crate) llama: bool,
    pub(crate) partial: Option<usize>,
}

/// `$builder` with the options that both norms have.
macro_rules! with_options {
    ($spec:expr, $cpu:expr, $builder:expr) => {{
        let mut norm = $builder.eps($spec.eps.value).weight_offset($spec.offset).on($cpu);
        if $spec.eps.outside {
            norm = norm.eps_outside();
        }
        if let Some(weight) = &$spec.weight {
            norm = norm.weight(weight.slice());
        }
        if let Some(bias) = &$spec.bias {
            norm = norm.bias(bias.slice());
        }
        norm
    }};
}

/// Runs `$body` with `$norm` bound to the library's norm.
macro_rules! with_norm {
    ($spec:expr, $cpu:expr, $norm:ident => $body:expr) => {
        match $spec.which {
            Which::Rms => {
                let mut $norm = with_options!($spec, $cpu, RmsNorm::new($spec.hidden));
                if $spec.llama {
                    $norm = $norm.recipe(Recipe::Llama);
                }
                if let Some(k) = $spec.partial {
                    $norm = $norm.partial(k);
                }
                $body
            }
            Which::Layer => {
                let $norm = with_options!($spec, $cpu, LayerNorm::new($spec.hidden));
                $body
            }
        }
    };
}

pub(crate) use with_options;

impl Norm {
    /// The norm of a golden case whose rows are taken one by one, and how many they are.
    pub(crate) fn of(case: &Case) -> Option<(Self, usize)> {
        let which = match case.norm {
            golden::Norm::RmsNorm => Which::Rms,
            golden::Norm::LayerNorm => Which::Layer,
            _ => return None,
        };
        let (rows, hidden) = case.rows();
        let input = |name| case.input(name).map(Tensor::new);
        let (weight, bias) = (input("weight"), input("bias"));
        let (eps, offset, llama, partial) = (case.eps, case.weight_offset, case.llama, case.partial);
        Some((Norm { which, hidden, eps, weight, bias, offset, llama, partial }, rows))
    }

    pub(crate) fn new(which: Which, hidden: usize) -> Self {
        let eps = Eps { value: 1e-5, outside: false };
        Norm { which, hidden, eps, weight: None, bias: None, offset: 0.0, llama: false, partial: None }
    }

    pub(crate) fn apply(&self, cpu: Cpu<'_>, io: Io<'_>) -> Result<(), Error> {
        with_norm!(self, cpu, norm => norm.apply(io))
    }

    pub(crate) fn backward(&self, cpu: Cpu<'_>, io: BackwardIo<'_>) -> Result<(), Error> {
        with_norm!(self, cpu, norm => norm.backward(io))
    }

    /// Of a norm whose weight and bias are of the columns alone.
    pub(crate) fn shard<'a>(&'a self, cpu: Cpu<'a>, columns: Range<usize>) -> Result<Shard<'a>, Error> {
        with_norm!(self, cpu, norm => norm.shard(columns))
    }

    /// y of contiguous rows.
    pub(crate) fn forward(&self, cpu: Cpu<'_>, x: &Tensor, y_type: DType) -> Tensor {
        let mut y = Tensor::sentinel(y_type, x.len());
        self.apply(cpu, Io::new(x.slice(), y.slice_mut())).unwrap_or_else(|e| panic!("{self}: {e}"));
        y
    }

    /// What the oracle says of contiguous rows.
    pub(crate) fn oracle(&self, x: &Tensor, y_type: DType) -> Expected {
        if x.dtype() == DType::F64 { self.oracle_in::<f64>(x, y_type) } else { self.oracle_in::<f32>(x, y_type) }
    }

    fn oracle_in<C: Compute>(&self, x: &Tensor, y_type: DType) -> Expected {
        if self.hidden == 0 || x.len() == 0 {
            let nothing = || Tensor::sentinel(C::DTYPE, 0);
            return Expected { y: Tensor::sentinel(y_type, 0), mean: nothing(), var: nothing(), rstd: nothing() };
        }
        let widened = |tensor: &Tensor| tensor.array().widened::<C>();
        let (weight, bias) = (self.weight.as_ref().map(widened), self.bias.as_ref().map(widened));
        let affine = Affine { weight: weight.as_deref(), bias: bias.as_deref(), weight_offset: self.offset };
        let values = widened(x);
        let out = match self.which {
            Which::Rms => {
                let llama = self.llama.then_some(x.dtype());
                let options = oracle::RmsNorm { eps: self.eps, partial: self.partial, llama };
                oracle::rms_norm(&values, self.hidden, &affine, &options)
            }
            Which::Layer => oracle::layer_norm(&values, self.hidden, &affine, self.eps),
        };
        let tensor = |values: &[C]| Tensor::new(&Array::from_values(C::DTYPE, values));
        let y = Tensor::new(&Array::from_values(y_type, &out.y));
        Expected { y, mean: tensor(&out.mean), var: tensor(&out.var), rstd: tensor(&out.rstd) }
    }
}

impl std::fmt::Display for Norm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Norm { which, hidden, eps, weight, bias, offset, llama, partial } = self;
        let dtype = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::dtype);
        let (weight, bias) = (dtype(weight), dtype(bias));
        write!(f, "{which:?}({hidden}) {eps:?} weight {weight:?} + {offset} bias {bias:?}")?;
        write!(f, " llama {llama} partial {partial:?}")
    }
}

/// y, and the reported statistics of each row.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) y: Tensor,
    pub(crate) mean: Tensor,
    pub(crate) var: Tensor,
    pub(crate) rstd: Tensor,
}

/// Statistics of either compute type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Saved {
    F32(Vec<Stats<f32>>),
    F64(Vec<Stats<f64>>),
}

impl Saved {
    /// Room for `rows` statistics of norms of `dtype`.
    pub(crate) fn new(dtype: DType, rows: usize) -> Self {
        if dtype == DType::F64 {
            Saved::F64(vec![Stats::default(); rows])
        } else {
            Saved::F32(vec![Stats::default(); rows])
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Saved::F32(stats) => stats.len(),
            Saved::F64(stats) => stats.len(),
        }
    }

    pub(crate) fn stats_mut(&mut self) -> StatsMut<'_> {
        match self {
            Saved::F32(stats) => stats.into(),
            Saved::F64(stats) => stats.into(),
        }
    }

    pub(crate) fn stats_ref(&self) -> StatsRef<'_> {
        match self {
            Saved::F32(stats) => stats.into(),
            Saved::F64(stats) => stats.into(),
        }
    }

    /// The reported `mean`, `var` and `rstd`.
    pub(crate) fn reported(&self) -> [Tensor; 3] {
        match self {
            Saved::F32(s) => [Stats::mean, Stats::var, Stats::rstd].map(|f| Tensor::F32(s.iter().map(f).collect())),
            Saved::F64(s) => [Stats::mean, Stats::var, Stats::rstd].map(|f| Tensor::F64(s.iter().map(f).collect())),
        }
    }

    pub(crate) fn assert_reports(&self, label: &dyn std::fmt::Display, expected: &Expected) {
        let [mean, var, rstd] = self.reported();
        assert_same_bits(&format!("{label}, rstd of each row"), 1, &expected.rstd, &rstd);
        assert_same_bits(&format!("{label}, mean of each row"), 1, &expected.mean, &mean);
        assert_same_bits(&format!("{label}, var of each row"), 1, &expected.var, &var);
    }
}

/// One thread of this level.
pub(crate) fn one(level: Level) -> Cpu<'static> {
    Cpu::new().threads(1).level(level)
}

/// One scalar thread: what everything else is compared with where the oracle is too slow.
pub(crate) fn scalar() -> Cpu<'static> {
    one(Level::Scalar)
}

/// `x` in f64 for f64, f32 for the others.
pub(crate) fn compute_type(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
