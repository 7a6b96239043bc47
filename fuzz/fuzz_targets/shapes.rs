//! Any shapes, strides, offsets, lengths, types and options: the library computes, or refuses and writes nothing;
//! it never panics.
#![no_main]

#[path = "../../crates/isonorm/tests/support/mod.rs"]
mod support;

use arbitrary::{Arbitrary, Unstructured};
use isonorm::{
    BatchNorm, Cpu, Error, GroupNorm, Io, LayerNorm, Level, PlaneIo, Planes, PlanesMut, Recipe, RmsNorm, Rows, RowsMut,
    Running,
};
use isonorm_testing::DType;
use libfuzzer_sys::fuzz_target;
use support::{Saved, Tensor};

/// A length: small ones mostly, and those at which arithmetic overflows.
#[derive(Clone, Copy, Debug)]
struct Size(usize);

impl<'a> Arbitrary<'a> for Size {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let edges = [usize::MAX, usize::MAX - 1, isize::MAX as usize, 1 << 63, 1 << 32, 1 << 62, 1 << 31];
        let byte = usize::from(u8::arbitrary(u)?);
        Ok(Size(match byte {
            0..200 => byte % 20,
            200..248 => byte,
            _ => edges.get(byte - 248).copied().map_or_else(|| usize::arbitrary(u), Ok)?,
        }))
    }
}

#[derive(Clone, Copy, Debug)]
struct Stride(isize);

impl<'a> Arbitrary<'a> for Stride {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let edges = [isize::MIN, isize::MIN + 1, isize::MAX, 1 << 62, -(1 << 62)];
        let byte = i8::arbitrary(u)?;
        Ok(Stride(match byte {
            -120..120 => isize::from(byte),
            _ => edges.get(usize::from(byte as u8 % 8)).copied().map_or_else(|| isize::arbitrary(u), Ok)?,
        }))
    }
}

/// A tensor, and how its rows lie in it.
#[derive(Arbitrary, Debug)]
struct View {
    dtype: u8,
    len: u16,
    /// `None`: as x lies.
    layout: Option<Layout>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Layout {
    Contiguous,
    Strided { offset: Size, dims: Vec<(Size, Stride)>, cut: u8 },
}

#[derive(Arbitrary, Debug)]
struct Call {
    kind: u8,
    hidden: Size,
    views: [View; 4],
    form: u8,
    parameters: [Option<(u8, u8)>; 4],
    stats: Option<(bool, u8)>,
    /// Whether the lengths are those of a valid call over planes.
    fit: bool,
    partial: Option<Size>,
    groups: Size,
    spatial: Size,
    last: [bool; 2],
    numbers: [u8; 3],
    flags: [bool; 3],
    threads: u8,
    level: u8,
}

impl Call {
    /// Elements of a whole number of samples, where they are few.
    fn fitting_len(&self) -> Option<usize> {
        let size = self.hidden.0.checked_mul(self.spatial.0)?;
        size.checked_mul(1 + usize::from(self.form) / 64).filter(|len| (*len).max(self.hidden.0) < 4000)
    }
}

fn dtype(i: u8) -> DType {
    [DType::F32, DType::F32, DType::F32, DType::Bf16, DType::F16, DType::F64][usize::from(i % 6)]
}

fn number(i: u8) -> f64 {
    [1e-5, 0.0, 1.0, 1e-300, -0.0, -1.0, 1e300, 5e-324, f64::NAN, f64::INFINITY][usize::from(i % 10)]
}

fuzz_target!(|call: Call| {
    let (channels, fits) = (call.hidden.0, call.fit.then(|| call.fitting_len()).flatten());
    let tensor = |view: &View| Tensor::sentinel(dtype(view.dtype), fits.unwrap_or(usize::from(view.len % 700)));
    let mut tensors = call.views.each_ref().map(tensor);
    let len = |len: u8| fits.map_or(usize::from(len % 40), |_| channels);
    let parameters = call.parameters.map(|p| p.map(|(d, n)| Tensor::sentinel(dtype(d), len(n))));
    let (wide, sets) = call.stats.unwrap_or_default();
    let fresh = || Saved::new(if wide { DType::F64 } else { DType::F32 }, sets.into());
    let mut saved = fresh();
    let mut running = [2, 3].map(|i| parameters[i].clone().unwrap_or(Tensor::F32(vec![])));
    let all =
        |tensors: &[Tensor], running: &[Tensor]| tensors.iter().chain(running).map(Tensor::array).collect::<Vec<_>>();
    let before = all(&tensors, &running);
    let given = Given { call: &call, parameters: &parameters };
    let result = match call.kind % 5 {
        0 | 1 => given.rows(&mut tensors, &mut saved),
        _ => given.planes(&mut tensors, &mut running, &mut saved),
    };
    if let Err(error) = result {
        assert!(all(&tensors, &running) == before, "written, then refused: {error}");
        assert_eq!(saved, fresh(), "statistics written, then refused: {error}");
        assert!(!error.to_string().is_empty());
    }
});

/// Shape and strides of a view.
struct Lie {
    strided: Option<(usize, Vec<usize>, Vec<isize>)>,
}

impl Lie {
    fn of(call: &Call, i: usize) -> Self {
        let layout = call.views[i].layout.as_ref().or(call.views[0].layout.as_ref());
        let Some(Layout::Strided { offset, dims, cut }) = layout else { return Lie { strided: None } };
        let (shape, mut strides): (Vec<usize>, Vec<isize>) = dims.iter().map(|(len, stride)| (len.0, stride.0)).unzip();
        if *cut == 77 {
            strides.pop();
        }
        Lie { strided: Some((offset.0, shape, strides)) }
    }
    fn rows<'a>(&'a self, tensor: &'a Tensor) -> Rows<'a> {
        match &self.strided {
            None => tensor.slice().into(),
            Some((offset, shape, strides)) => Rows::strided(tensor.slice(), *offset, shape, strides),
        }
    }
    fn rows_mut<'a>(&'a self, tensor: &'a mut Tensor) -> RowsMut<'a> {
        match &self.strided {
            None => tensor.slice_mut().into(),
            Some((offset, shape, strides)) => RowsMut::strided(tensor.slice_mut(), *offset, shape, strides),
        }
    }
}

/// The options that all norms share.
macro_rules! with_options {
    ($given:expr, $norm:expr) => {{
        let (call, parameters) = ($given.call, $given.parameters);
        let mut norm = $norm.eps(number(call.numbers[0])).on($given.cpu());
        if call.flags[0] {
            norm = norm.eps_outside();
        }
        if let Some(weight) = &parameters[0] {
            norm = norm.weight(weight.slice());
        }
        if let Some(bias) = &parameters[1] {
            norm = norm.bias(bias.slice());
        }
        if call.flags[1] {
            norm = norm.weight_offset(number(call.numbers[1]));
        }
        norm
    }};
}

struct Given<'a> {
    call: &'a Call,
    parameters: &'a [Option<Tensor>; 4],
}

