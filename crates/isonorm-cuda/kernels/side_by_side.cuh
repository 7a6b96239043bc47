// The sums of channels.cuh where channels lie side by side: a block owns V of them, 16 bytes.
//
// A thread owns one lane of a leaf of V planes and takes its steps; a warp owns the leaf. Where planes have at most
// half as many positions as there are lanes, a warp has several samples' planes. A round's leaves meet in shared
// memory, where each warp takes one or two of the V * N sums: the tree over leaves, the fold over lanes, and, when
// CHUNK samples have scalars, these in batch order.
#pragma once

#include "correlate.cuh"
#include "moments.cuh"

namespace isonorm {

constexpr int CHUNK = 16 * BATCH_LEAF;

// What the threads of a block share.
template <class C, int V> struct SideMemory {
    C leaves[BLOCK_WARPS][2 * V][WARP];
    Scalars<C, CHUNK / BATCH_LEAF> scalars[2 * V];
    C totals[2 * V];
    C largest[MOST_BLOCKS][V];
    Stats<C> stats[V];
    int again;
};

template <class X, bool IS_SHARED> struct Side {
    using C = Compute<X>;
    static constexpr int V = 16 / int(sizeof(X));
    const Channels& channels;
    SideMemory<C, V>& memory;
    Cluster<IS_SHARED> cluster;
    i64 first; // of the block's channels
    int count; // of them
    int warp, thread;
    int width; // lanes of a plane
    int warps; // that share a plane's leaves
    i64 parts; // of a plane, one after another
    i64 leaves;

    __device__ Side(const Channels& channels, SideMemory<C, V>& memory)
        : channels(channels), memory(memory), cluster(channels.blocks), first(i64(blockIdx.x / cluster.blocks) * V),
          count(channels.channels - first > V ? V : int(channels.channels - first)),
          warp(int(threadIdx.x) / WARP), thread(int(threadIdx.x) % WARP), width(1), warps(1),
          leaves((channels.spatial + LEAF - 1) / LEAF) {
        while (width < channels.spatial && width < LANES) width *= 2;
        while (warps < leaves && warps < BLOCK_WARPS) warps *= 2;
        parts = (leaves + warps - 1) / warps;
    }

    // Whether a thread speaks for the channel of its number.
    __device__ bool is_first_of(int number) const { return cluster.block == 0 && number < count; }

    // Planes of a warp, and of a round.
    __device__ int side() const { return WARP / width; }
    __device__ int planes() const { return BLOCK_WARPS / warps * side(); }

    // Calls `visit(s, at)` for the thread's steps of a sample's plane that exist, `at` its position.
    template <class Visit> __device__ __forceinline__ void each_step(i64 part, bool exists, const Visit& visit) const {
        const i64 at = (part * warps + warp % warps) * LEAF + thread % width;
        const i64 rest = exists ? channels.spatial - at : 0;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (s * LANES < rest) visit(s, at + s * LANES);
        }
    }

    // The vector of a sample's position.
    __device__ __forceinline__ Packed<X, V> read(const Planes& from, i64 sample, i64 at) const {
        const X* channels = static_cast<const X*>(from.data) + first;
        return isonorm::read<X, V>(channels + sample * from.sample + at * from.position, count);
    }

    // Calls `visit(sample, part, exists)` for the planes of the thread's warp and the parts of each; `visit` brings the
    // block together, and all threads come as often.
    template <class Visit> __device__ __forceinline__ void each_part(i64 from, int held, const Visit& visit) const {
        for (int i = cluster.block * planes(); i < held; i += cluster.blocks * planes()) {
            const int place = i + warp / warps * side() + thread / width;
            for (i64 part = 0; part < parts; ++part) visit(i, part, from + place, place < held);
        }
    }

