//! The cases of an independent program, `spec/golden/norms.json`: every value widened to f32.

use std::collections::BTreeMap;

use half::{bf16, f16};
use isonorm::DType;
use serde::Deserialize;

use super::case::{Case, NormName, Options, dtype};
use crate::tensor::Buffer;

const DATA: &str = include_str!("../../../../spec/golden/norms.json");

#[derive(Deserialize)]
struct File {
    cases: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    rows: Option<usize>,
    n: Option<usize>,
    #[serde(rename = "N")]
    samples: Option<usize>,
    #[serde(rename = "C")]
    channels: Option<usize>,
    #[serde(rename = "S")]
    spatial: Option<usize>,
    #[serde(deserialize_with = "dtype")]
    dtype: DType,
    kind: String,
    x: Vec<Word>,
    weight: Vec<Word>,
    bias: Vec<Word>,
    out: BTreeMap<String, Operation>,
}

/// One call; its backward results are read by nobody here.
#[derive(Deserialize)]
struct Operation {
    #[serde(flatten)]
    options: Options,
    affine: Option<String>,
    recipe: Option<String>,
    out_dtype: Option<Name>,
    weight: Option<Vec<Word>>,
    y: Option<Vec<Word>>,
    rstd: Option<Vec<Word>>,
    mean: Option<Vec<Word>>,
    var: Option<Vec<Word>>,
}

#[derive(Deserialize)]
struct Name(#[serde(deserialize_with = "dtype")] DType);

/// A bit pattern of an f32.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "&str")]
struct Word(f32);

impl TryFrom<&str> for Word {
    type Error = std::num::ParseIntError;
    fn try_from(text: &str) -> Result<Self, Self::Error> {
        u32::from_str_radix(text, 16).map(|bits| Word(f32::from_bits(bits)))
    }
}

/// Values in their storage type, exactly.
fn narrowed(dtype: DType, words: &[Word]) -> Buffer {
    match dtype {
        DType::F16 => Buffer::of(dtype, &words.iter().map(|word| f16::from_f32(word.0)).collect::<Vec<_>>()),
        DType::Bf16 => Buffer::of(dtype, &words.iter().map(|word| bf16::from_f32(word.0)).collect::<Vec<_>>()),
        DType::F64 => Buffer::of(dtype, &words.iter().map(|word| f64::from(word.0)).collect::<Vec<_>>()),
        DType::F32 => Buffer::of(dtype, &words.iter().map(|word| word.0).collect::<Vec<_>>()),
    }
}

/// The forward calls of the file.
pub(super) fn cases() -> Result<Vec<Case>, serde_json::Error> {
    let File { cases } = serde_json::from_str(DATA)?;
    let forward = |entry: &Entry| -> Vec<Case> {
        entry.out.iter().filter_map(|(name, operation)| entry.case(name, operation)).collect()
    };
    Ok(cases.iter().flat_map(forward).collect())
}

impl Entry {
    fn case(&self, name: &str, operation: &Operation) -> Option<Case> {
        let y = operation.y.as_ref()?;
        let norms = [
            ("rms_norm", NormName::RmsNorm),
            ("layer_norm", NormName::LayerNorm),
            ("batch_norm_train", NormName::BatchNormTrain),
            ("group_norm", NormName::GroupNorm),
        ];
        let norm = norms.iter().find(|(prefix, _)| name.starts_with(prefix))?.1;
        let rows = self.rows.zip(self.n).map(|(rows, n)| vec![rows, n]);
        let planes = self.samples.zip(self.channels).zip(self.spatial).map(|((n, c), s)| vec![n, c, s]);
        let shape = rows.or(planes)?;
        let affine = operation.affine.as_deref().unwrap_or("weight+bias");
        let weight = match &operation.weight {
            Some(given) => Some(narrowed(DType::F32, given)),
            None => affine.contains("weight").then(|| narrowed(self.dtype, &self.weight)),
        };
        let y_type = operation.out_dtype.as_ref().map_or(self.dtype, |Name(dtype)| *dtype);
        let mut options = operation.options.clone();
        options.llama = operation.recipe.as_deref() == Some("llama");
        let stats = [("rstd", &operation.rstd), ("mean", &operation.mean), ("var", &operation.var)];
        let stats = stats
            .into_iter()
            .filter_map(|(name, words)| Some((name.to_owned(), narrowed(DType::F32, words.as_ref()?))));
        Some(Case {
            name: format!("norms.json {shape:?} {} {} {name}", self.dtype, self.kind),
            norm,
            shape,
            options,
            x: narrowed(self.dtype, &self.x),
            weight,
            bias: affine.contains("bias").then(|| narrowed(self.dtype, &self.bias)),
            residual: None,
            running: None,
            y_type,
            r_type: None,
            expected: [("y".to_owned(), narrowed(y_type, y))].into_iter().chain(stats).collect(),
        })
    }
}
