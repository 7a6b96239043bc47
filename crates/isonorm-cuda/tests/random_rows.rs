//! Calls over rows at random, beside the core: any options, types, strides, any output in the place of any input.
#![allow(unsafe_code)] // outputs in the places of inputs

mod support;

use isonorm::Level;
use isonorm_cuda::{BackwardIo, Device, Error, Io, Rows, RowsMut, SliceMut, Stream};
use isonorm_testing::DType;
use isonorm_testing::oracle::Eps;
use isonorm_testing::values::{Kind, SplitMix64};
use support::core::layout::Layout;
use support::core::{Norm as Spec, Saved, Tensor, Which, assert_same_bits, compute_type, one};
use support::gpu::{self, Memory, norm_of};
use support::memory::dtype;

/// A tensor of a call, and how its rows lie in it.
#[derive(Clone)]
struct Operand {
    data: Tensor,
    layout: Option<(usize, Vec<usize>, Vec<isize>)>,
}

impl Operand {
    fn rows(&self) -> isonorm::Rows<'_> {
        match &self.layout {
            None => self.data.slice().into(),
            Some((offset, shape, strides)) => isonorm::Rows::strided(self.data.slice(), *offset, shape, strides),
        }
    }

    fn rows_mut(&mut self) -> isonorm::RowsMut<'_> {
        match &self.layout {
            None => self.data.slice_mut().into(),
            Some((offset, shape, strides)) => isonorm::RowsMut::strided(self.data.slice_mut(), *offset, shape, strides),
        }
    }

    fn on_gpu<'a>(&'a self, memory: &'a Memory) -> Rows<'a> {
        match &self.layout {
            None => memory.slice().into(),
            Some((offset, shape, strides)) => Rows::strided(memory.slice(), *offset, shape, strides),
        }
    }

    /// To be written, where another tensor of the call may lie.
    fn on_gpu_mut<'a>(&'a self, memory: &'a Memory) -> RowsMut<'a> {
        let own = memory.slice();
        // SAFETY: launches are queued one after the other; that an output may lie where an input does is what is tested.
        let data = unsafe { SliceMut::from_raw(own.pointer(), own.len(), own.dtype()) };
        match &self.layout {
            None => data.into(),
            Some((offset, shape, strides)) => RowsMut::strided(data, *offset, shape, strides),
        }
    }
}

/// A norm, what both passes read, and what they write: each output with the input in whose place it is.
struct Case {
    spec: Spec,
    rows: usize,
    /// x, residual or dresidual, dy.
    inputs: [Option<Operand>; 3],
    /// y or dx, r or dr.
    outputs: [Option<(Operand, Option<usize>)>; 2],
    gradients: [Option<DType>; 2],
    has_stats: bool,
}

/// What is the same for all calls of a family, so that these share kernels.
#[derive(Clone, Copy)]
struct Family {
    which: Which,
    llama: bool,
    x: DType,
    others: DType,
    params: [Option<DType>; 2],
    offset: f64,
    hidden: usize,
    most_rows: usize,
}

struct Source(SplitMix64);

