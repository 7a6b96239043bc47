//! Valid calls over rows: every norm, type, option, form, layout, level and number of threads has the oracle's bits.
#![no_main]

#[path = "options.rs"]
mod options;
#[path = "../../crates/isonorm/tests/support/mod.rs"]
mod support;

use arbitrary::Arbitrary;
use isonorm::{Io, Rows, RowsMut};
use isonorm_testing::DType;
use isonorm_testing::golden::Array;
use isonorm_testing::oracle::{Compute, forward::residual_add};
use isonorm_testing::values::SplitMix64;
use libfuzzer_sys::fuzz_target;
use options::{Affine, MANY, Place, Values};
use support::layout::{Layout, check_output};
use support::{Norm, Saved, Tensor, Which, assert_same_bits, compute_type};

#[derive(Arbitrary, Debug)]
struct Call {
    layer: bool,
    hidden: u16,
    shape: [u8; 2],
    dims: u8,
    x: Values,
    residual: Values,
    types: [u8; 2],
    affine: Affine,
    llama: bool,
    partial: Option<u16>,
    form: u8,
    layouts: u64,
    place: Place,
}

fuzz_target!(|call: Call| {
    let shape = &call.shape.map(|len| 1 + usize::from(len % 4))[..usize::from(call.dims % 3)];
    let rows: usize = shape.iter().product();
    let hidden = 1 + usize::from(call.hidden % 1200);
    let which = if call.layer { Which::Layer } else { Which::Rms };
    let x = call.x.tensor(rows * hidden);
    let [r_type, y_type] = call.types.map(|i| options::partner(x.dtype(), i));
    let normalized = if call.form % 4 > 1 { r_type } else { x.dtype() };
    let mut norm = Norm::new(which, hidden);
    norm.eps = call.affine.eps();
    (norm.weight, norm.bias) =
        (call.affine.parameter(0, normalized, hidden), call.affine.parameter(1, normalized, hidden));
    norm.offset = call.affine.offset();
    if which == Which::Rms {
        norm.llama = call.llama;
        norm.partial = call.partial.map(|k| 1 + usize::from(k) % hidden);
    }
    let mut source = SplitMix64::new(call.layouts);
    let job = Job { norm, shape, hidden, x: &x, place: &call.place, label: format!("{call:?}") };
    match call.form % 4 {
        0 => job.out_of_place(y_type, &mut source),
        1 => job.in_place(&mut source),
        2 => job.add(&call.residual.beside(&x), [r_type, y_type], &mut source),
        _ => job.add_in_place(&call.residual.of_type(r_type, x.len()), &mut source),
    }
});

struct Job<'a> {
    norm: Norm,
    shape: &'a [usize],
    hidden: usize,
    x: &'a Tensor,
    place: &'a Place,
    label: String,
}

