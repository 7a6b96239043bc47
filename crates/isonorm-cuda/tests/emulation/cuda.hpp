// CUDA on a CPU, as far as the kernels use it, so that the very same sources run without a GPU. A block's threads are
// fibers on one thread of the system: each runs until it waits for others. Blocks run one after another, and so do
// kernels. Only full warps are known. Who waits for a thread that does not come ends the program.
#pragma once

#include <csetjmp>
#include <cmath>
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

enum class State { READY, AT_WARP, AT_BLOCK, DONE };

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

struct Block {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    jmp_buf scheduler;
    ucontext_t unused;
    void (*kernel)(const void*) = nullptr;
    const void* args = nullptr;
    unsigned threads = 0, current = 0, arrived = 0;
};

inline Block block;
inline std::mutex one_kernel;

// Back to the scheduler, until it comes back.
inline void leave() {
    if (_setjmp(block.fibers[block.current]->place) == 0) _longjmp(block.scheduler, 1);
}

// A fiber lives on from block to block.
inline void fiber_main() {
    for (;;) {
        block.kernel(block.args);
        block.fibers[block.current]->state = State::DONE;
        leave();
    }
}

inline void resume(unsigned thread) {
    Fiber& fiber = *block.fibers[thread];
    block.current = thread;
    threadIdx.x = thread;
    if (_setjmp(block.scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
    setcontext(&fiber.start);
}

inline void run_block() {
    block.arrived = 0;
    for (Warp& warp : block.warps) warp.arrived = 0;
    for (unsigned t = 0; t < block.threads; ++t) block.fibers[t]->state = State::READY;
    for (unsigned done = 0; done < block.threads;) {
        bool went_on = false;
        done = 0;
        for (unsigned t = 0; t < block.threads; ++t) {
            if (block.fibers[t]->state == State::READY) {
                resume(t);
                went_on = true;
            }
            done += block.fibers[t]->state == State::DONE;
        }
        if (!went_on && done < block.threads) {
            std::fprintf(stderr, "emulation: threads wait for others that do not come\n");
            std::abort();
        }
    }
}

inline void release(unsigned first, unsigned count, State waiting) {
    for (unsigned t = first; t < first + count; ++t) {
        if (block.fibers[t]->state == waiting) block.fibers[t]->state = State::READY;
    }
}

inline void wait(unsigned& arrived, unsigned first, unsigned count, State waiting) {
    Fiber& fiber = *block.fibers[block.current];
    if (++arrived == count) {
        arrived = 0;
        release(first, count, waiting);
    } else {
        fiber.state = waiting;
        leave();
    }
}

inline void at_warp() {
    const unsigned warp = block.current / WARP;
    wait(block.warps[warp].arrived, warp * WARP, WARP, State::AT_WARP);
}

// Shows a value to the warp; returns everyone's. The slots are free again after the next call but one.
inline const std::uint64_t* show(std::uint64_t value) {
    Fiber& fiber = *block.fibers[block.current];
    std::uint64_t* slots = block.warps[block.current / WARP].slots[fiber.phase];
    fiber.phase ^= 1;
    slots[block.current % WARP] = value;
    at_warp();
    return slots;
}

inline void require_full(unsigned mask) {
    if (mask != 0xFFFFFFFFu) std::abort();
}

inline void launch(void (*kernel)(const void*), const void* args, unsigned grid, unsigned threads, unsigned cluster = 1) {
    if (cluster != 1) std::abort();
    const std::lock_guard<std::mutex> lock(one_kernel);
    if (threads % WARP != 0) std::abort();
    block.kernel = kernel;
    block.args = args;
    block.threads = threads;
    block.warps.resize(threads / WARP);
    while (block.fibers.size() < threads) block.fibers.push_back(std::make_unique<Fiber>());
    blockDim.x = threads;
    gridDim.x = grid;
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx.x = b;
        run_block();
    }
}

template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

} // namespace emulation

inline void __syncthreads() {
    emulation::wait(emulation::block.arrived, 0, emulation::block.threads, emulation::State::AT_BLOCK);
}

template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int distance) {
    emulation::require_full(mask);
    std::uint64_t slot = 0;
    std::memcpy(&slot, &value, sizeof value);
    const unsigned from = (emulation::block.current % emulation::WARP) ^ unsigned(distance);
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
