// The gradients of weight and bias, in batch order: leaves of 16 rows, summed in a left-aligned tree.
//
//     dweight[i] = sum over rows of dy * x_hat           dbias[i] = sum over rows of dy
//
// A unit is a power of two of leaves, so a node of the tree. Whoever sums its rows goes from the first to the last, and
// keeps the tree's unfinished part in scratch memory; `finish` sums the units. No bit depends on the grid.
#pragma once

#include "rows.cuh"

namespace isonorm {

// Where units are summed: of each unit `slots` slots of 2 * hidden values of the compute type, the sums of dy * x_hat,
// then those of dy. In the end slot 0 has the unit's.
struct Scratch {
    void* nodes;
    i64 rows; // of a unit
    i64 slots;
};

// Leaf `index` of a unit is finished: the thread's V columns of one sum. `slots` are a binary counter: slot l has a
// node of 2^l leaves where bit l of the index is set. After the last leaf all of them are summed.
template <class S>
__device__ __forceinline__ void push_leaf(typename S::C* slots, i64 stride, unsigned index, bool is_last, int count,
                                          typename S::C (&node)[S::V]) {
    using C = typename S::C;
    int level = 0;
#pragma unroll 1
    for (; index >> level; ++level) {
        if (index >> level & 1) {
            const Packed<C, S::V> left = read<C, S::V, S::IS_WHOLE>(slots + level * stride, count);
#pragma unroll
            for (int e = 0; e < S::V; ++e) node[e] = add(left.get(e), node[e]);
        } else if (!is_last) {
            break;
        }
    }
    write<C, S::V, S::IS_WHOLE>(slots + (is_last ? 0 : level) * stride, count, node);
}

// The tree over `count` nodes, less than 2^12, that lie `stride` apart.
template <class C> __device__ __forceinline__ C sum_nodes(const C* nodes, i64 stride, i64 count) {
    constexpr int WIDTH = 16;
    Counter<C, 1, 8> wide;
#pragma unroll 1
    for (i64 first = 0; first < count; first += WIDTH) {
        C side_by_side[WIDTH];
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) side_by_side[i] = first + i < count ? nodes[(first + i) * stride] : -C(0);
        const C node[1] = {tree<Add>(side_by_side)};
        wide.push(node);
    }
    C sum[1];
    wide.finish(sum);
    return sum[0];
}

// A block's units are a node, too: their sum takes the place of the first one's.
template <class C>
__device__ __forceinline__ void sum_units_of_block(const Scratch& scratch, const Rows& rows, i64 first_unit) {
    __syncthreads();
    const i64 units = (rows.rows + scratch.rows - 1) / scratch.rows, width = 2 * rows.hidden;
    const i64 stride = scratch.slots * width;
    C* nodes = static_cast<C*>(scratch.nodes) + first_unit * stride;
    for (i64 at = threadIdx.x; at < width; at += blockDim.x) {
        nodes[at] = sum_nodes(nodes + at, stride, min_of(units - first_unit, rows.sharing.rows_per_block));
    }
}

struct Finish {
    const void* nodes;
    i64 units;
    i64 stride; // values from a unit to the next
    i64 hidden;
    Tensor dweight, dbias;
};

// A block of PARTS warps sums 32 columns, of dweight or of dbias: each warp some consecutive units, a power of two, so
// a node again. No rows: +0.
template <class C, int PARTS> __device__ __forceinline__ void finish(const Finish& args) {
    __shared__ C parts[PARTS][WARP];
    const int part = int(threadIdx.x / WARP), lane = int(threadIdx.x % WARP);
    const i64 at = i64(blockIdx.x) * WARP + lane, column = at % args.hidden;
    const Tensor& to = at < args.hidden ? args.dweight : args.dbias;
    const bool is_wanted = at < 2 * args.hidden && to.dtype != NONE;
    i64 span = 1;
    while (span * PARTS < args.units) span *= 2;
    const i64 rest = args.units - part * span;
    const C* nodes = static_cast<const C*>(args.nodes) + part * span * args.stride + at;
    parts[part][lane] = sum_nodes(nodes, args.stride, is_wanted ? min_of(rest, span) : 0);
    __syncthreads();
    if (part > 0 || !is_wanted) return;
    C all[PARTS];
#pragma unroll
    for (int i = 0; i < PARTS; ++i) all[i] = parts[i][lane];
    write_any(to.data, to.dtype, column, args.units > 0 ? tree<Add>(all) : C(0));
}

} // namespace isonorm
