//! Any shape, stride, offset, length, type and option: done or refused, never a panic, and nothing is written
//! by what is refused.

mod support;

use isonorm::{BackwardIo, Cpu, Io, LayerNorm, Level, Recipe, RmsNorm, Rows, RowsMut};
use isonorm_testing::DType;
use isonorm_testing::golden::Array;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use support::{Saved, Tensor};

/// Small ones mostly, so that calls succeed too, and those at which arithmetic overflows.
fn size() -> impl Strategy<Value = usize> {
    let edges = vec![usize::MAX, usize::MAX - 1, isize::MAX as usize, isize::MAX as usize + 1, 1 << 32, 1 << 62];
    prop_oneof![12 => 0..5usize, 4 => 0..40usize, 1 => prop::sample::select(edges)]
}

fn stride() -> impl Strategy<Value = isize> {
    let edges = vec![isize::MAX, isize::MIN, isize::MIN + 1, 1 << 62, -(1 << 62)];
    prop_oneof![12 => -9..10isize, 4 => -40..41isize, 1 => prop::sample::select(edges)]
}

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F32, DType::F32, DType::F32, DType::Bf16, DType::F16, DType::F64])
}

/// A tensor, and how its rows lie in it.
#[derive(Clone, Debug)]
struct Operand {
    data: Tensor,
    layout: Option<(usize, Vec<usize>, Vec<isize>)>,
}

fn operand() -> impl Strategy<Value = Operand> {
    let dims = prop_oneof![8 => 0..4usize, 1 => 4..10usize];
    let same = dims.prop_flat_map(|dims| (size(), vec(size(), dims), vec(stride(), dims)));
    let any = (size(), vec(size(), 0..10), vec(stride(), 0..10));
    let layout = prop_oneof![3 => Just(None), 6 => same.prop_map(Some), 1 => any.prop_map(Some)];
    (dtype(), prop_oneof![3 => 0..100usize, 1 => Just(12)], layout)
        .prop_map(|(dtype, len, layout)| Operand { data: Tensor::sentinel(dtype, len), layout })
}

impl Operand {
    fn rows(&self) -> Rows<'_> {
        match &self.layout {
            None => self.data.slice().into(),
            Some((offset, shape, strides)) => Rows::strided(self.data.slice(), *offset, shape, strides),
        }
    }
    fn rows_mut(&mut self) -> RowsMut<'_> {
        match &self.layout {
            None => self.data.slice_mut().into(),
            Some((offset, shape, strides)) => RowsMut::strided(self.data.slice_mut(), *offset, shape, strides),
        }
    }
    fn bits(&self) -> Array {
        self.data.array()
    }
}

#[derive(Clone, Debug)]
struct Call {
    hidden: usize,
    operands: [Operand; 4],
    form: usize,
    parameters: [Option<Tensor>; 2],
    eps: f64,
    offset: f64,
    partial: Option<usize>,
    flags: [bool; 3],
    threads: usize,
    level: Level,
    stats: Option<(bool, usize)>,
}

fn call() -> impl Strategy<Value = Call> {
    let parameter = || prop::option::weighted(0.3, (dtype(), size()));
    let made = |p: Option<(DType, usize)>| p.map(|(dtype, len)| Tensor::sentinel(dtype, len.min(50)));
    let eps = prop::sample::select(vec![1e-5, 1e-5, 1e-5, 0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 5e-324]);
    let offset = prop::sample::select(vec![0.0, 0.0, 0.0, 0.0, 1.0, 1e-300, f64::NAN, 1e300]);
    let levels = vec![Level::Scalar, Level::detect(), Level::detect(), Level::detect(), Level::Avx2, Level::Neon];
    let place = (prop::sample::select(vec![1, 1, 1, 2, 8, 0, usize::MAX]), prop::sample::select(levels));
    let shape = (size(), [operand(), operand(), operand(), operand()], 0..7usize, parameter(), parameter());
    let options = (eps, offset, prop::option::weighted(0.2, size()), any::<[bool; 3]>());
    let stats = prop::option::weighted(0.3, (prop::bool::weighted(0.2), 0..20usize));
    (shape, options, place, stats).prop_map(move |(shape, options, place, stats)| {
        let (hidden, operands, form, weight, bias) = shape;
        let (eps, offset, partial, flags) = options;
        let parameters = [weight, bias].map(made);
        let (threads, level) = place;
        Call { hidden, operands, form, parameters, eps, offset, partial, flags, threads, level, stats }
    })
}

/// Without options that are refused whatever the shapes are; half of them with one shape for all tensors.
fn plain_call() -> impl Strategy<Value = Call> {
    (call(), any::<bool>()).prop_map(|(mut call, one_shape)| {
        let shape = call.operands[0].layout.as_ref().map(|(_, shape, _)| shape.clone());
        for (_, own, strides) in call.operands.iter_mut().flat_map(|operand| &mut operand.layout) {
            if let (true, Some(shape)) = (one_shape, &shape) {
                own.clone_from(shape);
                strides.resize(shape.len(), 7);
            }
        }
        (call.eps, call.offset, call.partial, call.threads, call.level) = (1e-5, 0.0, None, 1, Level::detect());
        call.parameters = [None, None];
        call.stats = None;
        for operand in &mut call.operands {
            operand.data = Tensor::sentinel(DType::F32, operand.data.len());
        }
        call
    })
}

