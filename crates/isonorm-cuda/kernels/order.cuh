// The order of every sum along a row, on a GPU: the second and last copy of order.rs, which gives LANES and LEAF
// (-D, with MAX_WARPS, the warps of a row). `spec/order.md` is its prose.
//
//     for each leaf of 128 elements:
//         32 lanes start at +0; lane l takes elements l, l + 32, l + 64, l + 96 of the leaf, those that exist
//     per lane, leaves are summed in a left-aligned binary tree
//     the 32 lane totals are folded: lane[l] + lane[l + w] for w = 16, 8, 4, 2, 1
//
// Who does what. A thread owns V lanes, as many elements as 16 bytes hold, of `NODE` consecutive leaves: it takes all
// steps of these lanes, and sums its leaves. OWNERS threads own a leaf's lanes; `GROUPS` such groups lie side by side in
// a warp and share a row, whose leaves they own from left to right. Of a row of several warps each warp owns `pieces`
// times as many consecutive leaves. All these numbers are powers of two but the number of warps, so what a thread, a
// group, a warp owns is a node of the tree. A leaf beyond the row is a node of -0, which changes no sum: the right
// sibling that a left-aligned tree does not have.
#pragma once

#include "element.cuh"

namespace isonorm {

constexpr int STEPS = LEAF / LANES;
constexpr int WARP = 32;
constexpr unsigned ALL = 0xFFFFFFFFu;
// A tree has 2^DEPTH leaves at most, or pieces, or whatever is counted.
constexpr int DEPTH = 32;

// The shape of a thread's work. LONG: rows of several pieces, which are not kept in registers.
template <class X, int NODE_, int GROUPS_, bool LONG_> struct Shape {
    using T = X;
    using C = Compute<X>;
    static constexpr int V = 16 / int(sizeof(X));
    static constexpr int OWNERS = LANES / V;
    static constexpr int NODE = NODE_;
    static constexpr int GROUPS = GROUPS_;
    static constexpr bool LONG = LONG_;
    // Threads of a warp that share a row, and lanes that are left to each when its groups' nodes are summed.
    static constexpr int TEAM = OWNERS * GROUPS;
    static constexpr int LEFT = V / GROUPS;
    static_assert(TEAM <= WARP && WARP / OWNERS == V, "groups of a warp");
};

// Where a thread stands.
template <class S> struct Team {
    int owner;  // whose lanes begin at owner * V
    int group;  // in the warp
    int warp;   // of the row
    int warps;  // of the row
    int row;    // of the block's rows
    i64 pieces; // of a warp

    __device__ Team(int warps, i64 pieces) : warps(warps), pieces(pieces) {
        const int member = int(threadIdx.x) % S::TEAM;
        owner = member % S::OWNERS;
        group = member / S::OWNERS;
        warp = warps > 1 ? int(threadIdx.x) / WARP : 0;
        row = warps > 1 ? 0 : int(threadIdx.x) / S::TEAM;
    }

    // The first leaf of a warp's piece, and the thread's own there.
    __device__ i64 piece_leaf(i64 piece) const { return (warp * pieces + piece) * (S::GROUPS * S::NODE); }
    __device__ i64 leaf(i64 piece) const { return piece_leaf(piece) + group * S::NODE; }

    // The first element of the thread's first vector; step s of leaf k lies `offset(k, s)` further.
    __device__ i64 at(i64 piece) const { return leaf(piece) * LEAF + owner * S::V; }
    __device__ static constexpr int offset(int k, int s) { return k * LEAF + s * LANES; }

    // How many elements of a row of `len` lie from there on, as far as it matters: a small number for many comparisons.
    __device__ int rest(i64 piece, i64 len) const {
        const i64 rest = len - at(piece);
        return rest > S::NODE * LEAF ? S::NODE * LEAF : (rest < -LEAF ? -LEAF : int(rest));
    }
    // Whether the row reaches into the thread's leaf k, whoever owns the elements.
    __device__ bool has_leaf(int rest, int k) const { return rest + owner * S::V > k * LEAF; }
};

// How many of a vector's elements exist where `rest` do from its first one on.
template <int V> __device__ __forceinline__ int count_of(int rest) { return rest >= V ? V : (rest > 0 ? rest : 0); }

// Where the warps of a row meet. Two buffers, so that one barrier is enough: who writes the first again has passed the
// barrier of the second, after everyone read the first.
template <class C> struct Exchange {
    C (*buffers)[MAX_WARPS][LANES];
    int turn = 0;

    __device__ explicit Exchange(C (*buffers)[MAX_WARPS][LANES]) : buffers(buffers) {}

    // Each thread's value to all warps: [warp][thread].
    __device__ C (*share(int warp, C value))[LANES] {
        C(*buffer)[LANES] = buffers[turn];
        turn ^= 1;
        buffer[warp][int(threadIdx.x) % WARP] = value;
        __syncthreads();
        return buffer;
    }
};

// The tree over `COUNT` nodes side by side.
template <int COUNT, class C> __device__ __forceinline__ C tree(const C* nodes) {
    if constexpr (COUNT == 1) {
        return nodes[0];
    } else {
        return add(tree<COUNT / 2>(nodes), tree<COUNT / 2>(nodes + COUNT / 2));
    }
}

// The node of the thread's leaves k .. k + COUNT - 1, N sums at once.
template <class S, int N, int COUNT, class Step>
__device__ __forceinline__ void node(const Team<S>& team, int k, int rest, const Step& step,
                                     typename S::C (&sums)[S::V][N]) {
    using C = typename S::C;
    if constexpr (COUNT > 1) {
        C right[S::V][N];
        node<S, N, COUNT / 2>(team, k, rest, step, sums);
        node<S, N, COUNT / 2>(team, k + COUNT / 2, rest, step, right);
#pragma unroll
        for (int e = 0; e < S::V; ++e) {
#pragma unroll
            for (int j = 0; j < N; ++j) sums[e][j] = add(sums[e][j], right[e][j]);
        }
    } else {
        const C start = team.has_leaf(rest, k) ? C(0) : -C(0);
#pragma unroll
        for (int e = 0; e < S::V; ++e) {
#pragma unroll
            for (int j = 0; j < N; ++j) sums[e][j] = start;
        }
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const int count = count_of<S::V>(rest - team.offset(k, s));
            step(k, s, count, sums);
        }
    }
}

