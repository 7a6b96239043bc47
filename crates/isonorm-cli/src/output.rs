//! Output files: written beside their place under a temporary name, and renamed into it when all is done.
//!
//! Their room is reserved before any work, so a full disk is known early; on any error they vanish.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use isonorm::DType;
use memmap2::MmapMut;
use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Result, bytes_of};
use crate::interrupt;
use crate::tensor::safetensors::Entry;
use crate::tensor::{self, Buffer, Format, Place, Tensor, map, npy, safetensors};

/// A file being written.
#[derive(Debug)]
pub(crate) struct Output {
    target: PathBuf,
    file: File,
    temporary: Option<TempPath>,
    starts: Vec<u64>,
    sizes: Vec<u64>,
    len: u64,
    reserved: bool,
}

impl Output {
    /// Makes the temporary file with its header, with room for all its data. An npy file holds one tensor.
    pub(crate) fn create(place: &Place, tensors: Vec<Entry>, bf16: bool) -> Result<Self> {
        let target = resolve(&place.path)?;
        let (header, starts) = layout(place, &tensors, bf16)?;
        let sizes: Vec<u64> =
            tensors.iter().map(|(_, dtype, shape)| bytes_of(*dtype, shape.iter().product())).collect();
        let len = header.len() as u64 + sizes.iter().sum::<u64>();
        let folder = folder(&target);
        let named = interrupt::guard(|| make_temporary(&target, folder), NamedTempFile::path)
            .map_err(Error::io("write", &target))?;
        let (file, temporary) = named.into_parts();
        let mut output = Output { target, file, temporary: Some(temporary), starts, sizes, len, reserved: false };
        output.reserve()?;
        output.write_at(0, &header)?;
        Ok(output)
    }

    fn reserve(&mut self) -> Result<()> {
        match reserve(&self.file, self.len) {
            Ok(reserved) => self.reserved = reserved,
            Err(error) => return Err(Error::write(&self.target, self.len)(error)),
        }
        Ok(())
    }

    /// Where it will be.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Writes bytes of tensor `index`, from its byte `at` on.
    pub(crate) fn write(&self, index: usize, at: u64, bytes: &[u8]) -> Result<()> {
        self.write_at(self.starts[index] + at, bytes)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.file, at, bytes).map_err(Error::write(&self.target, self.len))
    }

    /// Its first tensor in memory, for results that are not written from front to back.
    pub(crate) fn map(&self, dtype: DType) -> Result<Buffer> {
        if !self.reserved {
            fill(&self.file, self.starts[0], self.len).map_err(Error::write(&self.target, self.len))?;
        }
        let len = usize::try_from(self.len).map_err(|_| too_large(&self.target))?;
        let map = map::write(&self.file, len).map_err(Error::io("map", &self.target))?;
        Ok(Buffer::file(dtype, self.sizes[0] as usize / dtype.size(), map, self.starts[0] as usize))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            let path = temporary.to_path_buf();
            interrupt::release(&[path], || drop(temporary));
        }
    }
}

/// Puts all files in their places, or none where the first cannot be.
pub(crate) fn finish(outputs: Vec<Output>) -> Result<()> {
    // Out of their outputs, which would ask for the list of temporary files on being dropped while it is held.
    let places = outputs.into_iter().filter_map(|mut output| Some((output.temporary.take()?, output.target.clone())));
    let places: Vec<(TempPath, PathBuf)> = places.collect();
    let paths: Vec<PathBuf> = places.iter().map(|(temporary, _)| temporary.to_path_buf()).collect();
    interrupt::release(&paths, || {
        places.into_iter().try_for_each(|(temporary, target)| {
            temporary.persist(&target).map_err(|e| Error::io("write", &target)(e.error))
        })
    })
}

/// Writes a file that is no tensor, whole or not at all.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    let target = resolve(path)?;
    let named = interrupt::guard(|| make_temporary(&target, folder(&target)), NamedTempFile::path)
        .map_err(Error::io("write", &target))?;
    let (mut file, temporary) = named.into_parts();
    let paths = [temporary.to_path_buf()];
    let written = io::Write::write_all(&mut file, text.as_bytes()).and_then(|()| file.sync_all());
    interrupt::release(&paths, || {
        written.map_err(Error::write(&target, text.len() as u64))?;
        temporary.persist(&target).map_err(|e| Error::io("write", &target)(e.error))
    })
}

