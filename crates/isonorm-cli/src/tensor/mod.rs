//! Tensors in files: naming them, opening them, and reading windows of them without loading the rest.

pub(crate) mod buffer;
pub(crate) mod map;
pub mod npy;
pub mod safetensors;

use std::fmt;
use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

pub use buffer::Buffer;
use isonorm::DType;

use crate::error::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("tensors in files are little-endian and mapped as they are: this program needs a little-endian machine");

/// Where a tensor is, as it is named on the command line: `file.npy` or `file.safetensors:name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Its format, by its extension.
    pub format: Format,
    /// The tensor's name in a safetensors file, where it was given.
    pub name: Option<String>,
}

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// NumPy's.
    Npy,
    /// Hugging Face's.
    Safetensors,
}

/// The most that the other dimensions of a tensor without elements may come to: a file of a hundred bytes
/// must not ask for hours of rows without elements.
const EMPTY: usize = 1 << 24;
const NPY: &str = ".npy";
const SAFETENSORS: &str = ".safetensors";

impl FromStr for Place {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let place = |path: &str, format, name: Option<&str>| {
            Ok(Place { path: PathBuf::from(path), format, name: name.map(str::to_owned) })
        };
        if text.ends_with(SAFETENSORS) {
            return place(text, Format::Safetensors, None);
        }
        if let Some((path, name)) = text.split_once(".safetensors:")
            && !name.is_empty()
        {
            if name == "__metadata__" {
                let remedy = "that name belongs to the format: choose another";
                return Err(Error::usage(format!("{text} names a tensor __metadata__"), remedy));
            }
            return place(&format!("{path}{SAFETENSORS}"), Format::Safetensors, Some(name));
        }
        if text.ends_with(NPY) {
            return place(text, Format::Npy, None);
        }
        Err(Error::Format { found: text.to_owned() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)?;
        match &self.name {
            Some(name) => write!(f, ":{name}"),
            None => Ok(()),
        }
    }
}

/// A tensor in an open file.
#[derive(Debug)]
pub struct Tensor {
    /// Where it is.
    pub place: Place,
    /// Its storage type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether the first axis runs fastest (npy alone).
    pub fortran: bool,
    file: File,
    /// The file's length and time of change when it was opened.
    opened: Version,
    offset: u64,
}

type Version = (u64, Option<SystemTime>);

impl Tensor {
    /// Opens a tensor and checks its header against the file. With `bf16`, 2-byte items of an npy file that
    /// have no type are bf16.
    pub fn open(place: &Place, bf16: bool) -> Result<Self> {
        let file = open_regular(&place.path)?;
        let opened = version(&file).map_err(Error::io("read", &place.path))?;
        let tensor = match place.format {
            Format::Npy => Self::open_npy(place, file, opened, bf16),
            Format::Safetensors => Self::open_safetensors(place, file, opened),
        }?;
        if tensor.shape.len() > npy::MOST_DIMS {
            let found =
                format!("{} has {} dimensions, expected at most {}", tensor.place, tensor.shape.len(), npy::MOST_DIMS);
            return Err(Error::usage(found, "reshape it to fewer"));
        }
        let lens = || tensor.shape.iter().filter(|len| **len > 0);
        let size = lens().try_fold(1usize, |n, len| n.checked_mul(*len));
        if lens().count() < tensor.shape.len() && size.is_none_or(|size| size > EMPTY) {
            return Err(Error::usage(
                format!("{place} has no elements and the shape {:?}", tensor.shape),
                format!("give it other dimensions of at most {EMPTY} in all"),
            ));
        }
        Ok(tensor)
    }

    fn open_npy(place: &Place, file: File, opened: Version, bf16: bool) -> Result<Self> {
        let refuse = |reason| header_error(&place.path, "npy", reason, "numpy.save");
        let start = npy_start(&file).map_err(Error::io("read", &place.path))?.map_err(refuse)?;
        let header = npy::parse(&start).map_err(refuse)?;
        let dtype = npy_dtype(place, &header.descr, bf16)?;
        let bytes = |shape: &[usize]| shape.iter().try_fold(dtype.size() as u64, |n, len| n.checked_mul(*len as u64));
        let needed = if header.shape.contains(&0) { Some(0) } else { bytes(&header.shape) };
        let found = opened.0.saturating_sub(header.offset as u64);
        match needed {
            Some(expected) if expected <= found => {}
            Some(expected) => return Err(Error::Truncated { path: place.path.clone(), expected, found }),
            None => return Err(refuse(format!("its shape {:?} is more than 2^64 bytes", header.shape))),
        }
        let (shape, offset) = (header.shape, header.offset as u64);
        let fortran = header.fortran && shape.iter().filter(|len| **len != 1).count() > 1;
        Ok(Tensor { place: place.clone(), dtype, shape, fortran, file, opened, offset })
    }

