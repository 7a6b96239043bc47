//! Compiled kernels on disk, for processes to come: a file for each, named by a hash of all that it was compiled from.
//!
//! A file appears under its name when it is whole, whoever else writes the same. One that was damaged since is compiled
//! again. Where nothing can be written, nothing is kept, and kernels are compiled once a process.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use crate::kernel::{HEADERS, Kernel};

/// Bytes of a hash.
const HASH: usize = 32;

/// The folder: `ISONORM_CACHE`, or one in the user's folder of caches; `None` where that is set to nothing, or there is
/// none.
fn folder() -> Option<&'static PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || match std::env::var_os("ISONORM_CACHE") {
        Some(path) => (!path.is_empty()).then(|| PathBuf::from(path)),
        None => dirs::cache_dir().map(|caches| caches.join("isonorm").join("kernels")),
    };
    FOLDER.get_or_init(find).as_ref()
}

/// Where a kernel's code is kept. `compiler` is all else that it depends on: architecture, flags, version.
fn path(kernel: &Kernel, compiler: &str) -> Option<PathBuf> {
    let folder = folder()?;
    let mut hasher = Sha256::new();
    let ((name, text), _) = kernel.source();
    let macros = kernel.macros();
    let parts = [env!("CARGO_PKG_VERSION"), compiler, name, text].into_iter();
    let macros = macros.iter().flat_map(|(name, value)| [*name, value.as_str()]);
    for part in parts.chain(HEADERS.iter().flat_map(|(name, text)| [*name, *text])).chain(macros) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut file = String::new();
    hasher.finalize().iter().for_each(|byte| _ = write!(file, "{byte:02x}"));
    Some(folder.join(file))
}

/// The code that was kept, if it is whole.
pub(crate) fn read(kernel: &Kernel, compiler: &str) -> Option<Vec<u8>> {
    let mut code = std::fs::read(path(kernel, compiler)?).ok()?;
    let end = code.len().checked_sub(HASH)?;
    let hash = code.split_off(end);
    (Sha256::digest(&code)[..] == hash[..] && !code.is_empty()).then_some(code)
}

/// Keeps it, if it can be.
pub(crate) fn write(kernel: &Kernel, compiler: &str, code: &[u8]) {
    let Some(path) = path(kernel, compiler) else { return };
    let keep = || {
        let folder = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(code)?;
        file.write_all(&Sha256::digest(code))?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok::<(), std::io::Error>(())
    };
    _ = keep();
}
