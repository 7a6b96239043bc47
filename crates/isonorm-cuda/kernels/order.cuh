// The order of every sum along a row, on a GPU: as order.rs, which gives LANES and LEAF (-D). `spec/order.md` is its
// prose. side_by_side.cuh has it once more, for threads that own one lane of several rows.
//
//     for each leaf of 128 elements:
//         32 lanes start at +0; lane l takes elements l, l + 32, l + 64, l + 96 of the leaf, those that exist
//     per lane, leaves are summed in a left-aligned binary tree
//     the 32 lane totals are folded: lane[l] + lane[l + w] for w = 16, 8, 4, 2, 1
//
// Who does what. A thread owns V lanes, as many elements as 16 bytes hold, of `NODE` consecutive leaves: it takes all
// steps of these lanes, and sums its leaves. OWNERS threads own a leaf's lanes; `GROUPS` such groups lie side by side
// in a warp and share a row, whose leaves they own from left to right. Of a row of several warps each warp owns
// `pieces` times as many consecutive leaves. Very long rows are shared by the blocks of a cluster. All these numbers
// are powers of two but those of warps and blocks, so what a thread, a group, a warp owns is a node of the tree, and
// where there are several blocks what a block owns. A leaf beyond the row is a node of -0, which changes no sum: the
// right sibling that a left-aligned tree does not have.
#pragma once

#include "element.cuh"

