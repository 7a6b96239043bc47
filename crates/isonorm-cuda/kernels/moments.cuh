// BatchNorm in training: the statistics of each channel, under the range rule, and what follows from them. As
// moments.rs.
#pragma once

#include "channels.cuh"
#include "layer_norm.cuh"
#include "running.cuh"

namespace isonorm {

struct Moments {
    Channels channels;
    Planes x;
    Tensor weight, bias;
    Running running;
    void* stats;  // of each channel mean, delta, var, inv, scale; or null
    void* values; // of y; or null
};

// What follows from a channel's statistics.
template <class C> __device__ void settle(const Moments& args, i64 channel, const Stats<C>& stats) {
    const Channels& channels = args.channels;
    if (args.stats) static_cast<Stats<C>*>(args.stats)[channel] = stats;
    move(args.running, channel, stats, channels.count());
    if (!args.values) return;
    const C weight = weight_of(args.weight, C(channels.weight_offset), channel);
    const Values<C> values{static_cast<C*>(args.values), channels.channels};
    values.put(channel, stats, weight, param_of(args.bias, -C(0), channel));
}

// The largest magnitude of a channel.
template <class S, bool IS_SHARED>
__device__ __forceinline__ typename S::C largest(const Channel<S, IS_SHARED>& channel, const Planes& from) {
    using C = typename S::C;
    PlanePiece<S, typename S::T> x;
    C max = C(0);
    const i64 spatial = channel.channels.spatial;
    channel.each_plane(channel.channels.samples, [&](i64 sample, bool) {
        channel.team.each_piece(spatial, [&](i64 piece) {
            channel.read(x, sample, piece, from);
            each_vector(channel.team, piece, spatial, [&](int k, int s, i64, int count) {
                each_element<S::V>(count, [&](int e) {
                    const C value = x.get(k, s, e);
                    max = Larger::of(max, value < C(0) ? -value : value);
                });
            });
        });
    });
    return channel.largest(max);
}

template <class S, bool IS_SHARED>
__device__ __forceinline__ Stats<typename S::C> measure(const Channel<S, IS_SHARED>& channel, const Planes& from) {
    using C = typename S::C;
    const Eps<C> eps = channel.channels.template rounded_eps<C>();
    PlanePiece<S, typename S::T> x;
    const auto load = [&](i64 sample, i64 piece) { channel.read(x, sample, piece, from); };
    const auto sum = [&](const auto& step, auto& totals) { channel.sums(load, step, totals); };
    Stats<C> stats{};
    stats.scale = C(1);
#pragma unroll 1
    for (bool is_second = false;; is_second = true) {
        const auto scaled = [&](int k, int s, int e) { return mul(x.get(k, s, e), stats.scale); };
        const bool in_range = LayerNorm::moments<S>(sum, C(channel.channels.count()), scaled, stats);
        stats.inv = eps.scaled(stats.scale).inverse_root(stats.var);
        if (is_second || (in_range && !eps.is_small(stats.var))) return stats;
        stats.scale = eps.scale(largest(channel, from));
    }
}

// S has x's storage type.
template <class S, bool IS_SHARED> __device__ __forceinline__ void moments(const Moments& args) {
    using C = typename S::C;
    __shared__ Shared<typename Exchange<S>::Buffers> buffers;
    __shared__ Shared<ChannelMemory<C>> memory;
    Exchange<S> exchange(buffers);
    Channel<S, IS_SHARED> channel(args.channels, exchange, own(memory));
    channel.each([&] {
        const Stats<C> stats = measure(channel, args.x);
        if (channel.is_first()) settle(args, channel.number, stats);
    });
}

} // namespace isonorm