    fn open_safetensors(place: &Place, file: File, opened: Version) -> Result<Self> {
        let path = &place.path;
        let len = usize::try_from(opened.0)
            .map_err(|_| header_error(path, "safetensors", "it is larger than the address space".to_owned(), ""))?;
        let header = if len == 0 {
            safetensors::parse(&[])
        } else {
            safetensors::parse(&map::read(&file, 0, len, false).map_err(Error::io("read", path))?)
        };
        let header = header.map_err(|refusal| match refusal {
            safetensors::Refusal::Length { expected, found } if found < expected => {
                Error::Truncated { path: path.clone(), expected, found }
            }
            safetensors::Refusal::Length { expected, found } => {
                let reason = format!("its header covers {expected} bytes of data, found {found}");
                header_error(path, "safetensors", reason, "safetensors.save_file")
            }
            safetensors::Refusal::Header(reason) => header_error(path, "safetensors", reason, "safetensors.save_file"),
        })?;
        let names = header.metadata.offset_keys();
        let name = match (&place.name, names.as_slice()) {
            (Some(name), _) => name.clone(),
            (None, [only]) => only.clone(),
            (None, _) => return Err(Error::NameNeeded { path: path.clone(), names }),
        };
        let Some(info) = header.metadata.info(&name) else {
            return Err(Error::UnknownTensor { path: path.clone(), name, names });
        };
        let place = Place { name: Some(name), ..place.clone() };
        let Some(dtype) = safetensors::dtype(info.dtype) else {
            return Err(Error::unsupported(&place, info.dtype, "convert it first"));
        };
        let offset = (header.offset + info.data_offsets.0) as u64;
        Ok(Tensor { dtype, shape: info.shape.clone(), fortran: false, file, opened, offset, place })
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The steps between neighbours along each axis, in elements.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.shape.len()];
        let mut axes: Vec<usize> = (0..self.shape.len()).collect();
        if !self.fortran {
            axes.reverse();
        }
        let mut step = 1usize;
        for axis in axes {
            strides[axis] = step;
            step = step.saturating_mul(self.shape[axis].max(1));
        }
        strides
    }

    /// Elements `range` in the order of the file, read at once.
    pub fn window(&self, range: Range<usize>) -> Result<Buffer> {
        self.map(range, true)
    }

    /// The whole tensor, read as it is used.
    pub fn whole(&self) -> Result<Buffer> {
        self.map(0..self.len(), false)
    }

    fn map(&self, range: Range<usize>, now: bool) -> Result<Buffer> {
        if range.is_empty() {
            return Ok(Buffer::zeroed(self.dtype, 0));
        }
        let size = self.dtype.size();
        let offset = self.offset + (range.start * size) as u64;
        let map =
            map::read(&self.file, offset, range.len() * size, now).map_err(Error::io("read", &self.place.path))?;
        Ok(Buffer::mapped(self.dtype, map))
    }

    /// Refuses a file that was changed since it was opened: what was read of it may be of two kinds.
    pub fn check_unchanged(&self) -> Result<()> {
        let path = &self.place.path;
        let now = version(&self.file).map_err(Error::io("read", path))?;
        if now == self.opened { Ok(()) } else { Err(Error::Changed { path: path.clone() }) }
    }

    /// Refuses another shape than `shape`, that of `like`.
    pub fn expect_shape(&self, like: &Tensor) -> Result<()> {
        if self.shape == like.shape {
            return Ok(());
        }
        let expected = format!("{:?} as {} has", like.shape, like.place);
        Err(Error::Shape { at: self.place.to_string(), found: self.shape.clone(), expected })
    }
}

fn version(file: &File) -> io::Result<Version> {
    let about = file.metadata()?;
    Ok((about.len(), about.modified().ok()))
}

/// The first bytes of a file, as many as its npy header takes.
fn npy_start(file: &File) -> io::Result<Result<Vec<u8>, String>> {
    let mut start = Vec::new();
    file.take(npy::PREFIX as u64).read_to_end(&mut start)?;
    let len = match npy::header_len(&start) {
        Ok(len) => len,
        Err(reason) => return Ok(Err(reason)),
    };
    file.take(len.saturating_sub(start.len()) as u64).read_to_end(&mut start)?;
    Ok(Ok(start))
}

/// Opens a regular file. Pipes are not opened: that would wait for a writer.
fn open_regular(path: &Path) -> Result<File> {
    let about = fs::metadata(path).map_err(Error::io("read", path))?;
    if !about.is_file() {
        let what = what(about.file_type());
        let remedy = "inputs are mapped, so write the data to a file first";
        return Err(Error::NotAFile { path: path.to_owned(), what, remedy });
    }
    File::open(path).map_err(Error::io("read", path))
}

/// What stands where a regular file belongs.
pub(crate) fn what(file_type: FileType) -> &'static str {
    #[cfg(unix)]
    if std::os::unix::fs::FileTypeExt::is_socket(&file_type) {
        return "a socket";
    }
    if file_type.is_dir() { "a directory" } else { "a pipe or a device" }
}

fn header_error(path: &Path, format: &'static str, reason: String, writer: &'static str) -> Error {
    Error::Header { path: path.to_owned(), format, reason, writer }
}

/// The storage type of an npy type string.
fn npy_dtype(place: &Place, descr: &str, bf16: bool) -> Result<DType> {
    match descr {
        "<f4" | "=f4" => Ok(DType::F32),
        "<f8" | "=f8" => Ok(DType::F64),
        "<f2" | "=f2" => Ok(DType::F16),
        "|V2" | "<V2" if bf16 => Ok(DType::Bf16),
        "|V2" | "<V2" => {
            let remedy = "if these are bf16 as ml_dtypes writes them, add --bf16";
            Err(Error::unsupported(place, format_args!("2-byte items without a type ({descr})"), remedy))
        }
        ">f2" | ">f4" | ">f8" => {
            let remedy = "save it little-endian: x.astype(x.dtype.newbyteorder('<'))";
            Err(Error::unsupported(place, format_args!("big-endian ({descr})"), remedy))
        }
        _ => Err(Error::unsupported(place, descr, "convert it first: x.astype('float32')")),
    }
}
