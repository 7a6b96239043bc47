//! The native peers, each by its fastest path, on a thread pool of its own.
//!
//! All four find their threads in the rayon pool they are called from, so a peer's whole sample
//! runs inside a pool of 1 or of 2 threads: no call pays for entering it. Two have gradients; rten
//! and tract are for inference.

mod burn;
mod burn_training;
mod candle;
mod candle_training;
mod parts;
mod rten;
mod tract;

use rayon::ThreadPool;

use crate::cells::{Cell, Pass};
use crate::memory::{Inputs, Outputs, Results};
use crate::timing::{Contestant, Role, repeat};

/// One peer, ready for one cell.
pub(crate) trait Peer: Send {
    /// The operation once; the results are left in `outputs`, or dropped where the peer allocates them.
    fn call(&mut self, outputs: &mut Outputs);

    /// The operation once more, and its results.
    fn result(&mut self, outputs: &mut Outputs) -> Results;
}

/// How to make a peer ready: `None` where it lacks the operation.
type Prepare = for<'a> fn(&Cell, &'a Inputs, usize) -> Option<Box<dyn Peer + 'a>>;

/// A peer's name, version and paths.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) path: &'static str,
    prepare: Prepare,
    pub(crate) training: Option<Training>,
}

/// A peer's path forward and backward.
pub(crate) struct Training {
    pub(crate) path: &'static str,
    prepare: Prepare,
}

/// The peers, in the order of the table. Versions as pinned in `Cargo.toml`.
pub(crate) static PEERS: [Entry; 4] = [
    Entry {
        name: "rten",
        version: "rten-vecmath 0.27.0",
        path: "SumSquare or Sum and SumSquareSub, then Normalize, into a given output; \
               one run of rows per thread",
        prepare: rten::prepare,
        training: None,
    },
    Entry {
        name: "tract",
        version: "tract-linalg 0.23.9",
        path: "a row copied, then in place: rms_norm_f32 (centred first for LayerNorm), multiply \
               by weight, add bias; one run of rows per thread",
        prepare: tract::prepare,
        training: None,
    },
    Entry {
        name: "candle",
        version: "candle-nn 0.11.1",
        path: "the fused ops::rms_norm and ops::layer_norm; BatchNorm::forward_t; a new output \
               per call",
        prepare: candle::prepare,
        training: Some(Training {
            path: "ops::rms_norm_slow and ops::layer_norm_slow, since the fused operations have no \
                   gradients; BatchNorm::forward_train, NHWC as [N*H*W, C]; Tensor::backward from a \
                   custom operation that hands it dy; f32 only, since it sums bf16 gradients in bf16",
            prepare: candle_training::prepare,
        }),
    },
    Entry {
        name: "burn",
        version: "burn 0.22.1 (flex)",
        path: "the fused module::layer_norm and module::batch_norm; nn::RmsNorm; a new output \
               per call",
        prepare: burn::prepare,
        training: Some(Training {
            path: "autodiff of nn::RmsNorm and module::layer_norm, the fused module::batch_norm_train, \
                   NHWC as [N*H*W, C]; Tensor::backward from y * dy",
            prepare: burn_training::prepare,
        }),
    },
];

/// Each peer with this cell's operation, in `pool`.
pub(crate) fn ready<'a>(
    cell: &Cell,
    inputs: &'a Inputs,
    pool: &ThreadPool,
) -> Vec<(&'static Entry, Box<dyn Peer + 'a>)> {
    let threads = pool.current_num_threads();
    let ready = |entry: &'static Entry| {
        let prepare = match cell.pass {
            Pass::Forward => entry.prepare,
            Pass::ForwardBackward => entry.training.as_ref()?.prepare,
            Pass::Backward => return None,
        };
        Some((entry, prepare(cell, inputs, threads)?))
    };
    PEERS.iter().filter_map(ready).collect()
}

/// A peer as a contestant.
pub(crate) fn contestant<'a>(entry: &Entry, mut peer: Box<dyn Peer + 'a>, pool: &'a ThreadPool) -> Contestant<'a> {
    Contestant {
        name: entry.name.to_string(),
        role: Role::Peer,
        run: Box::new(move |calls, outputs| pool.install(|| repeat(calls, || peer.call(outputs)))),
    }
}