/// A scratch file of `len` bytes beside an output, in memory; it has no name and vanishes by itself.
pub(crate) fn scratch(beside: &Path, len: u64) -> Result<MmapMut> {
    let make = || {
        let file = tempfile::tempfile_in(folder(beside))?;
        if !reserve(&file, len)? {
            fill(&file, 0, len)?;
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        map::write(&file, len)
    };
    make().map_err(Error::write(beside, len))
}

/// Refuses outputs that would replace an input or one another, under whatever name.
pub(crate) fn check_distinct(outputs: &[&Place], inputs: &[&Tensor]) -> Result<()> {
    for (i, output) in outputs.iter().enumerate() {
        resolve(&output.path)?; // before anything opens it: a pipe would wait for its other end
        let clash = |what, other: &Path| Error::SameFile { output: output.path.clone(), what, other: other.to_owned() };
        for input in inputs {
            if same_file::is_same_file(&output.path, &input.place.path).unwrap_or(false) {
                return Err(clash("input", &input.place.path));
            }
        }
        for other in &outputs[..i] {
            let same = same_file::is_same_file(&output.path, &other.path).unwrap_or(false)
                || resolve(&output.path)? == resolve(&other.path)?;
            if same {
                return Err(clash("output", &other.path));
            }
        }
    }
    Ok(())
}

/// Where a path leads, through links; the file itself need not exist. A link to nothing leads to where it points.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    match fs::metadata(path) {
        Ok(about) if about.is_file() => path.canonicalize().map_err(Error::io("write", path)),
        Ok(about) => {
            let what = tensor::what(about.file_type());
            Err(Error::NotAFile { path: path.to_owned(), what, remedy: "name a file to write" })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => missing(path),
        Err(error) => Err(Error::io("write", path)(error)),
    }
}

/// Links in a chain that are followed, as many as Linux follows.
const MOST_LINKS: usize = 40;

/// Where a file that is not there will be.
fn missing(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(link) = fs::read_link(&path) else { break };
        path = folder(&path).join(link);
    }
    let is_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    let name = path.file_name().filter(|_| !is_folder);
    let name = name.ok_or_else(|| Error::io("write", &path)(io::ErrorKind::NotFound.into()))?;
    Ok(folder(&path).canonicalize().map_err(Error::io("write", &path))?.join(name))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A temporary file with the permissions that the target has, or that a new file gets.
fn make_temporary(target: &Path, folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".isonorm-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let named = builder.tempfile_in(folder)?;
    if let Ok(about) = fs::metadata(target) {
        named.as_file().set_permissions(about.permissions())?;
    }
    Ok(named)
}

/// The header, and where each tensor's data begins.
fn layout(place: &Place, tensors: &[Entry], bf16: bool) -> Result<(Vec<u8>, Vec<u64>)> {
    match (place.format, tensors) {
        (Format::Npy, [(_, dtype, shape)]) => {
            if *dtype == DType::Bf16 && !bf16 {
                return Err(Error::NpyBf16 { path: place.path.clone(), flag: "--dtype" });
            }
            let header = npy::header(*dtype, shape);
            let start = header.len() as u64;
            Ok((header, vec![start]))
        }
        (Format::Npy, _) => {
            let found = format!("{} would hold {} tensors", place.path.display(), tensors.len());
            Err(Error::usage(found, "write .safetensors"))
        }
        (Format::Safetensors, _) => safetensors::header(tensors).map_err(|error| Error::Header {
            path: place.path.clone(),
            format: "safetensors",
            reason: error.to_string(),
            writer: "another name or shape",
        }),
    }
}

/// Reserves room; false where the file system cannot, and a write may still find it full.
fn reserve(file: &File, len: u64) -> io::Result<bool> {
    if len == 0 {
        return Ok(true);
    }
    match fs4::FileExt::allocate(file, len) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => {
            file.set_len(len)?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Writes zeros from byte `at` on, so that every page of a map has its room.
fn fill(file: &File, mut at: u64, len: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    while at < len {
        let part = zeros.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
        write_all_at(file, at, &zeros[..part])?;
        at += part as u64;
    }
    Ok(())
}

#[cfg(unix)]
fn write_all_at(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        at += written as u64;
        bytes = &bytes[written..];
    }
    Ok(())
}

fn too_large(path: &Path) -> Error {
    Error::io("map", path)(io::ErrorKind::FileTooLarge.into())
}