// Sums the nodes of a warp's groups. Each level halves what a thread holds: of the lanes of two neighbours the left one
// keeps the lower half. Afterwards `lanes[0..LEFT]` are the thread's.
template <class S, int WIDTH, int HELD, class C> __device__ __forceinline__ void join(C (&lanes)[S::V], int group) {
    if constexpr (WIDTH < S::GROUPS) {
        const bool is_right = group & WIDTH;
#pragma unroll
        for (int i = 0; i < HELD / 2; ++i) {
            const C kept = is_right ? lanes[HELD / 2 + i] : lanes[i];
            const C sent = is_right ? lanes[i] : lanes[HELD / 2 + i];
            lanes[i] = add(kept, __shfl_xor_sync(ALL, sent, S::OWNERS * WIDTH));
        }
        join<S, WIDTH * 2, HELD / 2>(lanes, group);
    }
}

// The 32 lanes to one number, which all threads of the row get. A lane's number is, from its highest bit on: owner,
// groups from the lowest bit on (see `join`), place in the thread.
template <class S, class C> __device__ __forceinline__ C fold(C (&lanes)[S::LEFT]) {
#pragma unroll
    for (int distance = S::OWNERS / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int i = 0; i < S::LEFT; ++i) lanes[i] = add(lanes[i], __shfl_xor_sync(ALL, lanes[i], distance));
    }
#pragma unroll
    for (int group = 1; group < S::GROUPS; group *= 2) {
#pragma unroll
        for (int i = 0; i < S::LEFT; ++i) lanes[i] = add(lanes[i], __shfl_xor_sync(ALL, lanes[i], S::OWNERS * group));
    }
#pragma unroll
    for (int half = S::LEFT / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) lanes[i] = add(lanes[i], lanes[i + half]);
    }
    return lanes[0];
}

