// Heads: what happens to a token's queries, keys and values between projection and attention.
//
//   grid (T, ceil(heads / heads of a block))   block 32..128   no shared memory that counts
//   With the scope Whole: grid (T, 1), block 256: its sums are over all heads of a token.
//   Each of a head's `lanes` lanes owns two vectors of 16 bytes: with rotated halves, one of the
//   first half and that of the second which it is turned with. A warp takes 32 / lanes heads at
//   once. Heads are counted as they lie in a row: H queries, K keys, K values.
//   traffic: a row of qkv is read once and written once, queries in place, keys and values to their
//   block: 24 KiB a token with H 32, K 8, D 128 and halves. The rotation's table and the norms'
//   weights come from the cache: all heads of a token read the same. Bound by memory.
//
// Whatever does not lie in vectors (`heads_any`) goes a head a warp, a pair of elements a lane.
#include "device.cuh"

constexpr int MAX_THREADS = 256;

// In the order of `Scope` in mod.rs, behind none at all.
enum Scope { NO_NORM, PER_HEAD, EACH_HEAD, WHOLE };

template <typename T>
struct Call {
    T* qkv;                            // [T, (H + 2K) * D]
    const float* bias;                 // [(H + 2K) * D], or null
    const float *q_weight, *k_weight;  // [D], or [H * D] and [K * D]
    const float *cos, *sin;            // [max_position, dims / 2]; dims 0: no rotation
    const float* query_scale;          // [max_position], or null
    const unsigned *positions, *slot_mapping;  // [T]
    T *cache_k, *cache_v;                      // [N, K, block_size, D]
    unsigned slots;                            // N * block_size: what is not below it is no slot
    unsigned max_position;
    int heads, kv_heads, head_size;
    int block_size;
    int dims, interleaved;
    int scope, layer;
    float eps;
    int first_head;  // H where queries stay as they are, otherwise 0
    int lanes;       // a power of 2
};

// What a norm takes off an element, and what it then multiplies it by, besides the weight.
struct Moments {
    float mean, scale;
};

// N elements, 1 or a whole vector, and their bias, if there is one.
template <int N, typename T>
__device__ __forceinline__ void read(const T* from, const float* bias, float (&to)[N]) {
    if constexpr (N == 1) {
        to[0] = to_float(*from) + (bias ? *bias : 0.0f);
    } else {
        Vec<T> raw = load(from);
#pragma unroll
        for (int e = 0; e < N; e++) to[e] = to_float(raw.at[e]);
        if (!bias) return;
#pragma unroll
        for (int e = 0; e < N; e += Vec<float>::N) {
            Vec<float> more = load(bias + e);
#pragma unroll
            for (int i = 0; i < Vec<float>::N; i++) to[e + i] += more.at[i];
        }
    }
}

template <int N>
__device__ __forceinline__ void read_table(const float* from, float (&to)[N]) {
#pragma unroll
    for (int e = 0; e < N; e += Vec<float>::N) {
        Vec<float> part = load(from + e);
#pragma unroll
        for (int i = 0; i < Vec<float>::N; i++) to[e + i] = part.at[i];
    }
}

template <typename T, int N>
__device__ __forceinline__ void write(T* to, const float (&from)[N]) {
    Vec<T> rounded;
#pragma unroll
    for (int e = 0; e < N; e++) rounded.at[e] = from_float<T>(from[e]);
    store(to, rounded);
}

// Where a head of this block's token goes; null for nowhere.
template <typename T>
__device__ __forceinline__ T* destination(const Call<T>& call, T* head_of_row, int head) {
    if (head < call.heads) return head_of_row;
    unsigned slot = call.slot_mapping[blockIdx.x];
    if (slot >= call.slots) return nullptr;
    bool is_key = head < call.heads + call.kv_heads;
    int kv_head = head - call.heads - (is_key ? 0 : call.kv_heads);
    unsigned block = slot / call.block_size, offset = slot % call.block_size;
    // The slot's position in that block of that kv head.
    size_t position = (size_t(block) * call.kv_heads + kv_head) * call.block_size + offset;
    return (is_key ? call.cache_k : call.cache_v) + position * call.head_size;
}