enum Form<'a> {
    Forward(Io<'a>),
    Backward(BackwardIo<'a>),
}

impl Call {
    fn run(&mut self) -> (Result<(), isonorm::Error>, Saved) {
        let (wide, rows) = self.stats.unwrap_or_default();
        let mut saved = Saved::new(if wide { DType::F64 } else { DType::F32 }, rows);
        let [x, residual, r, y] = &mut self.operands;
        let own = saved.clone();
        let io = match self.form {
            0 => Form::Forward(Io::new(x.rows(), y.rows_mut())),
            1 => Form::Forward(Io::in_place(y.rows_mut())),
            2 => Form::Forward(Io::add(x.rows(), residual.rows(), r.rows_mut(), y.rows_mut())),
            3 => Form::Forward(Io::add_in_place(y.rows_mut(), r.rows_mut())),
            4 => Form::Backward(BackwardIo::new(x.rows(), residual.rows(), y.rows_mut()).dweight(r.data.slice_mut())),
            5 => Form::Backward(BackwardIo::in_place(x.rows(), y.rows_mut()).dresidual(residual.rows())),
            _ => Form::Backward(
                BackwardIo::new(x.rows(), residual.rows(), y.rows_mut()).dresidual_in_place(r.rows_mut()),
            ),
        };
        let io = match io {
            Form::Forward(io) if self.stats.is_some() => Form::Forward(io.stats(saved.stats_mut())),
            Form::Backward(io) if self.stats.is_some() => Form::Backward(io.stats(own.stats_ref())),
            io => io,
        };
        let cpu = Cpu::new().threads(self.threads).level(self.level);
        let [is_layer, outside, llama] = self.flags;
        let result = if is_layer {
            let mut norm = LayerNorm::new(self.hidden).eps(self.eps).weight_offset(self.offset).on(cpu);
            norm = if outside { norm.eps_outside() } else { norm };
            norm = if let Some(weight) = &self.parameters[0] { norm.weight(weight.slice()) } else { norm };
            norm = if let Some(bias) = &self.parameters[1] { norm.bias(bias.slice()) } else { norm };
            match io {
                Form::Forward(io) => norm.apply(io),
                Form::Backward(io) => norm.backward(io),
            }
        } else {
            let mut norm = RmsNorm::new(self.hidden).eps(self.eps).weight_offset(self.offset).on(cpu);
            norm = if outside { norm.eps_outside() } else { norm };
            norm = if llama { norm.recipe(Recipe::Llama) } else { norm };
            norm = if let Some(weight) = &self.parameters[0] { norm.weight(weight.slice()) } else { norm };
            norm = if let Some(bias) = &self.parameters[1] { norm.bias(bias.slice()) } else { norm };
            norm = if let Some(k) = self.partial { norm.partial(k) } else { norm };
            match io {
                Form::Forward(io) => norm.apply(io),
                Form::Backward(io) => norm.backward(io),
            }
        };
        (result, saved)
    }
}

fn check(mut call: Call) -> Result<bool, TestCaseError> {
    let before = call.operands.each_ref().map(Operand::bits);
    let (result, saved) = call.run();
    if let Err(error) = &result {
        prop_assert_eq!(call.operands.each_ref().map(Operand::bits), before, "written, then refused: {}", error);
        let fresh = Saved::new(if matches!(saved, Saved::F64(_)) { DType::F64 } else { DType::F32 }, saved.len());
        prop_assert_eq!(saved, fresh, "statistics written, then refused: {}", error);
        prop_assert!(!error.to_string().is_empty());
    }
    Ok(result.is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_call_is_done_or_refused(call in call()) {
        check(call)?;
    }

    #[test]
    fn any_shapes_are_done_or_refused(call in plain_call()) {
        check(call)?;
    }
}

/// Of the calls with plain options a good part must be done, or the test above tests the first check alone.
#[test]
fn a_good_part_of_the_calls_is_done() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let done = (0..2000).filter(|_| {
        let call = plain_call().new_tree(&mut runner).expect("a call").current();
        check(call).expect("checked")
    });
    let done = done.count();
    println!("{done} of 2000 calls were done");
    assert!(done > 150, "{done} of 2000 calls were done");
}

/// The very ends of the number line, one by one.
#[test]
fn the_largest_numbers_do_not_overflow() {
    let x = [1.0f32; 4];
    for hidden in [0, 1, isize::MAX as usize, usize::MAX] {
        for len in [0, 1, 1 << 63, usize::MAX] {
            for stride in [isize::MIN, -1, 0, 1, isize::MAX] {
                for offset in [0, 1, usize::MAX] {
                    let mut y = [0.0f32; 4];
                    let (shape, strides) = ([len, 1, len], [stride, stride, 0]);
                    let norm = RmsNorm::new(hidden);
                    let _ = norm.forward(Rows::strided(&x, offset, &shape[..1], &strides[..1]), &mut y);
                    let _ = norm.forward(&x, RowsMut::strided(&mut y, offset, &shape[..1], &strides[..1]));
                    let _ = norm.forward(Rows::strided(&x, offset, &shape[..2], &strides[..2]), &mut y);
                    let _ = norm.forward(&x, RowsMut::strided(&mut y, offset, &shape, &strides));
                    let _ = norm.apply(Io::in_place(RowsMut::strided(&mut y, offset, &shape, &strides)));
                    let _ = norm.apply(Io::in_place(RowsMut::strided(&mut y, offset, &[0, len, len], &strides)));
                }
            }
        }
    }
}
