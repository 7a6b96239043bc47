//! Any bytes as an npy file.
#![no_main]

#[path = "open.rs"]
mod open;

use isonorm_cli::tensor::npy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = npy::parse(bytes);
    open::open(".npy", bytes);
});
