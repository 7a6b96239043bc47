//! Ctrl-C and its like: temporary files are removed, then the program ends with status 130, or 2 where an input
//! was lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Files to remove when the program is interrupted.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn temporary() -> MutexGuard<'static, Vec<PathBuf>> {
    TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches for Ctrl-C, a request to terminate and a lost terminal; makes a file-size limit an error, and a file
/// that is shortened while it is mapped.
pub(crate) fn watch() {
    // Where there is no handler to be had, a signal ends the program as it always does.
    let _ = ctrlc::set_handler(|| end(130, "interrupted: no output was written; run the same command again"));
    #[cfg(unix)]
    {
        // By default a write past `ulimit -f` kills; with a handler it fails with an error to report.
        let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, flag);
        watch_maps();
    }
}

/// Ends the program when a page that is read is gone from its file. The thread that reads it does nothing but
/// meet it again and again until then. The handler is there before any file is mapped; only the waiting is a thread's.
#[cfg(unix)]
fn watch_maps() {
    crate::tensor::map::reset_sigbus();
    let Ok(mut signals) = signal_hook::iterator::Signals::new([signal_hook::consts::SIGBUS]) else { return };
    let wait = move || {
        if signals.forever().next().is_some() {
            end(2, "a file was shortened while it was read: no output was written; run the same command again");
        }
    };
    let _ = std::thread::Builder::new().spawn(wait);
}

/// Removes the temporary files and ends the program.
fn end(status: i32, why: &str) {
    // Held to the end, so that nothing is renamed or made meanwhile.
    let files = temporary();
    for file in files.iter() {
        let _ = fs::remove_file(file);
    }
    crate::say(why);
    std::process::exit(status);
}

/// Makes a file by `make`, to be removed on an interrupt until [`release`]d.
pub(crate) fn guard<T, E>(make: impl FnOnce() -> Result<T, E>, path: impl FnOnce(&T) -> &Path) -> Result<T, E> {
    let mut files = temporary();
    let made = make()?;
    files.push(path(&made).to_owned());
    Ok(made)
}

/// Runs `end`, after which these files are no longer temporary, without an interrupt in between.
pub(crate) fn release<T>(paths: &[PathBuf], end: impl FnOnce() -> T) -> T {
    let mut files = temporary();
    let result = end();
    files.retain(|file| !paths.contains(file));
    result
}
