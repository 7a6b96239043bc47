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
    dy: Vec<Word>,
    out: BTreeMap<String, Operation>,
}

/// One call, forward, backward or both.
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
    dx: Option<Vec<Word>>,
    dweight: Option<Vec<Word>>,
    dbias: Option<Vec<Word>>,
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

/// The calls of the file.
pub(super) fn cases() -> Result<Vec<Case>, serde_json::Error> {
    let File { cases } = serde_json::from_str(DATA)?;
    let both = |entry: &Entry| -> Vec<Case> {
        let of = |(name, operation): (&String, &Operation)| {
            [entry.forward(name, operation), entry.backward(name, operation)]
        };
        entry.out.iter().flat_map(of).flatten().collect()
    };
    Ok(cases.iter().flat_map(both).collect())
}

impl Entry {
    fn forward(&self, name: &str, operation: &Operation) -> Option<Case> {
        let y = operation.y.as_ref()?;
        let mut case = self.case(name, operation)?;
        let stats = [("rstd", &operation.rstd), ("mean", &operation.mean), ("var", &operation.var)];
        case.expect("y", case.y_type, Some(y));
        stats.into_iter().for_each(|(name, words)| case.expect(name, DType::F32, words.as_ref()));
        Some(case)
    }

    /// The gradients of weight and bias are those before their rounding, in f32.
    fn backward(&self, name: &str, operation: &Operation) -> Option<Case> {
        let dx = operation.dx.as_ref()?;
        let mut case = self.case(name, operation)?;
        case.dy = Some(narrowed(self.dtype, &self.dy));
        case.expect("dx", self.dtype, Some(dx));
        case.expect("dweight", DType::F32, operation.dweight.as_ref());
        case.expect("dbias", DType::F32, operation.dbias.as_ref());
        Some(case)
    }

    /// The call without its results.
    fn case(&self, name: &str, operation: &Operation) -> Option<Case> {
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
        let mut options = operation.options.clone();
        options.llama = operation.recipe.as_deref() == Some("llama");
        Some(Case {
            name: format!("norms.json {shape:?} {} {} {name}", self.dtype, self.kind),
            norm,
            shape,
            options,
            x: narrowed(self.dtype, &self.x),
            weight,
            bias: affine.contains("bias").then(|| narrowed(self.dtype, &self.bias)),
            residual: None,
            dy: None,
            dresidual: None,
            running: None,
            y_type: operation.out_dtype.as_ref().map_or(self.dtype, |Name(dtype)| *dtype),
            r_type: None,
            expected: Vec::new(),
        })
    }
}

impl Case {
    fn expect(&mut self, name: &str, dtype: DType, words: Option<&Vec<Word>>) {
        self.expected.extend(words.map(|words| (name.to_owned(), narrowed(dtype, words))));
    }
}
