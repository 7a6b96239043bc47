//! The project's own cases, `spec/golden/{forward,backward}.json`: arrays in a pool, cases that point into it.

use std::collections::BTreeMap;

use isonorm::DType;
use serde::Deserialize;
use serde::de::Error as _;

use super::case::{Case, NormName, Options, dtype, from_hex};
use crate::tensor::Buffer;

const DATA: [&str; 2] =
    [include_str!("../../../../spec/golden/forward.json"), include_str!("../../../../spec/golden/backward.json")];

#[derive(Deserialize)]
struct File {
    arrays: Vec<Array>,
    cases: Vec<Entry>,
}

#[derive(Deserialize)]
struct Array {
    #[serde(deserialize_with = "dtype")]
    dtype: DType,
    bits: String,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    norm: NormName,
    shape: Vec<usize>,
    #[serde(flatten)]
    options: Options,
    x: usize,
    weight: Option<usize>,
    bias: Option<usize>,
    residual: Option<usize>,
    dy: Option<usize>,
    dresidual: Option<usize>,
    running_mean: Option<usize>,
    running_var: Option<usize>,
    #[serde(deserialize_with = "dtype")]
    y_type: DType,
    r_type: Option<Name>,
    out: BTreeMap<String, Array>,
}

#[derive(Deserialize)]
struct Name(#[serde(deserialize_with = "dtype")] DType);

impl Array {
    fn unpacked(&self) -> Result<Buffer, serde_json::Error> {
        from_hex(self.dtype, &self.bits).ok_or_else(|| serde_json::Error::custom("an array that is not hexadecimal"))
    }
}

/// All cases of the files.
pub(super) fn cases() -> Result<Vec<Case>, serde_json::Error> {
    let files: Vec<Vec<Case>> = DATA.iter().map(|data| of(data)).collect::<Result<_, _>>()?;
    Ok(files.into_iter().flatten().collect())
}

fn of(data: &str) -> Result<Vec<Case>, serde_json::Error> {
    let File { arrays, cases } = serde_json::from_str(data)?;
    let at = |index: Option<usize>| index.and_then(|index| arrays.get(index)).map(Array::unpacked).transpose();
    let case = |entry: Entry| {
        let missing = || serde_json::Error::custom(format!("{} without x", entry.name));
        let expected = entry.out.iter().map(|(name, array)| Ok((name.clone(), array.unpacked()?)));
        Ok(Case {
            norm: entry.norm,
            shape: entry.shape,
            options: entry.options,
            x: at(Some(entry.x))?.ok_or_else(missing)?,
            weight: at(entry.weight)?,
            bias: at(entry.bias)?,
            residual: at(entry.residual)?,
            dy: at(entry.dy)?,
            dresidual: at(entry.dresidual)?,
            running: at(entry.running_mean)?.zip(at(entry.running_var)?),
            y_type: entry.y_type,
            r_type: entry.r_type.map(|Name(dtype)| dtype),
            expected: expected.collect::<Result<_, serde_json::Error>>()?,
            name: entry.name,
        })
    };
    cases.into_iter().map(case).collect()
}
