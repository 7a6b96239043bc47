//! Real hidden states of SmolLM2, bf16, recipe Llama: autograd's gradients of Hugging Face's `LlamaRMSNorm`
//! (`spec/accuracy/llama.json`).

use isonorm_testing::golden::Array;
use isonorm_testing::values::irwin_hall;
use isonorm_testing::{DType, ulps};
use safetensors::SafeTensors;

use crate::call::{Call, Norm};
use crate::exact::ulp;

const EPS: f64 = 1e-5; // the model's own
const HIDDEN: usize = 576;

fn read(path: &str) -> Vec<u8> {
    let path = format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn widened(bits: Vec<u64>) -> Vec<f64> {
    Array { dtype: DType::Bf16, bits }.widened()
}

/// A tensor of the example.
fn example(name: &str) -> Vec<f64> {
    let file = read("examples/smollm2.safetensors");
    let file = SafeTensors::deserialize(&file).expect("a safetensors file");
    let (values, _) = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data().as_chunks::<2>();
    widened(values.iter().map(|bytes| u16::from_le_bytes(*bytes).into()).collect())
}

/// Hugging Face's gradient.
fn theirs(name: &str) -> Vec<f64> {
    let file: serde_json::Value = serde_json::from_slice(&read("spec/accuracy/llama.json")).expect("JSON");
    let digits = file[name].as_str().expect("digits");
    let value = |i: usize| u64::from_str_radix(&digits[4 * i..4 * (i + 1)], 16).expect("hexadecimal digits");
    widened((0..digits.len() / 4).map(value).collect())
}

/// The call, x and dy.
fn call(llama: bool) -> (Call, Vec<f64>, Vec<f64>) {
    let mut call = Call::new(Norm::Rms, DType::Bf16, HIDDEN, 1);
    (call.eps, call.llama, call.weight) = (EPS, llama, Some(example("weight")));
    let x = example("x");
    let dy = irwin_hall(0, x.len()).iter().map(|v| DType::Bf16.narrow(DType::F32.narrow(*v))).collect();
    (call, x, dy)
}

/// How many are equal, and the largest distance in representable values.
fn compare(found: &[f64], expected: &[f64]) -> (usize, u64) {
    assert_eq!(found.len(), expected.len());
    let bits = |v: f64| DType::Bf16.bits(v);
    let distances: Vec<u64> =
        found.iter().zip(expected).map(|(f, e)| ulps::between(DType::Bf16, bits(*f), bits(*e))).collect();
    (distances.iter().filter(|d| **d == 0).count(), distances.into_iter().max().unwrap_or(0))
}

#[test]
fn dx_is_within_one_ulp_of_hugging_face_and_equal_in_99_percent() {
    let (call, x, dy) = call(true);
    let (equal, most) = compare(&call.backward(&x, &dy).dx, &theirs("dx"));
    println!("dx: {equal} of {} equal, at most {most} ulps apart", x.len());
    // Both round dy * weight to bf16 and compute in f32 from there; the sums differ in their order.
    assert!(most <= 1, "{most} ulps");
    assert!(equal * 100 >= x.len() * 99, "{equal} of {} equal", x.len());
}

#[test]
fn dx_of_the_other_recipe_is_not_hugging_faces() {
    let (call, x, dy) = call(false);
    let (equal, most) = compare(&call.backward(&x, &dy).dx, &theirs("dx"));
    println!("dx of one rounding: {equal} of {} equal, at most {most} ulps apart", x.len());
    assert!(equal * 100 < x.len() * 99, "the recipes cannot be told apart on this data: {equal} equal");
}

/// Here the recipes differ: autograd rounds each product `dy * x_hat` to bf16 before it sums them, isonorm the sum alone.
/// So isonorm is nearer to the exact sum of the products, in ulps of the root of the sum of their squares.
#[test]
fn dweight_is_rounded_once_and_nearer_to_exact_than_hugging_face() {
    let (call, x, dy) = call(true);
    let (ours, theirs) = (call.backward(&x, &dy).dweight, theirs("dweight"));
    let ones = Call { weight: None, ..call };
    let x_hat = ones.forward(&x); // rounded to bf16, as the recipe has it
    let mut errors = [[0.0f64; 2]; 2];
    for at in 0..HIDDEN {
        let terms: Vec<f64> = (at..x.len()).step_by(HIDDEN).map(|i| dy[i] * x_hat[i]).collect();
        let exact: f64 = terms.iter().sum();
        let size = terms.iter().map(|t| t * t).sum::<f64>().sqrt();
        for (errors, found) in errors.iter_mut().zip([ours[at], theirs[at]]) {
            let error = (found - exact).abs() / ulp(DType::Bf16, size.max(exact.abs()));
            *errors = [errors[0].max(error), errors[1] + error / HIDDEN as f64];
        }
    }
    let (equal, most) = compare(&ours, &theirs);
    println!("dweight: {equal} of {HIDDEN} equal, at most {most} ulps apart");
    println!("largest and mean error in ulps: {:.4?}, Hugging Face {:.4?}", errors[0], errors[1]);
    // One rounding to bf16, and f32's of 16 products and their sum, which are 2^-16 of bf16's.
    assert!(errors[0][0] <= 0.501, "{} ulps", errors[0][0]);
    assert!(errors[0][1] <= errors[1][1], "mean {} ulps, Hugging Face {}", errors[0][1], errors[1][1]);
    // Two ulps of the terms at the most; a sum near 0 has smaller ones.
    assert!(errors[1][0] <= 2.0 && equal * 2 >= HIDDEN, "{equal} of {HIDDEN} equal, Hugging Face {:?}", errors[1]);
}
