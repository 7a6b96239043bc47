//! Opens bytes as a file: a tensor that opens lies inside it and can be read to its last element.

use std::io::Write;

use isonorm_cli::tensor::{Place, Tensor};

pub fn open(suffix: &str, bytes: &[u8]) {
    let mut file = tempfile::Builder::new().suffix(suffix).tempfile().expect("a temporary file");
    file.write_all(bytes).expect("written");
    let place: Place = file.path().to_string_lossy().parse().expect("a tensor's name");
    if let Ok(tensor) = Tensor::open(&place, true) {
        let len: usize = tensor.shape.iter().product();
        assert!(len * tensor.dtype.size() <= bytes.len(), "{:?}", tensor.shape);
        assert_eq!(tensor.whole().expect("it is there").len(), len);
        assert_eq!(tensor.window(len / 2..len).expect("it is there").len(), len - len / 2);
    }
}