    // N sums of each channel, to memory.totals[e * N + j]. `load(s, sample, at)` brings the vector of step s, `step(s,
    // sums)` adds it; `begin(sample)` comes before.
    template <int N, class Load, class Step>
    __device__ __forceinline__ void sums(const Load& load, const Step& step) const {
        constexpr int OWN = (V * N + BLOCK_WARPS - 1) / BLOCK_WARPS;
        Nodes<C, OWN> nodes, batch;
        C own[OWN];
        for (i64 from = 0; from < channels.samples; from += CHUNK) {
            const int held = from + CHUNK < channels.samples ? CHUNK : int(channels.samples - from);
            each_part(from, held, [&](int i, i64 part, i64 sample, bool exists) {
                C lanes[V][N];
                const C start = part * warps + warp % warps < leaves ? C(0) : -C(0);
#pragma unroll
                for (int e = 0; e < V; ++e) {
#pragma unroll
                    for (int j = 0; j < N; ++j) lanes[e][j] = start;
                }
                each_step(part, exists, [&](int s, i64 at) { load(s, sample, at); });
                each_step(part, exists, [&](int s, i64) { step(s, lanes); });
#pragma unroll
                for (int e = 0; e < V; ++e) {
#pragma unroll
                    for (int j = 0; j < N; ++j) memory.leaves[warp][e * N + j][thread] = lanes[e][j];
                }
                __syncthreads();
                fold<N>(i, held, part, nodes);
                __syncthreads();
            });
            cluster.barrier();
#pragma unroll
            for (int o = 0; o < OWN; ++o) {
                const int value = warp + o * BLOCK_WARPS;
                own[o] = value < V * N ? batch_node(memory.scalars[value], held) : C(0);
            }
            batch.push(own);
            cluster.barrier();
        }
        if (channels.samples > 0) batch.finish(own);
#pragma unroll
        for (int o = 0; o < OWN; ++o) {
            const int value = warp + o * BLOCK_WARPS;
            if (value < V * N && thread == 0) memory.totals[value] = channels.samples > 0 ? own[o] : C(0);
        }
        __syncthreads();
    }

  private:
    // The warp's sums of a round, whose planes begin with number i: the tree over leaves, and with the last part the
    // fold. Lanes that no plane reaches are left out: their +0 could only turn a sum of -0 into +0, which the batch order
    // does all the same, since its leaves start at +0.
    template <int N, int OWN>
    __device__ __forceinline__ void fold(int i, int held, i64 part, Nodes<C, OWN>& nodes) const {
        C node[OWN][BLOCK_WARPS];
#pragma unroll
        for (int o = 0; o < OWN; ++o) {
            const int value = warp + o * BLOCK_WARPS;
#pragma unroll
            for (int w = 0; w < BLOCK_WARPS; ++w) node[o][w] = value < V * N ? memory.leaves[w][value][thread] : C(0);
#pragma unroll
            for (int distance = 1; distance < BLOCK_WARPS; distance *= 2) {
#pragma unroll
                for (int w = 0; w < BLOCK_WARPS && distance < warps; w += 2 * distance) {
                    node[o][w] = add(node[o][w], node[o][w + distance]);
                }
            }
        }
        if (parts > 1) { // of a single plane
            C of_part[OWN];
            for (int o = 0; o < OWN; ++o) of_part[o] = node[o][0];
            nodes.push(of_part);
            if (part + 1 < parts) return;
            nodes.finish(of_part);
            nodes = Nodes<C, OWN>();
            for (int o = 0; o < OWN; ++o) node[o][0] = of_part[o];
        }
#pragma unroll
        for (int o = 0; o < OWN; ++o) {
            const int value = warp + o * BLOCK_WARPS;
#pragma unroll
            for (int w = 0; w < BLOCK_WARPS; ++w) {
                if (w % warps != 0) continue;
                C sum = node[o][w];
#pragma unroll
                for (int distance = LANES / 2; distance > 0; distance /= 2) {
                    if (distance < width) sum = add(sum, __shfl_xor_sync(ALL, sum, distance));
                }
                const int place = i + w / warps * side() + thread / width;
                if (value < V * N && thread % width == 0 && place < held) {
                    cluster.put_all(memory, memory.scalars[value][place / BATCH_LEAF][place % BATCH_LEAF], sum);
                }
            }
        }
    }
};

// The statistics of the block's channels, to memory.stats.
template <class X, bool IS_SHARED>
__device__ __forceinline__ void measure(const Side<X, IS_SHARED>& side, const Planes& from) {
    using C = Compute<X>;
    constexpr int V = Side<X, IS_SHARED>::V;
    const Eps<C> eps = side.channels.template rounded_eps<C>();
    const C n = C(side.channels.count());
    const int own = int(threadIdx.x); // channel of one of the first V threads
    Packed<X, V> x[STEPS];
    C mean[V], scale[V];
    const auto load = [&](int s, i64 sample, i64 at) { x[s] = side.read(from, sample, at); };
    if (own < V) side.memory.stats[own] = Stats<C>{C(0), C(0), C(0), C(0), C(1)};
#pragma unroll 1
    for (bool is_second = false;; is_second = true) {
        __syncthreads();
        for (int e = 0; e < V; ++e) scale[e] = side.memory.stats[e].scale;
        side.template sums<1>(load, [&](int s, C(&sums)[V][1]) {
#pragma unroll
            for (int e = 0; e < V; ++e) sums[e][0] = add(sums[e][0], mul(x[s].get(e), scale[e]));
        });
        const bool is_finite = own < V && Range<C>::finite(side.memory.totals[own]);
        for (int e = 0; e < V; ++e) mean[e] = divide(side.memory.totals[e], n);
        side.template sums<2>(load, [&](int s, C(&sums)[V][2]) {
#pragma unroll
            for (int e = 0; e < V; ++e) {
                const C d = sub(mul(x[s].get(e), scale[e]), mean[e]);
                sums[e][0] = add(sums[e][0], d);
                sums[e][1] = fused(d, d, sums[e][1]);
            }
        });
        bool again = false;
        if (own < V) {
            Stats<C>& stats = side.memory.stats[own];
            const C s1 = side.memory.totals[2 * own], s2 = side.memory.totals[2 * own + 1];
            stats.mean = mean[0];
            for (int e = 1; e < V; ++e) stats.mean = e == own ? mean[e] : stats.mean;
            LayerNorm::spread(s1, s2, n, stats);
            stats.inv = eps.scaled(stats.scale).inverse_root(stats.var);
            again = !is_second && own < side.count && !(is_finite && Range<C>::finite(s2) && !eps.is_small(stats.var));
        }
        if (side.warp == 0) side.memory.again = __any_sync(ALL, again);
        __syncthreads();
        if (!side.memory.again) return;
        const C scaled = eps.scale(largest(side, from));
        if (again) side.memory.stats[own].scale = scaled;
    }
}

