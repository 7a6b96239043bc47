// CUDA on a CPU, as far as the kernels use it, so that the very same sources run without a GPU. The threads of a
// cluster of blocks are fibers on one thread of the system: each runs until it waits for others. Clusters run one after
// another, and so do kernels. Only full warps are known. Who waits for a thread that does not come ends the program.
#pragma once

#include <csetjmp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned WARP = 32;
constexpr std::size_t STACK = 256 << 10;

enum class State { READY, AT_WARP, AT_BLOCK, AT_CLUSTER, DONE };

struct Fiber {
    std::unique_ptr<char[]> stack{new char[STACK]};
    ucontext_t start;
    jmp_buf place;
    State state = State::DONE;
    bool begun = false;
    unsigned phase = 0; // of the warp's slots
};

struct Warp {
    std::uint64_t slots[2][WARP];
    unsigned arrived = 0;
};

constexpr unsigned MOST_BLOCKS = 8;

// The cluster that runs. Threads have numbers throughout.
struct Cluster {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    unsigned arrived_at_block[MOST_BLOCKS] = {};
    unsigned arrived = 0;
    jmp_buf scheduler;
    void (*kernel)(const void*) = nullptr;
    const void* args = nullptr;
    unsigned blocks = 0, threads = 0, current = 0; // threads of a block
    bool is_reversed = false; // every other launch: whether a barrier is missing shows where the last thread comes first

    unsigned all() const { return blocks * threads; }
};

inline Cluster cluster;
inline std::mutex one_kernel;

// The block of the cluster that runs.
inline unsigned rank() { return cluster.current / cluster.threads; }

// Back to the scheduler, until it comes back.
inline void leave() {
    if (_setjmp(cluster.fibers[cluster.current]->place) == 0) _longjmp(cluster.scheduler, 1);
}

// A fiber lives on from block to block.
inline void fiber_main() {
    for (;;) {
        cluster.kernel(cluster.args);
        cluster.fibers[cluster.current]->state = State::DONE;
        leave();
    }
}

inline void resume(unsigned thread, unsigned first_block) {
    Fiber& fiber = *cluster.fibers[thread];
    cluster.current = thread;
    threadIdx.x = thread % cluster.threads;
    blockIdx.x = first_block + rank();
    if (_setjmp(cluster.scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
    setcontext(&fiber.start);
}

inline void run_cluster(unsigned first_block) {
    for (unsigned t = 0; t < cluster.all(); ++t) cluster.fibers[t]->state = State::READY;
    for (unsigned done = 0; done < cluster.all();) {
        bool went_on = false;
        done = 0;
        for (unsigned i = 0; i < cluster.all(); ++i) {
            const unsigned t = cluster.is_reversed ? cluster.all() - 1 - i : i;
            if (cluster.fibers[t]->state == State::READY) {
                resume(t, first_block);
                went_on = true;
            }
            done += cluster.fibers[t]->state == State::DONE;
        }
        if (!went_on && done < cluster.all()) {
            std::fprintf(stderr, "emulation: threads wait for others that do not come\n");
            std::abort();
        }
    }
}

inline void release(unsigned first, unsigned count, State waiting) {
    for (unsigned t = first; t < first + count; ++t) {
        if (cluster.fibers[t]->state == waiting) cluster.fibers[t]->state = State::READY;
    }
}

inline void wait(unsigned& arrived, unsigned first, unsigned count, State waiting) {
    Fiber& fiber = *cluster.fibers[cluster.current];
    if (++arrived == count) {
        arrived = 0;
        release(first, count, waiting);
    } else {
        fiber.state = waiting;
        leave();
    }
}

inline void at_warp() {
    const unsigned warp = cluster.current / WARP;
    wait(cluster.warps[warp].arrived, warp * WARP, WARP, State::AT_WARP);
}

// Shows a value to the warp; returns everyone's. The slots are free again after the next call but one.
inline const std::uint64_t* show(std::uint64_t value) {
    Fiber& fiber = *cluster.fibers[cluster.current];
    std::uint64_t* slots = cluster.warps[cluster.current / WARP].slots[fiber.phase];
    fiber.phase ^= 1;
    slots[cluster.current % WARP] = value;
    at_warp();
    return slots;
}

inline void require_full(unsigned mask) {
    if (mask != 0xFFFFFFFFu) std::abort();
}

inline void at_block() {
    wait(cluster.arrived_at_block[rank()], rank() * cluster.threads, cluster.threads, State::AT_BLOCK);
}

inline void at_cluster() { wait(cluster.arrived, 0, cluster.all(), State::AT_CLUSTER); }

inline void launch(void (*kernel)(const void*), const void* args, unsigned grid, unsigned threads, unsigned blocks) {
    const std::lock_guard<std::mutex> lock(one_kernel);
    if (threads % WARP != 0 || grid % blocks != 0 || blocks > MOST_BLOCKS) std::abort();
    cluster.is_reversed = !cluster.is_reversed;
    cluster.kernel = kernel;
    cluster.args = args;
    cluster.threads = threads;
    cluster.blocks = blocks;
    cluster.warps.resize(cluster.all() / WARP);
    while (cluster.fibers.size() < cluster.all()) cluster.fibers.push_back(std::make_unique<Fiber>());
    blockDim.x = threads;
    gridDim.x = grid;
    for (unsigned first = 0; first < grid; first += blocks) run_cluster(first);
}

template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

} // namespace emulation

inline void __syncthreads() { emulation::at_block(); }

template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int distance) {
    emulation::require_full(mask);
    std::uint64_t slot = 0;
    std::memcpy(&slot, &value, sizeof value);
    const unsigned from = (emulation::cluster.current % emulation::WARP) ^ unsigned(distance);
    slot = emulation::show(slot)[from];
    std::memcpy(&value, &slot, sizeof value);
    return value;
}

inline int __any_sync(unsigned mask, int predicate) {
    emulation::require_full(mask);
    const std::uint64_t* all = emulation::show(predicate != 0);
    std::uint64_t any = 0;
    for (unsigned i = 0; i < emulation::WARP; ++i) any |= all[i];
    return any != 0;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline float __double2float_rn(double a) { return float(a); }
inline float __double2float_rz(double a) {
    const float nearest = float(a);
    const bool is_beyond = std::fabs(double(nearest)) > std::fabs(a);
    return is_beyond ? emulation::bits<float>(emulation::bits<unsigned>(nearest) - 1) : nearest;
}
inline unsigned __float_as_uint(float a) { return emulation::bits<unsigned>(a); }
inline float __uint_as_float(unsigned a) { return emulation::bits<float>(a); }
inline int __double2loint(double a) { return int(emulation::bits<std::uint64_t>(a)); }
inline int __double2hiint(double a) { return int(emulation::bits<std::uint64_t>(a) >> 32); }
inline double __hiloint2double(int high, int low) {
    return emulation::bits<double>(std::uint64_t(unsigned(high)) << 32 | unsigned(low));
}
