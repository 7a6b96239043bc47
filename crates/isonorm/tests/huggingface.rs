//! Real hidden states of SmolLM2 (`examples/smollm2.safetensors`) against what Hugging Face makes of them.

use half::bf16;
use isonorm::{Cpu, Level, Recipe, RmsNorm};
use isonorm_testing::ulps;
use safetensors::SafeTensors;

/// The model's own.
const EPS: f64 = 1e-5;
const HIDDEN: usize = 576;

fn file() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/smollm2.safetensors");
    std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn bytes<const N: usize>(file: &[u8], name: &str) -> Vec<[u8; N]> {
    let file = SafeTensors::deserialize(file).expect("a safetensors file");
    let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (values, rest) = tensor.data().as_chunks::<N>();
    assert_eq!((rest.len(), tensor.shape().last()), (0, Some(&HIDDEN)), "{name}");
    values.to_vec()
}

fn bf16s(file: &[u8], name: &str) -> Vec<bf16> {
    bytes(file, name).into_iter().map(bf16::from_le_bytes).collect()
}

fn f32s(file: &[u8], name: &str) -> Vec<f32> {
    bytes(file, name).into_iter().map(f32::from_le_bytes).collect()
}

/// How many places are equal, and the largest distance.
fn compare<T: Copy>(found: &[T], expected: &[T], distance: impl Fn(T, T) -> u64) -> (usize, u64) {
    assert_eq!(found.len(), expected.len());
    let distances: Vec<u64> = found.iter().zip(expected).map(|(f, e)| distance(*f, *e)).collect();
    (distances.iter().filter(|d| **d == 0).count(), distances.into_iter().max().unwrap_or(0))
}

#[test]
fn the_llama_recipe_in_bf16_is_within_one_ulp_of_hugging_face_and_equal_in_99_percent() {
    let file = file();
    let [x, weight, expected] = ["x", "weight", "y_huggingface"].map(|name| bf16s(&file, name));
    for level in Level::available() {
        let mut y = vec![bf16::NAN; x.len()];
        let norm = RmsNorm::new(HIDDEN).eps(EPS).weight(&weight).recipe(Recipe::Llama).on(Cpu::new().level(level));
        norm.forward(&x, &mut y).expect("valid");
        let (equal, most) = compare(&y, &expected, ulps::bf16);
        println!("bf16, llama, {level}: {equal} of {} equal, at most {most} ulps apart", x.len());
        // Hugging Face sums in another order, so x_hat may fall to the other side of a halfway point.
        assert!(most <= 1, "{most} ulps on {level}");
        assert!(equal * 100 >= x.len() * 99, "{equal} of {} equal on {level}", x.len());
    }
}

#[test]
fn the_other_recipe_is_not_hugging_faces() {
    let file = file();
    let [x, weight, expected] = ["x", "weight", "y_huggingface"].map(|name| bf16s(&file, name));
    let mut y = vec![bf16::NAN; x.len()];
    RmsNorm::new(HIDDEN).eps(EPS).weight(&weight).forward(&x, &mut y).expect("valid");
    let (equal, most) = compare(&y, &expected, ulps::bf16);
    println!("bf16, one rounding: {equal} of {} equal, at most {most} ulps apart", x.len());
    assert!(equal * 100 < x.len() * 99, "the recipes cannot be told apart on this data: {equal} equal");
}

#[test]
fn f32_is_within_two_ulps_of_hugging_face() {
    let file = file();
    let [x, weight, expected] = ["x_f32", "weight_f32", "y_huggingface_f32"].map(|name| f32s(&file, name));
    let mut y = vec![f32::NAN; x.len()];
    RmsNorm::new(HIDDEN).eps(EPS).weight(&weight).recipe(Recipe::Llama).forward(&x, &mut y).expect("valid");
    let (equal, most) = compare(&y, &expected, ulps::f32);
    println!("f32: {equal} of {} equal, at most {most} ulps apart", x.len());
    // Both round the sum, the root, the quotient and two products; the sums differ in their order.
    assert!(most <= 2, "{most} ulps");
}
