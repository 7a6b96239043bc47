//! Any bytes as a partial sum: refused with a text, or a sum that writes the same bytes and can be gone on with.
#![no_main]

use isonorm::Partial;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut partial = match Partial::from_bytes(bytes) {
        Ok(partial) => partial,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(partial.to_bytes(), bytes);
    assert_eq!(partial.clone().merge(partial.clone()).is_ok(), partial.is_empty());
    let columns = partial.columns().min(bytes.len());
    let (rows, mut sums) = (vec![1.0f32; 20 * columns], vec![0.0f32; columns]);
    let end = partial.end();
    if partial.push(&rows, &rows).is_ok() && columns > 0 && columns == partial.columns() {
        assert_eq!(partial.end(), end + 20);
    }
    let _ = partial.dweight(&mut sums).and_then(|()| partial.dbias(&mut sums));
});
