//! The safetensors format, by its own library: the header is parsed and checked there, and laid out there.

use std::collections::HashMap;

use isonorm::DType;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError, SafeTensors};

/// A checked header.
#[derive(Debug)]
pub struct Header {
    /// Where the data begins in the file.
    pub offset: usize,
    /// The tensors.
    pub metadata: Metadata,
}

/// Why a file is refused.
#[derive(Debug)]
pub enum Refusal {
    /// The data is not as long as the header says.
    Length {
        /// Bytes that the header promises.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Anything else, in one line.
    Header(String),
}

/// Parses and checks the header of a whole file.
pub fn parse(file: &[u8]) -> Result<Header, Refusal> {
    match SafeTensors::read_metadata(file) {
        Ok((len, metadata)) => Ok(Header { offset: 8 + len, metadata }),
        Err(SafeTensorError::MetadataIncompleteBuffer) => Err(length(file)),
        Err(SafeTensorError::HeaderTooSmall) => Err(Refusal::Header("it is shorter than a header".to_owned())),
        Err(SafeTensorError::InvalidHeaderLength) => Err(Refusal::Header("its header is cut off".to_owned())),
        Err(other) => Err(Refusal::Header(other.to_string())),
    }
}

/// How long the data should have been.
fn length(file: &[u8]) -> Refusal {
    let header = || {
        let len = usize::try_from(u64::from_le_bytes(*file.first_chunk::<8>()?)).ok()?;
        let text = file.get(8..len.checked_add(8)?)?;
        let metadata: Metadata = serde_json::from_slice(text).ok()?;
        Some((metadata.data_len() as u64, (file.len() - 8 - len) as u64))
    };
    match header() {
        Some((expected, found)) => Refusal::Length { expected, found },
        None => Refusal::Header("its header does not cover the file".to_owned()),
    }
}

/// The storage type of a tensor, where the norms have it.
pub fn dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::Bf16),
        _ => None,
    }
}

/// A tensor to be written: name, type and shape.
pub type Entry = (String, DType, Vec<usize>);

/// The header of a file of these tensors in this order, and where each one's data begins in the file.
pub fn header(entries: &[Entry]) -> Result<(Vec<u8>, Vec<u64>), SafeTensorError> {
    let (mut infos, mut starts, mut end) = (Vec::new(), Vec::new(), 0);
    for (name, dtype, shape) in entries {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.size();
        let dtype = match dtype {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::F16 => Dtype::F16,
            DType::Bf16 => Dtype::BF16,
        };
        starts.push(start as u64);
        infos.push((name.clone(), TensorInfo { dtype, shape: shape.clone(), data_offsets: (start, end) }));
    }
    let about = HashMap::from([("written_by".to_owned(), "isonorm".to_owned())]);
    let mut text = serde_json::to_vec(&Metadata::new(Some(about), infos)?)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let header = [(text.len() as u64).to_le_bytes().as_slice(), &text].concat();
    for start in &mut starts {
        *start += header.len() as u64;
    }
    Ok((header, starts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_header_reads_back() {
        let entries = [
            ("y".to_owned(), DType::F64, vec![2, 3]),
            ("empty".to_owned(), DType::F16, vec![0]),
            ("s".to_owned(), DType::Bf16, vec![]),
        ];
        let (mut file, starts) = header(&entries).expect("valid");
        let first = file.len();
        assert_eq!(starts, [first as u64, first as u64 + 48, first as u64 + 48]);
        assert_eq!(first % 8, 0);
        file.resize(first + 50, 0);
        let read = parse(&file).expect("valid");
        assert_eq!(read.offset, first);
        assert_eq!(read.metadata.info("y").expect("there").shape, [2, 3]);
        file.pop();
        assert!(matches!(parse(&file), Err(Refusal::Length { expected: 50, found: 49 })));
    }
}