impl Source {
    fn chance(&mut self, percent: usize) -> bool {
        self.0.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.0.below(from.len())]
    }

    fn tensor(&mut self, dtype: DType, kind: Kind, n: usize) -> Tensor {
        Tensor::values(dtype, kind, self.0.word(), n)
    }

    fn shape(&mut self, most_rows: usize) -> Vec<usize> {
        match self.0.below(10) {
            0..6 => vec![self.0.below(most_rows + 1)],
            6..9 => vec![1 + self.0.below(4), self.0.below(most_rows.div_ceil(4) + 1)],
            _ => vec![1 + self.0.below(2), 1 + self.0.below(2), self.0.below(most_rows.div_ceil(4) + 1)],
        }
    }

    fn layout(&mut self, shape: &[usize], hidden: usize, is_written: bool) -> Option<Layout> {
        let is_strided = shape.iter().all(|len| *len > 0) && self.chance(70);
        let of = if is_written { Layout::of_an_output } else { Layout::of_an_input };
        is_strided.then(|| of(shape, hidden, &mut self.0))
    }

    fn spec(&mut self, family: Family) -> Spec {
        let Family { which, llama, params, offset, hidden, .. } = family;
        let [weight, bias] = params.map(|dtype| dtype.map(|dtype| self.tensor(dtype, Kind::Normal, hidden)));
        let value = self.pick(&[1e-5, 1e-5, 1e-6, 0.0, 1e-30, 1e-44, 0.25]);
        let partial = (which == Which::Rms && self.chance(20)).then(|| 1 + self.0.below(hidden));
        let eps = Eps { value, outside: self.chance(25) };
        Spec { eps, weight, bias, offset, llama, partial, ..Spec::new(which, hidden) }
    }

    /// A call; a backward one has a dy.
    fn case(&mut self, family: Family, is_backward: bool) -> Case {
        let Family { x, others, hidden, most_rows, .. } = family;
        let (spec, shape) = (self.spec(family), self.shape(most_rows));
        let rows = shape.iter().product::<usize>();
        let kind = self.pick(&Kind::ALL);
        let is_sum = self.chance(40);
        let sum_type = if is_sum && !is_backward { others } else { x };
        let laid = |layout: Option<Layout>, tensor: Tensor| match layout {
            None => Operand { data: tensor, layout: None },
            Some(layout) => Operand {
                data: layout.holding(&tensor, &shape, hidden),
                layout: Some((layout.offset, shape.clone(), layout.strides)),
            },
        };
        let input = |source: &mut Self, dtype, kind| {
            let is_written = source.chance(60);
            let layout = source.layout(&shape, hidden, is_written);
            laid(layout, source.tensor(dtype, kind, rows * hidden))
        };
        let inputs = [
            Some(input(self, sum_type, kind)),
            is_sum.then(|| input(self, others, Kind::Normal)),
            is_backward.then(|| input(self, others, Kind::Normal)),
        ];
        let output = |source: &mut Self, dtype: DType, taken: Option<usize>| {
            let place = (0..3).filter(|place| Some(*place) != taken && source.chance(30)).find(|place| {
                let is_own = |layout: &(usize, Vec<usize>, Vec<isize>)| is_nested(&layout.1, &layout.2, hidden);
                let fits = |input: &Operand| input.data.dtype() == dtype && input.layout.as_ref().is_none_or(is_own);
                inputs[*place].as_ref().is_some_and(fits)
            });
            let own = match place.and_then(|place| inputs[place].clone()) {
                Some(input) => input,
                None => laid(source.layout(&shape, hidden, true), Tensor::sentinel(dtype, rows * hidden)),
            };
            (own, place)
        };
        let (first, second) = if is_backward { (x, others) } else { (others, x) };
        let second = is_sum.then(|| output(self, second, None));
        let first = output(self, first, second.as_ref().and_then(|(_, place)| *place));
        let gradients = family.params.map(|dtype| dtype.filter(|_| is_backward && self.chance(70)));
        Case { spec, rows, inputs, outputs: [Some(first), second], gradients, has_stats: self.chance(40) }
    }
}

/// Whether rows lie apart from one another.
fn is_nested(shape: &[usize], strides: &[isize], hidden: usize) -> bool {
    let mut order: Vec<_> = strides.iter().map(|stride| stride.unsigned_abs()).zip(shape).collect();
    order.sort();
    let mut room = hidden;
    order.iter().filter(|(_, len)| **len > 1).all(|(stride, len)| {
        let fits = *stride >= room;
        room = stride * *len;
        fits
    })
}