// The norm's weight for a head of queries or keys.
template <typename T>
__device__ __forceinline__ const float* weight_of(const Call<T>& call, int head) {
    bool is_query = head < call.heads;
    const float* weight = is_query ? call.q_weight : call.k_weight;
    int own = is_query ? head : head - call.heads;
    return call.scope == PER_HEAD ? weight : weight + own * call.head_size;
}

template <typename T>
__device__ __forceinline__ float finish(const Call<T>& call, float squares, int len) {
    return rsqrtf(__fdividef(squares, len) + call.eps);
}

// Of `len` elements, which the whole block sums, N at a time.
template <int N, typename T>
__device__ __forceinline__ Moments whole(const Call<T>& call, const T* x, const float* bias,
                                         int len, float* partial) {
    float mean = 0, squares = 0;
    int start = threadIdx.x * N, stride = blockDim.x * N;
    if (call.layer) {
        float sum = 0;
        for (int i = start; i < len; i += stride) {
            float part[N];
            read(x + i, bias ? bias + i : nullptr, part);
#pragma unroll
            for (int e = 0; e < N; e++) sum += part[e];
        }
        mean = __fdividef(block_sum(sum, partial), len);
    }
    for (int i = start; i < len; i += stride) {
        float part[N];
        read(x + i, bias ? bias + i : nullptr, part);
#pragma unroll
        for (int e = 0; e < N; e++) squares += (part[e] - mean) * (part[e] - mean);
    }
    return {mean, finish(call, block_sum(squares, partial), len)};
}

// Of all queries, and of all keys, where the scope is Whole; ends with a barrier, behind which the
// queries may be written.
template <int N, typename T>
__device__ __forceinline__ void wholes(const Call<T>& call, const T* row, Moments (&of)[2]) {
    __shared__ float partial[WARP];
    if (call.scope != WHOLE) return;
    int q_len = call.heads * call.head_size, k_len = call.kv_heads * call.head_size;
    of[0] = whole<N>(call, row, call.bias, q_len, partial);
    const float* k_bias = call.bias ? call.bias + q_len : nullptr;
    of[1] = whole<N>(call, row + q_len, k_bias, k_len, partial);
}

// The sum over groups of `lanes` neighbours.
__device__ __forceinline__ float group_sum(float x, int lanes) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

// Of a head whose elements its lanes hold, N twice; those it does not have are 0 and not counted.
template <int N, typename T>
__device__ __forceinline__ Moments head_moments(const Call<T>& call, const float (&a)[N],
                                                const float (&b)[N], bool has_a, bool has_b) {
    float mean = 0, squares = 0;
    if (call.layer) {
        float sum = 0;
#pragma unroll
        for (int e = 0; e < N; e++) sum += a[e] + b[e];
        mean = __fdividef(group_sum(sum, call.lanes), call.head_size);
    }
#pragma unroll
    for (int e = 0; e < N; e++) {
        float from_a = has_a ? a[e] - mean : 0, from_b = has_b ? b[e] - mean : 0;
        squares += from_a * from_a + from_b * from_b;
    }
    return {mean, finish(call, group_sum(squares, call.lanes), call.head_size)};
}

template <int N>
__device__ __forceinline__ void scale_by(const Moments& of, const float* weight, float (&x)[N]) {
    float weights[N];
    read_table(weight, weights);
#pragma unroll
    for (int e = 0; e < N; e++) x[e] = (x[e] - of.mean) * of.scale * weights[e];
}

__device__ __forceinline__ void turn(float& a, float& b, float cos, float sin) {
    float turned = a * cos - b * sin;
    b = b * cos + a * sin;
    a = turned;
}

