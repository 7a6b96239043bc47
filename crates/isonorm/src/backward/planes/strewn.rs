//! Sums over elements of any type that lie anywhere: brought together tile by tile, in the compute type.
//!
//! For what no other kernel reads: a dy of another type than x, groups of channels with a weight each, groups whose
//! channels lie side by side.

use std::ops::Range;

use half::{bf16, f16};

use crate::backward::planes::sums::{Lanes, PairTerms, Pairs};
use crate::element::Compute;
use crate::isa::Isa;
use crate::level::Kernel;
use crate::order::{LANES, Row, TILE, Tiles, reduce_tiles, tree};
use crate::planes::Shape;
use crate::slice::Slice;
use crate::stats::Stats;

/// The elements of some channels of one sample in their logical order.
#[derive(Clone, Copy)]
pub(crate) struct Strewn<'a> {
    data: Slice<'a>,
    /// The first element.
    start: usize,
    /// From channel to channel.
    channel: usize,
    /// From position to position.
    position: usize,
    spatial: usize,
}

impl<'a> Strewn<'a> {
    /// From channel `channel` of sample `n` on.
    pub(crate) fn new(data: Slice<'a>, shape: Shape, n: usize, channel: usize) -> Self {
        let (start, spatial) = (n * shape.sample(), shape.spatial);
        if shape.last {
            Strewn { data, start: start + channel, channel: 1, position: shape.channels, spatial }
        } else {
            Strewn { data, start: start + channel * spatial, channel: spatial, position: 1, spatial }
        }
    }

    /// One value for all positions of a channel, from channel `channel` on.
    pub(crate) fn of_channels(data: Slice<'a>, shape: Shape, channel: usize) -> Self {
        Strewn { data, start: channel, channel: 1, position: 0, spatial: shape.spatial }
    }

    #[inline(always)]
    fn gather<E: Copy>(&self, data: &[E], from: usize, to: &mut [E]) {
        let (mut channel, mut position) = (from / self.spatial, from % self.spatial);
        let mut done = 0;
        while done < to.len() {
            let run = (to.len() - done).min(self.spatial - position);
            let first = self.start + channel * self.channel + position * self.position;
            for i in 0..run {
                to[done + i] = data[first + i * self.position];
            }
            done += run;
            (channel, position) = (channel + 1, 0);
        }
    }

    /// Elements from `from` on, widened.
    #[inline(always)]
    fn widen<C: Compute, S: Isa<C>>(&self, isa: S, from: usize, n: usize, to: &mut [C; TILE]) {
        match self.data {
            Slice::F16(data) => {
                let mut tile = [f16::ZERO; TILE];
                self.gather(data, from, &mut tile[..n]);
                let (tile, to) = (tile.as_chunks().0, to.as_chunks_mut().0);
                for at in 0..n.div_ceil(LANES) {
                    isa.store(isa.load_f16(&tile[at]), &mut to[at]);
                }
            }
            Slice::Bf16(data) => {
                let mut tile = [bf16::ZERO; TILE];
                self.gather(data, from, &mut tile[..n]);
                let (tile, to) = (tile.as_chunks().0, to.as_chunks_mut().0);
                for at in 0..n.div_ceil(LANES) {
                    isa.store(isa.load_bf16(&tile[at]), &mut to[at]);
                }
            }
            Slice::F32(data) if size_of::<C>() > size_of::<f32>() => {
                let mut tile = [0.0; TILE];
                self.gather(data, from, &mut tile[..n]);
                for i in 0..n {
                    to[i] = C::from_f32(tile[i]);
                }
            }
            Slice::F32(_) | Slice::F64(_) => {
                if let Some(data) = C::of(&self.data) {
                    self.gather(data, from, &mut to[..n]);
                }
            }
        }
    }
}

/// A row of x and dy, of any types.
#[derive(Clone, Copy)]
pub(crate) struct StrewnPairs<'a, C> {
    pub(crate) x: Strewn<'a>,
    pub(crate) dy: Strewn<'a>,
    /// The weights of its elements, and what is added to them.
    pub(crate) weight: Option<(Strewn<'a>, C)>,
    pub(crate) stats: Stats<C>,
    /// One more factor of dy.
    pub(crate) factor: C,
}

impl<C: Compute> Tiles<C, 2> for StrewnPairs<'_, C> {
    #[inline(always)]
    fn root<S: Isa<C>>(&self, isa: S, from: usize, n: usize) -> [S::V; 2] {
        let (mut x, mut g) = ([C::ZERO; TILE], [C::ZERO; TILE]);
        self.x.widen(isa, from, n, &mut x);
        self.dy.widen(isa, from, n, &mut g);
        if let Some((weights, offset)) = &self.weight {
            let mut w = [C::ZERO; TILE];
            weights.widen(isa, from, n, &mut w);
            let (w, g) = (w.as_chunks().0, g.as_chunks_mut().0);
            for at in 0..n.div_ceil(LANES) {
                let mut weight = isa.load(&w[at]);
                if *offset != C::ZERO {
                    weight = isa.add(weight, isa.splat(*offset));
                }
                isa.store(isa.mul(isa.load(&g[at]), weight), &mut g[at]);
            }
        }
        let (x, dy) = (Row::new(&x[..n]), Row::new(&g[..n]));
        tree(isa, &PairTerms::<C> { x, dy, stats: self.stats, weight: self.factor }, n)
    }
}

/// `[rowsum(g), rowdot(g, x_hat)]` of a row of `len` elements.
pub(crate) struct StrewnSums<'a, C> {
    pub(crate) pairs: StrewnPairs<'a, C>,
    pub(crate) len: usize,
}

impl<C: Compute> Kernel<C> for StrewnSums<'_, C> {
    type Output = [C; 2];

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) -> [C; 2] {
        reduce_tiles(isa, &self.pairs, self.len)
    }
}

/// Channels of x and dy of any types.
pub(crate) struct AnyPairs<'a> {
    pub(crate) x: Slice<'a>,
    pub(crate) dy: Slice<'a>,
    pub(crate) shape: Shape,
    pub(crate) channels: Range<usize>,
}

impl<C: Compute> Pairs<C> for AnyPairs<'_> {
    #[inline(always)]
    fn sums<S: Isa<C>>(&self, isa: S, n: usize, lanes: &Lanes<C>) -> [S::V; 2] {
        let (mut sum, mut product) = ([C::ZERO; LANES], [C::ZERO; LANES]);
        for l in 0..self.channels.len().min(LANES) {
            let channel = self.channels.start + l;
            let (x, dy) = (Strewn::new(self.x, self.shape, n, channel), Strewn::new(self.dy, self.shape, n, channel));
            let (stats, factor) = lanes.at(l);
            let pairs = StrewnPairs { x, dy, weight: None, stats, factor };
            [sum[l], product[l]] = reduce_tiles(isa, &pairs, self.shape.spatial);
        }
        [isa.load(&sum), isa.load(&product)]
    }
}
