//! The stored bits of `spec/golden`, as typed cases. The format is in `spec/golden/README.md`.

mod shared;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use half::{bf16, f16};
use serde::Deserialize;

use crate::DType;
use crate::oracle::{Compute, Eps, forward::Channels};

pub use shared::shared;

/// Values of one storage type, as their patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// The type of every value.
    pub dtype: DType,
    /// The storage patterns.
    pub bits: Vec<u64>,
}

/// The first place where two arrays differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub index: usize,
    /// The stored pattern.
    pub expected: u64,
    /// The pattern that was found.
    pub found: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { index, expected, found } = self;
        write!(f, "element {index}: {expected:x} expected, {found:x} found")
    }
}

impl Array {
    /// Rounds each value to `dtype`, once.
    pub fn from_values<C: Compute>(dtype: DType, values: &[C]) -> Self {
        let bits = |v: &C| dtype.bits(dtype.narrow(v.to_f64()));
        Self { dtype, bits: values.iter().map(bits).collect() }
    }

    /// The values, widened to a compute type (which must hold them exactly).
    pub fn widened<C: Compute>(&self) -> Vec<C> {
        assert!(C::DTYPE == DType::F64 || self.dtype != DType::F64, "f64 does not fit {:?}", C::DTYPE);
        self.bits.iter().map(|b| C::from_f64(self.dtype.value(*b))).collect()
    }

    /// The values, rounded to another storage type.
    pub fn narrowed(&self, dtype: DType) -> Self {
        Self::from_values(dtype, &self.widened::<f64>())
    }

    /// As f32; another type is a mistake of the caller.
    pub fn f32s(&self) -> Vec<f32> {
        self.expect(DType::F32);
        self.bits.iter().map(|b| f32::from_bits(*b as u32)).collect()
    }

    /// As f64; another type is a mistake of the caller.
    pub fn f64s(&self) -> Vec<f64> {
        self.expect(DType::F64);
        self.bits.iter().map(|b| f64::from_bits(*b)).collect()
    }

    /// As f16; another type is a mistake of the caller.
    pub fn f16s(&self) -> Vec<f16> {
        self.expect(DType::F16);
        self.bits.iter().map(|b| f16::from_bits(*b as u16)).collect()
    }

    /// As bf16; another type is a mistake of the caller.
    pub fn bf16s(&self) -> Vec<bf16> {
        self.expect(DType::Bf16);
        self.bits.iter().map(|b| bf16::from_bits(*b as u16)).collect()
    }

    fn expect(&self, dtype: DType) {
        assert_eq!(self.dtype, dtype, "an array of {:?} was read as {dtype:?}", self.dtype);
    }

    /// The first place where `found` differs in a bit; NaN equals any NaN.
    pub fn first_difference(&self, found: &Array) -> Option<Difference> {
        found.expect(self.dtype);
        assert_eq!(self.bits.len(), found.bits.len(), "arrays of different lengths");
        let nan = |bits: u64| self.dtype.value(bits).is_nan();
        let pairs = self.bits.iter().zip(&found.bits).enumerate();
        for (index, (&expected, &found)) in pairs {
            if expected != found && !(nan(expected) && nan(found)) {
                return Some(Difference { index, expected, found });
            }
        }
        None
    }
}

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// RMSNorm.
    RmsNorm,
    /// LayerNorm.
    LayerNorm,
    /// GroupNorm.
    GroupNorm,
    /// BatchNorm in training.
    BatchNormTrain,
    /// BatchNorm in evaluation.
    BatchNormEval,
}

/// The logical shape of x.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// RMSNorm and LayerNorm.
    Rows {
        /// Everything before the normalized axis.
        rows: usize,
        /// The normalized axis.
        hidden: usize,
    },
    /// GroupNorm and BatchNorm.
    Channels(Channels),
}

/// One call and what it returns.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique in its file.
    pub name: String,
    /// The norm.
    pub norm: Norm,
    /// Its shape.
    pub shape: Shape,
    /// eps, and where it is added.
    pub eps: Eps,
    /// RMSNorm's recipe llama.
    pub llama: bool,
    /// Added to the weight.
    pub weight_offset: f64,
    /// pRMSNorm's k.
    pub partial: Option<usize>,
    /// GroupNorm's groups.
    pub groups: Option<usize>,
    /// Of the running statistics.
    pub momentum: Option<f64>,
    /// The running variance takes var without n / (n - 1).
    pub biased_running_var: bool,
    /// The type of y.
    pub y_type: DType,
    /// The type of r, in a residual add.
    pub r_type: Option<DType>,
    /// Input arrays: weight, bias, residual, running_mean, running_var, dy, dresidual; and x.
    pub inputs: BTreeMap<String, Array>,
    /// Expected arrays: y, r, mean, var, rstd, running_mean, running_var; dx, dr, dweight, dbias.
    /// Parameter gradients of [`shared`] cases are f32, before their rounding ([`Array::narrowed`]).
    pub out: BTreeMap<String, Array>,
}