// The finished nodes of a left-aligned tree, N sums at once: a binary counter.
template <class C, int N> struct Counter {
    C nodes[DEPTH][N];
    int held = 0;
    i64 count = 0;

    __device__ void push(C (&node)[N]) {
        for (i64 carry = count; carry & 1; carry >>= 1) merge(node);
        for (int j = 0; j < N; ++j) nodes[held][j] = node[j];
        ++held;
        ++count;
    }
    // `node` is the newest, which is no longer held.
    __device__ void finish(C (&node)[N]) {
        for (int j = 0; j < N; ++j) node[j] = held > 0 ? nodes[held - 1][j] : -C(0);
        for (--held; held > 0;) merge(node);
    }

  private:
    __device__ void merge(C (&node)[N]) {
        --held;
        for (int j = 0; j < N; ++j) node[j] = add(nodes[held][j], node[j]);
    }
};

// Calls `visit(e)` for the elements of a vector that exist: an absent one is a step not taken.
template <int V, class Visit> __device__ __forceinline__ void each_element(int count, const Visit& visit) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
        if (e < count) visit(e);
    }
}

// N sums over the first `len` elements of the thread's row. `load(piece)` brings a piece, `step(k, s, count, sums)` adds
// the vector of step s of the thread's leaf k to the sums of its lanes. All threads of the block take part.
template <class S, int N, class Load, class Step>
__device__ __forceinline__ void reduce(const Team<S>& team, Exchange<typename S::C>& exchange, i64 len, const Load& load,
                                       const Step& step, typename S::C (&totals)[N]) {
    using C = typename S::C;
    C lanes[N][S::V];
    const auto piece_lanes = [&](i64 piece) {
        C sums[S::V][N];
        node<S, N, S::NODE>(team, 0, team.rest(piece, len), step, sums);
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
            for (int e = 0; e < S::V; ++e) lanes[j][e] = sums[e][j];
            join<S, 1, S::V>(lanes[j], team.group);
        }
    };
    if constexpr (S::LONG) {
        static_assert(S::LEFT == 1, "rows of several pieces take whole warps");
        Counter<C, N> pieces;
        C sum[N];
        for (i64 piece = 0; piece < team.pieces && team.piece_leaf(piece) * LEAF < len; ++piece) {
            load(piece);
            piece_lanes(piece);
            for (int j = 0; j < N; ++j) sum[j] = lanes[j][0];
            pieces.push(sum);
        }
        pieces.finish(sum);
        for (int j = 0; j < N; ++j) lanes[j][0] = sum[j];
    } else {
        load(0);
        piece_lanes(0);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
        if (team.warps > 1) {
            const C(*nodes)[LANES] = exchange.share(team.warp, lanes[j][0]);
            const int thread = int(threadIdx.x) % WARP;
            C node[MAX_WARPS];
#pragma unroll
            for (int w = 0; w < MAX_WARPS; ++w) node[w] = w < team.warps ? nodes[w][thread] : -C(0);
            lanes[j][0] = tree<MAX_WARPS>(node);
        }
        C left[S::LEFT];
#pragma unroll
        for (int i = 0; i < S::LEFT; ++i) left[i] = lanes[j][i];
        totals[j] = fold<S>(left);
    }
}

// The larger magnitude; NaN where one is.
template <class C> __device__ __forceinline__ C larger(C a, C b) { return b > a || b != b ? b : a; }

// The largest magnitude of all threads of a row, each of which brings its own.
template <class S> __device__ typename S::C largest(const Team<S>& team, Exchange<typename S::C>& exchange,
                                                    typename S::C own) {
    using C = typename S::C;
#pragma unroll
    for (int distance = 1; distance < S::TEAM; distance *= 2) {
        own = larger(own, __shfl_xor_sync(ALL, own, distance));
    }
    if (team.warps > 1) {
        const C(*all)[LANES] = exchange.share(team.warp, own);
        for (int w = 0; w < team.warps; ++w) own = larger(own, all[w][0]);
    }
    return own;
}

} // namespace isonorm
