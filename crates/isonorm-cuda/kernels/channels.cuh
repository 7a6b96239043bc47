// Sums over channels: each sample's plane in row order, the samples' scalars in batch order. A block owns a channel.
//
//     for each sample:   t = row_sum(plane)             by as many threads as a plane is worth, planes side by side
//     sum                = batch_sum(t)
//
// The scalars of SAMPLES samples are held at once, in shared memory: a node of the tree over samples.
#pragma once

#include "planes.cuh"

namespace isonorm {

// What all calls over channels have in common. The team of a plane has `warps` warps, which own `pieces` pieces each;
// where it is one warp or less, planes lie side by side in a block.
struct Channels {
    i64 samples;
    i64 channels;
    i64 spatial;
    i64 pieces;
    int warps;
    int eps_outside;
    double eps;           // rounded to the compute type
    double weight_offset; // rounded to the compute type

    // Of a channel.
    __device__ i64 count() const { return samples * spatial; }
    template <class C> __device__ Eps<C> rounded_eps() const { return Eps<C>{C(eps), eps_outside != 0}; }
};

constexpr int SAMPLES = WARP * BATCH_LEAF;

// Two scalars of each sample: of leaf l of a node, in a row of its own, which begins in a bank of its own.
template <class C> using Scalars = C[2][WARP][BATCH_LEAF + 1];

// The node of the first `count` samples: every warp sums it, a leaf a thread. Absent leaves are -0 as in `node`.
template <class C, int LEAVES>
__device__ __forceinline__ C batch_node(const C (&scalars)[LEAVES][BATCH_LEAF + 1], int count) {
    const int leaf = int(threadIdx.x) % WARP;
    const int rest = count - leaf * BATCH_LEAF;
    C sum = rest > 0 ? C(0) : -C(0);
#pragma unroll
    for (int i = 0; i < BATCH_LEAF; ++i) {
        if (i < rest) sum = add(sum, scalars[leaf][i]);
    }
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) sum = add(sum, __shfl_xor_sync(ALL, sum, distance));
    return sum;
}

// A block's work on one channel.
template <class S> struct Channel {
    using C = typename S::C;
    const Channels& channels;
    Team<S> team;
    Exchange<C>& exchange;
    Scalars<C>& scalars;
    i64 number;

    __device__ Channel(const Channels& channels, Exchange<C>& exchange, Scalars<C>& scalars)
        : channels(channels), team(channels.warps, channels.pieces), exchange(exchange), scalars(scalars), number(0) {}

    // Teams of the block.
    __device__ int teams() const { return channels.warps > 1 ? 1 : int(blockDim.x) / S::TEAM; }

    // A piece of a sample's plane.
    template <class E>
    __device__ __forceinline__ void read(PlanePiece<S, E>& to, i64 sample, i64 piece, i64 len, const Planes& from) const {
        const i64 start = (len > 0 ? sample * from.sample : 0) + number * from.channel;
        to.read(team, piece, len, from, start);
    }

    // Calls `visit(n, len)` for the planes of the thread's team among those of `count` samples. `len` is 0 for one that is
    // not there: all teams take part as often.
    template <class Visit> __device__ __forceinline__ void each_plane(i64 count, const Visit& visit) const {
#pragma unroll 1
        for (i64 i = 0; i < count; i += teams()) {
            const i64 n = i + team.row;
            visit(n, n < count ? channels.spatial : 0);
        }
    }

    // N sums. `load(sample, piece, len)` brings a piece of a plane, `step` is as in `reduce`.
    template <int N, class Load, class Step>
    __device__ __forceinline__ void sums(const Load& load, const Step& step, C (&totals)[N]) const {
        Counter<C, N> nodes;
        for (i64 first = 0; first < channels.samples; first += SAMPLES) {
            const int count = first + SAMPLES < channels.samples ? SAMPLES : int(channels.samples - first);
            each_plane(count, [&](i64 place, i64 len) {
                const auto piece_of = [&](i64 piece) { load(first + place, piece, len); };
                reduce<S>(team, exchange, len, piece_of, step, totals);
                if (len > 0 && team.owner == 0 && team.group == 0 && team.warp == 0) {
                    for (int j = 0; j < N; ++j) scalars[j][place / BATCH_LEAF][place % BATCH_LEAF] = totals[j];
                }
            });
            __syncthreads();
#pragma unroll
            for (int j = 0; j < N; ++j) totals[j] = batch_node(scalars[j], count);
            nodes.push(totals);
            __syncthreads();
        }
        if (channels.samples > 0) return nodes.finish(totals);
        for (int j = 0; j < N; ++j) totals[j] = C(0);
    }

    // The largest magnitude of all threads of the block, each of which brings its own.
    __device__ C largest(C own) const {
#pragma unroll
        for (int distance = 1; distance < WARP; distance *= 2) own = larger(own, __shfl_xor_sync(ALL, own, distance));
        const C(*all)[LANES] = exchange.share(int(threadIdx.x) / WARP, own);
        for (int w = 0; w < int(blockDim.x) / WARP; ++w) own = larger(own, all[w][0]);
        return own;
    }
};

} // namespace isonorm