impl Case {
    /// The outputs, the parameters' gradients and the statistics of the core.
    fn expected(&self) -> Result<(Vec<Option<Tensor>>, Saved), isonorm::Error> {
        let [mut first, mut second] = self.outputs.clone().map(|output| output.map(|(operand, _)| operand));
        let [x, other, dy] = self.inputs.each_ref().map(Option::as_ref);
        let (Some(x), Some(to)) = (x, &mut first) else { panic!("a call has x and an output") };
        let mut saved = Saved::new(self.x(), self.rows);
        let [mut dweight, mut dbias] =
            self.gradients.map(|dtype| dtype.map(|dtype| Tensor::sentinel(dtype, self.spec.hidden)));
        let cpu = one(Level::detect());
        if let Some(dy) = dy {
            let mut io = isonorm::BackwardIo::new(x.rows(), dy.rows(), to.rows_mut());
            io = other.into_iter().fold(io, |io, other| io.dresidual(other.rows()));
            io = second.iter_mut().fold(io, |io, dr| io.dr(dr.rows_mut()));
            io = dweight.iter_mut().fold(io, |io, dweight| io.dweight(dweight.slice_mut()));
            io = dbias.iter_mut().fold(io, |io, dbias| io.dbias(dbias.slice_mut()));
            self.spec.backward(cpu, io)?;
            let mut y = Tensor::sentinel(self.x(), self.rows * self.spec.hidden);
            self.spec.apply(cpu, isonorm::Io::new(x.rows(), y.slice_mut()).stats(saved.stats_mut()))?;
        } else {
            let io = match (other, &mut second) {
                (Some(other), Some(r)) => isonorm::Io::add(x.rows(), other.rows(), r.rows_mut(), to.rows_mut()),
                _ => isonorm::Io::new(x.rows(), to.rows_mut()),
            };
            self.spec.apply(cpu, io.stats(saved.stats_mut()))?;
        }
        let outputs = [first, second].map(|output| output.map(|operand| operand.data));
        Ok((outputs.into_iter().chain([dweight, dbias]).collect(), saved))
    }

    /// The type of what is normalized.
    fn x(&self) -> DType {
        match (&self.inputs, &self.outputs) {
            ([_, _, None], [_, Some((r, _))]) => r.data.dtype(),
            ([x, ..], _) => x.as_ref().map_or(DType::F32, |x| x.data.dtype()),
        }
    }

    /// The same of the GPU; `stats` are what the core has saved.
    fn found(&self, stream: &Stream<'_>, stats: &Tensor) -> Result<(Vec<Option<Tensor>>, Tensor), Error> {
        let device = stream.device();
        let [weight, bias] =
            [&self.spec.weight, &self.spec.bias].map(|param| param.as_ref().map(|param| Memory::of(device, param)));
        let norm = norm_of(&self.spec, [weight.as_ref().map(Memory::slice), bias.as_ref().map(Memory::slice)]);
        let of = |operand: &Operand| Memory::of(device, &operand.data);
        let inputs = self.inputs.each_ref().map(|input| input.as_ref().map(of));
        let own =
            self.outputs.each_ref().map(|output| output.as_ref().filter(|(_, at)| at.is_none()).map(|o| of(&o.0)));
        let place = |i: usize| {
            let (operand, at) = self.outputs[i].as_ref()?;
            Some((operand, at.map_or(own[i].as_ref(), |at| inputs[at].as_ref())?))
        };
        let input = |i: usize| Some(self.inputs[i].as_ref()?.on_gpu(inputs[i].as_ref()?));
        let output = |i: usize| place(i).map(|(operand, memory)| operand.on_gpu_mut(memory));
        let (Some(x), Some(to)) = (input(0), output(0)) else { panic!("a call has x and an output") };
        let empty = |dtype, n| Memory::empty(device, dtype, n);
        let [mut dweight, mut dbias] = self.gradients.map(|dtype| dtype.map(|dtype| empty(dtype, self.spec.hidden)));
        let mut saved = Memory::of(device, stats);
        if let Some(dy) = input(2) {
            let is_summed = dweight.is_some() || dbias.is_some();
            let scratch = if is_summed { norm.scratch(device, self.rows, dtype(self.x())) } else { 0 };
            let mut scratch = empty(compute_type(self.x()), scratch);
            let mut io = BackwardIo::new(x, dy, to).scratch(scratch.slice_mut());
            io = input(1).into_iter().fold(io, BackwardIo::dresidual);
            io = output(1).into_iter().fold(io, BackwardIo::dr);
            io = dweight.iter_mut().fold(io, |io, dweight| io.dweight(dweight.slice_mut()));
            io = dbias.iter_mut().fold(io, |io, dbias| io.dbias(dbias.slice_mut()));
            norm.backward(stream, if self.has_stats { io.stats(saved.slice()) } else { io })?;
        } else {
            saved = empty(stats.dtype(), stats.len());
            let io = match (input(1), output(1)) {
                (Some(residual), Some(r)) => Io::add(x, residual, r, to),
                _ => Io::new(x, to),
            };
            norm.forward(stream, if self.has_stats { io.stats(saved.slice_mut()) } else { io })?;
        }
        let outputs = [0, 1].map(|i| place(i).map(|(_, memory)| memory.read(stream)));
        let gradients = [dweight, dbias].map(|memory| memory.map(|memory| memory.read(stream)));
        Ok((outputs.into_iter().chain(gradients).collect(), saved.read(stream)))
    }

