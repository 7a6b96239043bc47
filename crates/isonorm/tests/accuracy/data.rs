//! The data of `spec/accuracy/make_torch.py`, made again, and what PyTorch makes of it (`torch.json`).

use half::{bf16, f16};
use isonorm_testing::DType;
use isonorm_testing::values::irwin_hall;
use serde_json::Value;

use crate::support::Tensor;

pub(crate) const EPS: f64 = 1.0 / 131072.0; // 2^-17
pub(crate) const GROUPS: usize = 4;

/// One case, and PyTorch's errors.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) norm: String,
    pub(crate) dtype: DType,
    pub(crate) kind: String,
    pub(crate) n: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) seed: u64,
    pub(crate) torch: Errors,
}

/// Distances from the exact result; the file says which.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Errors {
    pub(crate) max_ulps: f64,
    pub(crate) mean_ulps: f64,
    pub(crate) max_row: f64,
    /// In ulps of all terms; not in the file.
    pub(crate) max_bounded: f64,
}

pub(crate) fn file() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec/accuracy/torch.json");
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn count(value: &Value) -> u64 {
    value.as_u64().expect("a count")
}

pub(crate) fn cases() -> Vec<Case> {
    let file = file();
    let cases = file["cases"].as_array().expect("a list");
    let case = |case: &Value| Case {
        norm: text(&case["norm"]),
        dtype: serde_json::from_value(case["dtype"].clone()).expect("a type"),
        kind: text(&case["kind"]),
        n: count(&case["n"]) as usize,
        shape: case["shape"].as_array().expect("a list").iter().map(|n| count(n) as usize).collect(),
        seed: count(&case["seed"]),
        torch: Errors {
            max_ulps: number(&case["max_ulps"]),
            mean_ulps: number(&case["mean_ulps"]),
            max_row: number(&case["max_row"]),
            max_bounded: f64::NAN,
        },
    };
    cases.iter().map(case).collect()
}

/// f64 as it is, f32 from f64, the 16-bit types from that f32.
fn stored(values: &[f64], dtype: DType) -> Tensor {
    let f32s = || values.iter().map(|v| *v as f32);
    match dtype {
        DType::F64 => Tensor::F64(values.to_vec()),
        DType::F32 => Tensor::F32(f32s().collect()),
        DType::F16 => Tensor::F16(f32s().map(f16::from_f32).collect()),
        DType::Bf16 => Tensor::Bf16(f32s().map(bf16::from_f32).collect()),
    }
}

impl Case {
    /// x, weight and bias; RMSNorm's bias is 0.
    pub(crate) fn inputs(&self) -> [Tensor; 3] {
        let offset = if self.kind == "offset" { 1000.0 } else { 0.0 };
        let x: Vec<f64> = irwin_hall(self.seed, self.shape.iter().product()).iter().map(|v| v + offset).collect();
        let channels = self.shape[1];
        let bias = if self.norm == "rms_norm" { vec![0.0; channels] } else { irwin_hall(self.seed + 2, channels) };
        [x, irwin_hall(self.seed + 1, channels), bias].map(|values| stored(&values, self.dtype))
    }

    /// The elements that are normalized together, row by row: the place of each in x, and its parameter.
    pub(crate) fn rows(&self) -> Vec<Vec<(usize, usize)>> {
        let spatial: usize = self.shape[2..].iter().product();
        let (samples, channels) = (self.shape[0], self.shape[1]);
        let place = |s: usize, c: usize, i: usize| ((s * channels + c) * spatial + i, c);
        let plane = move |s: usize, c: usize| (0..spatial).map(move |i| place(s, c, i));
        match self.norm.as_str() {
            "rms_norm" | "layer_norm" => {
                (0..samples).map(|s| (0..channels).flat_map(|c| plane(s, c)).collect()).collect()
            }
            "group_norm" => {
                let size = channels / GROUPS;
                let group =
                    |g: usize| (g % GROUPS * size..(g % GROUPS + 1) * size).flat_map(move |c| plane(g / GROUPS, c));
                (0..samples * GROUPS).map(|g| group(g).collect()).collect()
            }
            _ => (0..channels).map(|c| (0..samples).flat_map(|s| plane(s, c)).collect()).collect(),
        }
    }
}