namespace isonorm {

constexpr int STEPS = LEAF / LANES;
constexpr int WARP = 32;
constexpr unsigned ALL = 0xFFFFFFFFu;

// The shape of a thread's work. WARPS, BLOCKS: those of a row, rounded up to powers of two; a block of several that
// share a row has exactly WARPS. IS_LONG: rows of several pieces, which are not kept in registers. IS_WHOLE: whatever a
// thread owns exists, and is aligned to 16 bytes in all tensors.
template <class X, int NODE_, int GROUPS_, int WARPS_, int BLOCKS_, bool IS_LONG_, bool IS_WHOLE_> struct Shape {
    using T = X;
    using C = Compute<X>;
    static constexpr int V = 16 / int(sizeof(X));
    static constexpr int OWNERS = LANES / V;
    static constexpr int NODE = NODE_;
    static constexpr int GROUPS = GROUPS_;
    static constexpr int WARPS = WARPS_;
    static constexpr int BLOCKS = BLOCKS_;
    static constexpr bool IS_LONG = IS_LONG_;
    static constexpr bool IS_WHOLE = IS_WHOLE_;
    // Threads of a warp that share a row, and lanes that are left to each when its groups' nodes are summed.
    static constexpr int TEAM = OWNERS * GROUPS;
    static constexpr int LEFT = V / GROUPS;
    static_assert(TEAM <= WARP && WARP / OWNERS == V, "groups of a warp");
    static_assert(LEFT == 1 || (WARPS == 1 && !IS_LONG), "rows of several warps or pieces take whole warps");
    static_assert(BLOCKS == 1 || (WARPS > 1 && !IS_LONG), "several blocks keep the row");
};

// Who shares a row.
struct Sharing {
    i64 pieces;         // of a warp: 1 but for long rows
    int warps;          // of the row's part in a block
    int blocks;         // of a row
    int rows_per_block; // more than 1 where a row takes no more than a warp
};

// Where a thread stands.
template <class S> struct Team {
    int owner;  // whose lanes begin at owner * V
    int group;  // in the warp
    int warp;   // of the block's part of the row
    int warps;  // of that part
    int block;  // of the row
    int blocks; // of the row
    int row;    // of the block's rows
    i64 pieces; // of a warp

    __device__ explicit Team(const Sharing& sharing)
        : warps(sharing.warps), blocks(sharing.blocks), pieces(sharing.pieces) {
        const int member = int(threadIdx.x % S::TEAM);
        owner = member % S::OWNERS;
        group = member / S::OWNERS;
        warp = S::WARPS > 1 ? int(threadIdx.x / WARP) : 0;
        block = S::BLOCKS > 1 ? int(blockIdx.x % unsigned(blocks)) : 0;
        row = S::WARPS > 1 ? 0 : int(threadIdx.x / S::TEAM);
    }

    // The block's rows among the grid's, and how many blocks' rows there are.
    __device__ i64 place() const { return S::BLOCKS > 1 ? blockIdx.x / unsigned(blocks) : blockIdx.x; }
    __device__ i64 places() const { return S::BLOCKS > 1 ? gridDim.x / unsigned(blocks) : gridDim.x; }

    // Whether it is the thread that speaks for the row.
    __device__ bool is_first() const { return owner == 0 && group == 0 && warp == 0 && block == 0; }

    // The first leaf of a warp's piece, and the thread's own there.
    __device__ i64 piece_leaf(i64 piece) const {
        const int part = S::BLOCKS > 1 ? block * warps + warp : warp;
        return (S::IS_LONG ? part * pieces + piece : i64(part)) * (S::GROUPS * S::NODE);
    }
    __device__ i64 leaf(i64 piece) const { return piece_leaf(piece) + group * S::NODE; }

    // The first element of the thread's first vector; step s of leaf k lies `offset(k, s)` further.
    __device__ i64 at(i64 piece) const { return leaf(piece) * LEAF + owner * S::V; }
    __device__ static constexpr int offset(int k, int s) { return k * LEAF + s * LANES; }

    // How many elements of a row of `len` lie from there on, as far as it matters: a small number for many comparisons.
    __device__ int rest(i64 piece, i64 len) const {
        const i64 rest = len - at(piece);
        return rest > S::NODE * LEAF ? S::NODE * LEAF : (rest < -LEAF ? -LEAF : int(rest));
    }
    // How many elements of the thread's vector there exist.
    __device__ int count(int rest, int k, int s) const {
        const int from_there = rest - offset(k, s);
        return S::IS_WHOLE || from_there >= S::V ? S::V : (from_there > 0 ? from_there : 0);
    }
    // Whether the row reaches into the thread's leaf k, whoever owns the elements.
    __device__ bool has_leaf(int rest, int k) const { return S::IS_WHOLE || rest + owner * S::V > k * LEAF; }

    // Calls `visit(piece)` for the warp's pieces of a row of `len`.
    template <class Visit> __device__ __forceinline__ void each_piece(i64 len, const Visit& visit) const {
        if constexpr (S::IS_LONG) {
#pragma unroll 1
            for (i64 piece = 0; piece < pieces && piece_leaf(piece) * LEAF < len; ++piece) visit(piece);
        } else {
            visit(0);
        }
    }
};

struct Add {
    template <class C> __device__ static C of(C a, C b) { return add(a, b); }
};

// The larger magnitude; NaN where one is.
struct Larger {
    template <class C> __device__ static C of(C a, C b) { return b > a || b != b ? b : a; }
};

// The tree over `COUNT` nodes.
template <class Operation, int COUNT, class C> __device__ __forceinline__ C tree(const C (&nodes)[COUNT]) {
    C sums[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sums[i] = nodes[i];
#pragma unroll
    for (int width = 1; width < COUNT; width *= 2) {
#pragma unroll
        for (int i = 0; i + width < COUNT; i += 2 * width) sums[i] = Operation::of(sums[i], sums[i + width]);
    }
    return sums[0];
}

// Where the warps of a row meet. Two buffers, so that one barrier is enough: who writes the first again has passed the
// barrier of the second, after everyone read the first.
template <class S> struct Exchange {
    using C = typename S::C;
    static constexpr int SUMS = 2;
    struct Buffers {
        C warps[2][SUMS][S::WARPS][LANES];
        C blocks[2][SUMS][S::BLOCKS][LANES];
    };
    Buffers& buffers;
    int turn = 0;

    __device__ explicit Exchange(Shared<Buffers>& shared) : buffers(own(shared)) {
        if constexpr (S::BLOCKS > 1) cluster_barrier(); // all blocks have begun
    }

    // The row's nodes from those of its warps, N at once.
    template <class Operation, int N> __device__ __forceinline__ void combine(const Team<S>& team, C (&values)[N]) {
        static_assert(N <= SUMS, "room in the buffers");
        const int thread = int(threadIdx.x % WARP);
        if constexpr (S::WARPS > 1) {
            C(*nodes)[S::WARPS][LANES] = buffers.warps[turn];
#pragma unroll
            for (int j = 0; j < N; ++j) nodes[j][team.warp][thread] = values[j];
            __syncthreads();
#pragma unroll
            for (int j = 0; j < N; ++j) values[j] = total<Operation>(nodes[j], team.warps, thread);
        }
        if constexpr (S::BLOCKS > 1) {
            C(*nodes)[S::BLOCKS][LANES] = buffers.blocks[turn];
            for (int to = team.warp; to < team.blocks; to += S::WARPS) {
#pragma unroll
                for (int j = 0; j < N; ++j) put(buffers, to, nodes[j][team.block][thread], values[j]);
            }
            cluster_barrier();
#pragma unroll
            for (int j = 0; j < N; ++j) values[j] = total<Operation>(nodes[j], team.blocks, thread);
        }
        turn ^= 1;
    }

  private:
    // The tree over the first `count` nodes.
    template <class Operation, int MOST>
    __device__ static __forceinline__ C total(const C (&nodes)[MOST][LANES], int count, int thread) {
        C all[MOST];
#pragma unroll
        for (int i = 0; i < MOST; ++i) all[i] = i < count ? nodes[i][thread] : -C(0);
        return tree<Operation>(all);
    }
};

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
        for (int s = 0; s < STEPS; ++s) step(k, s, team.count(rest, k, s), sums);
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

// The finished nodes of a left-aligned tree of fewer than 2^DEPTH leaves, N sums at once: a binary counter. Its digits
// have fixed places, so they can be registers.
template <class C, int N, int DEPTH> struct Counter {
    C nodes[DEPTH][N];
    unsigned count = 0;

    __device__ __forceinline__ void push(const C (&leaf)[N]) {
        C node[N];
#pragma unroll
        for (int j = 0; j < N; ++j) node[j] = leaf[j];
        bool is_carried = true;
#pragma unroll
        for (int level = 0; level < DEPTH; ++level) {
            const bool is_held = count >> level & 1;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                if (is_carried && is_held) node[j] = add(nodes[level][j], node[j]);
                if (is_carried && !is_held) nodes[level][j] = node[j];
            }
            is_carried = is_carried && is_held;
        }
        ++count;
    }
    __device__ __forceinline__ void finish(C (&node)[N]) const {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            node[j] = -C(0);
#pragma unroll
            for (int level = 0; level < DEPTH; ++level) {
                if (count >> level & 1) node[j] = add(nodes[level][j], node[j]);
            }
        }
    }
};

