// Residual: `x += scale * post(y + bias)`, then `out = pre(x)`, one row a block (see mod.rs).
//
//   grid (rows)   block (units / HELD, in whole warps)   shared 32 floats (one sum per warp)
//   A thread owns every blockDim.x-th unit of 4 elements, at most HELD of them: 16 bytes of x, 8 of
//   halves, so that what a warp reads and writes is contiguous. The row stays in registers from
//   where it is read to where it is written. HELD is 2 up to a hidden size of 4096, 4 up to 16384.
//   traffic, halves: x 4 + 4 bytes an element, y 2, out 2; 48 KiB a row of 4096. Norm weights,
//   4 bytes an element each, come from the cache. Bound by memory where rows are many; where they
//   are few, by one read, the barriers of a sum and one write.
//
// A row that is longer, or no multiple of 4, is read again for each sum (`residual_any`).
#include "device.cuh"

constexpr int UNIT = 4;

template <typename T>
struct alignas(UNIT * sizeof(T)) Unit {
    T at[UNIT];
};

// `weight` `[hidden]`; null: no norm. `layer`: the mean is taken off first.
struct Norm {
    const float* weight;
    float eps;
    int layer;
};

// What a norm takes off an element, and what it then multiplies it by, besides the weight.
struct Moments {
    float mean, scale;
};

template <typename T>
struct Call {
    float* x;           // [tokens, hidden]
    const T* y;         // [tokens, hidden], or null: x stays as it is
    const float* bias;  // [hidden], or null
    float scale;
    T* out;                // [rows, hidden], or null
    const unsigned* rows;  // [rows]: out's row r is that of x's row rows[r]; null: of row r
    unsigned tokens;
    int hidden;
};

template <typename T>
__device__ __forceinline__ Unit<float> widen(const T* from) {
    Unit<T> raw = *reinterpret_cast<const Unit<T>*>(from);
    Unit<float> wide;
#pragma unroll
    for (int e = 0; e < UNIT; e++) wide.at[e] = to_float(raw.at[e]);
    return wide;
}

template <typename T>
__device__ __forceinline__ void narrow(T* to, const Unit<float>& wide) {
    Unit<T> raw;
#pragma unroll
    for (int e = 0; e < UNIT; e++) raw.at[e] = from_float<T>(wide.at[e]);
    *reinterpret_cast<Unit<T>*>(to) = raw;
}

// Where this thread's unit `u` begins in a row.
__device__ __forceinline__ int start(int u) { return (u * blockDim.x + threadIdx.x) * UNIT; }

// This thread's units of a row; zeros behind its end.
template <int HELD, typename T>
__device__ __forceinline__ void read(const T* row, int hidden, Unit<float> (&to)[HELD]) {
#pragma unroll
    for (int u = 0; u < HELD; u++) {
        to[u] = start(u) < hidden ? widen(row + start(u)) : Unit<float>{};
    }
}

// Whether the norms' weights are read before the sums are waited for: where registers suffice.
template <int HELD>
constexpr bool reads_early = HELD <= 2;

// Of a row that the block holds. Variance in two steps: the distances from the mean are squared.
template <int HELD>
__device__ __forceinline__ Moments moments(const Unit<float> (&row)[HELD], const Norm& norm,
                                           int hidden, float* partial) {
    float mean = 0, squares = 0;
    if (norm.layer) {
        float sum = 0;
#pragma unroll
        for (int u = 0; u < HELD; u++) {
#pragma unroll
            for (int e = 0; e < UNIT; e++) sum += row[u].at[e];
        }
        mean = __fdividef(block_sum(sum, partial), hidden);
    }
#pragma unroll
    for (int u = 0; u < HELD; u++) {
#pragma unroll
        for (int e = 0; e < UNIT; e++) {
            float distance = start(u) < hidden ? row[u].at[e] - mean : 0;
            squares += distance * distance;
        }
    }
    return {mean, rsqrtf(__fdividef(block_sum(squares, partial), hidden) + norm.eps)};
}

// `weight` is the norm's, if it was read early; otherwise it is read now.
template <int HELD>
__device__ __forceinline__ void normalise(Unit<float> (&row)[HELD], const Norm& norm, int hidden,
                                          Unit<float> (&weight)[HELD], float* partial) {
    Moments of = moments(row, norm, hidden, partial);
    if (!reads_early<HELD>) read(norm.weight, hidden, weight);
#pragma unroll
    for (int u = 0; u < HELD; u++) {
#pragma unroll
        for (int e = 0; e < UNIT; e++) {
            row[u].at[e] = (row[u].at[e] - of.mean) * of.scale * weight[u].at[e];
        }
    }
}

