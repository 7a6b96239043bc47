//! One norm with its options, forward and backward through the library, on values of any type.

use isonorm::{
    BackwardIo, BatchNorm, Error, GroupNorm, InstanceNorm, Io, LayerNorm, PlaneBackwardIo, PlaneIo, Planes, PlanesMut,
    Recipe, RmsNorm,
};
use isonorm_testing::DType;
use isonorm_testing::golden::Array;

use crate::support::{Saved, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    Rms,
    Layer,
    Group,
    Instance,
    Batch,
}

/// Values of one call; `weight`, `bias` and `running` are of x's type.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) norm: Norm,
    pub(crate) dtype: DType,
    /// Hidden, or the channels.
    pub(crate) channels: usize,
    /// 1 of rows.
    pub(crate) spatial: usize,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
    pub(crate) outside: bool,
    pub(crate) offset: f64,
    pub(crate) partial: Option<usize>,
    pub(crate) llama: bool,
    pub(crate) weight: Option<Vec<f64>>,
    pub(crate) bias: Option<Vec<f64>>,
    /// Mean and variance, of BatchNorm in evaluation.
    pub(crate) running: Option<[Vec<f64>; 2]>,
    /// The backward call is given the statistics that the forward call saved.
    pub(crate) saves: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gradients {
    pub(crate) dx: Vec<f64>,
    pub(crate) dweight: Vec<f64>,
    pub(crate) dbias: Vec<f64>,
}

fn tensor(dtype: DType, values: &[f64]) -> Tensor {
    Tensor::new(&Array::from_values(dtype, values))
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.array().widened()
}

/// The options that all norms share, set on a builder.
macro_rules! with_options {
    ($norm:expr, $call:expr, $weight:expr, $bias:expr) => {{
        let mut norm = $norm.eps($call.eps).weight_offset($call.offset);
        if $call.outside {
            norm = norm.eps_outside();
        }
        if let Some(weight) = $weight {
            norm = norm.weight(weight.slice());
        }
        if let Some(bias) = $bias {
            norm = norm.bias(bias.slice());
        }
        norm
    }};
}

/// What a call reads or writes: the forward pass or the backward pass.
enum Pass<'a> {
    Forward {
        y: &'a mut Tensor,
        stats: Option<&'a mut Saved>,
    },
    Backward {
        dy: &'a Tensor,
        dx: &'a mut Tensor,
        dweight: &'a mut Tensor,
        dbias: &'a mut Tensor,
        stats: Option<&'a Saved>,
    },
}

impl Call {
    pub(crate) fn new(norm: Norm, dtype: DType, channels: usize, spatial: usize) -> Self {
        let groups = if norm == Norm::Instance { channels } else { 1 };
        Call {
            norm,
            dtype,
            channels,
            spatial,
            groups,
            eps: 1e-5,
            outside: false,
            offset: 0.0,
            partial: None,
            llama: false,
            weight: None,
            bias: None,
            running: None,
            saves: false,
        }
    }

    /// The elements that are normalized together: the place of each in x, and its channel.
    pub(crate) fn sets(&self, len: usize) -> Vec<Vec<(usize, usize)>> {
        let (channels, spatial) = (self.channels, self.spatial);
        let channel = |at: usize| at / spatial % channels;
        let consecutive = |size: usize| {
            (0..len / size).map(|s| (s * size..(s + 1) * size).map(|at| (at, channel(at))).collect()).collect()
        };
        match self.norm {
            Norm::Rms | Norm::Layer => consecutive(channels),
            Norm::Group | Norm::Instance => consecutive(channels / self.groups * spatial),
            Norm::Batch => {
                let of = |c: usize| (0..len).filter(|at| channel(*at) == c).map(|at| (at, c)).collect();
                (0..channels).map(of).collect()
            }
        }
    }

    /// y, and the statistics of each set.
    pub(crate) fn forward(&self, x: &[f64]) -> Vec<f64> {
        let mut y = Tensor::sentinel(self.dtype, x.len());
        self.run(&tensor(self.dtype, x), Pass::Forward { y: &mut y, stats: None });
        values(&y)
    }