impl Case {
    /// x.
    pub fn x(&self) -> &Array {
        &self.inputs["x"]
    }

    /// An input other than x.
    pub fn input(&self, name: &str) -> Option<&Array> {
        self.inputs.get(name)
    }

    /// The type of what is normalized: r's after a residual add, else x's.
    pub fn normalized_type(&self) -> DType {
        self.r_type.unwrap_or(self.x().dtype)
    }

    /// Whether the call is computed in f64.
    pub fn computes_in_f64(&self) -> bool {
        self.normalized_type() == DType::F64
    }

    /// Rows and hidden; a channel-wise case is a mistake of the caller.
    pub fn rows(&self) -> (usize, usize) {
        match self.shape {
            Shape::Rows { rows, hidden } => (rows, hidden),
            Shape::Channels(_) => panic!("{} is channel-wise", self.name),
        }
    }

    /// Samples, channels, spatial; a row-wise case is a mistake of the caller.
    pub fn channels(&self) -> Channels {
        match self.shape {
            Shape::Rows { .. } => panic!("{} is row-wise", self.name),
            Shape::Channels(channels) => channels,
        }
    }

    /// Panics with both patterns where `found` is not the stored output `name`.
    pub fn assert_same_bits(&self, name: &str, found: &Array) {
        let expected = self.out.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.name));
        assert_eq!(expected.dtype, found.dtype, "{} {name}: another type", self.name);
        if let Some(difference) = expected.first_difference(found) {
            panic!("{} {name}, {difference}", self.name);
        }
    }
}

/// Forward calls: `forward.json`.
pub fn forward() -> Vec<Case> {
    own("forward.json")
}

/// Backward calls: `backward.json`.
pub fn backward() -> Vec<Case> {
    own("backward.json")
}

/// A row of `order.json`: hashes of the sums over 1.0, 2.0, ..., n.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    /// The number of elements.
    pub n: usize,
    /// Of the row's sum.
    pub row_sum: u64,
    /// Of the row's product with itself.
    pub row_dot: u64,
}

/// The order of summation: `order.json`.
pub fn order() -> Vec<Fingerprint> {
    #[derive(Deserialize)]
    struct Row {
        n: usize,
        row_sum: String,
        row_dot: String,
    }
    #[derive(Deserialize)]
    struct File {
        rows: Vec<Row>,
    }
    let file: File = read("order.json");
    let typed = |row: Row| Fingerprint { n: row.n, row_sum: hex(&row.row_sum), row_dot: hex(&row.row_dot) };
    file.rows.into_iter().map(typed).collect()
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or_else(|e| panic!("`{text}` is not hexadecimal: {e}"))
}

fn read<T: for<'de> Deserialize<'de>>(file: &str) -> T {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../spec/golden").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[derive(Clone, Deserialize)]
struct Packed {
    dtype: DType,
    bits: String,
}

impl Packed {
    fn array(&self) -> Array {
        let words = self.bits.as_bytes().chunks(self.dtype.digits());
        let word = |w| hex(std::str::from_utf8(w).expect("hexadecimal digits are ASCII"));
        Array { dtype: self.dtype, bits: words.map(word).collect() }
    }
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    norm: Norm,
    shape: Vec<usize>,
    eps: f64,
    #[serde(default)]
    eps_outside: bool,
    #[serde(default)]
    llama: bool,
    #[serde(default)]
    weight_offset: f64,
    partial: Option<usize>,
    groups: Option<usize>,
    momentum: Option<f64>,
    #[serde(default)]
    biased_running_var: bool,
    y_type: DType,
    r_type: Option<DType>,
    out: BTreeMap<String, Packed>,
    #[serde(flatten)]
    inputs: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct File {
    arrays: Vec<Packed>,
    cases: Vec<Entry>,
}

fn own(file: &str) -> Vec<Case> {
    let File { arrays, cases } = read(file);
    cases.into_iter().map(|entry| typed(entry, &arrays)).collect()
}

fn typed(entry: Entry, arrays: &[Packed]) -> Case {
    let shape = match entry.shape[..] {
        [rows, hidden] => Shape::Rows { rows, hidden },
        [samples, channels, spatial] => Shape::Channels(Channels { samples, channels, spatial }),
        _ => panic!("{}: a shape of {} axes", entry.name, entry.shape.len()),
    };
    Case {
        name: entry.name,
        norm: entry.norm,
        shape,
        eps: Eps { value: entry.eps, outside: entry.eps_outside },
        llama: entry.llama,
        weight_offset: entry.weight_offset,
        partial: entry.partial,
        groups: entry.groups,
        momentum: entry.momentum,
        biased_running_var: entry.biased_running_var,
        y_type: entry.y_type,
        r_type: entry.r_type,
        inputs: entry.inputs.into_iter().map(|(name, at)| (name, arrays[at].array())).collect(),
        out: entry.out.iter().map(|(name, packed)| (name.clone(), packed.array())).collect(),
    }
}