// Calls `visit(e)` for the elements of a vector that exist: an absent one is a step not taken.
template <int V, class Visit> __device__ __forceinline__ void each_element(int count, const Visit& visit) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
        if (e < count) visit(e);
    }
}

// Pieces of a warp are fewer than 2^piece_levels: the host sees to it (`most_pieces`).
template <class C> constexpr int piece_levels = sizeof(C) == 8 ? 12 : 16;

// N sums over the first `len` elements of the thread's row. `load(piece)` brings a piece, `step(k, s, count, sums)`
// adds the vector of step s of the thread's leaf k to the sums of its lanes. All threads of the block take part.
template <class S, int N, class Load, class Step>
__device__ __forceinline__ void reduce(const Team<S>& team, Exchange<S>& exchange, i64 len, const Load& load,
                                       const Step& step, typename S::C (&totals)[N]) {
    using C = typename S::C;
    C lanes[N][S::V];
    Counter<C, N, piece_levels<C>> pieces;
    team.each_piece(len, [&](i64 piece) {
        load(piece);
        C sums[S::V][N];
        node<S, N, S::NODE>(team, 0, team.rest(piece, len), step, sums);
        C left[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
            for (int e = 0; e < S::V; ++e) lanes[j][e] = sums[e][j];
            join<S, 1, S::V>(lanes[j], team.group);
            left[j] = lanes[j][0];
        }
        if constexpr (S::IS_LONG) pieces.push(left);
    });
    if constexpr (S::LEFT == 1) {
        C nodes[N];
#pragma unroll
        for (int j = 0; j < N; ++j) nodes[j] = lanes[j][0];
        if constexpr (S::IS_LONG) pieces.finish(nodes);
        exchange.template combine<Add>(team, nodes);
#pragma unroll
        for (int j = 0; j < N; ++j) lanes[j][0] = nodes[j];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
        C left[S::LEFT];
#pragma unroll
        for (int i = 0; i < S::LEFT; ++i) left[i] = lanes[j][i];
        totals[j] = fold<S>(left);
    }
}

// The largest magnitude of all threads of a row, each of which brings its own.
template <class S> __device__ typename S::C largest(const Team<S>& team, Exchange<S>& exchange, typename S::C own) {
#pragma unroll
    for (int distance = 1; distance < S::TEAM; distance *= 2) {
        own = Larger::of(own, __shfl_xor_sync(ALL, own, distance));
    }
    typename S::C all[1] = {own};
    exchange.template combine<Larger>(team, all);
    return all[0];
}

} // namespace isonorm