    pub(crate) fn backward(&self, x: &[f64], dy: &[f64]) -> Gradients {
        let [x, dy] = [x, dy].map(|values| tensor(self.dtype, values));
        let saved = self.saves.then(|| {
            let mut saved = Saved::new(self.dtype, self.sets(x.len()).len());
            let mut y = Tensor::sentinel(self.dtype, x.len());
            self.run(&x, Pass::Forward { y: &mut y, stats: Some(&mut saved) });
            saved
        });
        let [mut dx, mut dweight, mut dbias] =
            [x.len(), self.channels, self.channels].map(|len| Tensor::sentinel(self.dtype, len));
        let (dx_, dweight_, dbias_) = (&mut dx, &mut dweight, &mut dbias);
        let stats = saved.as_ref();
        self.run(&x, Pass::Backward { dy: &dy, dx: dx_, dweight: dweight_, dbias: dbias_, stats });
        Gradients { dx: values(&dx), dweight: values(&dweight), dbias: values(&dbias) }
    }

    fn run(&self, x: &Tensor, pass: Pass<'_>) {
        let parameter = |values: &Option<Vec<f64>>| values.as_ref().map(|values| tensor(self.dtype, values));
        let (weight, bias) = (parameter(&self.weight), parameter(&self.bias));
        let result = match self.norm {
            Norm::Rms | Norm::Layer => self.rows(x, weight.as_ref(), bias.as_ref(), pass),
            _ => self.planes(x, weight.as_ref(), bias.as_ref(), pass),
        };
        result.unwrap_or_else(|e| panic!("{self:?}: {e}"));
    }

    fn rows(&self, x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, pass: Pass<'_>) -> Result<(), Error> {
        let mut rms = with_options!(RmsNorm::new(self.channels), self, weight, bias);
        let layer = with_options!(LayerNorm::new(self.channels), self, weight, bias);
        if let Some(k) = self.partial {
            rms = rms.partial(k);
        }
        if self.llama {
            rms = rms.recipe(Recipe::Llama);
        }
        match pass {
            Pass::Forward { y, stats } => {
                let mut io = Io::new(x.slice(), y.slice_mut());
                if let Some(stats) = stats {
                    io = io.stats(stats.stats_mut());
                }
                if self.norm == Norm::Rms { rms.apply(io) } else { layer.apply(io) }
            }
            Pass::Backward { dy, dx, dweight, dbias, stats } => {
                let mut io = BackwardIo::new(x.slice(), dy.slice(), dx.slice_mut());
                io = io.dweight(dweight.slice_mut()).dbias(dbias.slice_mut());
                if let Some(stats) = stats {
                    io = io.stats(stats.stats_ref());
                }
                if self.norm == Norm::Rms { rms.backward(io) } else { layer.backward(io) }
            }
        }
    }

    fn read<'a>(&self, tensor: &'a Tensor) -> Planes<'a> {
        Planes::channels_first(tensor.slice(), self.channels, self.spatial)
    }

    fn write<'a>(&self, tensor: &'a mut Tensor) -> PlanesMut<'a> {
        PlanesMut::channels_first(tensor.slice_mut(), self.channels, self.spatial)
    }

    fn planes(&self, x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, pass: Pass<'_>) -> Result<(), Error> {
        let group = with_options!(GroupNorm::new(self.groups, self.channels), self, weight, bias);
        let instance = with_options!(InstanceNorm::new(self.channels), self, weight, bias);
        let batch = with_options!(BatchNorm::new(self.channels), self, weight, bias);
        let running = self.running.as_ref().map(|both| both.each_ref().map(|values| tensor(self.dtype, values)));
        match pass {
            Pass::Forward { y, stats } => {
                let mut io = PlaneIo::new(self.read(x), self.write(y));
                if let Some(stats) = stats {
                    io = io.stats(stats.stats_mut());
                }
                match (self.norm, &running) {
                    (Norm::Group, _) => group.apply(io),
                    (Norm::Instance, _) => instance.apply(io),
                    (_, None) => batch.train(io, None),
                    (_, Some([mean, var])) => batch.evaluate(io, mean.slice(), var.slice()),
                }
            }
            Pass::Backward { dy, dx, dweight, dbias, stats } => {
                let mut io = PlaneBackwardIo::new(self.read(x), self.read(dy), self.write(dx));
                io = io.dweight(dweight.slice_mut()).dbias(dbias.slice_mut());
                if let Some(stats) = stats {
                    io = io.stats(stats.stats_ref());
                }
                match (self.norm, &running) {
                    (Norm::Group, _) => group.backward(io),
                    (Norm::Instance, _) => instance.backward(io),
                    (_, None) => batch.train_backward(io),
                    (_, Some([mean, var])) => batch.evaluate_backward(io, mean.slice(), var.slice()),
                }
            }
        }
    }
}