// The largest magnitude of each of the block's channels, for the first V threads.
template <class X, bool IS_SHARED>
__device__ __forceinline__ Compute<X> largest(const Side<X, IS_SHARED>& side, const Planes& from) {
    using C = Compute<X>;
    constexpr int V = Side<X, IS_SHARED>::V;
    C max[V];
    for (int e = 0; e < V; ++e) max[e] = C(0);
    for (i64 n = 0; n < side.channels.samples; n += CHUNK) {
        const int held = n + CHUNK < side.channels.samples ? CHUNK : int(side.channels.samples - n);
        side.each_part(n, held, [&](int, i64 part, i64 sample, bool exists) {
            side.each_step(part, exists, [&](int, i64 at) {
                const Packed<X, V> x = side.read(from, sample, at);
#pragma unroll
                for (int e = 0; e < V; ++e) max[e] = Larger::of(max[e], x.get(e) < C(0) ? -x.get(e) : x.get(e));
            });
        });
    }
    for (int e = 0; e < V; ++e) side.memory.leaves[side.warp][e][side.thread] = max[e];
    __syncthreads();
    const int own = int(threadIdx.x);
    C all = C(0);
    if (own < V) {
        for (int i = 0; i < BLOCK_WARPS * WARP; ++i) {
            all = Larger::of(all, side.memory.leaves[i / WARP][own][i % WARP]);
        }
        side.cluster.put_all(side.memory, side.memory.largest[side.cluster.block][own], all);
    }
    side.cluster.barrier();
    for (int b = 0; own < V && b < side.cluster.blocks; ++b) all = Larger::of(all, side.memory.largest[b][own]);
    return all;
}

template <class X, bool IS_SHARED> __device__ __forceinline__ void moments_side_by_side(const Moments& args) {
    using Side = Side<X, IS_SHARED>;
    __shared__ Shared<SideMemory<Compute<X>, Side::V>> memory;
    const Side side(args.channels, own(memory));
    measure(side, args.x);
    if (side.is_first_of(threadIdx.x)) settle(args, side.first + threadIdx.x, side.memory.stats[threadIdx.x]);
}

// dy has x's storage type.
template <class X, bool IS_SHARED> __device__ __forceinline__ void correlate_side_by_side(const Correlate& args) {
    using C = Compute<X>;
    using Side = Side<X, IS_SHARED>;
    constexpr int V = Side::V;
    __shared__ Shared<SideMemory<C, V>> memory;
    const Side side(args.channels, own(memory));
    Packed<X, V> x[STEPS];
    Packed<X, V> dy[STEPS];
    Stats<C> stats[V]{};
    i64 known = -1; // the sample whose statistics they are
    const auto load = [&](int s, i64 sample, i64 at) {
        x[s] = side.read(args.x, sample, at);
        dy[s] = side.read(args.dy, sample, at);
        if (sample == known || (known >= 0 && args.groups == 0)) return;
        known = sample;
        each_element<V>(side.count, [&](int e) {
            stats[e] = static_cast<const Stats<C>*>(args.stats)[set_of(args, sample, side.first + e)];
        });
    };
    side.template sums<2>(load, [&](int s, C(&sums)[V][2]) {
#pragma unroll
        for (int e = 0; e < V; ++e) {
            const C d = dy[s].get(e);
            sums[e][0] = add(sums[e][0], d);
            sums[e][1] = fused(d, LayerNorm::x_hat(x[s].get(e), stats[e]), sums[e][1]);
        }
    });
    const int own = int(threadIdx.x);
    if (!side.is_first_of(own)) return;
    settle(args, side.first + own, side.memory.totals[2 * own], side.memory.totals[2 * own + 1]);
}

} // namespace isonorm
