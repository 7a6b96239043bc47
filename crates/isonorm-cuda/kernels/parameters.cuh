// The gradients of weight and bias, in batch order: leaves of 16 rows, summed in a left-aligned tree.
//
//     dweight[i] = sum over rows of dy * x_hat           dbias[i] = sum over rows of dy
//
// A unit is a power of two of leaves, so a node of the tree. A thread sums V columns of one unit; `finish` sums the units
// of a column. Both go from the first row to the last, so no bit depends on the grid.
#pragma once

#include "rows.cuh"

namespace isonorm {

struct Parameters {
    Rows rows;
    Tensor x, dy;
    const void* stats; // of each row
    void* nodes;       // of each unit the sums of dy * x_hat, then those of dy
    i64 unit;          // rows
};

struct Finish {
    const void* nodes;
    i64 units;
    i64 hidden;
    Tensor dweight, dbias;
};

// S has x's storage type, D is dy's.
template <class Norm, class S, class D> __device__ __forceinline__ void parameters(const Parameters& args) {
    using C = typename S::C;
    constexpr int V = S::V;
    const Rows& rows = args.rows;
    const i64 vectors = (rows.hidden + V - 1) / V;
    const i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    const i64 unit = thread / vectors, at = thread % vectors * V;
    const i64 first = unit * args.unit;
    if (first >= rows.rows) return;
    const i64 end = first + args.unit < rows.rows ? first + args.unit : rows.rows;
    const int count = int(rows.hidden - at < V ? rows.hidden - at : V);
    Counter<C, 2 * V, 20> leaves;
    C sums[2 * V]; // dy * x_hat, then dy
    for (i64 leaf = first; leaf < end; leaf += BATCH_LEAF) {
        const i64 leaf_end = leaf + BATCH_LEAF < end ? leaf + BATCH_LEAF : end;
#pragma unroll
        for (int e = 0; e < 2 * V; ++e) sums[e] = C(0);
#pragma unroll 4
        for (i64 row = leaf; row < leaf_end; ++row) {
            const Stats<C> stats = static_cast<const Stats<C>*>(args.stats)[row];
            C x[V], dy[V];
            load<typename S::T, V>(args.x, row_start(rows, args.x, row) + at, count, x);
            load<D, V>(args.dy, row_start(rows, args.dy, row) + at, count, dy);
#pragma unroll
            for (int e = 0; e < V; ++e) {
                C x_hat = Norm::x_hat(x[e], stats);
                if (Norm::IS_LLAMA) x_hat = rounded<typename S::T>(x_hat);
                sums[e] = fused(dy[e], x_hat, sums[e]);
                sums[V + e] = add(sums[V + e], dy[e]);
            }
        }
        leaves.push(sums);
    }
    leaves.finish(sums);
    C* nodes = static_cast<C*>(args.nodes) + unit * 2 * rows.hidden + at;
    each_element<V>(count, [&](int e) {
        nodes[e] = sums[e];
        nodes[rows.hidden + e] = sums[V + e];
    });
}

// One column a thread, from its units to the parameters' types. No rows: +0.
template <class C> __device__ __forceinline__ void finish(const Finish& args) {
    const i64 column = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= args.hidden) return;
    const C* nodes = static_cast<const C*>(args.nodes) + column;
    Counter<C, 2, 20> units;
    C sums[2] = {C(0), C(0)};
    for (i64 unit = 0; unit < args.units; ++unit) {
        sums[0] = nodes[unit * 2 * args.hidden];
        sums[1] = nodes[unit * 2 * args.hidden + args.hidden];
        units.push(sums);
    }
    if (args.units > 0) units.finish(sums);
    if (args.dweight.dtype != NONE) write_any(args.dweight.data, args.dweight.dtype, column, sums[0]);
    if (args.dbias.dtype != NONE) write_any(args.dbias.data, args.dbias.dtype, column, sums[1]);
}

} // namespace isonorm
