// GroupNorm, and InstanceNorm, whose groups are single channels: a group of a sample's channels is a row of LayerNorm,
// with weight and bias by channel. As forward.cuh and backward.cuh.
#pragma once

#include "layer_norm.cuh"
#include "planes.cuh"

namespace isonorm {

// Row r is group r % groups of sample r / groups: `per` channels of `spatial` positions, fewer than 2^31 elements.
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

// A team's row, or the last one where it has none.
struct GroupRow {
    i64 row;
    i64 sample;
    i64 channel; // the first

    __device__ GroupRow(const Groups& groups, i64 wanted) : row(row_of(groups.rows, wanted)) {
        sample = row / groups.groups;
        channel = row % groups.groups * groups.per;
    }
    __device__ i64 start(const Planes& tensor) const { return sample * tensor.sample + channel * tensor.channel; }
};

// S has x's storage type, Y is y's.
template <class S, class Y> __device__ __forceinline__ void forward_groups(const GroupForward& args) {
    using C = typename S::C;
    __shared__ Shared<typename Exchange<S>::Buffers> buffers;
    Exchange<S> exchange(buffers);
    const Groups& groups = args.groups;
    const Rows& rows = groups.rows;
    const i64 hidden = rows.hidden;
    const int spatial = int(groups.spatial);
    const Sharing& sharing = rows.sharing;
    const Team<S> team(sharing);
    for (i64 first = team.place() * sharing.rows_per_block; first < rows.rows;
         first += team.places() * sharing.rows_per_block) {
        const GroupRow row(groups, first + team.row);
        PlanePiece<S, typename S::T> x;
        if (!S::IS_LONG) x.read(team, 0, hidden, args.x, row.start(args.x), spatial);
        const auto again = [&](i64 piece) { x.again(team, piece, hidden, args.x, row.start(args.x), spatial); };
        const auto element = [&](int k, int s, int e) { return x.get(k, s, e); };
        const Stats<C> stats = measure<LayerNorm, S>(team, exchange, rows, hidden, again, element);
        if (row.row != first + team.row) continue;
        if (args.stats && team.is_first()) static_cast<Stats<C>*>(args.stats)[row.row] = stats;
        if (args.y.dtype == NONE) continue;
        team.each_piece(hidden, [&](i64 piece) {
            again(piece);
            each_vector(team, piece, hidden, [&](int k, int s, i64 at, int count) {
                const Span<S::V> span(int(at), count, spatial);
                C w[S::V], b[S::V];
                load_weight(args.weight, C(rows.weight_offset), row.channel, span, w);
                load_param(args.bias, row.channel, span, -C(0), b); // -0: as if it were not added
#pragma unroll
                for (int e = 0; e < S::V; ++e) w[e] = fused(LayerNorm::x_hat(x.get(k, s, e), stats), w[e], b[e]);
                write<Y, S::IS_WHOLE>(args.y, row.start(args.y), span, w);
            });
        });
    }
}

// dx. S has x's storage type, D is dy's, O dx's.
template <class S, class D, class O> __device__ __forceinline__ void backward_groups(const GroupBackward& args) {
    using C = typename S::C;
    __shared__ Shared<typename Exchange<S>::Buffers> buffers;
    Exchange<S> exchange(buffers);
    const Groups& groups = args.groups;
    const Rows& rows = groups.rows;
    const i64 hidden = rows.hidden;
    const int spatial = int(groups.spatial);
    const Sharing& sharing = rows.sharing;
    const Team<S> team(sharing);
    const Eps<C> eps{C(rows.eps), rows.eps_outside != 0};
    const C n = C(hidden);
    for (i64 first = team.place() * sharing.rows_per_block; first < rows.rows;
         first += team.places() * sharing.rows_per_block) {
        const GroupRow row(groups, first + team.row);
        PlanePiece<S, typename S::T> x;
        PlanePiece<S, D> dy;
        if (!S::IS_LONG) {
            x.read(team, 0, hidden, args.x, row.start(args.x), spatial);
            dy.read(team, 0, hidden, args.dy, row.start(args.dy), spatial);
        }
        const auto x_again = [&](i64 piece) { x.again(team, piece, hidden, args.x, row.start(args.x), spatial); };
        const auto again = [&](i64 piece) {
            x_again(piece);
            dy.again(team, piece, hidden, args.dy, row.start(args.dy), spatial);
        };
        // dy * weight
        const auto gradients = [&](int k, int s, const Span<S::V>& span, C(&g)[S::V]) {
            load_weight(args.weight, C(rows.weight_offset), row.channel, span, g);
#pragma unroll
            for (int e = 0; e < S::V; ++e) g[e] = mul(dy.get(k, s, e), g[e]);
        };
        Stats<C> stats;
        if (args.known) {
            stats = static_cast<const Stats<C>*>(args.known)[row.row];
        } else {
            const auto element = [&](int k, int s, int e) { return x.get(k, s, e); };
            stats = measure<LayerNorm, S>(team, exchange, rows, hidden, x_again, element);
        }
        C sums[2];
        int start = 0;
        const auto next = [&](i64 piece) {
            again(piece);
            start = int(team.at(piece));
        };
        reduce<S, 2>(team, exchange, hidden, next, [&](int k, int s, int count, C(&lanes)[S::V][2]) {
            C g[S::V];
            gradients(k, s, Span<S::V>(start + team.offset(k, s), count, spatial), g);
            each_element<S::V>(count, [&](int e) {
                lanes[e][0] = add(lanes[e][0], g[e]);
                lanes[e][1] = fused(g[e], LayerNorm::x_hat(x.get(k, s, e), stats), lanes[e][1]);
            });
        }, sums);
        const C c1 = divide(sums[0], n), c2 = eps.times_q(divide(sums[1], n), stats);
        if (row.row != first + team.row) continue;
        if (args.stats && team.is_first()) static_cast<Stats<C>*>(args.stats)[row.row] = stats;
        team.each_piece(hidden, [&](i64 piece) {
            again(piece);
            each_vector(team, piece, hidden, [&](int k, int s, i64 at, int count) {
                const Span<S::V> span(int(at), count, spatial);
                C g[S::V];
                gradients(k, s, span, g);
#pragma unroll
                for (int e = 0; e < S::V; ++e) {
                    const C d = fused(-LayerNorm::x_hat(x.get(k, s, e), stats), c2, sub(g[e], c1));
                    g[e] = rounded<typename S::T>(mul(mul(d, stats.inv), stats.scale));
                }
                write<O, S::IS_WHOLE>(args.dx, row.start(args.dx), span, g);
            });
        });
    }
}

} // namespace isonorm
