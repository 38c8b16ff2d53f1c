// Gated activation: `out[t,i] = act(gate_up[t,i]) * gate_up[t, I+i]`, both with their bias.
//
//   grid (T, ceil(I / (block * N)))   block 32..256, a row's vectors in equal parts
//   A thread owns one vector of 16 bytes (N elements) of the gate, and the same of the other half.
//   traffic, halves: 4 bytes read and 2 written an element of out; biases come from the cache.
//   An exponential and a quotient for each take some 25 instructions, of the 40 that a
//   multiprocessor can issue meanwhile, for which they are the fast ones -> bound by memory.
//
// A half that is no multiple of N elements goes element by element.
#include "device.cuh"

constexpr int MAX_THREADS = 256;
constexpr float LOG2_E = 1.44269504f;

// In the order of `Activation` in mod.rs.
enum Act { SILU, GELU_TANH, CLAMPED_SWISH };

struct Activation {
    int act;
    float alpha, limit;
};

// x / (1 + e^-(steepness * x)).
__device__ __forceinline__ float swish(float x, float steepness_log2_e) {
    return __fdividef(x, 1.0f + fast_exp2(-steepness_log2_e * x));
}

// The smaller of the two; NaN of NaN, which fminf would swallow.
__device__ __forceinline__ float at_most(float x, float limit) { return x > limit ? limit : x; }

template <int N>
__device__ __forceinline__ void gated(const Activation& how, const float (&gate)[N],
                                      const float (&up)[N], float (&out)[N]) {
    if (how.act == SILU) {
#pragma unroll
        for (int e = 0; e < N; e++) out[e] = swish(gate[e], LOG2_E) * up[e];
    } else if (how.act == GELU_TANH) {
        // x/2 * (1 + tanh(y)) is x / (1 + e^-2y).
#pragma unroll
        for (int e = 0; e < N; e++) {
            float x = gate[e];
            float y = 0.7978846f * x * (0.044715f * x * x + 1.0f);
            out[e] = __fdividef(x, 1.0f + fast_exp2(-2.0f * LOG2_E * y)) * up[e];
        }
    } else {
#pragma unroll
        for (int e = 0; e < N; e++) {
            float g = at_most(gate[e], how.limit);
            float u = -at_most(-at_most(up[e], how.limit), how.limit);
            out[e] = (u + 1.0f) * swish(g, how.alpha * LOG2_E);
        }
    }
}

// N elements, 1 or a whole vector, and their bias, if there is one.
template <int N, typename T>
__device__ __forceinline__ void widen(const T* from, const float* bias, float (&to)[N]) {
    if constexpr (N == 1) {
        to[0] = to_float(*from) + (bias ? *bias : 0.0f);
    } else {
        Vec<T> raw = load_once(from);
#pragma unroll
        for (int e = 0; e < N; e++) to[e] = to_float(raw.at[e]);
        if (!bias) return;
#pragma unroll
        for (int i = 0; i < N; i += Vec<float>::N) {
            Vec<float> more = load(bias + i);
#pragma unroll
            for (int e = 0; e < Vec<float>::N; e++) to[i + e] += more.at[e];
        }
    }
}

// gate_up `[T, 2 * half]`, out `[T, half]`. bias `[2 * half]`, `[bias_rows, 2 * half]` where
// bias_row `[T]` says which, or null. A row whose bias is none of them is padding and not written.
template <typename T>
__device__ __forceinline__ void activation(const T* __restrict__ gate_up,
                                           const float* __restrict__ bias,
                                           const unsigned* __restrict__ bias_row,
                                           unsigned bias_rows, T* __restrict__ out, int half,
                                           const Activation& how) {
    constexpr int N = Vec<T>::N;
    if (bias_row) {
        unsigned row = bias_row[blockIdx.x];
        if (row >= bias_rows) return;
        bias += size_t(row) * 2 * half;  // row of bias
    }
    const T* gates = gate_up + size_t(blockIdx.x) * 2 * half;  // row t of gate_up
    T* to = out + size_t(blockIdx.x) * half;                   // row t of out
    int thread = blockIdx.y * blockDim.x + threadIdx.x;
    if (half % N == 0) {
        int i = thread * N;
        if (i >= half) return;
        float gate[N], up[N], mixed[N];
        widen(gates + i, bias ? bias + i : nullptr, gate);
        widen(gates + half + i, bias ? bias + half + i : nullptr, up);
        gated(how, gate, up, mixed);
        Vec<T> rounded;
#pragma unroll
        for (int e = 0; e < N; e++) rounded.at[e] = from_float<T>(mixed[e]);
        store(to + i, rounded);
        return;
    }
    for (int i = thread; i < half; i += gridDim.y * blockDim.x) {
        float gate[1], up[1], mixed[1];
        widen(gates + i, bias ? bias + i : nullptr, gate);
        widen(gates + half + i, bias ? bias + half + i : nullptr, up);
        gated(how, gate, up, mixed);
        to[i] = from_float<T>(mixed[0]);
    }
}

#define ACTIVATION(name, T)                                                                     \
    KERNEL(MAX_THREADS)                                                                         \
    name(const T* gate_up, const float* bias, const unsigned* bias_row, unsigned bias_rows,     \
         T* out, int half, int act, float alpha, float limit) {                                 \
        activation(gate_up, bias, bias_row, bias_rows, out, half, Activation{act, alpha, limit}); \
    }                                                                                           \
    REGISTER_KERNEL(name)

ACTIVATION(activation_f32, float)
ACTIVATION(activation_bf16, bf16)
ACTIVATION(activation_f16, f16)
