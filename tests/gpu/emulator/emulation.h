// CUDA C++ for a C++ compiler: what kernels/src/cuda/device.cuh includes under MILLSTREAM_EMULATED.
// Here are the keywords, the threads and what the threads of a warp or a block do together.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "intrinsics.h"
#include "kernel.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))
// After `static`, where CUDA has an attribute, the standard does not allow its own.
#define alignas(bytes) __align__(bytes)
#define __launch_bounds__(...)

// ---------------------------------------------------------------------------------------------
// Entry points

// The bound on the threads of a block has to reach REGISTER_KERNEL, which has only the name. So a
// kernel carries it in its alignment, as the next power of two: one can ask the compiler for that.
namespace emulator {
constexpr int next_power_of_two(int threads) {
    int power = 32;
    while (power < threads) power *= 2;
    return power;
}
}  // namespace emulator
#define KERNEL(max_threads) \
    extern "C" void __attribute__((aligned(emulator::next_power_of_two(max_threads))))
#define KERNEL_OCCUPIED(max_threads, min_blocks) KERNEL(max_threads)
#define EMULATOR_BOUND(name, threads) \
    (__builtin_has_attribute(name, aligned(threads)) ? threads : 0)
#define REGISTER_KERNEL(name)                                                                    \
    __attribute__((constructor)) static void register_##name() {                                 \
        static const emulator::Kernel kernel = {                                                 \
            #name,                                                                               \
            EMULATOR_BOUND(name, 32) + EMULATOR_BOUND(name, 64) + EMULATOR_BOUND(name, 128) +    \
                EMULATOR_BOUND(name, 256) + EMULATOR_BOUND(name, 512) +                          \
                EMULATOR_BOUND(name, 1024),                                                      \
            &emulator::Typed<&name>::run, emulator::Typed<&name>::PARAMETERS,                    \
            emulator::Typed<&name>::NUM_PARAMETERS};                                             \
        emulator::register_kernel(&kernel);                                                      \
    }
#define DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_shared_memory()

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size
constexpr int warpSize = 32;
#define __builtin_assume(condition)

