//! A tensor of contiguous planes that threads read and write channel by channel.
//!
//! A channel's planes are strewn over the whole tensor, so a mutable tensor cannot be cut into one piece a
//! thread. It is cut into a few stripes instead, each with a lock, which a thread holds while it is at work
//! there. Every element is written by one thread alone, so who comes first changes nothing.

use std::ops::{Deref, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrayvec::ArrayVec;

use crate::element::Element;
use crate::planes::Shape;
use crate::slice::SliceMut;

/// Stripes at most.
const STRIPES: usize = 32;

/// Stripes from one turn to the next: in no ratio to their number.
const TURN: usize = 13;

/// A mutable tensor in stripes: whole samples, or some channels of one sample.
pub(crate) struct Stripes<'a> {
    stripes: ArrayVec<Mutex<SliceMut<'a>>, STRIPES>,
    shape: Shape,
    /// Samples of a stripe.
    pub(crate) samples: usize,
    /// Channels of a stripe.
    channels: usize,
}

impl<'a> Stripes<'a> {
    pub(crate) fn new(tensor: SliceMut<'a>, shape: Shape) -> Self {
        let samples = shape.samples.div_ceil(STRIPES);
        let channels = shape.channels.div_ceil((STRIPES / shape.samples).max(1));
        let mut stripes = ArrayVec::new();
        let mut rest = tensor;
        let mut n = 0;
        while n < shape.samples {
            let mut c = 0;
            while c < shape.channels {
                let planes = samples.min(shape.samples - n) * channels.min(shape.channels - c);
                let (stripe, others) = rest.split(planes * shape.spatial);
                stripes.push(Mutex::new(stripe));
                rest = others;
                c += channels;
            }
            n += samples;
        }
        Stripes { stripes, shape, samples, channels }
    }

    /// Channels from `channel` on that no stripe's edge divides, at most up to `end`.
    pub(crate) fn run(&self, channel: usize, end: usize) -> usize {
        end.min((channel / self.channels + 1) * self.channels)
    }

    /// All samples, those of a stripe at a time, from another one on at each `turn`: threads at different channels
    /// seldom wait for one another.
    pub(crate) fn samples(&self, turn: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (samples, all) = (self.samples, self.shape.samples);
        let stripes = all.div_ceil(samples);
        (0..stripes).map(move |i| {
            let first = (i + turn * TURN) % stripes * samples;
            first..all.min(first + samples)
        })
    }

    /// The stripe of a plane, and where in it the plane begins.
    pub(crate) fn lock(&self, sample: usize, channel: usize) -> (MutexGuard<'_, SliceMut<'a>>, usize) {
        let runs = self.shape.channels.div_ceil(self.channels);
        let stripe = &self.stripes[sample / self.samples * runs + channel / self.channels];
        let plane = sample % self.samples * self.shape.channels + channel % self.channels;
        (stripe.lock().unwrap_or_else(PoisonError::into_inner), plane * self.shape.spatial)
    }
}

/// Where x is read.
#[derive(Clone, Copy)]
pub(crate) enum Source<'s, 'y, T> {
    /// A tensor of its own.
    Given(&'s [T], Shape),
    /// What y holds.
    Own(&'s Stripes<'y>),
}

/// Planes of a sample while they are read.
pub(crate) enum Reading<'s, 'y, T> {
    Given(&'s [T]),
    Own(MutexGuard<'s, SliceMut<'y>>, Range<usize>),
}

impl<'s, 'y, T: Element> Source<'s, 'y, T> {
    /// Some channels of one sample, which no stripe's edge divides.
    #[inline(always)]
    pub(crate) fn planes(&self, sample: usize, channels: &Range<usize>) -> Reading<'s, 'y, T> {
        match *self {
            Source::Given(x, shape) => {
                let start = (sample * shape.channels + channels.start) * shape.spatial;
                Reading::Given(&x[start..start + channels.len() * shape.spatial])
            }
            Source::Own(stripes) => {
                let (stripe, start) = stripes.lock(sample, channels.start);
                Reading::Own(stripe, start..start + channels.len() * stripes.shape.spatial)
            }
        }
    }
}

impl<T: Element> Deref for Reading<'_, '_, T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        match self {
            Reading::Given(x) => x,
            Reading::Own(stripe, range) => T::of(&stripe.as_slice()).map_or(&[], |x| &x[range.clone()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plane_is_found_in_its_stripe() {
        for samples in 1..70 {
            for channels in [1, 2, 5, 31, 32, 33, 100] {
                let shape = Shape { samples, channels, spatial: 2, last: false };
                let mut x: Vec<f32> = (0..samples * channels * 2).map(|i| (i / 2) as f32).collect();
                let stripes = Stripes::new(x.as_mut_slice().into(), shape);
                for (sample, channel) in (0..samples).flat_map(|n| (0..channels).map(move |c| (n, c))) {
                    let run = stripes.run(channel, channels);
                    assert!((channel + 1..=channels).contains(&run), "{samples} x {channels}");
                    let planes = Source::<f32>::Own(&stripes).planes(sample, &(channel..run));
                    let first = (sample * channels + channel) as f32;
                    assert_eq!((planes[0], planes.len()), (first, (run - channel) * 2), "{samples} x {channels}");
                }
            }
        }
    }
}
