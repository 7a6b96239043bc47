//! `norms.json`: every value widened to f32, several operations on one input.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Array, Case, Norm, Shape, hex, read};
use crate::DType;
use crate::oracle::{Eps, forward::Channels};

#[derive(Deserialize)]
struct Input {
    rows: Option<usize>,
    n: Option<usize>,
    #[serde(rename = "N")]
    samples: Option<usize>,
    #[serde(rename = "C")]
    channels: Option<usize>,
    #[serde(rename = "S")]
    spatial: Option<usize>,
    dtype: DType,
    kind: String,
    x: Vec<String>,
    weight: Vec<String>,
    bias: Vec<String>,
    dy: Vec<String>,
    out: BTreeMap<String, Operation>,
}

#[derive(Deserialize)]
struct Operation {
    eps: f64,
    affine: Option<String>,
    #[serde(default)]
    eps_outside: bool,
    recipe: Option<String>,
    #[serde(default)]
    weight_offset: f64,
    partial: Option<usize>,
    groups: Option<usize>,
    out_dtype: Option<DType>,
    #[serde(flatten)]
    arrays: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct File {
    cases: Vec<Input>,
}

/// Forward and backward calls: `norms.json`. One case per operation.
pub fn shared() -> Vec<Case> {
    let file: File = read("norms.json");
    let mut cases = Vec::new();
    for input in &file.cases {
        for (name, operation) in &input.out {
            cases.push(case(input, name, operation));
        }
    }
    cases
}

/// f32 patterns, to the type the values came from.
fn array(words: &[String], dtype: DType) -> Array {
    let bits = words.iter().map(|w| hex(w)).collect();
    Array { dtype: DType::F32, bits }.narrowed(dtype)
}

fn norm_of(operation: &str) -> Norm {
    let norms = [
        ("rms_norm", Norm::RmsNorm),
        ("layer_norm", Norm::LayerNorm),
        ("group_norm", Norm::GroupNorm),
        ("batch_norm_train", Norm::BatchNormTrain),
    ];
    let known = norms.into_iter().find(|(prefix, _)| operation.starts_with(prefix));
    known.unwrap_or_else(|| panic!("`{operation}` is no known norm")).1
}

fn case(input: &Input, name: &str, operation: &Operation) -> Case {
    let shape = match (input.rows, input.n, input.samples, input.channels, input.spatial) {
        (Some(rows), Some(hidden), ..) => Shape::Rows { rows, hidden },
        (_, _, Some(samples), Some(channels), Some(spatial)) => {
            Shape::Channels(Channels { samples, channels, spatial })
        }
        _ => panic!("a case of norms.json without a shape"),
    };
    let affine = operation.affine.as_deref().unwrap_or("weight+bias");
    let mut inputs = BTreeMap::from([("x".to_owned(), array(&input.x, input.dtype))]);
    if affine.contains("weight") {
        inputs.insert("weight".to_owned(), array(&input.weight, input.dtype));
    }
    if affine.contains("bias") {
        inputs.insert("bias".to_owned(), array(&input.bias, input.dtype));
    }
    if operation.arrays.contains_key("dx") {
        inputs.insert("dy".to_owned(), array(&input.dy, input.dtype));
    }
    let y_type = operation.out_dtype.unwrap_or(input.dtype);
    let mut out = BTreeMap::new();
    for (output, words) in &operation.arrays {
        match output.as_str() {
            "weight" => drop(inputs.insert("weight".to_owned(), array(words, DType::F32))),
            "y" => drop(out.insert(output.clone(), array(words, y_type))),
            "dx" => drop(out.insert(output.clone(), array(words, input.dtype))),
            _ => drop(out.insert(output.clone(), array(words, DType::F32))),
        }
    }
    Case {
        name: format!("norms.json {shape:?} {:?} {} {name}", input.dtype, input.kind),
        norm: norm_of(name),
        shape,
        eps: Eps { value: operation.eps, outside: operation.eps_outside },
        llama: operation.recipe.as_deref() == Some("llama"),
        weight_offset: operation.weight_offset,
        partial: operation.partial,
        groups: operation.groups,
        momentum: None,
        biased_running_var: false,
        y_type,
        r_type: None,
        inputs,
        out,
    }
}
