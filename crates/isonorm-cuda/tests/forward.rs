//! The forward kernels, run on the CPU: the stored bits of `spec/golden`, and the core's for any size, layout and
//! shape.

mod support;

use std::sync::OnceLock;

use isonorm::{Io, Level};
use isonorm_cuda::kernels::{Affine, Forward, Kernel, Norm, Shape, Storage};
use isonorm_testing::DType;
use isonorm_testing::golden;
use isonorm_testing::values::Kind;
use support::core::{BOTH, Norm as Spec, Saved, Tensor, Which, assert_same_bits, compute_type, one};
use support::emulation::Emulation;
use support::memory::{Layout, Memory, argument, dtype};
use support::{address, norm_of, rows_of, takes};

/// The shapes that are tested: rows of parts of a warp, of several warps, of several leaves a thread, long rows; each
/// with and without elements that do not exist.
fn shapes(x: DType) -> Vec<Shape> {
    let whole = 16 / (x.digits() / 2);
    let shape = |node, groups, warps| Shape { node, groups, warps, blocks: 1, is_long: false, is_whole: false };
    let parts = (0..).map(|i| 1 << i).take_while(|groups| *groups < whole && x != DType::F16);
    let mut shapes: Vec<_> = parts.map(|groups| shape(1, groups, 1)).collect();
    shapes.extend([shape(1, whole, 1), shape(1, whole, 4), shape(1, whole, 16), shape(2, whole, 16)]);
    shapes.push(Shape { is_long: true, ..shape(1, whole, 8) });
    let wholes = [shape(1, whole / 2, 1), shape(1, whole, 1), shape(1, whole, 8), shape(2, whole, 2)];
    shapes.extend(wholes.map(|shape| Shape { is_whole: true, ..shape }));
    shapes
        .extend([Shape { blocks: 8, ..shape(1, whole, 2) }, Shape { blocks: 4, is_whole: true, ..shape(1, whole, 2) }]);
    shapes.push(Shape { is_long: true, is_whole: true, ..shape(2, whole, 2) });
    shapes
}

/// One library for each type of x.
fn emulation(x: DType) -> &'static Emulation {
    static LIBRARIES: [OnceLock<Emulation>; 4] = [const { OnceLock::new() }; 4];
    let at = DType::ALL.iter().position(|dtype| *dtype == x).expect("one of all types");
    LIBRARIES[at].get_or_init(|| {
        let (own, wide) = (Storage::Of(dtype(x)), Storage::Of(dtype(compute_type(x))));
        let mut kernels = Vec::new();
        for norm in [Norm::Rms, Norm::Layer, Norm::Llama] {
            let mut add = |shape: Shape, params, y, summands| {
                // Any call; the most common one, too.
                let known = if norm == Norm::Layer { Affine::Both } else { Affine::Weight };
                for affine in [Affine::Open, known] {
                    let kernel = Kernel::Forward { norm, x: dtype(x), shape, params, affine, y, summands };
                    if (affine == Affine::Open || shape.is_whole) && !kernels.contains(&kernel) {
                        kernels.push(kernel);
                    }
                }
            };
            let whole = 16 / (x.digits() / 2);
            let plain = Shape { node: 1, groups: whole, warps: 16, blocks: 1, is_long: false, is_whole: false };
            if norm != Norm::Llama {
                shapes(x).into_iter().for_each(|shape| add(shape, own, own, Storage::None));
            }
            add(plain, own, own, Storage::None);
            add(plain, wide, own, Storage::None);
            add(plain, Storage::Any, Storage::Any, Storage::None);
            add(plain, Storage::Any, Storage::Any, Storage::Any);
            add(Shape { is_whole: true, ..plain }, own, own, own);
            add(Shape { node: 2, warps: 4, is_long: true, ..plain }, own, own, own);
        }
        Emulation::new(kernels)
    })
}

/// One forward call: the norm, its input, and where everything lies.
struct Call<'a> {
    norm: &'a Spec,
    x: &'a Tensor,
    residual: Option<(&'a Tensor, DType)>,
    y_type: DType,
    layout: Layout,
}

/// What came of it.
struct Result {
    y: Tensor,
    r: Option<Tensor>,
    saved: Saved,
}

