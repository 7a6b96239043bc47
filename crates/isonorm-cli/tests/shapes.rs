//! Any shapes, strides, offsets and options: the library refuses them or computes, and never panics.
//!
//! `fuzz/fuzz_targets/shapes.rs` makes the same calls with inputs that a fuzzer finds.

use isonorm::{BatchNorm, GroupNorm, Io, LayerNorm, PlaneIo, Planes, PlanesMut, RmsNorm, Rows, RowsMut};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct View {
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<isize>,
    contiguous: bool,
}

fn source<'a>(from: &'a View, x: &'a [f32]) -> Rows<'a> {
    if from.contiguous { Rows::from(x) } else { Rows::strided(x, from.offset, &from.shape, &from.strides) }
}

fn target<'a>(to: &'a View, y: &'a mut [f32]) -> RowsMut<'a> {
    if to.contiguous { RowsMut::from(y) } else { RowsMut::strided(y, to.offset, &to.shape, &to.strides) }
}

/// The channels, the positions of each, and whether channels lie side by side.
#[derive(Debug, Clone, Copy)]
struct Layout(usize, usize, bool);

fn planes<'a>(Layout(channels, spatial, last): Layout, x: &'a [f32], y: &'a mut [f32]) -> PlaneIo<'a> {
    if last {
        PlaneIo::new(Planes::channels_last(x, channels, spatial), PlanesMut::channels_last(y, channels, spatial))
    } else {
        PlaneIo::new(Planes::channels_first(x, channels, spatial), PlanesMut::channels_first(y, channels, spatial))
    }
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..6usize, 1 => Just(usize::MAX), 1 => Just(1 << 62), 1 => Just(1 << 63), 1 => any::<usize>()]
}

fn stride() -> impl Strategy<Value = isize> {
    prop_oneof![8 => -20..20isize, 1 => Just(isize::MIN), 1 => Just(isize::MAX), 1 => any::<isize>()]
}

fn view() -> impl Strategy<Value = View> {
    let lists = (prop::collection::vec(length(), 0..5), prop::collection::vec(stride(), 0..5));
    (length(), lists, any::<bool>(), any::<bool>()).prop_map(|(offset, (shape, mut strides), contiguous, cut)| {
        if cut {
            strides.resize(shape.len(), 1);
        }
        View { offset, shape, strides, contiguous }
    })
}

fn eps() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(1e-5), any::<f64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn rows_of_any_shape(
        hidden in length(), x_len in 0..200usize, y_len in 0..200usize, from in view(), to in view(), same in any::<bool>(),
        weight in prop::option::of(0..8usize), partial in prop::option::of(length()), eps in eps(),
    ) {
        let to = if same { from.clone() } else { to };
        let (x, mut y) = (vec![1.5f32; x_len], vec![0.0f32; if same { x_len } else { y_len }]);
        let w = vec![1.0f32; weight.unwrap_or(0)];
        let (mut rms, mut layer) = (RmsNorm::new(hidden).eps(eps), LayerNorm::new(hidden).eps(eps));
        if weight.is_some() {
            (rms, layer) = (rms.weight(&w), layer.weight(&w));
        }
        if let Some(k) = partial {
            rms = rms.partial(k);
        }
        let _ = rms.apply(Io::new(source(&from, &x), target(&to, &mut y)));
        let _ = layer.apply(Io::new(source(&from, &x), target(&to, &mut y)));
    }

    #[test]
    fn planes_of_any_shape(
        channels in length(), spatial in length(), groups in length(), last in any::<bool>(), eps in eps(),
        x_len in 0..200usize, y_len in 0..200usize, same in any::<bool>(), stats in 0..8usize,
    ) {
        let (x, mut y) = (vec![1.5f32; x_len], vec![0.0f32; if same { x_len } else { y_len }]);
        let running = vec![1.0f32; stats];
        let layout = Layout(channels, spatial, last);
        let _ = GroupNorm::new(groups, channels).eps(eps).apply(planes(layout, &x, &mut y));
        let _ = BatchNorm::new(channels).eps(eps).train(planes(layout, &x, &mut y), None);
        let _ = BatchNorm::new(channels).eps(eps).evaluate(planes(layout, &x, &mut y), &running, &running);
    }
}
