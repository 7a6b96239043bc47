//! Any shapes, strides, offsets and options: the library refuses them or computes, and never panics.
#![no_main]

use arbitrary::Arbitrary;
use isonorm::{BatchNorm, GroupNorm, Io, LayerNorm, PlaneIo, Planes, PlanesMut, RmsNorm, Rows, RowsMut};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct View {
    len: u16,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<isize>,
    contiguous: bool,
}

#[derive(Arbitrary, Debug)]
struct Call {
    hidden: usize,
    x: View,
    y: View,
    weight: Option<u16>,
    partial: Option<usize>,
    groups: usize,
    channels: usize,
    spatial: usize,
    last: bool,
    eps: f64,
}

fuzz_target!(|call: Call| {
    let (x, mut y) = (vec![1.5f32; usize::from(call.x.len)], vec![0.0f32; usize::from(call.y.len)]);
    let weight = vec![1.0f32; usize::from(call.weight.unwrap_or(0))];
    rows(&call, &x, &mut y, &weight);
    planes(&call, &x, &mut y, &weight);
});

fn source<'a>(view: &'a View, x: &'a [f32]) -> Rows<'a> {
    if view.contiguous { Rows::from(x) } else { Rows::strided(x, view.offset, &view.shape, &view.strides) }
}

fn target<'a>(view: &'a View, y: &'a mut [f32]) -> RowsMut<'a> {
    if view.contiguous { RowsMut::from(y) } else { RowsMut::strided(y, view.offset, &view.shape, &view.strides) }
}

fn rows(call: &Call, x: &[f32], y: &mut [f32], weight: &[f32]) {
    let (mut rms, mut layer) = (RmsNorm::new(call.hidden).eps(call.eps), LayerNorm::new(call.hidden).eps(call.eps));
    if call.weight.is_some() {
        (rms, layer) = (rms.weight(weight), layer.weight(weight));
    }
    if let Some(k) = call.partial {
        rms = rms.partial(k);
    }
    let _ = rms.apply(Io::new(source(&call.x, x), target(&call.y, y)));
    let _ = layer.apply(Io::new(source(&call.x, x), target(&call.y, y)));
}

fn samples<'a>(call: &Call, x: &'a [f32], y: &'a mut [f32]) -> PlaneIo<'a> {
    let Call { channels, spatial, .. } = *call;
    if call.last {
        PlaneIo::new(Planes::channels_last(x, channels, spatial), PlanesMut::channels_last(y, channels, spatial))
    } else {
        PlaneIo::new(Planes::channels_first(x, channels, spatial), PlanesMut::channels_first(y, channels, spatial))
    }
}

fn planes(call: &Call, x: &[f32], y: &mut [f32], weight: &[f32]) {
    let Call { channels, groups, eps, .. } = *call;
    let _ = GroupNorm::new(groups, channels).eps(eps).apply(samples(call, x, y));
    let _ = BatchNorm::new(channels).eps(eps).train(samples(call, x, y), None);
    let _ = BatchNorm::new(channels).eps(eps).evaluate(samples(call, x, y), weight, weight);
}
