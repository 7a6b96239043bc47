//! What can go wrong with files and options: each variant a fact, with what to do about it.
//!
//! Shape and option rules of the norms are the library's ([`isonorm::Error`]); this is what lies around them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use isonorm::DType;

/// The result of everything in this program.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the program stopped. One line each: what was found, what was expected, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library refused the call.
    #[error(transparent)]
    Norm(#[from] isonorm::Error),
    /// A file operation failed.
    #[error("cannot {verb} {}: {}", path.display(), Cause(source))]
    Io {
        /// `read`, `write`, ...
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// There is no room for the output.
    #[error("cannot write {}: no room for its {bytes} bytes ({}): free some space, raise the limit, or choose another place", path.display(), Cause(source))]
    NoRoom {
        /// The output.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Neither `.npy` nor `.safetensors`.
    #[error("`{found}` is no tensor: expected file.npy, file.safetensors or file.safetensors:name")]
    Format {
        /// What was given.
        found: String,
    },
    /// A directory, pipe or device where a file is needed.
    #[error("{} is {what}, expected a regular file: {remedy}", path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
        /// `a directory`, ...
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A header that breaks its format.
    #[error("{} is not a valid {format} file: {reason}: write it again with {writer}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// `npy` or `safetensors`.
        format: &'static str,
        /// What is wrong with it.
        reason: String,
        /// What writes such files.
        writer: &'static str,
    },
    /// Fewer bytes than the header says.
    #[error("{} is truncated: its header says {expected} bytes of data, found {found}: copy or download it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that the header promises.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// An input that is not what it was when it was opened.
    #[error("{} changed while it was read: no output was written; run the same command again when nobody writes to it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A tensor of a type that no norm takes.
    #[error("{at} is {found}, expected f32, f64, f16 or bf16: {remedy}")]
    Unsupported {
        /// Which tensor.
        at: String,
        /// Its type, as the file names it.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A name that the file does not have.
    #[error("{} has no tensor `{name}`: it has {}", path.display(), Names(names))]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// The names there are.
        names: Vec<String>,
    },
    /// No name where the file has several tensors, or none.
    #[error("{} has {} tensors: name one as {}:name; it has {}", path.display(), names.len(), path.display(), Names(names))]
    NameNeeded {
        /// The file.
        path: PathBuf,
        /// The names there are.
        names: Vec<String>,
    },
    /// A tensor whose shape does not fit the others.
    #[error("{at} has shape {found:?}, expected {expected}")]
    Shape {
        /// Which tensor.
        at: String,
        /// Its shape.
        found: Vec<usize>,
        /// What would fit.
        expected: String,
    },
    /// An axis that x does not have.
    #[error("axis {axis} is outside x of shape {shape:?}: expected {}", AxisBounds(shape.len()))]
    Axis {
        /// The axis given.
        axis: isize,
        /// The shape of x.
        shape: Vec<usize>,
    },
    /// An axis given twice.
    #[error("axis {axis} of x is given twice in --axis: name each axis once")]
    AxisTwice {
        /// The axis.
        axis: usize,
    },
    /// Two options that do not go together, or one that is missing.
    #[error("{found}: {remedy}")]
    Usage {
        /// What was found.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// An output that would replace an input or another output.
    #[error("output {} is the same file as {what} {}: choose another name", output.display(), other.display())]
    SameFile {
        /// The output.
        output: PathBuf,
        /// `input` or `output`.
        what: &'static str,
        /// The other file.
        other: PathBuf,
    },
    /// npy has no bf16.
    #[error("{} cannot hold bf16: npy has no such type; write .safetensors, or choose {flag} f32, or add --bf16 to write 2-byte items (|V2) as ml_dtypes does", path.display())]
    NpyBf16 {
        /// The output.
        path: PathBuf,
        /// What chooses its type.
        flag: &'static str,
    },
    /// `verify` found differing bits.
    #[error(
        "{failed} of {cases} golden cases differ from the bit contract: report it with the table above and this machine's CPU"
    )]
    Verify {
        /// Cases that differ.
        failed: usize,
        /// Cases run.
        cases: usize,
    },
}

impl Error {
    /// A failed file operation.
    pub fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { verb, path, source }
    }

    /// A failed write, told apart from a lack of room.
    pub fn write(path: &Path, bytes: u64) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
                Error::NoRoom { path, bytes, source }
            }
            _ => Error::Io { verb: "write", path, source },
        }
    }

    /// Options that do not go together.
    pub fn usage(found: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::Usage { found: found.into(), remedy: remedy.into() }
    }

    /// A tensor of a type that this program's readers know but no norm takes here.
    pub fn unsupported(at: impl fmt::Display, found: impl fmt::Display, remedy: &str) -> Error {
        Error::Unsupported { at: at.to_string(), found: found.to_string(), remedy: remedy.to_owned() }
    }

    /// The exit status: 1 for differing bits, else 2.
    pub fn status(&self) -> u8 {
        if matches!(self, Error::Verify { .. }) { 1 } else { 2 }
    }
}

/// An operating system's reason in plain words, with a remedy where there is a usual one.
struct Cause<'a>(&'a io::Error);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            io::ErrorKind::NotFound => f.write_str("no such file or folder: check the path"),
            io::ErrorKind::PermissionDenied => f.write_str("permission denied: check who may read and write there"),
            io::ErrorKind::ReadOnlyFilesystem => f.write_str("the file system is read-only: choose another place"),
            io::ErrorKind::StorageFull => f.write_str("the disk is full"),
            io::ErrorKind::FileTooLarge => f.write_str("larger than files may be here"),
            io::ErrorKind::QuotaExceeded => f.write_str("the quota is used up"),
            io::ErrorKind::OutOfMemory => f.write_str("out of memory: raise the limit (ulimit -v) or free some"),
            io::ErrorKind::NotADirectory => f.write_str("a file stands where a folder is needed: check the path"),
            // Wrapped errors repeat the path of a temporary file.
            kind if self.0.raw_os_error().is_none() => kind.fmt(f),
            _ => self.0.fmt(f),
        }
    }
}

/// Which axes a tensor has.
struct AxisBounds(usize);

impl fmt::Display for AxisBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("x to have at least one axis"),
            axes => write!(f, "-{axes} to {}", axes - 1),
        }
    }
}

/// Tensor names, the first dozen of them, each as far as it fits a line.
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 12;
        const LONGEST: usize = 80;
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (i, name) in self.0.iter().take(SHOWN).enumerate() {
            let (shown, more) = match name.char_indices().nth(LONGEST) {
                Some((end, _)) => (&name[..end], "..."),
                None => (name.as_str(), ""),
            };
            write!(f, "{}{shown}{more}", if i > 0 { ", " } else { "" })?;
        }
        if self.0.len() > SHOWN {
            write!(f, " and {} more", self.0.len() - SHOWN)?;
        }
        Ok(())
    }
}

/// The bytes of `elements` elements.
pub fn bytes_of(dtype: DType, elements: usize) -> u64 {
    elements as u64 * dtype.size() as u64
}