// The pairs of two vectors: of each with the other, or within each, of a first and then of b.
template <int N>
__device__ __forceinline__ void turn_vectors(float (&a)[N], float (&b)[N], const float (&cos)[N],
                                             const float (&sin)[N], bool interleaved) {
    if (interleaved) {
#pragma unroll
        for (int e = 0; e < N / 2; e++) {
            turn(a[2 * e], a[2 * e + 1], cos[e], sin[e]);
            turn(b[2 * e], b[2 * e + 1], cos[N / 2 + e], sin[N / 2 + e]);
        }
    } else {
#pragma unroll
        for (int e = 0; e < N; e++) turn(a[e], b[e], cos[e], sin[e]);
    }
}

// head_size is a multiple of N, dims one of 2N, and a head has at most 32 times two vectors.
template <typename T>
__device__ __forceinline__ void heads_vectors(const Call<T>& call) {
    constexpr int N = Vec<T>::N;
    int member = threadIdx.x % call.lanes, group = threadIdx.x / call.lanes;
    int num_groups = blockDim.x / call.lanes, dims = call.dims, head_size = call.head_size;
    int all = call.heads + 2 * call.kv_heads;
    T* row = call.qkv + size_t(blockIdx.x) * all * head_size;  // row t of qkv
    Moments moments[2] = {{0, 1}, {0, 1}};
    wholes<N>(call, row, moments);
    // This lane's vectors begin at elements `a` and `b` of its heads.
    bool turns = member < dims / (2 * N);
    bool halves = turns && !call.interleaved;
    int a = halves ? member * N : member * 2 * N;
    int b = halves ? a + dims / 2 : a + N;
    bool has_a = a < head_size, has_b = b < head_size;
    float scale = 1, cos[N] = {}, sin[N] = {};
    unsigned position = min(call.positions[blockIdx.x], call.max_position - 1);
    if (call.query_scale) scale = call.query_scale[position];
    if (turns) {
        // The first of N pairs, in the row of the position.
        size_t pair = size_t(position) * (dims / 2) + (halves ? a : a / 2);
        read_table(call.cos + pair, cos);
        read_table(call.sin + pair, sin);
    }
    // All lanes of a warp stay in the loop until the end, for the sums' sake.
    int step = gridDim.y * num_groups;
    for (int first = call.first_head + blockIdx.y * num_groups; first < all; first += step) {
        int head = first + group;
        bool here = head < all, is_query = head < call.heads;
        bool is_value = head >= call.heads + call.kv_heads;
        T* from = row + head * head_size;  // head of row t
        const float* bias = call.bias ? call.bias + head * head_size : nullptr;
        float at_a[N] = {}, at_b[N] = {};
        if (here && has_a) read(from + a, bias ? bias + a : nullptr, at_a);
        if (here && has_b) read(from + b, bias ? bias + b : nullptr, at_b);
        if (call.scope != NO_NORM) {
            Moments of = is_query ? moments[0] : moments[1];
            if (call.scope != WHOLE) of = head_moments(call, at_a, at_b, has_a, has_b);
            if (!is_value && has_a) scale_by(of, weight_of(call, head) + a, at_a);
            if (!is_value && has_b) scale_by(of, weight_of(call, head) + b, at_b);
        }
        if (turns && !is_value) turn_vectors(at_a, at_b, cos, sin, call.interleaved);
        if (is_query) {
#pragma unroll
            for (int e = 0; e < N; e++) {
                at_a[e] *= scale;
                at_b[e] *= scale;
            }
        }
        T* to = here ? destination(call, from, head) : nullptr;
        if (to && has_a) write(to + a, at_a);
        if (to && has_b) write(to + b, at_b);
    }
}