impl Call<'_> {
    /// The type of what is normalized.
    fn normalized(&self) -> DType {
        self.residual.map_or(self.x.dtype(), |(_, r_type)| r_type)
    }

    fn is_for(&self, kernel: &Kernel) -> bool {
        let Kernel::Forward { norm, x, shape, params, affine, y, summands } = *kernel else { return false };
        let summands = match (summands, self.residual) {
            (Storage::None, None) => true,
            (Storage::None, _) | (_, None) => false,
            (storage, Some((residual, _))) => {
                takes(storage, Some(self.x.dtype())) && takes(storage, Some(residual.dtype()))
            }
        };
        let given = [&self.norm.weight, &self.norm.bias].map(|param| param.as_ref().map(Tensor::dtype));
        norm == norm_of(self.norm)
            && summands
            && given.into_iter().all(|param| takes(params, param))
            && (affine == Affine::Open
                || affine == Affine::of(given[0].is_some(), given[1].is_some(), self.norm.offset))
            && takes(y, Some(self.y_type))
            && shape.launch(self.norm.hidden, x).is_some()
    }

    /// In every kernel that can do it.
    fn each(&self, check: impl Fn(&str, Result)) {
        let emulation = emulation(self.normalized());
        let mut count = 0;
        for kernel in emulation.kernels().iter().filter(|kernel| self.is_for(kernel)) {
            if let Some(result) = self.run(emulation, kernel) {
                check(&kernel.name(), result);
                count += 1;
            }
        }
        assert!(count > 0, "no kernel does {}", self.norm);
    }

    /// `None` where the kernel is for other tensors.
    fn run(&self, emulation: &Emulation, kernel: &Kernel) -> Option<Result> {
        let (hidden, layout) = (self.norm.hidden, self.layout);
        let count = self.x.len() / hidden;
        let Kernel::Forward { x: x_type, shape, .. } = *kernel else { panic!("{} is not of forward", kernel.name()) };
        let launch = shape.launch(hidden, x_type).expect("the kernel was chosen for this");
        let param = |param: &Option<Tensor>| param.as_ref().map(|param| Memory::new(param, hidden, layout));
        let (mut weight, mut bias) = (param(&self.norm.weight), param(&self.norm.bias));
        let mut x = Memory::new(self.x, hidden, layout);
        let mut residual = self.residual.map(|(residual, _)| Memory::new(residual, hidden, layout));
        let mut sum = self.residual.map(|(_, r_type)| Memory::empty(r_type, count, hidden, layout));
        let mut y = Memory::empty(self.y_type, count, hidden, layout);
        let mut saved = Saved::new(compute_type(self.normalized()), count);
        let rows = rows_of(self.norm, self.normalized(), count, &launch);
        let stats = address(&mut saved);
        let args = Forward {
            rows,
            x: x.argument(),
            residual: argument(&mut residual),
            r: argument(&mut sum),
            weight: argument(&mut weight),
            bias: argument(&mut bias),
            y: y.argument(),
            stats,
        };
        let Forward { x, residual, r, weight, bias, y: to, .. } = args;
        if shape.is_whole && !shape.with(hidden, x_type, &[x, residual, r, weight, bias, to]).is_whole {
            return None;
        }
        // One block less than there is work for, if that is any: blocks go on to further rows.
        let blocks = launch.blocks(count);
        let blocks = if blocks > launch.cluster { blocks - launch.cluster } else { blocks };
        emulation.run_in_clusters(kernel, &args, blocks, launch.threads, launch.cluster);
        Some(Result { y: y.rows(), r: sum.map(|r| r.rows()), saved })
    }
}

#[test]
fn golden_bits() {
    for case in golden::forward().into_iter().chain(golden::shared()) {
        if !case.out.contains_key("y") {
            continue;
        }
        let Some((norm, _)) = Spec::of(&case) else { continue };
        let residual = case.input("residual").map(Tensor::new);
        let residual = residual.as_ref().map(|residual| (residual, case.r_type.expect("r has a type")));
        let (x, y_type) = (&Tensor::new(case.x()), case.y_type);
        let layout = Layout { stride: norm.hidden, offset: 0 };
        Call { norm: &norm, x, residual, y_type, layout }.each(|kernel, found| {
            let outputs = [("y", Some(found.y)), ("r", found.r)];
            let stats = ["mean", "var", "rstd"].into_iter().zip(found.saved.reported().map(Some));
            for (name, found) in outputs.into_iter().chain(stats) {
                if let (Some(expected), Some(found)) = (case.out.get(name), found) {
                    let n = if found.len() == x.len() { norm.hidden } else { 1 };
                    let label = format!("{} {name}, {kernel}", case.name);
                    assert_same_bits(&label, n, &Tensor::new(expected), &found);
                }
            }
        });
    }
}