// hidden is a multiple of UNIT, and at most blockDim.x * UNIT * HELD.
template <typename T, int HELD>
__device__ __forceinline__ void residual(const Call<T>& call, const Norm& post, const Norm& pre) {
    __shared__ float partial[WARP];
    int hidden = call.hidden;
    unsigned row = call.rows ? call.rows[blockIdx.x] : blockIdx.x;
    T* out = call.out + size_t(blockIdx.x) * hidden;  // row of out; used where there is one
    if (row >= call.tokens) {
        for (int u = 0; u < HELD; u++) {
            if (start(u) < hidden) narrow(out + start(u), Unit<float>{});
        }
        return;
    }
    float* stream = call.x + size_t(row) * hidden;  // row of x
    Unit<float> x[HELD], pre_weight[HELD];
    read(stream, hidden, x);
    if (reads_early<HELD> && pre.weight) read(pre.weight, hidden, pre_weight);
    if (call.y) {
        Unit<float> y[HELD], post_weight[HELD];
        read(call.y + size_t(row) * hidden, hidden, y);  // row of y
        if (reads_early<HELD> && post.weight) read(post.weight, hidden, post_weight);
        if (call.bias) {
            Unit<float> bias[HELD];
            read(call.bias, hidden, bias);
#pragma unroll
            for (int u = 0; u < HELD; u++) {
#pragma unroll
                for (int e = 0; e < UNIT; e++) y[u].at[e] += bias[u].at[e];
            }
        }
        if (post.weight) normalise(y, post, hidden, post_weight, partial);
#pragma unroll
        for (int u = 0; u < HELD; u++) {
#pragma unroll
            for (int e = 0; e < UNIT; e++) x[u].at[e] += call.scale * y[u].at[e];
            if (start(u) < hidden) narrow(stream + start(u), x[u]);
        }
    }
    if (!call.out) return;
    if (pre.weight) normalise(x, pre, hidden, pre_weight, partial);
#pragma unroll
    for (int u = 0; u < HELD; u++) {
        if (start(u) < hidden) narrow(out + start(u), x[u]);
    }
}

// Of a row that `at(i)` gives again and again.
template <typename At>
__device__ __forceinline__ Moments moments_of(At at, const Norm& norm, int hidden, float* partial) {
    float mean = 0, squares = 0;
    if (norm.layer) {
        float sum = 0;
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) sum += at(i);
        mean = __fdividef(block_sum(sum, partial), hidden);
    }
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
        float distance = at(i) - mean;
        squares += distance * distance;
    }
    return {mean, rsqrtf(__fdividef(block_sum(squares, partial), hidden) + norm.eps)};
}

// Any hidden size. An element is one thread's in every loop, so that no loop waits for another's.
template <typename T>
__device__ __forceinline__ void residual_any(const Call<T>& call, const Norm& post,
                                             const Norm& pre) {
    __shared__ float partial[WARP];
    int hidden = call.hidden;
    unsigned row = call.rows ? call.rows[blockIdx.x] : blockIdx.x;
    T* out = call.out + size_t(blockIdx.x) * hidden;  // row of out; used where there is one
    if (row >= call.tokens) {
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) out[i] = from_float<T>(0);
        return;
    }
    float* x = call.x + size_t(row) * hidden;  // row of x
    if (call.y) {
        const T* y = call.y + size_t(row) * hidden;  // row of y
        auto given = [&](int i) { return to_float(y[i]) + (call.bias ? call.bias[i] : 0.0f); };
        Moments of = {0, 1};
        if (post.weight) of = moments_of(given, post, hidden, partial);
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
            float normed = (given(i) - of.mean) * of.scale;
            if (post.weight) normed *= post.weight[i];
            x[i] += call.scale * normed;
        }
    }
    if (!call.out) return;
    Moments of = {0, 1};
    if (pre.weight) of = moments_of([&](int i) { return x[i]; }, pre, hidden, partial);
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
        float normed = (x[i] - of.mean) * of.scale;
        out[i] = from_float<T>(pre.weight ? normed * pre.weight[i] : normed);
    }
}

#define RESIDUAL(name, T, threads, function)                                                   \
    KERNEL(threads)                                                                            \
    name(float* x, const T* y, const float* bias, const float* post_weight, float post_eps,    \
         int post_layer, float scale, const float* pre_weight, float pre_eps, int pre_layer,   \
         T* out, const unsigned* rows, unsigned tokens, int hidden) {                          \
        Call<T> call = {x, y, bias, scale, out, rows, tokens, hidden};                         \
        function(call, Norm{post_weight, post_eps, post_layer},                                \
                 Norm{pre_weight, pre_eps, pre_layer});                                        \
    }                                                                                          \
    REGISTER_KERNEL(name)

RESIDUAL(residual_2_f32, float, 512, (residual<float, 2>))
RESIDUAL(residual_2_bf16, bf16, 512, (residual<bf16, 2>))
RESIDUAL(residual_2_f16, f16, 512, (residual<f16, 2>))
RESIDUAL(residual_4_f32, float, 1024, (residual<float, 4>))
RESIDUAL(residual_4_bf16, bf16, 1024, (residual<bf16, 4>))
RESIDUAL(residual_4_f16, f16, 1024, (residual<f16, 4>))
RESIDUAL(residual_any_f32, float, 512, residual_any)
RESIDUAL(residual_any_bf16, bf16, 512, residual_any)
RESIDUAL(residual_any_f16, f16, 512, residual_any)
