//! The file readers on whatever bytes: an error or a tensor that lies inside its file, never a panic.
//!
//! The fuzz targets in `fuzz/` make the same checks on inputs that a fuzzer finds.

mod common;

use common::{Folder, Tensor, npy_file};
use isonorm::DType;
use isonorm_cli::tensor::{self, Place, npy, safetensors};
use proptest::prelude::*;

/// Opens bytes as a file; a tensor that opens can be read to its last element.
fn open(name: &str, bytes: &[u8]) -> bool {
    let folder = Folder::new();
    folder.write(name, bytes);
    let place: Place = folder.path(name).to_string_lossy().parse().expect("a tensor's name");
    match tensor::Tensor::open(&place, true) {
        Ok(tensor) => {
            let len: usize = tensor.shape.iter().product();
            assert!(len * tensor.dtype.size() <= bytes.len(), "{:?}", tensor.shape);
            assert_eq!(tensor.whole().expect("it is there").len(), len);
            assert_eq!(tensor.window(len / 2..len).expect("it is there").len(), len - len / 2);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

fn lengths() -> impl Strategy<Value = u64> {
    prop_oneof![0..6u64, Just(1 << 31), Just(1 << 62), Just(1 << 63), Just(u64::MAX), any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn npy_headers_of_any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..200), version in 0..5u8) {
        let _ = npy::parse(&bytes);
        bytes.splice(..0, [0x93, b'N', b'U', b'M', b'P', b'Y', version, 0]);
        let _ = npy::parse(&bytes);
        open("any.npy", &bytes);
    }

    #[test]
    fn npy_headers_of_any_text(text in "[{}()'\": ,<f4FTrueshape_\\n\u{e9}]{0,120}") {
        let _ = npy::parse(&npy_file(&text, 0));
    }

    #[test]
    fn npy_shapes_of_any_lengths(
        shape in prop::collection::vec(lengths(), 0..5),
        descr in prop::sample::select(vec!["<f4", "<f8", "<f2", "|V2", ">f4", "<i4", "<U7"]),
        fortran in any::<bool>(),
        data in 0..3000usize,
    ) {
        let lens: String = shape.iter().map(|len| format!("{len},")).collect();
        let order = if fortran { "True" } else { "False" };
        let text = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({lens}), }}\n");
        let opened = open("shape.npy", &npy_file(&text, data));
        let size = match descr { "<f4" => 4, "<f8" => 8, "<f2" | "|V2" => 2, _ => u128::MAX };
        let bytes = shape.iter().try_fold(size, |n: u128, len| n.checked_mul(u128::from(*len)));
        if bytes.is_some_and(|bytes| bytes > data as u128) {
            prop_assert!(!opened);
        }
    }

    #[test]
    fn npy_headers_survive_a_flipped_byte(at in 0..200usize, flip in 1..=255u8) {
        let mut bytes = npy::header(DType::F32, &[3, 5]);
        bytes.extend([0; 60]);
        let at = at % bytes.len();
        bytes[at] ^= flip;
        open("flip.npy", &bytes);
    }

    #[test]
    fn safetensors_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 0..250u64) {
        let _ = safetensors::parse(&bytes);
        open("any.safetensors", &[&len.to_le_bytes(), bytes.as_slice()].concat());
    }

    #[test]
    fn safetensors_of_any_offsets(
        shape in prop::collection::vec(lengths(), 0..4),
        offsets in (lengths(), lengths(), lengths(), lengths()),
        dtype in prop::sample::select(vec!["F32", "F64", "F16", "BF16", "U8", "F4", "X"]),
        data in 0..200usize,
    ) {
        let (a, b, c, d) = offsets;
        let header = format!(
            r#"{{"a":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{a},{b}]}},"b":{{"dtype":"F32","shape":[1],"data_offsets":[{c},{d}]}}}}"#
        );
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat();
        let _ = safetensors::parse(&bytes);
        open("offsets.safetensors", &bytes);
    }

    #[test]
    fn safetensors_survive_a_flipped_byte(at in 0..400usize, flip in 1..=255u8) {
        let mut bytes = common::safetensors(&[("x", &Tensor::zeros(DType::F32, &[3, 5])), ("w", &Tensor::zeros(DType::Bf16, &[5]))]);
        let at = at % bytes.len();
        bytes[at] ^= flip;
        open("flip.safetensors", &bytes);
    }

    #[test]
    fn places_of_any_text(text in ".{0,40}", tail in prop::sample::select(vec!["", ".npy", ".safetensors", ".safetensors:", ".safetensors:x:y"])) {
        if let Ok(place) = format!("{text}{tail}").parse::<Place>() {
            prop_assert_eq!(place.to_string(), format!("{text}{tail}"));
        }
    }
}
