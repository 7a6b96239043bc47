//! What the oracle says of a backward call, and calls to compare with it.

use isonorm::{BackwardIo, Cpu};
use isonorm_testing::DType;
use isonorm_testing::golden::Array;
use isonorm_testing::oracle::backward::{self as oracle, Backward};
use isonorm_testing::oracle::forward::{Affine, RmsNorm};
use isonorm_testing::oracle::{Compute, narrow};

use crate::support::{Norm, Tensor, Which, assert_same_bits, compute_type};

/// dx in x's type, and the parameters' gradients in the compute type.
#[derive(Clone, Debug)]
pub(crate) struct Gradients {
    pub(crate) dx: Tensor,
    pub(crate) dweight: Tensor,
    pub(crate) dbias: Tensor,
}

impl Gradients {
    /// The oracle's, of contiguous rows.
    pub(crate) fn expected(norm: &Norm, x: &Tensor, dy: &Tensor) -> Self {
        if x.dtype() == DType::F64 { Self::of::<f64>(norm, x, dy) } else { Self::of::<f32>(norm, x, dy) }
    }

    fn of<C: Compute>(norm: &Norm, x: &Tensor, dy: &Tensor) -> Self {
        let widened = |tensor: &Tensor| tensor.array().widened::<C>();
        let weight = norm.weight.as_ref().map(widened);
        let affine = Affine { weight: weight.as_deref(), bias: None, weight_offset: norm.offset };
        let (values, slopes, hidden) = (widened(x), widened(dy), norm.hidden);
        let Backward { dx, dweight, dbias } = match norm.which {
            Which::Rms => {
                let llama = norm.llama.then_some(x.dtype());
                let options = RmsNorm { eps: norm.eps, partial: norm.partial, llama };
                oracle::rms_norm(&values, &slopes, hidden, &affine, &options, x.dtype())
            }
            Which::Layer => oracle::layer_norm(&values, &slopes, hidden, &affine, norm.eps, x.dtype()),
        };
        let tensor = |dtype, values: &[C]| Tensor::new(&Array::from_values(dtype, &narrow(values, dtype)));
        Gradients { dx: tensor(x.dtype(), &dx), dweight: tensor(C::DTYPE, &dweight), dbias: tensor(C::DTYPE, &dbias) }
    }

    /// The library's, of contiguous rows.
    pub(crate) fn found(norm: &Norm, cpu: Cpu<'_>, x: &Tensor, dy: &Tensor) -> Self {
        let mut found = Self::room(x, norm.hidden);
        let Gradients { dx, dweight, dbias } = &mut found;
        let io = BackwardIo::new(x.slice(), dy.slice(), dx.slice_mut());
        let io = io.dweight(dweight.slice_mut()).dbias(dbias.slice_mut());
        norm.backward(cpu, io).unwrap_or_else(|e| panic!("{norm}: {e}"));
        found
    }

    pub(crate) fn room(x: &Tensor, hidden: usize) -> Self {
        let parameter = || Tensor::sentinel(compute_type(x.dtype()), hidden);
        Gradients { dx: Tensor::sentinel(x.dtype(), x.len()), dweight: parameter(), dbias: parameter() }
    }

    pub(crate) fn check(&self, label: &dyn std::fmt::Display, hidden: usize, found: &Gradients) {
        assert_same_bits(&format!("{label}: dx"), hidden, &self.dx, &found.dx);
        assert_same_bits(&format!("{label}: dweight"), hidden, &self.dweight, &found.dweight);
        assert_same_bits(&format!("{label}: dbias"), hidden, &self.dbias, &found.dbias);
    }
}