#undef assert
#define assert(condition) \
    ((condition) ? void(0) : emulator::fail(emulator::here(), "assertion failed: %s", #condition))

// ---------------------------------------------------------------------------------------------
// Blocks

#define EMULATOR_SITE emulator::Site site = emulator::here()

inline void __syncthreads(EMULATOR_SITE) { emulator::block_barrier(0, "__syncthreads", site); }
inline int __syncthreads_or(int predicate, EMULATOR_SITE) {
    return emulator::block_barrier(predicate, "__syncthreads_or", site).any;
}
inline int __syncthreads_and(int predicate, EMULATOR_SITE) {
    return emulator::block_barrier(predicate, "__syncthreads_and", site).all;
}
inline int __syncthreads_count(int predicate, EMULATOR_SITE) {
    return emulator::block_barrier(predicate, "__syncthreads_count", site).count;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __trap(EMULATOR_SITE) { emulator::fail(site, "__trap"); }
inline void __nanosleep(unsigned) { emulator::let_others_run(); }

// ---------------------------------------------------------------------------------------------
// Warps

namespace emulator {

// A value that a lane brings, and what it gets for it. Lanes that nobody brought give all ones.
struct Exchange {
    uint64_t bits;
    int source;
    uint64_t result;
};

inline void combine_shuffle(void* const* lanes, unsigned mask) {
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        auto& mine = *static_cast<Exchange*>(lanes[i]);
        bool brought = mask >> mine.source & 1;
        mine.result = brought ? static_cast<Exchange*>(lanes[mine.source])->bits : ~uint64_t(0);
    }
}

template <typename T>
T shuffle(const char* name, unsigned mask, T value, int source, Site site) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a lane holds 8 bytes");
    Exchange exchange = {0, source, 0};
    memcpy(&exchange.bits, &value, sizeof(T));
    warp_operation({name, combine_shuffle, false}, mask, &exchange, site);
    memcpy(&value, &exchange.result, sizeof(T));
    return value;
}

// The group of `width` lanes that this lane is in starts at its first one.
inline int group_start(int width) { return lane() & ~(width - 1); }

// Everyone in the mask gets the same: `Reduce` over the values.
template <typename T, T (*reduce)(T, T)>
void combine_reduction(void* const* lanes, unsigned mask) {
    bool first = true;
    T total{};
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        T value = *static_cast<T*>(lanes[i]);
        total = first ? value : reduce(total, value);
        first = false;
    }
    for (int i = 0; i < 32; i++) {
        if (mask >> i & 1) *static_cast<T*>(lanes[i]) = total;
    }
}
template <typename T, T (*reduce)(T, T)>
T reduction(const char* name, unsigned mask, T value, Site site) {
    warp_operation({name, combine_reduction<T, reduce>, false}, mask, &value, site);
    return value;
}
template <typename T>
T add(T a, T b) {
    return a + b;
}
template <typename T>
T smaller(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
T larger(T a, T b) {
    return a < b ? b : a;
}
template <typename T>
T bit_or(T a, T b) {
    return a | b;
}
template <typename T>
T bit_and(T a, T b) {
    return a & b;
}
template <typename T>
T bit_xor(T a, T b) {
    return a ^ b;
}

inline void combine_nothing(void* const*, unsigned) {}
inline void combine_match(void* const* lanes, unsigned mask) {
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        auto& mine = *static_cast<Exchange*>(lanes[i]);
        for (int j = 0; j < 32; j++) {
            bool same = (mask >> j & 1) && static_cast<Exchange*>(lanes[j])->bits == mine.bits;
            mine.result |= uint64_t(same) << j;
        }
    }
}

}  // namespace emulator

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
    emulator::warp_operation({"__syncwarp", emulator::combine_nothing, false}, mask, nullptr, site);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMULATOR_SITE) {
    int source = emulator::group_start(width) + (lane & (width - 1));
    return emulator::shuffle("__shfl_sync", mask, value, source, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, EMULATOR_SITE) {
    int mine = emulator::lane(), source = mine - int(distance);
    if (source < emulator::group_start(width)) source = mine;
    return emulator::shuffle("__shfl_up_sync", mask, value, source, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, EMULATOR_SITE) {
    int mine = emulator::lane(), source = mine + int(distance);
    if (source >= emulator::group_start(width) + width) source = mine;
    return emulator::shuffle("__shfl_down_sync", mask, value, source, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATOR_SITE) {
    int mine = emulator::lane(), source = mine ^ lanes;
    if (source >= emulator::group_start(width) + width) source = mine;
    return emulator::shuffle("__shfl_xor_sync", mask, value, source, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    unsigned mine = unsigned(predicate != 0) << emulator::lane();
    return emulator::reduction<unsigned, emulator::bit_or>("__ballot_sync", mask, mine, site);
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    int mine = predicate != 0;
    return emulator::reduction<int, emulator::bit_or>("__any_sync", mask, mine, site);
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    int mine = predicate != 0;
    return emulator::reduction<int, emulator::bit_and>("__all_sync", mask, mine, site);
}
inline unsigned __activemask() { return emulator::lanes_not_returned(); }
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, EMULATOR_SITE) {
    emulator::Exchange exchange = {0, 0, 0};
    memcpy(&exchange.bits, &value, sizeof(T));
    emulator::warp_operation({"__match_any_sync", emulator::combine_match, false}, mask, &exchange,
                             site);
    return unsigned(exchange.result);
}

#define EMULATOR_REDUCE(name, T, reduce)                                            \
    inline T name(unsigned mask, T value, EMULATOR_SITE) {                          \
        return emulator::reduction<T, emulator::reduce<T>>(#name, mask, value, site); \
    }
EMULATOR_REDUCE(__reduce_add_sync, int, add)
EMULATOR_REDUCE(__reduce_add_sync, unsigned, add)
EMULATOR_REDUCE(__reduce_min_sync, int, smaller)
EMULATOR_REDUCE(__reduce_min_sync, unsigned, smaller)
EMULATOR_REDUCE(__reduce_max_sync, int, larger)
EMULATOR_REDUCE(__reduce_max_sync, unsigned, larger)
EMULATOR_REDUCE(__reduce_or_sync, unsigned, bit_or)
EMULATOR_REDUCE(__reduce_and_sync, unsigned, bit_and)
EMULATOR_REDUCE(__reduce_xor_sync, unsigned, bit_xor)
#undef EMULATOR_REDUCE
