// The sums of units (`units.cuh`) where the kernel of dx does not have rows in registers. A thread sums V columns of
// one unit.
#pragma once

#include "units.cuh"

namespace isonorm {

struct Parameters {
    Rows rows;
    Tensor x, dy;
    const void* stats; // of each row
    Scratch scratch;
};

// S has x's storage type, D is dy's.
template <class Norm, class S, class D> __device__ __forceinline__ void parameters(const Parameters& args) {
    using C = typename S::C;
    constexpr int V = S::V;
    const Rows& rows = args.rows;
    const i64 vectors = (rows.hidden + V - 1) / V;
    const i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    const i64 unit = thread / vectors, at = thread % vectors * V;
    const i64 first = unit * args.scratch.rows;
    if (first >= rows.rows) return;
    const i64 end = min_of(first + args.scratch.rows, rows.rows);
    const int count = int(min_of(V, rows.hidden - at));
    C* slots = static_cast<C*>(args.scratch.nodes) + unit * args.scratch.slots * 2 * rows.hidden + at;
    for (i64 leaf = first; leaf < end; leaf += BATCH_LEAF) {
        const i64 leaf_end = leaf + BATCH_LEAF < end ? leaf + BATCH_LEAF : end;
        C dweight[V], dbias[V];
#pragma unroll
        for (int e = 0; e < V; ++e) dweight[e] = dbias[e] = C(0);
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
                dweight[e] = fused(dy[e], x_hat, dweight[e]);
                dbias[e] = add(dbias[e], dy[e]);
            }
        }
        const unsigned index = unsigned((leaf - first) / BATCH_LEAF);
        push_leaf<S>(slots, 2 * rows.hidden, index, leaf_end == end, count, dweight);
        push_leaf<S>(slots + rows.hidden, 2 * rows.hidden, index, leaf_end == end, count, dbias);
    }
}

} // namespace isonorm