impl Job<'_> {
    fn saved(&self, dtype: DType) -> Saved {
        Saved::new(dtype, self.shape.iter().product())
    }

    fn output(&self, source: &mut SplitMix64) -> Layout {
        Layout::of_an_output(self.shape, self.hidden, source)
    }

    fn rows_mut<'t>(&'t self, tensor: &'t mut Tensor, layout: &'t Layout) -> RowsMut<'t> {
        RowsMut::strided(tensor.slice_mut(), layout.offset, self.shape, &layout.strides)
    }

    fn apply(&self, io: Io<'_>) {
        self.norm.apply(self.place.cpu(), io).unwrap_or_else(|e| panic!("{}: {e}", self.label));
    }

    fn check(&self, what: &str, expected: &Tensor, found: &Tensor, layout: &Layout) {
        let places = layout.places(self.shape, self.hidden);
        check_output(&format!("{what} of {}", self.label), expected, found, &places, self.hidden);
    }

    fn out_of_place(&self, y_type: DType, source: &mut SplitMix64) {
        let (from, to) = (self.output(source), self.output(source));
        let x = from.holding(self.x, self.shape, self.hidden);
        let (mut y, mut saved) = (Tensor::sentinel(y_type, to.len), self.saved(x.dtype()));
        let x = Rows::strided(x.slice(), from.offset, self.shape, &from.strides);
        self.apply(Io::new(x, self.rows_mut(&mut y, &to)).stats(saved.stats_mut()));
        let expected = self.norm.oracle(self.x, y_type);
        self.check("y", &expected.y, &y, &to);
        saved.assert_reports(&self.label, &expected);
        if self.place.many() {
            self.repeated(&expected.y);
        }
    }

    /// The same rows over and over, so that threads share them.
    fn repeated(&self, expected: &Tensor) {
        let len = self.x.len();
        let times = MANY / len + 1;
        let places = || (0..times * len).map(|at| at % len);
        let mut y = Tensor::sentinel(expected.dtype(), times * len);
        self.apply(Io::new(self.x.gather(places()).slice(), y.slice_mut()));
        assert_same_bits(&self.label, self.hidden, &expected.gather(places()), &y);
    }

    fn in_place(&self, source: &mut SplitMix64) {
        let to = self.output(source);
        let (mut y, mut saved) = (to.holding(self.x, self.shape, self.hidden), self.saved(self.x.dtype()));
        self.apply(Io::in_place(self.rows_mut(&mut y, &to)).stats(saved.stats_mut()));
        let expected = self.norm.oracle(self.x, self.x.dtype());
        self.check("x, in place", &expected.y, &y, &to);
        saved.assert_reports(&self.label, &expected);
    }

    fn add(&self, residual: &Tensor, [r_type, y_type]: [DType; 2], source: &mut SplitMix64) {
        let (kept, to) = (self.output(source), self.output(source));
        let (mut r, mut y) = (Tensor::sentinel(r_type, kept.len), Tensor::sentinel(y_type, to.len));
        let mut saved = self.saved(r_type);
        let strides = contiguous(self.shape, self.hidden);
        let [x, residual_rows] =
            [self.x, residual].map(|tensor| Rows::strided(tensor.slice(), 0, self.shape, &strides));
        let io = Io::add(x, residual_rows, self.rows_mut(&mut r, &kept), self.rows_mut(&mut y, &to));
        self.apply(io.stats(saved.stats_mut()));
        let sum = sum(self.x, residual, r_type);
        let expected = self.norm.oracle(&sum, y_type);
        self.check("r", &sum, &r, &kept);
        self.check("y after r", &expected.y, &y, &to);
        saved.assert_reports(&self.label, &expected);
    }

    fn add_in_place(&self, residual: &Tensor, source: &mut SplitMix64) {
        let (kept, to) = (self.output(source), self.output(source));
        let mut r = kept.holding(residual, self.shape, self.hidden);
        let mut y = to.holding(self.x, self.shape, self.hidden);
        self.apply(Io::add_in_place(self.rows_mut(&mut y, &to), self.rows_mut(&mut r, &kept)));
        let sum = sum(self.x, residual, residual.dtype());
        self.check("r, in place", &sum, &r, &kept);
        self.check("y, in place", &self.norm.oracle(&sum, self.x.dtype()).y, &y, &to);
    }
}

fn contiguous(shape: &[usize], hidden: usize) -> Vec<isize> {
    (0..shape.len()).map(|d| (hidden * shape[d + 1..].iter().product::<usize>()) as isize).collect()
}

/// `T_r(x + residual)`, by the oracle.
fn sum(x: &Tensor, residual: &Tensor, r_type: DType) -> Tensor {
    fn added<C: Compute>(x: &Tensor, residual: &Tensor, r_type: DType) -> Tensor {
        let sum = residual_add(&x.array().widened::<C>(), &residual.array().widened::<C>(), r_type);
        Tensor::new(&Array::from_values(r_type, &sum))
    }
    if compute_type(r_type) == DType::F64 {
        added::<f64>(x, residual, r_type)
    } else {
        added::<f32>(x, residual, r_type)
    }
}
