// What the kernels of paged attention share: where positions lie, tiles in shared memory and the
// fragments that tensor cores take from them, scores, and the softmax that runs over tiles.
//
// A tile is TILE neighbouring positions of one kv head, [TILE, D]. Blocks hold whole tiles, so a
// tile lies in one block, as TILE * D contiguous elements of the cache [N, K, B, D].
#pragma once

#include "device.cuh"

constexpr unsigned PAD = 0xffffffffu;
constexpr int TILE = 16;
constexpr float LOG2E = 1.44269504f;
constexpr float NEGATIVE_INFINITY = -INFINITY;

// ---------------------------------------------------------------------------------------------
// Where positions lie

// The cache of a layer, and the tables of all slots.
struct Blocks {
    const unsigned* tables;  // [max_slots, max_blocks]
    int max_blocks, block_size, kv_heads, head_size;

    // The block that holds `position` of the sequence in `slot`.
    __device__ __forceinline__ unsigned block(unsigned slot, int position) const {
        return tables[size_t(slot) * max_blocks + position / block_size];
    }

    // Where the vector of `position`, which lies in `block`, begins in either cache.
    __device__ __forceinline__ size_t offset(unsigned block, int kv_head, int position) const {
        size_t row = (size_t(block) * kv_heads + kv_head) * block_size + position % block_size;
        return row * head_size;
    }
};

// The first position that a query at `position` sees; a window of 0 is none.
__device__ __forceinline__ int first_seen(int position, int window) {
    return window > 0 && position >= window ? position + 1 - window : 0;
}

// ---------------------------------------------------------------------------------------------
// Tiles in shared memory

// Where the 8 halves `chunk` of row `row` lie in a tile [rows, D] of shared memory, in elements.
//
// Eight rows of one column are read at once (load_matrices), 16 bytes each, and must lie in
// different eighths of the 128 bytes that shared memory gives at a time. With C = D / 8 chunks a
// row and g = gcd(C, 8), rows r and r + 8 / g lie in the same eighth; flipping the low bits of the
// column by r / (8 / g) mod g sets them apart. As g divides C, a column stays within its row.
template <int D>
__device__ __forceinline__ int swizzled(int row, int chunk) {
    static_assert(D % 16 == 0, "rows of whole pairs of chunks");
    constexpr int CHUNKS = D / 8;
    constexpr int COMMON = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
    return (row * CHUNKS + (chunk ^ (row / (8 / COMMON) % COMMON))) * 8;
}

// Begins to copy a tile of the cache into shared memory, swizzled, as thread `thread` of THREADS.
// Rows outside of begin..end are not read: they become zeros, whatever the cache holds there, so
// that a weight of 0 takes nothing from them.
template <int D, int THREADS, typename T>
__device__ __forceinline__ void copy_tile(T* to, const T* from, int begin, int end, int thread) {
    constexpr int CHUNKS = D / 8, ALL = TILE * CHUNKS;
#pragma unroll
    for (int i = 0; i < (ALL + THREADS - 1) / THREADS; i++) {
        int chunk = i * THREADS + thread, row = chunk / CHUNKS;
        if (ALL % THREADS != 0 && chunk >= ALL) break;
        bool valid = row >= begin && row < end;
        copy_async(to + swizzled<D>(row, chunk % CHUNKS), from + chunk * 8, valid);
    }
}

// Rows 0..16 and columns 16 * step.. of `tile`, as the a of `mma`: queries [16, D].
template <int D, typename T>
__device__ __forceinline__ void load_rows(uint32_t (&a)[4], const T* tile, int step, int lane) {
    load_matrices(a, tile + swizzled<D>(lane % 16, 2 * step + lane / 16));
}

// Keys [16, D], columns 16 * step.., as two b of `mma` one after the other: positions 0..8, 8..16.
template <int D, typename T>
__device__ __forceinline__ void load_keys(uint32_t (&b)[4], const T* tile, int step, int lane) {
    int row = lane % 8 + lane / 16 * 8;
    load_matrices(b, tile + swizzled<D>(row, 2 * step + lane / 8 % 2));
}

// Values [16, D] as two b of `mma`: columns 16 * step.. and 16 * step + 8.., over all positions.
template <int D, typename T>
__device__ __forceinline__ void load_values(uint32_t (&b)[4], const T* tile, int step, int lane) {
    load_matrices_transposed(b, tile + swizzled<D>(lane % 16, 2 * step + lane / 16));
}

// d[0], d[1] += a * the two b of `load_keys` or `load_values`.
template <typename T>
__device__ __forceinline__ void mma_pair(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[4]) {
    const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    mma<T>(d0, a, b0);
    mma<T>(d1, a, b1);
}

// ---------------------------------------------------------------------------------------------
// Scores and their softmax

// Makes a score of dot(q, k), in units of log2(e): its weight is 2^(score - max).
struct Scoring {
    float scale;  // scale * log2(e); scale / cap where there is a cap
    float cap;    // cap * log2(e); 0: none

    __device__ __forceinline__ Scoring(float scale, float softcap)
        : scale(softcap > 0 ? scale / softcap : scale * LOG2E), cap(softcap * LOG2E) {}

    __device__ __forceinline__ float operator()(float dot) const {
        float x = dot * scale;
        // tanh(x) = 1 - 2 / (e^2x + 1), right to 1e-7 of the cap, and +-1 where e^2x leaves f32.
        return cap > 0 ? cap - 2 * cap / (fast_exp2(2 * LOG2E * x) + 1) : x;
    }
};

// What maxima are subtracted as: of a row that has seen nothing all weights are 0, not NaN.
__device__ __forceinline__ float finite_max(float max) {
    return max == NEGATIVE_INFINITY ? 0 : max;
}

// The softmax over tiles of the two rows that a lane has in the d of `mma`: lane / 4, and 8 below.
struct RunningSoftmax {
    float max[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
    float sum[2] = {0, 0};  // of this lane's columns

    // Makes weights of N * 8 columns of scores; gives what older weights have to be multiplied by.
    template <int N>
    __device__ __forceinline__ void add(float (&scores)[N][4], float (&correction)[2]) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float seen = max[half];
#pragma unroll
            for (int n = 0; n < N; n++) {
                seen = fmaxf(seen, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            }
            seen = warp_max<4>(seen);
            float subtracted = finite_max(seen), weights = 0;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    scores[n][i] = fast_exp2(scores[n][i] - subtracted);
                    weights += scores[n][i];
                }
            }
            correction[half] = fast_exp2(max[half] - subtracted);
            sum[half] = sum[half] * correction[half] + weights;
            max[half] = seen;
        }
    }
};

// Weights of 16 positions, two d of `mma`, rounded to T as the a of the product with values.
template <typename T>
__device__ __forceinline__ void weights_as_rows(uint32_t (&a)[4], const float (&first)[4],
                                                const float (&second)[4]) {
    a[0] = pack<T>(first[0], first[1]);
    a[1] = pack<T>(first[2], first[3]);
    a[2] = pack<T>(second[0], second[1]);
    a[3] = pack<T>(second[2], second[3]);
}

// Four sums times `factor`, rounded to T: 8 or 16 bytes, aligned as such.
template <typename T>
__device__ __forceinline__ void store_four(T* to, const float (&sums)[4], float factor) {
    struct alignas(4 * sizeof(T)) Four {
        T at[4];
    } four;
#pragma unroll
    for (int i = 0; i < 4; i++) four.at[i] = from_float<T>(sums[i] * factor);
    *reinterpret_cast<Four*>(to) = four;
}
