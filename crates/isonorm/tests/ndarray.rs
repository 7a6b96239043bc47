//! Array views of any dimensions, axis and strides have the bits of contiguous rows.

use isonorm::{BatchNorm, Cpu, Error, GroupNorm, LayerNorm, PlaneIo, Planes, PlanesMut, RmsNorm, Running};
use isonorm_testing::values::{Kind, SplitMix64, bf16s, f32s};
use ndarray::{Array2, Array3, Array4, ArrayD, ArrayView1, ArrayViewD, ArrayViewMutD, Axis, IxDyn, Slice, s};

/// The norm of one row.
fn row(norm: &dyn Fn(&[f32], &mut [f32]), row: ArrayView1<'_, f32>) -> Vec<f32> {
    let row = row.to_vec();
    let mut y = row.clone();
    norm(&row, &mut y);
    y
}

/// Holds every row of `y` along `axis` to the norm of the same row of `x` alone.
#[track_caller]
fn check(label: &str, norm: &dyn Fn(&[f32], &mut [f32]), x: ArrayViewD<'_, f32>, axis: Axis, y: ArrayViewD<'_, f32>) {
    for (r, (x, y)) in x.lanes(axis).into_iter().zip(y.lanes(axis)).enumerate() {
        for (i, (expected, found)) in row(norm, x).into_iter().zip(y).enumerate() {
            let (e, f) = (expected.to_bits(), found.to_bits());
            assert_eq!(e, f, "{label}: n = {}, row {r}, element {i}: expected {e:08x}, found {f:08x}", x.len());
        }
    }
}

fn layer(n: usize) -> impl Fn(&[f32], &mut [f32]) {
    move |x, y| LayerNorm::new(n).forward(x, y).expect("valid")
}

fn rms(n: usize) -> impl Fn(&[f32], &mut [f32]) {
    move |x, y| RmsNorm::new(n).forward(x, y).expect("valid")
}

/// `view` with axes permuted, reversed and cut at random, the same way for any view of its shape.
fn cut<'a>(mut view: ArrayViewMutD<'a, f32>, axes: &[usize], cuts: &[Slice]) -> ArrayViewMutD<'a, f32> {
    for (axis, cut) in cuts.iter().enumerate() {
        view.slice_axis_inplace(Axis(axis), *cut);
    }
    view.permuted_axes(IxDyn(axes))
}

fn shuffled(n: usize, source: &mut SplitMix64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    (1..n).rev().for_each(|i| order.swap(i, source.below(i + 1)));
    order
}

/// Memory whose axes, permuted by `axes` and cut by `cuts`, have the given shape.
fn memory_for(shape: &[usize], axes: &[usize], cuts: &[Slice]) -> Vec<usize> {
    let mut memory = vec![0; shape.len()];
    for (logical, memory_axis) in axes.iter().enumerate() {
        let cut = cuts[*memory_axis];
        memory[*memory_axis] = cut.start as usize + shape[logical] * cut.step.unsigned_abs() + 1;
    }
    memory
}

fn any_cuts(dims: usize, source: &mut SplitMix64) -> Vec<Slice> {
    let step = |source: &mut SplitMix64| [1, 1, 1, -1, 2, -2][source.below(6)];
    (0..dims).map(|_| Slice::new(source.below(3) as isize, None, step(source))).collect()
}

#[test]
fn any_view_and_axis_has_the_bits_of_its_rows() {
    let mut source = SplitMix64::new(17);
    for round in 0..400 {
        let dims = 1 + source.below(5);
        let shape: Vec<usize> = (0..dims).map(|_| 1 + source.below(6)).collect();
        let axis = Axis(source.below(dims));
        // One of x and y is sometimes plain, so that every pair of layouts occurs.
        let mut view = || {
            let plain = source.below(3) == 0;
            let axes = if plain { (0..dims).collect() } else { shuffled(dims, &mut source) };
            let cuts = if plain { vec![Slice::new(0, None, 1); dims] } else { any_cuts(dims, &mut source) };
            let memory = memory_for(&shape, &axes, &cuts);
            (axes, cuts, memory)
        };
        let ((x_axes, x_cuts, x_memory), (y_axes, y_cuts, y_memory)) = (view(), view());
        let values = f32s(Kind::Normal, round, x_memory.iter().product());
        let mut x = ArrayD::from_shape_vec(x_memory, values).expect("a shape");
        let mut y = ArrayD::from_elem(y_memory, 7.5f32);
        let mut x = cut(x.view_mut(), &x_axes, &x_cuts);
        let mut trimmed = cut(y.view_mut(), &y_axes, &y_cuts);
        for (d, len) in shape.iter().enumerate() {
            x.slice_axis_inplace(Axis(d), Slice::from(..*len));
            trimmed.slice_axis_inplace(Axis(d), Slice::from(..*len));
        }
        let (n, x) = (shape[axis.index()], x.view());
        let label =
            format!("round {round}: shape {shape:?}, {axis:?}, strides {:?} to {:?}", x.strides(), trimmed.strides());
        if round % 2 == 0 {
            LayerNorm::new(n).forward_axis(x.view(), axis, trimmed.view_mut()).expect(&label);
            check(&label, &layer(n), x, axis, trimmed.view());
        } else {
            RmsNorm::new(n).forward_axis(x.view(), axis, trimmed.view_mut()).expect(&label);
            check(&label, &rms(n), x, axis, trimmed.view());
        }
        let written = shape.iter().product::<usize>();
        let kept = y.iter().filter(|v| **v == 7.5).count();
        assert_eq!(kept, y.len() - written, "{label}: elements beside the view were written");
    }
}