impl Given<'_> {
    fn cpu(&self) -> Cpu<'static> {
        let cpu = Cpu::new().threads([1, 2, 8, 0, usize::MAX][usize::from(self.call.threads % 5)]);
        match self.call.level % 8 {
            0 => cpu.level(Level::Scalar),
            1 => cpu.level(Level::Avx2),
            2 => cpu.level(Level::Neon),
            _ => cpu,
        }
    }

    fn rows(&self, tensors: &mut [Tensor; 4], saved: &mut Saved) -> Result<(), Error> {
        let [x, residual, r, y] = tensors;
        let lies = [0, 1, 2, 3].map(|i| Lie::of(self.call, i));
        let mut io = match self.call.form % 4 {
            0 => Io::new(lies[0].rows(x), lies[3].rows_mut(y)),
            1 => Io::in_place(lies[3].rows_mut(y)),
            2 => Io::add(lies[0].rows(x), lies[1].rows(residual), lies[2].rows_mut(r), lies[3].rows_mut(y)),
            _ => Io::add_in_place(lies[3].rows_mut(y), lies[2].rows_mut(r)),
        };
        if self.call.stats.is_some() {
            io = io.stats(saved.stats_mut());
        }
        let hidden = self.call.hidden.0;
        if self.call.kind % 5 == 0 {
            return with_options!(self, LayerNorm::new(hidden)).apply(io);
        }
        let mut norm = with_options!(self, RmsNorm::new(hidden));
        if self.call.flags[2] {
            norm = norm.recipe(Recipe::Llama);
        }
        if let Some(k) = self.call.partial {
            norm = norm.partial(k.0);
        }
        norm.apply(io)
    }

    fn planes(&self, tensors: &mut [Tensor; 4], running: &mut [Tensor; 2], saved: &mut Saved) -> Result<(), Error> {
        let [x, .., y] = tensors;
        let (channels, spatial, [x_last, y_last]) = (self.call.hidden.0, self.call.spatial.0, self.call.last);
        let from = if x_last { Planes::channels_last } else { Planes::channels_first };
        let to = if y_last { PlanesMut::channels_last } else { PlanesMut::channels_first };
        let to = to(y.slice_mut(), channels, spatial);
        let in_place = self.call.form % 2 == 1;
        let mut io =
            if in_place { PlaneIo::in_place(to) } else { PlaneIo::new(from(x.slice(), channels, spatial), to) };
        if self.call.stats.is_some() {
            io = io.stats(saved.stats_mut());
        }
        if self.call.kind % 5 == 2 {
            return with_options!(self, GroupNorm::new(self.call.groups.0, channels)).apply(io);
        }
        let mut norm = with_options!(self, BatchNorm::new(channels)).momentum(number(self.call.numbers[2]));
        if self.call.flags[2] {
            norm = norm.biased_running_var();
        }
        let [mean, var] = running;
        match (self.call.kind % 5, &self.parameters[2]) {
            (3, _) => norm.evaluate(io, mean.slice(), var.slice()),
            (_, Some(_)) => norm.train(io, Some(Running::new(mean.slice_mut(), var.slice_mut()))),
            (_, None) => norm.train(io, None),
        }
    }
}