// Any head size, any rotation. A lane owns pairs of elements, and what is not turned one by one.
template <typename T>
__device__ __forceinline__ void heads_any(const Call<T>& call) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    int pairs = call.dims / 2, head_size = call.head_size;
    int all = call.heads + 2 * call.kv_heads;
    T* row = call.qkv + size_t(blockIdx.x) * all * head_size;  // row t of qkv
    Moments moments[2] = {{0, 1}, {0, 1}};
    wholes<1>(call, row, moments);
    unsigned position = min(call.positions[blockIdx.x], call.max_position - 1);
    const float* cos = call.cos + size_t(position) * pairs;  // the position's rows
    const float* sin = call.sin + size_t(position) * pairs;
    int first = call.first_head + blockIdx.y * warps + warp;
    for (int head = first; head < all; head += gridDim.y * warps) {
        bool is_query = head < call.heads, is_value = head >= call.heads + call.kv_heads;
        T* from = row + head * head_size;  // head of row t
        auto raw = [&](int i) {
            return to_float(from[i]) + (call.bias ? call.bias[head * head_size + i] : 0.0f);
        };
        bool has_norm = call.scope != NO_NORM && !is_value;
        Moments of = is_query ? moments[0] : moments[1];
        if (has_norm && call.scope != WHOLE) {
            float mean = 0, squares = 0;
            if (call.layer) {
                float sum = 0;
                for (int i = lane; i < head_size; i += WARP) sum += raw(i);
                mean = __fdividef(warp_sum(sum), head_size);
            }
            for (int i = lane; i < head_size; i += WARP) {
                squares += (raw(i) - mean) * (raw(i) - mean);
            }
            of = {mean, finish(call, warp_sum(squares), head_size)};
        }
        const float* weight = has_norm ? weight_of(call, head) : nullptr;
        auto normed = [&](int i) {
            return has_norm ? (raw(i) - of.mean) * of.scale * weight[i] : raw(i);
        };
        float scale = is_query && call.query_scale ? call.query_scale[position] : 1;
        T* to = destination(call, from, head);
        if (!to) continue;
        int num_turned = is_value ? 0 : pairs;
        for (int pair = lane; pair < num_turned; pair += WARP) {
            int a = call.interleaved ? 2 * pair : pair;
            int b = call.interleaved ? a + 1 : pair + pairs;
            float at_a = normed(a), at_b = normed(b);
            turn(at_a, at_b, cos[pair], sin[pair]);
            to[a] = from_float<T>(at_a * scale);
            to[b] = from_float<T>(at_b * scale);
        }
        for (int i = 2 * num_turned + lane; i < head_size; i += WARP) {
            to[i] = from_float<T>(normed(i) * scale);
        }
    }
}

#define HEADS(name, T, function)                                                                 \
    KERNEL(MAX_THREADS)                                                                          \
    name(T* qkv, const float* bias, const float* q_weight, const float* k_weight,                \
         const float* cos, const float* sin, const float* query_scale, const unsigned* positions, \
         const unsigned* slot_mapping, T* cache_k, T* cache_v, unsigned slots,                   \
         unsigned max_position, int heads, int kv_heads, int head_size, int block_size, int dims, \
         int interleaved, int scope, int layer, float eps, int first_head, int lanes) {          \
        function(Call<T>{qkv, bias, q_weight, k_weight, cos, sin, query_scale, positions,        \
                         slot_mapping, cache_k, cache_v, slots, max_position, heads, kv_heads,   \
                         head_size, block_size, dims, interleaved, scope, layer, eps,            \
                         first_head, lanes});                                                    \
    }                                                                                            \
    REGISTER_KERNEL(name)

HEADS(heads_f32, float, heads_vectors)
HEADS(heads_bf16, bf16, heads_vectors)
HEADS(heads_f16, f16, heads_vectors)
HEADS(heads_any_f32, float, heads_any)
HEADS(heads_any_bf16, bf16, heads_any)
HEADS(heads_any_f16, f16, heads_any)
