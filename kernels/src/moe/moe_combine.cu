// Combine: out[t] = sum_k weights[t, k] * y[row(t, k)] + shared[t], added up in the order of k.
//
//   grid (T, hidden / (256 vectors))   block 256: a thread has 16 bytes of a token's row, or, where
//     hidden is no multiple of that, one element
//   traffic: top_k rows of y read once, out written once -> bound by memory, target 85 % of
//     peak for many tokens.
#include "device.cuh"

constexpr int THREADS = 256;
constexpr unsigned PAD = 0xffffffffu;

// So many rows of y are under way for a thread.
constexpr int AT_ONCE = 8;

// N elements, read at once.
template <typename T, int N>
struct alignas(sizeof(T) * N) Part {
    T at[N];
};

// N elements from column `h` of token `blockIdx.x` on.
template <typename T, int N>
__device__ __forceinline__ void combine(const T* y, const unsigned* row_of_choice,
                                        const float* weights, const T* shared, T* out, int top_k,
                                        int hidden, int h) {
    using P = Part<T, N>;
    size_t token = blockIdx.x;
    row_of_choice += token * top_k, weights += token * top_k;
    float sums[N] = {};
    for (int first = 0; first < top_k; first += AT_ONCE) {
        unsigned rows[AT_ONCE];
        float factors[AT_ONCE];
        P parts[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            rows[i] = first + i < top_k ? row_of_choice[first + i] : PAD;
            factors[i] = first + i < top_k ? weights[first + i] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const T* from = y + size_t(rows[i]) * hidden + h;
            parts[i] = rows[i] != PAD ? *reinterpret_cast<const P*>(from) : P{};
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (rows[i] == PAD) continue;  // of a token that is padding, or beyond top_k
#pragma unroll
            for (int j = 0; j < N; j++) {
                sums[j] = fmaf(factors[i], to_float(parts[i].at[j]), sums[j]);
            }
        }
    }
    P part = {};
    if (shared) part = *reinterpret_cast<const P*>(shared + token * hidden + h);
#pragma unroll
    for (int j = 0; j < N; j++) {
        if (shared) sums[j] += to_float(part.at[j]);
        part.at[j] = from_float<T>(sums[j]);
    }
    *reinterpret_cast<P*>(out + token * hidden + h) = part;
}

// y `[rows, hidden]`; row_of_choice, weights `[T, top_k]`; shared, out `[T, hidden]`, shared or
// null.
#define MOE_COMBINE(name, T, N)                                                                   \
    KERNEL(THREADS)                                                                               \
    name(const T* y, const unsigned* row_of_choice, const float* weights, const T* shared, T* out, \
         int top_k, int hidden) {                                                                 \
        int h = (blockIdx.y * THREADS + threadIdx.x) * N;                                         \
        if (h < hidden) combine<T, N>(y, row_of_choice, weights, shared, out, top_k, hidden, h);  \
    }
MOE_COMBINE(moe_combine_f32, float, 1)
MOE_COMBINE(moe_combine_bf16, bf16, 1)
MOE_COMBINE(moe_combine_f16, f16, 1)
MOE_COMBINE(moe_combine_f32_vectors, float, 4)
MOE_COMBINE(moe_combine_bf16_vectors, bf16, 8)
MOE_COMBINE(moe_combine_f16_vectors, f16, 8)

REGISTER_KERNEL(moe_combine_f32)
REGISTER_KERNEL(moe_combine_bf16)
REGISTER_KERNEL(moe_combine_f16)
REGISTER_KERNEL(moe_combine_f32_vectors)
REGISTER_KERNEL(moe_combine_bf16_vectors)
REGISTER_KERNEL(moe_combine_f16_vectors)
