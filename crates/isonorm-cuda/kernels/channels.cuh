// Sums over channels: each sample's plane in row order, the samples' scalars in batch order. A block owns a channel.
//
//     for each sample:   t = row_sum(plane)             by as many threads as a plane is worth, planes side by side
//     sum                = batch_sum(t)
//
// The scalars of SAMPLES samples are held at once, in shared memory: a node of the tree over samples. Where channels are
// few, the blocks of a cluster share one: each has some samples, and all have all scalars.
#pragma once

#include "planes.cuh"

namespace isonorm {

// What all calls over channels have in common. Where the team of a plane is one warp or less, planes lie side by side
// in a block.
struct Channels {
    i64 samples;
    i64 channels;
    i64 spatial;
    Sharing sharing; // of a plane
    int blocks;      // of a channel
    int eps_outside;
    double eps;           // rounded to the compute type
    double weight_offset; // rounded to the compute type

    // Of a channel.
    __device__ i64 count() const { return samples * spatial; }
    template <class C> __device__ Eps<C> rounded_eps() const { return Eps<C>{C(eps), eps_outside != 0}; }
};

// Warps of a block, at most.
constexpr int BLOCK_WARPS = 8;

constexpr int SAMPLES = WARP * BATCH_LEAF;
// A tree has 2^DEPTH leaves at most.
constexpr int DEPTH = 32;

// Scalars of samples: leaves of the tree over them, each in a row of its own, which begins in a bank of its own.
template <class C, int LEAVES> using Scalars = C[LEAVES][BATCH_LEAF + 1];

// The node of the first `count` samples: a warp sums it, a leaf a thread. Absent leaves are -0 as in `node`.
template <class C, int LEAVES> __device__ __forceinline__ C batch_node(const Scalars<C, LEAVES>& scalars, int count) {
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

// The counter of order.cuh for trees of any size: where a node is put depends on the count. For what is done rarely.
template <class C, int N> struct Nodes {
    C nodes[DEPTH][N];
    i64 count = 0;

    __device__ void push(const C (&leaf)[N]) {
        C node[N];
        for (int j = 0; j < N; ++j) node[j] = leaf[j];
        int level = 0;
        for (; count >> level & 1; ++level) {
            for (int j = 0; j < N; ++j) node[j] = add(nodes[level][j], node[j]);
        }
        for (int j = 0; j < N; ++j) nodes[level][j] = node[j];
        ++count;
    }
    __device__ void finish(C (&node)[N]) const {
        for (int j = 0; j < N; ++j) node[j] = -C(0);
        for (int level = 0; count >> level != 0; ++level) {
            for (int j = 0; j < N && (count >> level & 1); ++j) node[j] = add(nodes[level][j], node[j]);
        }
    }
};

// Blocks of a channel, at most.
constexpr int MOST_BLOCKS = 8;

// A block's place among those that share channels, where any do (IS_SHARED).
template <bool IS_SHARED> struct Cluster {
    int block;
    int blocks;

    __device__ explicit Cluster(int blocks)
        : block(IS_SHARED ? int(blockIdx.x) % blocks : 0), blocks(IS_SHARED ? blocks : 1) {
        if constexpr (IS_SHARED) cluster_barrier(); // all have begun
    }

    // Writes `value` to `at` in the `memory` of all blocks.
    template <class Memory, class C> __device__ __forceinline__ void put_all(Memory& memory, C& at, C value) const {
        if constexpr (IS_SHARED) {
            for (int to = 0; to < blocks; ++to) put(memory, to, at, value);
        } else {
            at = value;
        }
    }
    // Waits for all threads that share a channel.
    __device__ __forceinline__ void barrier() const {
        if constexpr (IS_SHARED) {
            cluster_barrier();
        } else {
            __syncthreads();
        }
    }
};

// What the threads of a channel's block share.
template <class C> struct ChannelMemory {
    Scalars<C, WARP> scalars[2];
    C of_warps[BLOCK_WARPS];
    C of_blocks[MOST_BLOCKS];
};

// A block's work on one channel.
template <class S, bool IS_SHARED> struct Channel {
    using C = typename S::C;
    const Channels& channels;
    Team<S> team;
    Exchange<S>& exchange;
    ChannelMemory<C>& memory;
    Cluster<IS_SHARED> cluster;
    i64 number;

    __device__ Channel(const Channels& channels, Exchange<S>& exchange, ChannelMemory<C>& memory)
        : channels(channels), team(channels.sharing), exchange(exchange), memory(memory), cluster(channels.blocks),
          number(0) {}

    // Calls `visit()` for each of the block's channels.
    template <class Visit> __device__ __forceinline__ void each(const Visit& visit) {
        const i64 step = gridDim.x / cluster.blocks;
        for (number = blockIdx.x / cluster.blocks; number < channels.channels; number += step) visit();
    }

    // Whether it is the thread that speaks for the channel.
    __device__ bool is_first() const { return cluster.block == 0 && threadIdx.x == 0; }

    // Teams of the block.
    __device__ int teams() const { return S::WARPS > 1 ? 1 : int(blockDim.x) / S::TEAM; }

    // A piece of a sample's plane.
    template <class E>
    __device__ __forceinline__ void read(PlanePiece<S, E>& to, i64 sample, i64 piece, const Planes& from) const {
        to.read(team, piece, channels.spatial, from, sample * from.sample + number * from.channel);
    }

    // Calls `visit(n, is_own)` for the planes of the thread's team among those of `count` samples. A team without one
    // goes along with another's: all come as often.
    template <class Visit> __device__ __forceinline__ void each_plane(i64 count, const Visit& visit) const {
#pragma unroll 1
        for (i64 i = cluster.block * teams(); i < count; i += cluster.blocks * teams()) {
            const i64 n = i + team.row;
            visit(n < count ? n : count - 1, n < count);
        }
    }

    // N sums. `load(sample, piece)` brings a piece of a plane, `step` is as in `reduce`.
    template <int N, class Load, class Step>
    __device__ __forceinline__ void sums(const Load& load, const Step& step, C (&totals)[N]) const {
        Nodes<C, N> nodes;
        for (i64 first = 0; first < channels.samples; first += SAMPLES) {
            const int count = first + SAMPLES < channels.samples ? SAMPLES : int(channels.samples - first);
            each_plane(count, [&](i64 place, bool is_own) {
                const auto piece_of = [&](i64 piece) { load(first + place, piece); };
                reduce<S>(team, exchange, channels.spatial, piece_of, step, totals);
                if (!is_own || !team.is_first()) return;
                for (int j = 0; j < N; ++j) {
                    cluster.put_all(memory, memory.scalars[j][place / BATCH_LEAF][place % BATCH_LEAF], totals[j]);
                }
            });
            cluster.barrier();
#pragma unroll
            for (int j = 0; j < N; ++j) totals[j] = batch_node(memory.scalars[j], count);
            nodes.push(totals);
            cluster.barrier();
        }
        if (channels.samples > 0) return nodes.finish(totals);
        for (int j = 0; j < N; ++j) totals[j] = C(0);
    }

    // The largest magnitude of all threads of the channel, each of which brings its own.
    __device__ C largest(C own) const {
#pragma unroll
        for (int distance = 1; distance < WARP; distance *= 2) {
            own = Larger::of(own, __shfl_xor_sync(ALL, own, distance));
        }
        memory.of_warps[threadIdx.x / WARP] = own;
        __syncthreads();
        for (int w = 0; w < int(blockDim.x) / WARP; ++w) own = Larger::of(own, memory.of_warps[w]);
        if (threadIdx.x == 0) cluster.put_all(memory, memory.of_blocks[cluster.block], own);
        cluster.barrier();
        for (int b = 0; b < cluster.blocks; ++b) own = Larger::of(own, memory.of_blocks[b]);
        return own;
    }
};

} // namespace isonorm