    /// Whether both did it.
    fn check(&self, label: &str, stream: &Stream<'_>) -> bool {
        let label = format!("{label}: {} {} rows, {self}", self.spec, self.rows);
        let (expected, saved) = match self.expected() {
            Ok(expected) => expected,
            Err(error) => {
                let found = self.found(stream, &Tensor::sentinel(compute_type(self.x()), 0)).map(drop);
                assert_eq!(found, Err(Error::Call(error)), "{label}");
                return false;
            }
        };
        let saved = flat(&saved);
        let (found, stats) = match self.found(stream, &saved) {
            Ok(found) => found,
            Err(Error::Strides { .. }) => return false,
            Err(error) => panic!("{label}: {error}"),
        };
        for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
            if let (Some(expected), Some(found)) = (expected, found) {
                let name = ["y or dx", "r or dr", "dweight", "dbias"][i];
                assert_same_bits(&format!("{label}, {name}"), self.spec.hidden, expected, found);
            }
        }
        if self.has_stats {
            assert_same_bits(&format!("{label}, stats"), 5, &saved, &stats);
        }
        true
    }
}

/// Statistics as a GPU has them.
fn flat(saved: &Saved) -> Tensor {
    match saved {
        Saved::F32(stats) => Tensor::F32(stats.iter().flat_map(|s| [s.mean, s.delta, s.var, s.inv, s.scale]).collect()),
        Saved::F64(stats) => Tensor::F64(stats.iter().flat_map(|s| [s.mean, s.delta, s.var, s.inv, s.scale]).collect()),
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |operand: &Operand| format!("{:?} {:?}", operand.data.dtype(), operand.layout);
        let inputs = self.inputs.each_ref().map(|input| input.as_ref().map(of));
        let outputs = self.outputs.each_ref().map(|output| output.as_ref().map(|(own, at)| (of(own), *at)));
        write!(f, "{inputs:?} to {outputs:?} and {:?}, stats {}", self.gradients, self.has_stats)
    }
}

/// Calls of a family, on the GPU with clusters or the one without. Three leading dimensions do not always join to two.
fn check_calls(family: Family, ordinal: usize, count: usize) {
    gpu::emulate();
    let stream = Stream::new(Device::new(ordinal).expect("two GPUs")).expect("a stream");
    let mut source = Source(SplitMix64::new(family.hidden as u64));
    let done = (0..count).filter(|i| {
        let is_backward = source.chance(50);
        source.case(family, is_backward).check(&format!("call {i}"), &stream)
    });
    let done = done.count();
    assert!(done > count / 2, "{done} of {count} calls were done");
}

#[test]
fn short_rows() {
    let (x, others) = (DType::Bf16, DType::Bf16);
    let params = [Some(DType::Bf16), None];
    let family =
        Family { which: Which::Rms, llama: false, x, others, params, offset: 0.0, hidden: 130, most_rows: 300 };
    check_calls(family, 0, 60);
}

#[test]
fn rows_of_mixed_types() {
    let (x, others) = (DType::F32, DType::Bf16);
    let params = [Some(DType::F16), Some(DType::F32)];
    let family =
        Family { which: Which::Layer, llama: false, x, others, params, offset: 1.0, hidden: 515, most_rows: 40 };
    check_calls(family, 0, 40);
}

/// They are read again, also where an output is in their place.
#[test]
fn long_rows() {
    let (x, others) = (DType::F64, DType::F64);
    let params = [Some(DType::F32), None];
    let family = Family { which: Which::Rms, llama: false, x, others, params, offset: 0.0, hidden: 8300, most_rows: 3 };
    check_calls(family, 1, 40);
}
