//! Hands the compiler's own version to the program, which prints it beside its numbers.

use std::env;
use std::process::Command;

fn main() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc)
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_default();
    println!("cargo:rustc-env=ISONORM_BENCH_RUSTC={}", version.trim());
    println!("cargo:rerun-if-changed=build.rs");
}
