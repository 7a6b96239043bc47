//! The machine and the build that the numbers hold for.

use std::fs;
use std::process::Command;
use std::thread;

use serde::Serialize;

/// What has to be known of a machine to compare its numbers with another's.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) caches: Vec<String>,
    pub(crate) transparent_huge_pages: String,
    pub(crate) os: &'static str,
    pub(crate) arch: &'static str,
    /// isonorm's level, the one it is timed on.
    pub(crate) level: String,
    pub(crate) allocator: &'static str,
    pub(crate) rustc: &'static str,
    pub(crate) isonorm: &'static str,
    pub(crate) commit: Option<String>,
    pub(crate) date: String,
}

impl Machine {
    pub(crate) fn inspect(level: String) -> Machine {
        Machine {
            cpu: cpu(),
            cores: thread::available_parallelism().map_or(1, Into::into),
            caches: caches(),
            transparent_huge_pages: huge_pages(),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            level,
            allocator: if cfg!(feature = "peers") { "mimalloc" } else { "system" },
            rustc: env!("ISONORM_BENCH_RUSTC"),
            isonorm: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        }
    }
}

/// The model's name, and the numbers that say which generation a hypervisor's "EPYC" is.
fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        info.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim())
    };
    let Some(name) = field("model name") else {
        return "unknown".to_string();
    };
    match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name.to_string(),
    }
}

/// The first core's caches: `L1 Data 48K` and so on.
fn caches() -> Vec<String> {
    let of = |index: usize, file: &str| {
        fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}"))
            .ok()
            .map(|text| text.trim().to_string())
    };
    (0..8).map_while(|i| Some(format!("L{} {} {}", of(i, "level")?, of(i, "type")?, of(i, "size")?))).collect()
}

/// `always`, `madvise` or `never`: the word in brackets.
fn huge_pages() -> String {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or("unknown", |(word, _)| word).to_string()
}

/// The commit measured, `+` where files differ from it.
fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let mut commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    if !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
        commit.push('+');
    }
    Some(commit)
}
