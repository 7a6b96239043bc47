//! The oracle returns every stored bit, forward and backward, and walks the stored order.

use std::collections::BTreeMap;

use isonorm_testing::DType;
use isonorm_testing::golden::{self, Array, Case, Norm};
use isonorm_testing::oracle::backward::{self, Backward};
use isonorm_testing::oracle::forward::{self, Affine, Forward, RmsNorm, Running};
use isonorm_testing::oracle::{Compute, batch_dot, batch_sum, narrow, row_dot, row_order, row_sum};

fn input<C: Compute>(case: &Case, name: &str) -> Option<Vec<C>> {
    case.input(name).map(Array::widened)
}

/// What is normalized: x, or r.
fn normalized<C: Compute>(case: &Case) -> Vec<C> {
    let x = case.x().widened();
    match (input(case, "residual"), case.r_type) {
        (Some(residual), Some(r_type)) => forward::residual_add(&x, &residual, r_type),
        _ => x,
    }
}

fn rms_options(case: &Case) -> RmsNorm {
    let llama = case.llama.then(|| case.normalized_type());
    RmsNorm { eps: case.eps, partial: case.partial, llama }
}

/// Every forward output the oracle knows, under the names of the golden files.
fn outputs<C: Compute>(case: &Case) -> BTreeMap<&'static str, Array> {
    let x = normalized::<C>(case);
    let (weight, bias) = (input::<C>(case, "weight"), input::<C>(case, "bias"));
    let weight_offset = case.weight_offset;
    let affine = Affine { weight: weight.as_deref(), bias: bias.as_deref(), weight_offset };
    let found = match case.norm {
        Norm::RmsNorm => forward::rms_norm(&x, case.rows().1, &affine, &rms_options(case)),
        Norm::LayerNorm => forward::layer_norm(&x, case.rows().1, &affine, case.eps),
        Norm::GroupNorm => {
            let groups = case.groups.expect("a GroupNorm case has groups");
            forward::group_norm(&x, case.channels(), groups, &affine, case.eps)
        }
        Norm::BatchNormTrain => forward::batch_norm_train(&x, case.channels(), &affine, case.eps),
        Norm::BatchNormEval => {
            let (mean, var) = running(case).expect("evaluation has running statistics");
            let running = Running { mean: &mean, var: &var };
            let y = forward::batch_norm_eval(&x, case.channels(), running, &affine, case.eps);
            Forward { y, mean: vec![], var: vec![], rstd: vec![] }
        }
    };
    let mut out = BTreeMap::from([
        ("y", Array::from_values(case.y_type, &found.y)),
        ("mean", Array::from_values(C::DTYPE, &found.mean)),
        ("var", Array::from_values(C::DTYPE, &found.var)),
        ("rstd", Array::from_values(C::DTYPE, &found.rstd)),
    ]);
    if let Some(r_type) = case.r_type {
        out.insert("r", Array::from_values(r_type, &x));
    }
    if case.norm == Norm::BatchNormTrain {
        out.extend(running_outputs(case, &found));
    }
    out
}

fn running<C: Compute>(case: &Case) -> Option<(Vec<C>, Vec<C>)> {
    Some((input(case, "running_mean")?, input(case, "running_var")?))
}

fn running_outputs<C: Compute>(case: &Case, found: &Forward<C>) -> Vec<(&'static str, Array)> {
    let (Some((mean, var)), Some(momentum)) = (running::<C>(case), case.momentum) else {
        return vec![];
    };
    let shape = case.channels();
    let new_var = if case.biased_running_var {
        found.var.clone()
    } else {
        forward::unbiased(&found.var, shape.samples * shape.spatial)
    };
    let dtype = |name: &str| case.inputs[name].dtype;
    let mean = forward::running_update(&mean, &found.mean, momentum);
    let var = forward::running_update(&var, &new_var, momentum);
    vec![
        ("running_mean", Array::from_values(dtype("running_mean"), &mean)),
        ("running_var", Array::from_values(dtype("running_var"), &var)),
    ]
}

