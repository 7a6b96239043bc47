//! A golden case: one call of one norm and the bits that it must give.

use std::fmt;

use isonorm::DType;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::tensor::Buffer;

/// The norms of the golden data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NormName {
    RmsNorm,
    LayerNorm,
    GroupNorm,
    BatchNormTrain,
    BatchNormEval,
}

impl fmt::Display for NormName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NormName::RmsNorm => "rms_norm",
            NormName::LayerNorm => "layer_norm",
            NormName::GroupNorm => "group_norm",
            NormName::BatchNormTrain => "batch_norm_train",
            NormName::BatchNormEval => "batch_norm_eval",
        })
    }
}

/// A call's options; what a case leaves out is off.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    pub(super) eps: f64,
    pub(super) eps_outside: bool,
    pub(super) llama: bool,
    pub(super) weight_offset: f64,
    pub(super) partial: Option<usize>,
    pub(super) groups: Option<usize>,
    pub(super) momentum: Option<f64>,
    pub(super) biased_running_var: bool,
}

/// One call and its results.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) norm: NormName,
    /// Rows and elements, or samples, channels and positions.
    pub(super) shape: Vec<usize>,
    pub(super) options: Options,
    pub(super) x: Buffer,
    pub(super) weight: Option<Buffer>,
    pub(super) bias: Option<Buffer>,
    pub(super) residual: Option<Buffer>,
    /// In a backward case.
    pub(super) dy: Option<Buffer>,
    pub(super) dresidual: Option<Buffer>,
    pub(super) running: Option<(Buffer, Buffer)>,
    pub(super) y_type: DType,
    pub(super) r_type: Option<DType>,
    /// Results by name: `y`, `r`, `mean`, `var`, `rstd`, `running_mean`, `running_var`; `dx`, `dr`, `dweight`, `dbias`.
    pub(super) expected: Vec<(String, Buffer)>,
}

impl Case {
    /// The norm and its pass, as the table has them.
    pub(super) fn group(&self) -> String {
        format!("{}{}", self.norm, if self.dy.is_some() { " backward" } else { "" })
    }

    /// A result that is expected.
    pub(super) fn out(&self, name: &str) -> Option<&Buffer> {
        self.expected.iter().find(|(of, _)| of == name).map(|(_, buffer)| buffer)
    }
}

/// The name of a storage type in the golden data.
pub(super) fn dtype<'de, D: Deserializer<'de>>(from: D) -> Result<DType, D::Error> {
    let name = String::deserialize(from)?;
    [DType::F32, DType::F64, DType::F16, DType::Bf16]
        .into_iter()
        .find(|dtype| dtype.to_string() == name)
        .ok_or_else(|| D::Error::custom(format!("`{name}` is no storage type")))
}

/// Bit patterns written one after another in hexadecimal digits.
pub(super) fn from_hex(dtype: DType, text: &str) -> Option<Buffer> {
    let digits = 2 * dtype.size();
    let mut bytes = Vec::with_capacity(text.len() / 2);
    for word in text.as_bytes().chunks(digits) {
        let word = u64::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend_from_slice(&word.to_le_bytes()[..dtype.size()]);
    }
    Some(Buffer::copied(dtype, &bytes))
}
