//! A progress bar on long work, when a person watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shorter work shows nothing.
const PATIENCE: Duration = Duration::from_secs(2);
const REDRAW: Duration = Duration::from_millis(100);

/// Bytes done so far, drawn by a thread of its own once the work has taken long.
#[derive(Debug)]
pub(crate) struct Progress {
    done: Arc<AtomicU64>,
    watcher: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Work of `total` bytes; 0 where it cannot be counted.
    pub(crate) fn new(total: u64) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        let watcher = std::io::IsTerminal::is_terminal(&std::io::stderr()).then(|| {
            let (stop, stopped) = mpsc::channel();
            let done = Arc::clone(&done);
            let watch = move || {
                let ended = |wait| !matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout));
                if ended(PATIENCE) {
                    return;
                }
                let bar = bar(total);
                while !ended(REDRAW) {
                    bar.set_position(done.load(Ordering::Relaxed));
                    bar.tick();
                }
                bar.finish_and_clear();
            };
            (stop, std::thread::spawn(watch))
        });
        Progress { done, watcher }
    }

    /// `bytes` more are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, watcher)) = self.watcher.take() {
            drop(stop);
            let _ = watcher.join();
        }
    }
}

fn bar(total: u64) -> ProgressBar {
    let (bar, template) = if total == 0 {
        (ProgressBar::new_spinner(), "{spinner} normalizing for {elapsed}")
    } else {
        let template = "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        (ProgressBar::new(total), template)
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style)
}