#[test]
fn columns_of_a_large_array_are_gathered_block_by_block() {
    let x = Array2::from_shape_vec((700, 301), f32s(Kind::Normal, 1, 700 * 301)).expect("a shape");
    let mut y = x.clone();
    LayerNorm::new(700).forward_axis(x.view(), Axis(0), y.view_mut()).expect("valid");
    check("columns", &layer(700), x.view().into_dyn(), Axis(0), y.view().into_dyn());
    // A row of more than a block.
    let x = Array2::from_shape_vec((400_000, 2), f32s(Kind::Normal, 2, 800_000)).expect("a shape");
    let mut y = x.clone();
    RmsNorm::new(400_000).forward_axis(x.view(), Axis(0), y.view_mut()).expect("valid");
    check("long columns", &rms(400_000), x.view().into_dyn(), Axis(0), y.view().into_dyn());
}

#[test]
fn a_broadcast_x_and_heads_of_a_packed_tensor_are_read_in_place() {
    let one = Array2::from_shape_vec((1, 40), f32s(Kind::Normal, 3, 40)).expect("a shape");
    let mut y = Array2::<f32>::zeros((6, 40));
    let x = one.broadcast((6, 40)).expect("broadcasts");
    RmsNorm::new(40).forward_axis(x, Axis(1), y.view_mut()).expect("valid");
    check("broadcast", &rms(40), x.into_dyn(), Axis(1), y.view().into_dyn());
    let packed = Array4::from_shape_vec((5, 3, 4, 32), f32s(Kind::Normal, 4, 5 * 3 * 4 * 32)).expect("a shape");
    let mut y = Array3::<f32>::zeros((5, 4, 32));
    let q = packed.slice(s![.., 1, .., ..]);
    RmsNorm::new(32).forward_axis(q, Axis(2), y.view_mut()).expect("valid");
    check("packed", &rms(32), q.into_dyn(), Axis(2), y.view().into_dyn());
}

#[test]
fn y_may_have_another_type() {
    let x = Array2::from_shape_vec((3, 50), bf16s(Kind::Normal, 5, 150)).expect("a shape");
    for axis in [0, 1] {
        let mut y = Array2::<f32>::zeros((3, 50));
        let n = x.len_of(Axis(axis));
        RmsNorm::new(n).forward_axis(x.view(), Axis(axis), y.view_mut()).expect("valid");
        for (x, y) in x.lanes(Axis(axis)).into_iter().zip(y.lanes(Axis(axis))) {
            let mut expected = vec![0.0f32; n];
            RmsNorm::new(n).forward(&x.to_vec(), &mut expected).expect("valid");
            assert_eq!(y.to_vec(), expected, "axis {axis}");
        }
    }
}

