// Logits: `cap * tanh(scale * x / cap)`, in place.
//
//   grid (ceil(n / (THREADS * UNITS * 4)))   block THREADS   no shared memory
//   A thread owns UNITS vectors of 16 bytes, a block apart.
//   traffic: 4 bytes read and 4 written an element; the tanh takes some 25 instructions, about half
//   of what a multiprocessor can issue while the memory moves 8 bytes -> bound by memory.
#include "device.cuh"

constexpr int THREADS = 256;
constexpr int UNITS = 2;
constexpr int UNIT = Vec<float>::N;

// What is not asked for is a scale of 1, a cap of 0.
__device__ __forceinline__ float bent(float x, float scale, float cap) {
    x *= scale;
    return cap == 0 ? x : cap * tanhf(x / cap);
}

// logits: n elements, of all rows. The last n % 4 of them are the last block's.
KERNEL(THREADS) logits_bend(float* logits, uint64_t n, float scale, float cap) {
    uint64_t start = uint64_t(blockIdx.x) * (THREADS * UNITS * UNIT);
    Vec<float> x[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        uint64_t i = start + (u * THREADS + threadIdx.x) * UNIT;
        if (i + UNIT <= n) x[u] = load(logits + i);
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        uint64_t i = start + (u * THREADS + threadIdx.x) * UNIT;
        if (i + UNIT <= n) {
#pragma unroll
            for (int e = 0; e < UNIT; e++) x[u].at[e] = bent(x[u].at[e], scale, cap);
            store(logits + i, x[u]);
        } else {
            for (; i < n; i++) logits[i] = bent(logits[i], scale, cap);
        }
    }
}
REGISTER_KERNEL(logits_bend)
