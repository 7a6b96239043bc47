//! `backward batch-norm`, `group-norm` and `instance-norm` end to end: the program gives the library's bits.

mod common;

use common::{Folder, TYPES, Tensor};
use isonorm::{BatchNorm, DType, Error, GroupNorm, InstanceNorm, PlaneBackwardIo, Planes, PlanesMut};

const SHAPE: [usize; 4] = [3, 6, 5, 4];

fn last(x: &Tensor) -> Tensor {
    x.swapped(1, 2).swapped(2, 3)
}

fn first(y: &Tensor) -> Tensor {
    y.swapped(2, 3).swapped(1, 2)
}

/// Inputs in both layouts, the weight and running statistics.
struct Inputs {
    folder: Folder,
    x: Tensor,
    dy: Tensor,
    w: Tensor,
    mean: Tensor,
    var: Tensor,
}

impl Inputs {
    fn new(dtype: DType) -> Self {
        let folder = Folder::new();
        let [x, dy] = [1, 2].map(|seed| Tensor::varied(dtype, &SHAPE, seed));
        let w = Tensor::varied(DType::F32, &[6], 3);
        let w = if dtype == DType::F64 { Tensor::varied(dtype, &[6], 3) } else { w };
        let (mean, var) = (Tensor::varied(dtype, &[6], 4), Tensor::of(dtype, &[6], |i| i as f64 + 0.5));
        let (x_last, dy_last) = (last(&x), last(&dy));
        folder.safetensors(
            "in.safetensors",
            &[("x", &x), ("dy", &dy), ("x_last", &x_last), ("dy_last", &dy_last), ("w", &w), ("m", &mean), ("v", &var)],
        );
        Inputs { folder, x, dy, w, mean, var }
    }

    /// The library's gradients, and the program's in both layouts.
    fn check(&self, args: &str, backward: impl Fn(PlaneBackwardIo<'_>) -> Result<(), Error>) {
        let planes = |tensor| Planes::channels_first(tensor, 6, 20);
        let mut dx = Tensor::zeros(self.x.dtype, &SHAPE);
        let [mut dweight, mut dbias] = [(); 2].map(|()| Tensor::zeros(self.w.dtype, &[6]));
        let to = PlanesMut::channels_first(dx.slice_mut(), 6, 20);
        let io = PlaneBackwardIo::new(planes(self.x.slice()), planes(self.dy.slice()), to);
        backward(io.dweight(dweight.slice_mut()).dbias(dbias.slice_mut())).expect("the library runs");
        let weight = "--weight in.safetensors:w";
        let params = "--dweight dw.safetensors --dbias db.safetensors";
        for (outputs, params) in [("--dx dx.safetensors", ""), ("--dx dx.safetensors", params), ("", params)] {
            for (suffix, flag) in [("", ""), ("_last", "--layout nhwc")] {
                let call = format!(
                    "backward {args} in.safetensors:x{suffix} --dy in.safetensors:dy{suffix} {weight} {flag} {outputs} {params}"
                );
                self.folder.run(&call);
                if !outputs.is_empty() {
                    let found = self.folder.read("dx.safetensors:dx");
                    let found = if suffix.is_empty() { found } else { first(&found) };
                    assert_eq!(found, dx, "{call}");
                }
                if !params.is_empty() {
                    assert_eq!(self.folder.read("dw.safetensors:dweight"), dweight, "{call}");
                    assert_eq!(self.folder.read("db.safetensors:dbias"), dbias, "{call}");
                }
            }
        }
    }
}

#[test]
fn every_norm_type_and_layout_gives_the_librarys_bits() {
    for dtype in TYPES {
        let inputs = Inputs::new(dtype);
        let (w, mean, var) = (inputs.w.slice(), inputs.mean.slice(), inputs.var.slice());
        inputs.check("group-norm --groups 3", |io| GroupNorm::new(3, 6).weight(w).backward(io));
        inputs.check("instance-norm --eps 0.1", |io| InstanceNorm::new(6).weight(w).eps(0.1).backward(io));
        inputs.check("batch-norm", |io| BatchNorm::new(6).weight(w).train_backward(io));
        inputs.check("batch-norm --eps-outside", |io| BatchNorm::new(6).weight(w).eps_outside().train_backward(io));
        inputs.check("batch-norm --eval --running-mean in.safetensors:m --running-var in.safetensors:v", |io| {
            BatchNorm::new(6).weight(w).evaluate_backward(io, mean, var)
        });
    }
}

#[test]
fn the_digest_is_the_same_for_any_threads_and_level() {
    let folder = Folder::new();
    folder.npy("x.npy", &Tensor::varied(DType::F32, &[37, 16, 4096], 1)); // two blocks of the stream
    folder.npy("dy.npy", &Tensor::varied(DType::F32, &[37, 16, 4096], 2));
    let levels: Vec<_> = isonorm::Level::available().skip_while(|level| *level == isonorm::Level::Scalar).collect();
    for norm in ["batch-norm x.npy", "group-norm x.npy --groups 4", "instance-norm x.npy"] {
        let mut digests = Vec::new();
        for level in &levels {
            for (threads, more) in [(1, ""), (2, ""), (2, "--dweight dw.npy")] {
                let call =
                    format!("backward {norm} --dy dy.npy --threads {threads} --level {level} --dx dx.npy {more}");
                digests.push(folder.summary(&call)["blake3"].to_string());
            }
        }
        digests.dedup();
        assert_eq!(digests.len(), 1, "{norm}: {digests:?}");
    }
}

#[test]
fn empty_tensors_have_gradients_of_zero() {
    let folder = Folder::new();
    for shape in [vec![0, 3], vec![2, 0], vec![2, 3, 0]] {
        folder.npy("x.npy", &Tensor::zeros(DType::F32, &shape));
        for norm in ["instance-norm", "batch-norm"] {
            folder.run(&format!("backward {norm} x.npy --dy x.npy --dx dx.npy --dweight dw.npy --dbias db.npy"));
            assert_eq!(folder.read("dx.npy").shape, shape);
            assert_eq!(folder.read("dw.npy"), Tensor::zeros(DType::F32, &shape[1..2]), "{norm} {shape:?}");
        }
    }
}
