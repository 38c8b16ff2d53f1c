// A row of weights times up to 16 rows of x, for shapes and elements that tensor cores do not take.
#pragma once

#include "device.cuh"

constexpr int PLAIN_ROWS = 16;

// sums[t] = sum_k x[rows[t], k] * w[k] for t < count; x `[.., num_k]`. All lanes of a warp come
// here, and all get the sums. Lane l adds up k = l, l + 32, .., then the lanes are added up: an
// order that depends on num_k alone. w is read once.
template <typename T>
__device__ __forceinline__ void plain_products(float (&sums)[PLAIN_ROWS], const T* x,
                                               const int (&rows)[PLAIN_ROWS], int count, const T* w,
                                               int num_k) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int t = 0; t < PLAIN_ROWS; t++) sums[t] = 0;
    for (int k = lane; k < num_k; k += WARP) {
        float weight = to_float(w[k]);
#pragma unroll
        for (int t = 0; t < PLAIN_ROWS; t++) {
            if (t < count) {
                sums[t] = fmaf(to_float(x[size_t(rows[t]) * num_k + k]), weight, sums[t]);
            }
        }
    }
#pragma unroll
    for (int t = 0; t < PLAIN_ROWS; t++) {
        if (t < count) sums[t] = warp_sum(sums[t]);
    }
}
