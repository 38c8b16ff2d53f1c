// What the kernels are written in: element types, warps, tensor cores, copies into shared memory.
//
// A kernel is compiled twice from the same text: by nvcc for a GPU, and by a C++ compiler for the
// emulator, which runs grids on a processor (tests/gpu/emulator). So a kernel uses what CUDA C++ and
// this file offer, and no PTX of its own; what the emulator has to do differently is behind
// MILLSTREAM_EMULATED, here and nowhere else.
//
// Conventions of all kernels:
//   - sums are in f32, elements are rounded once, when they are stored: to nearest, ties to even;
//   - a pointer to global memory that is read or written 16 bytes at a time is 16-byte aligned; the
//     Rust side checks it;
//   - counts and strides are in elements; offsets into large arrays are computed in 64 bits.
#pragma once

#ifdef MILLSTREAM_EMULATED
#include "emulation.h"
#else
#include <cstdint>
#endif

// ---------------------------------------------------------------------------------------------
// Entry points

#ifndef MILLSTREAM_EMULATED
// A kernel: `KERNEL(256) name(arguments) { .. }`, launched with at most that many threads a block.
#define KERNEL(max_threads) extern "C" __global__ void __launch_bounds__(max_threads)
// The same with at least this many blocks on a multiprocessor at once: it bounds the registers.
#define KERNEL_OCCUPIED(max_threads, min_blocks) \
    extern "C" __global__ void __launch_bounds__(max_threads, min_blocks)
// Declares `name`, the dynamic shared memory of a block, as bytes.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
// Makes a kernel known to the emulator; each kernel has one, at the end of its file.
#define REGISTER_KERNEL(name)
#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------------------------------------
// Elements: f32 is `float`; the two halves are their bits.

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

// 16 bytes of elements: `Vec<bf16>` has 8, `Vec<float>` 4.
template <typename T>
struct alignas(16) Vec {
    static constexpr int N = 16 / sizeof(T);
    T at[N];
};

#ifdef MILLSTREAM_EMULATED
#include "primitives.h"
#else
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float to_float(f16 x) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
}

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
    f16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
}

// Two halves in one register, `low` in the lower bits: what tensor cores take.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
template <>
__device__ __forceinline__ uint32_t pack<f16>(float low, float high) {
    uint32_t out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

template <typename T>
__device__ __forceinline__ Vec<T> load(const T* from) {
    return *reinterpret_cast<const Vec<T>*>(from);
}
template <typename T>
__device__ __forceinline__ void store(T* to, const Vec<T>& values) {
    *reinterpret_cast<Vec<T>*>(to) = values;
}

// 16 bytes that are read once and pass the caches by.
template <typename T>
__device__ __forceinline__ Vec<T> load_once(const T* from) {
    Vec<T> out;
    uint4& bits = *reinterpret_cast<uint4*>(&out);
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "l"(from));
    return out;
}

// ---------------------------------------------------------------------------------------------
// Tensor cores: mma.sync m16n8k16, sums in f32. d += a * b.
//
// With lane = 4 * group + pair (group 0..7, pair 0..3) a lane holds, two elements a register:
//   a[0] rows group,   k 2*pair..     a[1] rows group+8, k 2*pair..
//   a[2] rows group,   k 2*pair+8..   a[3] rows group+8, k 2*pair+8..
//   b[0] column group, k 2*pair..     b[1] column group, k 2*pair+8..
//   d[0], d[1] row group,   columns 2*pair, 2*pair+1
//   d[2], d[3] row group+8, columns 2*pair, 2*pair+1
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4],
                                          const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma<f16>(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of halves from shared memory. Lane l gives the address of row l % 8 of matrix
// l / 8, 16 bytes; register i of lane 4 * r + c receives elements 2c and 2c+1 of row r of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}
// The same, each matrix transposed: register i receives elements r of rows 2c and 2c+1.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// ---------------------------------------------------------------------------------------------
// Copies into shared memory that go on while the thread computes.

// 16 bytes; zeros where `from` is not valid (it is then not read, but must not be null). What was
// copied is there for this thread once `copies_wait` says so, for others after a barrier as well.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid = true) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(address), "l"(from), "r"(bytes)
                 : "memory");
}
// Ends a group of copies.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's groups, the latest ones, are under way.
template <int pending>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// 2^x, to about 2 units in the last place; 0 for -inf.
__device__ __forceinline__ float fast_exp2(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
#endif

// ---------------------------------------------------------------------------------------------
// Sums and maxima over the lanes of a warp, or of groups of `width` neighbours; all lanes get them.

template <int width = WARP>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = width / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

template <int width = WARP>
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = width / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

// The sum over a block of whole warps; `partial` is shared memory of one float per warp. Every
// thread must come here, and all get it. Ends with a barrier, so `partial` may be used again.
__device__ __forceinline__ float block_sum(float x, float* partial) {
    int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    x = warp_sum(x);
    if (lane == 0) partial[warp] = x;
    __syncthreads();  // every warp's sum is in `partial`
    float sum = 0;
    for (int i = 0; i < warps; i++) sum += partial[i];
    __syncthreads();  // everyone has read `partial`
    return sum;
}
