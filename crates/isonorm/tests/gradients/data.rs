//! The data of `spec/accuracy/make_gradients.py`, made again, and PyTorch's gradients of it (`gradients.json`).

use isonorm_testing::DType;
use isonorm_testing::values::irwin_hall;
use serde_json::Value;

use crate::call::{Call, Norm};

/// The names of the gradients, in the order of every array of three here.
pub(crate) const NAMES: [&str; 3] = ["dx", "dweight", "dbias"];

/// What PyTorch makes of one gradient: its largest and its mean error. Nothing where it is not finite, or not there.
pub(crate) type Errors = Option<[f64; 2]>;

/// One case: the call, its tensors, and PyTorch's gradients.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) call: Call,
    pub(crate) x: Vec<f64>,
    pub(crate) dy: Vec<f64>,
    pub(crate) errors: [Errors; 3],
    pub(crate) f64_errors: [Errors; 3],
    /// Where, and which value; none where PyTorch has no such gradient.
    pub(crate) f64_values: [Vec<(usize, f64)>; 3],
}

pub(crate) fn file() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec/accuracy/gradients.json");
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

pub(crate) fn cases() -> Vec<Case> {
    file()["cases"].as_array().expect("a list").iter().map(case).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn count(value: &Value) -> usize {
    value.as_u64().expect("a count") as usize
}

fn errors(value: &Value) -> Errors {
    value.is_array().then(|| [0, 1].map(|i| value[i].as_f64().expect("a number")))
}

/// f64 as it is, f32 from f64, bf16 from that f32.
fn stored(dtype: DType, values: impl Iterator<Item = f64>) -> Vec<f64> {
    let first = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    values.map(|v| dtype.narrow(first.narrow(v))).collect()
}

/// `bits` holds the values at every 7919th place, modulo the length.
fn sampled(bits: &Value, len: usize) -> Vec<(usize, f64)> {
    let Some(digits) = bits.as_str() else { return Vec::new() };
    let value = |i: usize| u64::from_str_radix(&digits[16 * i..16 * (i + 1)], 16).expect("hexadecimal digits");
    assert_eq!(digits.len(), 16 * len.min(32));
    (0..len.min(32)).map(|i| (i * 7919 % len, f64::from_bits(value(i)))).collect()
}

fn case(case: &Value) -> Case {
    let shape: Vec<usize> = case["shape"].as_array().expect("a list").iter().map(count).collect();
    let dtype: DType = serde_json::from_value(case["dtype"].clone()).expect("a type");
    let (len, channels) = (shape.iter().product(), shape[1]);
    let kind = text(&case["kind"]);
    let (scale, shift) = match kind {
        "offset" => (1.0, 1000.0),
        "large" => (1_048_576.0, 0.0),
        "small" => (1.0 / 1024.0, 0.0),
        "huge" => (1e30, 0.0),
        "tiny" => (1e-30, 0.0),
        _ => (1.0, 0.0),
    };
    let seed = count(&case["seed"]) as u64;
    let normal = |of: u64, n: usize| irwin_hall(seed + of, n).into_iter();
    let of_x = |values: std::vec::IntoIter<f64>| stored(dtype, values.map(|v| v * scale + shift));
    let name = text(&case["norm"]);
    let norm = match name {
        "rms_norm" => Norm::Rms,
        "layer_norm" => Norm::Layer,
        "group_norm" => Norm::Group,
        "instance_norm" => Norm::Instance,
        _ => Norm::Batch,
    };
    let mut call = Call::new(norm, dtype, channels, shape.get(2).copied().unwrap_or(1));
    call.eps = case["eps"].as_f64().expect("a number");
    call.groups = case["groups"].as_u64().map_or(1, |groups| groups as usize);
    call.weight = Some(stored(dtype, normal(1, channels)));
    if name == "batch_norm_eval" {
        let mean = stored(dtype, normal(3, channels).map(|v| v / 4.0 * scale + shift));
        let var = stored(dtype, normal(4, channels).map(|v| (v.abs() + 0.5) * (scale * scale)));
        call.running = Some([mean, var]);
    }
    Case {
        name: name.to_owned(),
        kind: kind.to_owned(),
        x: of_x(normal(0, len)),
        dy: stored(dtype, normal(2, len)),
        call,
        errors: NAMES.map(|name| errors(&case["errors"][name])),
        f64_errors: NAMES.map(|name| errors(&case["f64_errors"][name])),
        f64_values: [("dx", len), ("dweight", channels), ("dbias", channels)]
            .map(|(name, len)| sampled(&case["f64_bits"][name], len)),
    }
}
