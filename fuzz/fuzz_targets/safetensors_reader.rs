//! Any bytes as a safetensors file; the header's length is put right, so that most inputs reach its parser.
#![no_main]

#[path = "open.rs"]
mod open;

use isonorm_cli::tensor::safetensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (len, bytes) = input;
    let _ = safetensors::parse(bytes);
    let file = [&u64::from(len).to_le_bytes(), bytes].concat();
    open::open(".safetensors", &file);
});
