// The forward pass over rows: each row is read once, kept in registers, and written once. Long rows are read again.
//
//     r      = x + residual                where there is one
//     stats  = measure(row)                the norm's sums; a second time, scaled, under the range rule
//     y      = fma(x_hat, weight, bias)
#pragma once

#include "rows.cuh"

namespace isonorm {

struct Forward {
    Rows rows;
    Tensor x, residual, r, weight, bias, y;
    void* stats; // of each row mean, delta, var, inv, scale; or null
};

// r = x + residual: of the thread's piece, rounded to r's type and kept.
template <class S, class Z>
__device__ __forceinline__ void add_residual(const Team<S>& team, i64 piece, const Forward& args, i64 row, i64 len,
                                             Piece<S>& r) {
    using C = typename S::C;
    const i64 x_row = row_start(args.rows, args.x, row), residual_row = row_start(args.rows, args.residual, row);
    typename S::T* kept = static_cast<typename S::T*>(args.r.data) + row_start(args.rows, args.r, row);
    each_vector(team, piece, len, [&](int k, int s, i64 at, int count) {
        C x[S::V], residual[S::V];
        load<Z, S::V>(args.x, x_row + at, count, x);
        load<Z, S::V>(args.residual, residual_row + at, count, residual);
#pragma unroll
        for (int e = 0; e < S::V; ++e) x[e] = add(x[e], residual[e]);
#pragma unroll
        for (int w = 0; w < Packed<typename S::T, S::V>::WORDS; ++w) r.vectors[k][s].words[w] = 0;
        r.vectors[k][s].narrow(x);
        write<typename S::T, S::V>(kept + at, count, x);
    });
}

// Norm's forward pass. S has the storage type of what is normalized; P is that of weight and bias, Y that of y, Z that of
// x and the residual, or void.
template <class Norm, class S, class P, class Y, class Z> __device__ __forceinline__ void forward(const Forward& args) {
    using C = typename S::C;
    using X = typename S::T;
    constexpr bool IS_SUM = !Same<Z, void>::VALUE;
    __shared__ C buffers[2][MAX_WARPS][LANES];
    Exchange<C> exchange(buffers);
    const Rows& rows = args.rows;
    const Team<S> team(rows.warps, rows.pieces);
    for (i64 first = i64(blockIdx.x) * rows.rows_per_block; first < rows.rows;
         first += i64(gridDim.x) * rows.rows_per_block) {
        const i64 row = first + team.row;
        const bool exists = row < rows.rows;
        const i64 len = exists ? rows.hidden : 0;
        const Tensor& input = IS_SUM ? args.r : args.x;
        const X* from = static_cast<const X*>(input.data) + (exists ? row_start(rows, input, row) : 0);
        Piece<S> x;
        if constexpr (IS_SUM) {
            for (i64 piece = 0; piece < team.pieces; ++piece) add_residual<S, Z>(team, piece, args, row, len, x);
        } else if (!S::LONG) {
            x.read(team, 0, from, len);
        }
        const auto again = [&](i64 piece) {
            if (S::LONG) x.read(team, piece, from, len);
        };
        const i64 measured = exists ? rows.measured : 0;
        const auto element = [&](int k, int s, int e) { return x.get(k, s, e); };
        const Stats<C> stats = measure<Norm, S>(team, exchange, rows, measured, again, element);
        if (!exists) continue;
        if (args.stats && team.owner == 0 && team.group == 0 && team.warp == 0) {
            static_cast<Stats<C>*>(args.stats)[row] = stats;
        }
        const i64 y_row = row_start(rows, args.y, row);
        for (i64 piece = 0; piece < team.pieces; ++piece) {
            again(piece);
            each_vector(team, piece, len, [&](int k, int s, i64 at, int count) {
                C w[S::V], b[S::V];
                load_weight<S, P>(rows, args.weight, at, count, w);
                if (args.bias.dtype != NONE) {
                    load<P, S::V>(args.bias, at, count, b);
                } else {
#pragma unroll
                    for (int e = 0; e < S::V; ++e) b[e] = -C(0); // as if it were not added
                }
#pragma unroll
                for (int e = 0; e < S::V; ++e) {
                    C x_hat = Norm::x_hat(x.get(k, s, e), stats);
                    if (rows.llama) x_hat = rounded<X>(x_hat);
                    w[e] = fused(x_hat, w[e], b[e]);
                }
                store<Y, S::V>(args.y, y_row + at, count, w);
            });
        }
    }
}

} // namespace isonorm