#[test]
fn nine_dimensions_are_walked_too() {
    let shape = vec![2, 1, 2, 1, 2, 1, 2, 1, 2, 6];
    let x = ArrayD::from_shape_vec(shape.clone(), f32s(Kind::Normal, 6, 192)).expect("a shape");
    for axis in [0, 9] {
        let mut y = ArrayD::zeros(shape.clone());
        let n = shape[axis];
        LayerNorm::new(n).forward_axis(x.view(), Axis(axis), y.view_mut()).expect("valid");
        check("ten dimensions", &layer(n), x.view(), Axis(axis), y.view());
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let x = Array2::<f32>::ones((2, 3));
    let mut y = Array2::from_elem((2, 3), 7.5f32);
    let norm = RmsNorm::new(3);
    let result = norm.forward_axis(x.view(), Axis(2), y.view_mut());
    assert_eq!(result, Err(Error::Option { name: "axis", found: 2.0, expected: "an axis of x" }));
    let result = norm.forward_axis(x.view(), Axis(0), y.view_mut());
    let error = Error::Shape { name: "x", like: "the norm", expected: vec![3, 3], found: vec![2, 3] };
    assert_eq!(result, Err(error.clone()));
    assert_eq!(error.to_string(), "x has shape [2, 3], expected [3, 3] as the norm has");
    let result = norm.forward_axis(x.slice(s![..1, ..]), Axis(1), y.view_mut());
    assert_eq!(result, Err(Error::Shape { name: "y", like: "x", expected: vec![1, 3], found: vec![2, 3] }));
    for axis in [0, 1] {
        let norm = LayerNorm::new([2, 3][axis]).on(Cpu::new().threads(0));
        assert_eq!(norm.forward_axis(x.view(), Axis(axis), y.view_mut()), Err(Error::NoThreads));
    }
    assert!(y.iter().all(|v| *v == 7.5), "y was written");
    let (x, mut y) = (Array2::<f32>::ones((0, 3)), Array2::<f32>::ones((0, 3)));
    assert_eq!(norm.forward_axis(x.view(), Axis(1), y.view_mut()), Ok(()));
    assert_eq!(norm.on(Cpu::new().threads(0)).forward_axis(x.view(), Axis(1), y.view_mut()), Err(Error::NoThreads));
}

/// The channel-wise norms of the same tensor as NCHW, as NHWC and as a plain slice.
#[test]
fn channels_first_and_last_arrays_have_the_bits_of_slices() {
    let (channels, spatial) = (6, 35);
    let x =
        Array4::from_shape_vec((4, channels, 5, 7), f32s(Kind::Normal, 8, 4 * channels * spatial)).expect("a shape");
    let nhwc = x.view().permuted_axes([0, 2, 3, 1]).as_standard_layout().into_owned();
    let slice = x.as_slice().expect("in standard order");
    let mut expected = vec![0.0f32; slice.len()];
    let planes = || Planes::channels_first(slice, channels, spatial);
    let check = |what: &str, expected: &[f32], found: &Array4<f32>| {
        for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
            assert_eq!(expected.to_bits(), found.to_bits(), "{what}, element {i}: {expected} and {found}");
        }
    };

    let norm = GroupNorm::new(3, channels);
    norm.forward(planes(), PlanesMut::channels_first(&mut expected, channels, spatial)).expect("valid");
    let mut y = x.clone();
    norm.forward(x.view().try_into().expect("NCHW"), y.view_mut().try_into().expect("NCHW")).expect("valid");
    check("group norm, NCHW", &expected, &y);
    let mut y = nhwc.clone();
    let (from, to) = (nhwc.view().permuted_axes([0, 3, 1, 2]), y.view_mut().permuted_axes([0, 3, 1, 2]));
    norm.forward(from.try_into().expect("NHWC"), to.try_into().expect("NHWC")).expect("valid");
    check("group norm, NHWC", &expected, &y.permuted_axes([0, 3, 1, 2]));

    let norm = BatchNorm::new(channels);
    let mut running = [[0.0f32; 6], [1.0; 6]];
    let [mean, var] = &mut running;
    let io = PlaneIo::new(planes(), PlanesMut::channels_first(&mut expected, channels, spatial));
    norm.train(io, Some(Running::new(mean, var))).expect("valid");
    let (mut found, mut y) = ([[0.0f32; 6], [1.0; 6]], nhwc.clone());
    let [mean, var] = &mut found;
    let to = y.view_mut().permuted_axes([0, 3, 1, 2]);
    let io = PlaneIo::in_place(to.try_into().expect("NHWC"));
    norm.train(io, Some(Running::new(mean, var))).expect("valid");
    check("batch norm, NHWC in place", &expected, &y.permuted_axes([0, 3, 1, 2]));
    assert_eq!(found, running, "running statistics");
    assert!(running[0][0] != 0.0, "the running mean was not updated");
}

#[test]
fn arrays_in_neither_layout_are_refused() {
    let mut x = Array4::<f32>::zeros((2, 4, 3, 3));
    for error in [
        Planes::try_from(x.slice(s![.., ..2, .., ..])).expect_err("gaps"),
        Planes::try_from(x.view().permuted_axes([1, 0, 2, 3])).expect_err("samples inside"),
        Planes::try_from(x.slice(s![.., .., ..;-1, ..])).expect_err("reversed"),
        PlanesMut::try_from(x.slice_mut(s![.., ..2, .., ..])).expect_err("gaps"),
        PlanesMut::try_from(x.view_mut().permuted_axes([1, 0, 2, 3])).expect_err("samples inside"),
    ] {
        let text = "the array is in neither layout, expected channels first or channels last without gaps as a whole tensor is";
        assert_eq!(error.to_string(), text);
    }
    let error = Planes::try_from(x.slice(s![0, 0, 0, ..])).expect_err("one dimension");
    assert_eq!(error.to_string(), "the array is of fewer than two dimensions, expected (N, C, ...) as a batch is");
}