/// Every gradient, under the names of the golden files.
fn gradients<C: Compute>(case: &Case) -> BTreeMap<&'static str, Array> {
    let (x, x_type) = (normalized::<C>(case), case.normalized_type());
    let dy = input::<C>(case, "dy").expect("a backward case has dy");
    let (weight, weight_offset) = (input::<C>(case, "weight"), case.weight_offset);
    let affine = Affine { weight: weight.as_deref(), bias: None, weight_offset };
    let eps = case.eps;
    let Backward { dx, dweight, dbias } = match case.norm {
        Norm::RmsNorm => backward::rms_norm(&x, &dy, case.rows().1, &affine, &rms_options(case), x_type),
        Norm::LayerNorm => backward::layer_norm(&x, &dy, case.rows().1, &affine, eps, x_type),
        Norm::GroupNorm => {
            let groups = case.groups.expect("a GroupNorm case has groups");
            backward::group_norm(&x, &dy, (case.channels(), groups), &affine, eps, x_type)
        }
        Norm::BatchNormTrain => backward::batch_norm(&x, &dy, (case.channels(), None), &affine, eps, x_type),
        Norm::BatchNormEval => {
            let (mean, var) = running::<C>(case).expect("evaluation has running statistics");
            let running = Some(Running { mean: &mean, var: &var });
            backward::batch_norm(&x, &dy, (case.channels(), running), &affine, eps, x_type)
        }
    };
    let dr = match input::<C>(case, "dresidual") {
        Some(more) => {
            let sums: Vec<C> = dx.iter().zip(&more).map(|(a, b)| *a + *b).collect();
            narrow(&sums, x_type)
        }
        None => dx,
    };
    let dtype = |name: &str| case.out.get(name).map_or(C::DTYPE, |expected| expected.dtype);
    BTreeMap::from([
        ("dr", Array::from_values(x_type, &dr)),
        ("dx", Array::from_values(case.x().dtype, &dr)),
        ("dweight", Array::from_values(dtype("dweight"), &dweight)),
        ("dbias", Array::from_values(dtype("dbias"), &dbias)),
    ])
}

/// Compares every stored output; returns how many there were.
fn compare(case: &Case) -> usize {
    let f64 = case.computes_in_f64();
    let mut found = if f64 { outputs::<f64>(case) } else { outputs::<f32>(case) };
    if case.input("dy").is_some() {
        found.extend(if f64 { gradients::<f64>(case) } else { gradients::<f32>(case) });
    }
    for name in case.out.keys() {
        let found = found.get(name.as_str());
        case.assert_same_bits(name, found.unwrap_or_else(|| panic!("no oracle for {name}")));
    }
    case.out.len()
}

#[test]
fn the_oracle_returns_every_bit_of_norms_json() {
    let compared: usize = golden::shared().iter().map(compare).sum();
    assert_eq!(compared, 1388, "outputs in norms.json");
}

#[test]
fn the_oracle_returns_every_bit_of_forward_json() {
    let compared: usize = golden::forward().iter().map(compare).sum();
    assert!(compared > 4000, "only {compared} outputs in forward.json");
}

#[test]
fn the_oracle_returns_every_bit_of_backward_json() {
    let compared: usize = golden::backward().iter().map(compare).sum();
    assert!(compared > 1500, "only {compared} outputs in backward.json");
}

fn mix(op: u64, a: u64, b: u64, c: u64) -> u64 {
    [a, b, c].into_iter().fold(op.wrapping_mul(0x9e37_79b9_7f4a_7c15), |h, word| {
        let h = (h ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h ^ h >> 31
    })
}

#[test]
fn the_oracle_walks_the_stored_order() {
    let (zero, add) = (mix(2, 0, 0, 0), |a, b| mix(3, a, b, 0));
    let load = |i: usize| mix(1, u64::from(((i + 1) as f32).to_bits()), 0, 0);
    let fingerprints = golden::order();
    assert_eq!(fingerprints.len(), 21, "rows in order.json");
    for row in fingerprints {
        let sum = row_order(row.n, zero, add, |acc, i| add(acc, load(i)));
        assert_eq!(sum, row.row_sum, "row_sum, n = {}: {sum:016x}", row.n);
        let dot = row_order(row.n, zero, add, |acc, i| mix(6, load(i), load(i), acc));
        assert_eq!(dot, row.row_dot, "row_dot, n = {}: {dot:016x}", row.n);
    }
}

#[test]
fn sums_of_few_elements_are_what_the_page_says() {
    let none: [f32; 0] = [];
    assert_eq!(row_sum(&none).to_bits(), 0);
    assert_eq!(batch_sum(&none).to_bits(), 0);
    // A lane starts at +0, so a row of -0 sums to +0.
    assert_eq!(row_sum(&[-0.0f32; 40]).to_bits(), 0);
    assert_eq!(batch_dot(&[3.0f64, 1.0], &[2.0, 4.0]), 10.0);
    assert_eq!(row_dot(&[3.0f64, 1.0], &[2.0, 4.0]), 10.0);
    // 1e8 swallows 3 in f32: in batch order the first one, in row order (0 + 2) + (1 + 3) neither.
    let x = [1e8f32, 3.0, -1e8, 3.0];
    assert_eq!(batch_sum(&x), 3.0);
    assert_eq!(row_sum(&x), 6.0);
}

#[test]
fn a_wrong_bit_is_found_and_named() {
    let case = golden::forward().swap_remove(0);
    let mut y = case.out["y"].clone();
    y.bits[0] ^= 1;
    let difference = case.out["y"].first_difference(&y).expect("one bit was turned");
    assert_eq!(difference.index, 0);
    assert_eq!(difference.expected ^ 1, difference.found);
    let nan = |bits| Array { dtype: DType::F32, bits: vec![bits] };
    assert_eq!(nan(0x7fc0_0000).first_difference(&nan(0xffc0_0001)), None);
    assert!(nan(0x8000_0000).first_difference(&nan(0)).is_some(), "the sign of zero counts");
}
