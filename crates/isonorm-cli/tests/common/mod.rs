//! Files for the tests, and the program run on them.
#![allow(dead_code)] // each test file uses its own part

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use half::{bf16, f16};
use isonorm::{DType, Slice, SliceMut};
use isonorm_cli::tensor::{Buffer, npy};
use predicates::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

pub(crate) const TYPES: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::Bf16];

/// A folder that vanishes, and the program run in it.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Folder(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program with arguments separated by blanks.
    pub(crate) fn isonorm(&self, args: &str) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("isonorm"));
        command.current_dir(self.0.path()).args(args.split_whitespace());
        command
    }

    /// Runs it, expecting success.
    pub(crate) fn run(&self, args: &str) {
        self.isonorm(args).assert().success();
    }

    /// Runs it with `--json`, expecting success, and gives the summary.
    pub(crate) fn summary(&self, args: &str) -> serde_json::Value {
        let output = self.isonorm(&format!("{args} --json")).assert().success().get_output().clone();
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    }

    /// The names of all files in it.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("written");
    }

    pub(crate) fn npy(&self, name: &str, tensor: &Tensor) {
        let mut bytes = npy::header(tensor.dtype, &tensor.shape);
        bytes.extend_from_slice(tensor.data.bytes());
        self.write(name, &bytes);
    }

    pub(crate) fn safetensors(&self, name: &str, tensors: &[(&str, &Tensor)]) {
        self.write(name, &safetensors(tensors));
    }

    /// A tensor that the program wrote; `place` as on the command line.
    pub(crate) fn read(&self, place: &str) -> Tensor {
        match place.split_once(".safetensors:") {
            Some((file, name)) => read_safetensors(&self.path(&format!("{file}.safetensors")), name),
            None => read_npy(&self.path(place)),
        }
    }
}

/// Runs it: one line that holds every one of `words`, status 2, nothing on standard output, no new file.
pub(crate) fn refused(folder: &Folder, args: &str, words: &[&str]) {
    let before = folder.files();
    let assert = folder.isonorm(args).assert().code(2).stdout(predicate::str::is_empty());
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(text.starts_with("isonorm: ") && text.ends_with('\n'), "{args}: {text:?}");
    assert_eq!(text.lines().count(), 1, "{args}: {text:?}");
    for word in words {
        assert!(text.contains(word), "{args}: `{word}` is not in {text:?}");
    }
    assert_eq!(folder.files(), before, "{args}");
}

/// An npy file of this header and so many bytes of zeros.
pub(crate) fn npy_file(header: &str, data: usize) -> Vec<u8> {
    let len = u16::try_from(header.len()).expect("short").to_le_bytes();
    [b"\x93NUMPY\x01\x00".as_slice(), &len, header.as_bytes(), &vec![0; data]].concat()
}

/// An npy file of zeros that takes no room.
pub(crate) fn sparse(folder: &Folder, name: &str, shape: &[usize]) {
    let header = npy::header(DType::F32, shape);
    folder.write(name, &header);
    let file = File::options().write(true).open(folder.path(name)).expect("there");
    let len = header.len() + shape.iter().product::<usize>() * 4;
    file.set_len(len as u64).expect("a sparse file");
}

/// A safetensors file of this header and so many bytes of zeros.
pub(crate) fn safetensors_file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

/// A safetensors file as its own library writes it.
pub(crate) fn safetensors(tensors: &[(&str, &Tensor)]) -> Vec<u8> {
    let view = |(name, tensor): &(&str, &Tensor)| {
        let dtype = match tensor.dtype {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::F16 => Dtype::F16,
            DType::Bf16 => Dtype::BF16,
        };
        let data = tensor.data.bytes().to_vec();
        (name.to_string(), dtype, tensor.shape.clone(), data)
    };
    let owned: Vec<_> = tensors.iter().map(view).collect();
    let views = owned.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("a view"))
    });
    safetensors::serialize(views, None).expect("serialized")
}

fn read_safetensors(path: &Path, name: &str) -> Tensor {
    let bytes = fs::read(path).expect("an output");
    let file = SafeTensors::deserialize(&bytes).expect("a valid file");
    let view = file.tensor(name).expect("the tensor");
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        other => panic!("{other}"),
    };
    Tensor { dtype, shape: view.shape().to_vec(), data: Buffer::copied(dtype, view.data()) }
}

fn read_npy(path: &Path) -> Tensor {
    let bytes = fs::read(path).expect("an output");
    let header = npy::parse(&bytes).expect("a valid file");
    let dtype = match header.descr.as_str() {
        "<f4" => DType::F32,
        "<f8" => DType::F64,
        "<f2" => DType::F16,
        "<V2" => DType::Bf16,
        other => panic!("{other}"),
    };
    assert!(!header.fortran);
    Tensor { dtype, shape: header.shape, data: Buffer::copied(dtype, &bytes[header.offset..]) }
}

/// A tensor in memory.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Buffer,
}

impl Tensor {
    pub(crate) fn of(dtype: DType, shape: &[usize], value: impl Fn(usize) -> f64) -> Self {
        let values = (0..shape.iter().product()).map(value);
        let data = match dtype {
            DType::F32 => Buffer::of(dtype, &values.map(|v| v as f32).collect::<Vec<_>>()),
            DType::F64 => Buffer::of(dtype, &values.collect::<Vec<_>>()),
            DType::F16 => Buffer::of(dtype, &values.map(f16::from_f64).collect::<Vec<_>>()),
            DType::Bf16 => Buffer::of(dtype, &values.map(bf16::from_f64).collect::<Vec<_>>()),
        };
        Tensor { dtype, shape: shape.to_vec(), data }
    }

    /// Values of ordinary size that differ from place to place and from seed to seed.
    pub(crate) fn varied(dtype: DType, shape: &[usize], seed: usize) -> Self {
        Self::of(dtype, shape, |i| ((i + seed * 7919) * 2654435761 % 100_003) as f64 / 25_000.0 - 2.0)
    }

    pub(crate) fn zeros(dtype: DType, shape: &[usize]) -> Self {
        Tensor { dtype, shape: shape.to_vec(), data: Buffer::zeroed(dtype, shape.iter().product()) }
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        self.data.slice()
    }

    pub(crate) fn slice_mut(&mut self) -> SliceMut<'_> {
        self.data.slice_mut()
    }

    /// The same elements with two axes exchanged, in row-major order.
    pub(crate) fn swapped(&self, a: usize, b: usize) -> Tensor {
        let mut shape = self.shape.clone();
        shape.swap(a, b);
        let mut to = Tensor::zeros(self.dtype, &shape);
        let size = self.dtype.size();
        for i in 0..self.data.len() {
            let mut index = unravel(i, &shape);
            index.swap(a, b);
            let from = ravel(&index, &self.shape) * size;
            let bytes = self.data.bytes()[from..from + size].to_vec();
            to.data.bytes_mut()[i * size..][..size].copy_from_slice(&bytes);
        }
        to
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        (self.dtype, &self.shape, self.data.bytes()) == (other.dtype, &other.shape, other.data.bytes())
    }
}

fn unravel(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (axis, len) in shape.iter().enumerate().rev() {
        index[axis] = i % len;
        i /= len;
    }
    index
}

fn ravel(index: &[usize], shape: &[usize]) -> usize {
    index.iter().zip(shape).fold(0, |at, (i, len)| at * len + i)
}
