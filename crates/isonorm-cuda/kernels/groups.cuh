// GroupNorm, and InstanceNorm, whose groups are single channels: a group of a sample's channels is a row of LayerNorm,
// with weight and bias by channel. As forward.cuh and backward.cuh.
#pragma once

#include "layer_norm.cuh"
#include "planes.cuh"

namespace isonorm {

// Row r is group r % groups of sample r / groups: `per` channels of `spatial` positions.
struct Groups {
    Rows rows;
    i64 groups;
    i64 per;
    i64 spatial;
};

struct GroupForward {
    Groups groups;
    Planes x, y; // where there is no y, only statistics are wanted
    Tensor weight, bias;
    void* stats; // of each row mean, delta, var, inv, scale; or null
};

struct GroupBackward {
    Groups groups;
    Planes x, dy, dx;
    Tensor weight;
    const void* known; // statistics that forward saved, or null
    void* stats;       // where they go, or null
};

// A thread's place among groups: its row, if there is one.
struct GroupRow {
    i64 row;
    i64 len; // 0: there is none
    i64 sample;
    i64 channel; // the first

    __device__ GroupRow(const Groups& groups, i64 row) : row(row) {
        len = row < groups.rows.rows ? groups.rows.hidden : 0;
        sample = row / groups.groups;
        channel = row % groups.groups * groups.per;
    }
    __device__ i64 start(const Planes& tensor) const { return sample * tensor.sample + channel * tensor.channel; }
};

template <class S> __device__ bool is_first_of_row(const Team<S>& team) {
    return team.owner == 0 && team.group == 0 && team.warp == 0;
}

// S has x's storage type, Y is y's.
template <class S, class Y> __device__ __forceinline__ void forward_groups(const GroupForward& args) {
    using C = typename S::C;
    __shared__ C buffers[2][MAX_WARPS][LANES];
    Exchange<C> exchange(buffers);
    const Groups& groups = args.groups;
    const Rows& rows = groups.rows;
    const Team<S> team(rows.warps, rows.pieces);
    for (i64 first = i64(blockIdx.x) * rows.rows_per_block; first < rows.rows;
         first += i64(gridDim.x) * rows.rows_per_block) {
        const GroupRow row(groups, first + team.row);
        PlanePiece<S, typename S::T> x;
        if (!S::LONG) x.read(team, 0, row.len, args.x, row.start(args.x), groups.spatial);
        const auto again = [&](i64 piece) {
            if (S::LONG) x.read(team, piece, row.len, args.x, row.start(args.x), groups.spatial);
        };
        const auto element = [&](int k, int s, int e) { return x.get(k, s, e); };
        const Stats<C> stats = measure<LayerNorm, S>(team, exchange, rows, row.len, again, element);
        if (row.len == 0) continue;
        if (args.stats && is_first_of_row(team)) static_cast<Stats<C>*>(args.stats)[row.row] = stats;
        for (i64 piece = 0; piece < team.pieces && args.y.dtype != NONE; ++piece) {
            again(piece);
            each_vector(team, piece, row.len, [&](int k, int s, i64 at, int count) {
                const Span<S::V> span(at, count, groups.spatial);
                C w[S::V], b[S::V];
                load_weight(args.weight, C(rows.weight_offset), row.channel, span, w);
                load_param(args.bias, row.channel, span, -C(0), b); // -0: as if it were not added
#pragma unroll
                for (int e = 0; e < S::V; ++e) w[e] = fused(LayerNorm::x_hat(x.get(k, s, e), stats), w[e], b[e]);
                write<Y>(args.y, row.start(args.y), span, w);
            });
        }
    }
}

// dx. S has x's storage type, D is dy's, O dx's.
template <class S, class D, class O> __device__ __forceinline__ void backward_groups(const GroupBackward& args) {
    using C = typename S::C;
    __shared__ C buffers[2][MAX_WARPS][LANES];
    Exchange<C> exchange(buffers);
    const Groups& groups = args.groups;
    const Rows& rows = groups.rows;
    const Team<S> team(rows.warps, rows.pieces);
    const Eps<C> eps{C(rows.eps), rows.eps_outside != 0};
    const C n = C(rows.hidden);
    for (i64 first = i64(blockIdx.x) * rows.rows_per_block; first < rows.rows;
         first += i64(gridDim.x) * rows.rows_per_block) {
        const GroupRow row(groups, first + team.row);
        PlanePiece<S, typename S::T> x;
        PlanePiece<S, D> dy;
        const auto read_both = [&](i64 piece) {
            x.read(team, piece, row.len, args.x, row.start(args.x), groups.spatial);
            dy.read(team, piece, row.len, args.dy, row.start(args.dy), groups.spatial);
        };
        if (!S::LONG) read_both(0);
        const auto again = [&](i64 piece) {
            if (S::LONG) read_both(piece);
        };
        // dy * weight
        const auto gradients = [&](int k, int s, const Span<S::V>& span, C(&g)[S::V]) {
            load_weight(args.weight, C(rows.weight_offset), row.channel, span, g);
#pragma unroll
            for (int e = 0; e < S::V; ++e) g[e] = mul(dy.get(k, s, e), g[e]);
        };
        Stats<C> stats;
        if (args.known) {
            stats = static_cast<const Stats<C>*>(args.known)[row.len > 0 ? row.row : 0];
        } else {
            const auto element = [&](int k, int s, int e) { return x.get(k, s, e); };
            stats = measure<LayerNorm, S>(team, exchange, rows, row.len, again, element);
        }
        C sums[2];
        i64 start = 0;
        const auto next = [&](i64 piece) {
            again(piece);
            start = team.at(piece);
        };
        reduce<S, 2>(team, exchange, row.len, next, [&](int k, int s, int count, C(&lanes)[S::V][2]) {
            C g[S::V];
            gradients(k, s, Span<S::V>(start + team.offset(k, s), count, groups.spatial), g);
            each_element<S::V>(count, [&](int e) {
                lanes[e][0] = add(lanes[e][0], g[e]);
                lanes[e][1] = fused(g[e], LayerNorm::x_hat(x.get(k, s, e), stats), lanes[e][1]);
            });
        }, sums);
        const C c1 = divide(sums[0], n), c2 = eps.times_q(divide(sums[1], n), stats);
        if (row.len == 0) continue;
        if (args.stats && is_first_of_row(team)) static_cast<Stats<C>*>(args.stats)[row.row] = stats;
        for (i64 piece = 0; piece < team.pieces; ++piece) {
            again(piece);
            each_vector(team, piece, row.len, [&](int k, int s, i64 at, int count) {
                const Span<S::V> span(at, count, groups.spatial);
                C g[S::V];
                gradients(k, s, span, g);
#pragma unroll
                for (int e = 0; e < S::V; ++e) {
                    const C d = fused(-LayerNorm::x_hat(x.get(k, s, e), stats), c2, sub(g[e], c1));
                    g[e] = rounded<typename S::T>(mul(mul(d, stats.inv), stats.scale));
                }
                write<O>(args.dx, row.start(args.dx), span, g);
            });
        }
    }
}

} // namespace isonorm