/// As the core has it, in every kernel.
fn check(call: &Call<'_>) {
    let hidden = call.norm.hidden;
    let mut y = Tensor::sentinel(call.y_type, call.x.len());
    let mut saved = Saved::new(compute_type(call.normalized()), call.x.len() / hidden);
    let mut r = call.residual.map(|(_, r_type)| Tensor::sentinel(r_type, call.x.len()));
    let io = match (&mut r, call.residual) {
        (Some(r), Some((residual, _))) => Io::add(call.x.slice(), residual.slice(), r.slice_mut(), y.slice_mut()),
        _ => Io::new(call.x.slice(), y.slice_mut()),
    };
    let level = Level::detect();
    call.norm.apply(one(level), io.stats(saved.stats_mut())).expect("the core takes the call");
    call.each(|kernel, found| {
        let label = format!("{}, {:?}, {kernel}", call.norm, call.layout);
        assert_same_bits(&label, hidden, &y, &found.y);
        if let (Some(expected), Some(found)) = (&r, &found.r) {
            assert_same_bits(&format!("{label}, r"), hidden, expected, found);
        }
        let names = ["mean", "var", "rstd"].into_iter();
        for (name, (expected, found)) in names.zip(saved.reported().into_iter().zip(found.saved.reported())) {
            assert_same_bits(&format!("{label}, {name}"), 1, &expected, &found);
        }
    });
}

fn sizes() -> impl Iterator<Item = usize> {
    let around = |n: usize| [n - 1, n, n + 1];
    let few = [1, 2, 3, 5, 7, 8, 17, 31, 32, 33, 64, 96, 100];
    few.into_iter()
        .chain([128, 256, 384, 512, 1024, 2048].into_iter().flat_map(around))
        .chain([640, 3000, 4096, 5120, 9001])
}

fn any_size_and_layout(dtype: DType) {
    for (i, hidden) in sizes().enumerate() {
        let rows = if hidden < 200 { 37 } else { 3 };
        for which in BOTH {
            let kind = Kind::ALL[(i + which as usize) % Kind::ALL.len()];
            let x = Tensor::values(dtype, kind, i as u64, rows * hidden);
            let param = |seed, given: bool| given.then(|| Tensor::values(dtype, Kind::Normal, seed, hidden));
            let (weight, bias) = (param(91, i % 4 != 3), param(92, i % 4 == 1));
            let llama = which == Which::Rms && i % 3 == 0;
            let norm = Spec { weight, bias, llama, ..Spec::new(which, hidden) };
            let layouts = [(hidden.next_multiple_of(8), 0), (hidden + 3, 1), (hidden.next_multiple_of(8), 8)];
            let (stride, offset) = layouts[i % 3];
            let layout = Layout { stride, offset };
            check(&Call { norm: &norm, x: &x, residual: None, y_type: dtype, layout });
            if i % 5 == 0 {
                let residual = &Tensor::values(dtype, Kind::Normal, 93, rows * hidden);
                check(&Call { norm: &norm, x: &x, residual: Some((residual, dtype)), y_type: dtype, layout });
            }
        }
    }
}

/// Rows of whole threads, aligned: the kernels without a question about what exists. The last layout is not aligned.
#[test]
fn whole_rows() {
    for (i, hidden) in [128, 256, 512, 1024, 2048, 5120, 8192].into_iter().enumerate() {
        for (j, dtype) in DType::ALL.into_iter().enumerate() {
            for (which, offset) in BOTH.into_iter().flat_map(|which| [(which, 0), (which, 4)]) {
                let rows = if hidden < 600 { 19 } else { 3 };
                let kind = Kind::ALL[(i + j) % Kind::ALL.len()];
                let x = Tensor::values(dtype, kind, i as u64, rows * hidden);
                let param = |seed, given: bool| given.then(|| Tensor::values(dtype, Kind::Normal, seed, hidden));
                let norm = Spec { weight: param(91, i != 1), bias: param(92, i % 2 == 0), ..Spec::new(which, hidden) };
                let residual = Tensor::values(dtype, Kind::Normal, 93, rows * hidden);
                let residual = (i % 2 == 1).then_some((&residual, dtype));
                let layout = Layout { stride: hidden + 16, offset };
                check(&Call { norm: &norm, x: &x, residual, y_type: dtype, layout });
            }
        }
    }
}

#[test]
fn any_size_and_layout_f32() {
    any_size_and_layout(DType::F32);
}

#[test]
fn any_size_and_layout_f64() {
    any_size_and_layout(DType::F64);
}

#[test]
fn any_size_and_layout_f16() {
    any_size_and_layout(DType::F16);
}

#[test]
fn any_size_and_layout_bf16() {
    any_size_and_layout(DType::Bf16);
}

/// Rows that no block holds, up to several pieces a warp.
#[test]
fn long_rows() {
    for (dtype, hidden) in [(DType::Bf16, 70_001), (DType::F32, 33_000), (DType::F64, 40_000)] {
        for which in BOTH {
            let x = Tensor::values(dtype, Kind::Wide, 5, 2 * hidden);
            let weight = Some(Tensor::values(dtype, Kind::Normal, 6, hidden));
            let norm = Spec { weight, ..Spec::new(which, hidden) };
            let layout = Layout { stride: hidden + 7, offset: 0 };
            check(&Call { norm: &norm, x: &x, residual: None, y_type: dtype, layout });
        }
    }
}
