//! The fused add against an add of its own, for all types.

use isonorm::{Io, Level};
use isonorm_testing::DType;
use isonorm_testing::golden::Array;
use isonorm_testing::oracle::{Compute, forward::residual_add};
use isonorm_testing::values::Kind;

use crate::support::{BOTH, Norm, Saved, Tensor, assert_same_bits, one};

/// `T_r(x + residual)`, by the oracle.
pub(crate) fn sum(x: &Tensor, residual: &Tensor, r_type: DType) -> Tensor {
    fn of<C: Compute>(x: &Tensor, residual: &Tensor, r_type: DType) -> Tensor {
        let sum = residual_add(&x.array().widened::<C>(), &residual.array().widened::<C>(), r_type);
        Tensor::new(&Array::from_values(r_type, &sum))
    }
    if r_type == DType::F64 { of::<f64>(x, residual, r_type) } else { of::<f32>(x, residual, r_type) }
}

fn types() -> Vec<[DType; 4]> {
    let narrow = [DType::F32, DType::F16, DType::Bf16];
    let mut all = vec![[DType::F64; 4]];
    for x in narrow {
        for residual in narrow {
            for r in narrow {
                all.extend(narrow.map(|y| [x, residual, r, y]));
            }
        }
    }
    all
}

#[test]
fn a_fused_add_has_the_bits_of_an_add_and_a_norm() {
    for (i, [x_type, residual_type, r_type, y_type]) in types().into_iter().enumerate() {
        for which in BOTH {
            let hidden = [40, 129, 1100][i % 3];
            let kind = if i % 5 == 4 { Kind::Hostile } else { Kind::Normal };
            let mut norm = Norm::new(which, hidden);
            norm.weight = (i % 2 == 0).then(|| Tensor::values(r_type, Kind::Normal, 4, hidden));
            norm.llama = i % 4 == 0 && which == crate::support::Which::Rms;
            let x = Tensor::values(x_type, kind, 2 * i as u64, 3 * hidden);
            let residual = Tensor::values(residual_type, kind, 2 * i as u64 + 1, 3 * hidden);
            let sum = sum(&x, &residual, r_type);
            let expected = norm.oracle(&sum, y_type);
            for level in Level::available() {
                let label = format!("{norm}, {x_type:?} + {residual_type:?} = {r_type:?} to {y_type:?}, level {level}");
                let (mut r, mut y) = (Tensor::sentinel(r_type, x.len()), Tensor::sentinel(y_type, x.len()));
                let mut saved = Saved::new(r_type, 3);
                let io = Io::add(x.slice(), residual.slice(), r.slice_mut(), y.slice_mut()).stats(saved.stats_mut());
                norm.apply(one(level), io).unwrap_or_else(|e| panic!("{label}: {e}"));
                assert_same_bits(&format!("{label}, r"), hidden, &sum, &r);
                assert_same_bits(&label, hidden, &expected.y, &y);
                saved.assert_reports(&label, &expected);
                assert_same_bits(&format!("{label}, unfused"), hidden, &norm.forward(one(level), &r, y_type), &y);
                if (residual_type, y_type) == (r_type, x_type) {
                    let (mut r, mut y) = (residual.clone(), x.clone());
                    let io = Io::add_in_place(y.slice_mut(), r.slice_mut());
                    norm.apply(one(level), io).unwrap_or_else(|e| panic!("{label}: {e}"));
                    assert_same_bits(&format!("{label}, in place, r"), hidden, &sum, &r);
                    assert_same_bits(&format!("{label}, in place"), hidden, &expected.y, &y);
                }
            }
        }
    }
}
