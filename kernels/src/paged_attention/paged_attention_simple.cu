// Attention of any tokens, of any head size up to 512, in any dtype: what the kernels for tensor
// cores do not take (f32, odd head sizes). Decode and chunks alike: each token goes by itself.
//
// A block attends with one query. Its warps take turns of STEP positions, cut by absolute position,
// with a softmax of their own each; lane l has the elements l, l + 32, .. of the head. At the end
// the warps are merged, warp after warp.
//   grid (T, H)   block 128   shared 8 KiB
//   traffic: keys and values once per query head and token -> bound by latency and the L2 cache.

#include "paged_attention.cuh"

namespace {

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
// Positions that a warp takes at a time: their sums over lanes run side by side. It divides TILE,
// so that they lie in one block.
constexpr int STEP = 4;
constexpr int MAX_HEAD_SIZE = 512;

// What a query sees, and where.
struct Query {
    unsigned slot;
    int kv_head, first, end;
};

// The sums of weights * values that a warp has, elements of a lane, and their softmax.
template <int PER_LANE>
struct Sums {
    float max = NEGATIVE_INFINITY, sum = 0;
    float at[PER_LANE] = {};
};

// Takes the positions position.. of the cache into `sums`; `keys` and `values` point at the first.
template <typename T, int PER_LANE>
__device__ __forceinline__ void add_step(Sums<PER_LANE>& sums, const float (&q)[PER_LANE],
                                         const T* keys, const T* values, const Query& query,
                                         int position, int head_size, const Scoring& scoring) {
    int lane = threadIdx.x % WARP;
    float weights[STEP] = {}, max = sums.max;
    bool seen[STEP];
#pragma unroll
    for (int j = 0; j < STEP; j++) {
        seen[j] = position + j >= query.first && position + j < query.end;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            int d = i * WARP + lane;
            if (!seen[j] || d >= head_size) break;
            weights[j] += q[i] * to_float(keys[j * head_size + d]);
        }
    }
#pragma unroll
    for (int j = 0; j < STEP; j++) {
        float dot = warp_sum(weights[j]);
        weights[j] = seen[j] ? scoring(dot) : NEGATIVE_INFINITY;
        max = fmaxf(max, weights[j]);
    }
    float subtracted = finite_max(max), correction = fast_exp2(sums.max - subtracted);
    sums.max = max;
    sums.sum *= correction;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) sums.at[i] *= correction;
#pragma unroll
    for (int j = 0; j < STEP; j++) {
        float weight = fast_exp2(weights[j] - subtracted);
        sums.sum += weight;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            int d = i * WARP + lane;
            if (!seen[j] || d >= head_size) break;
            sums.at[i] += weight * to_float(values[j * head_size + d]);
        }
    }
}

// Brings the sums of the block's warps together and writes them to `out`, [D].
template <typename T, int PER_LANE>
__device__ __forceinline__ void merge(const Sums<PER_LANE>& sums, float sink, int head_size,
                                      T* out) {
    __shared__ float merged[WARPS][MAX_HEAD_SIZE];
    __shared__ float maxima[WARPS], totals[WARPS];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int i = 0; i < PER_LANE; i++) {
        if (i * WARP + lane < head_size) merged[warp][i * WARP + lane] = sums.at[i];
    }
    if (lane == 0) maxima[warp] = sums.max, totals[warp] = sums.sum;
    __syncthreads();  // all warps have written
    float max = sink, weights[WARPS];
    for (int i = 0; i < WARPS; i++) max = fmaxf(max, maxima[i]);
    float total = fast_exp2(sink - max);
    for (int i = 0; i < WARPS; i++) {
        weights[i] = fast_exp2(maxima[i] - max);
        total += totals[i] * weights[i];
    }
    for (int d = threadIdx.x; d < head_size; d += THREADS) {
        float sum = 0;
        for (int i = 0; i < WARPS; i++) sum += merged[i][d] * weights[i];
        out[d] = from_float<T>(sum / total);
    }
}

template <typename T, int PER_LANE>
__device__ __forceinline__ void attend(const T* q, const T* k, const T* v, const Blocks& blocks,
                                       const Query& query, const Scoring& scoring, float sink,
                                       T* out) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head_size = blocks.head_size;
    float values[PER_LANE];
    for (int i = 0; i < PER_LANE; i++) {
        int d = i * WARP + lane;
        values[i] = d < head_size ? to_float(q[d]) : 0;
    }
    Sums<PER_LANE> sums;
    int start = query.first / (WARPS * STEP) * WARPS * STEP + warp * STEP;
    for (int position = start; position < query.end; position += WARPS * STEP) {
        if (position + STEP <= query.first) continue;
        unsigned block = blocks.block(query.slot, position);
        size_t from = blocks.offset(block, query.kv_head, position);
        add_step(sums, values, k + from, v + from, query, position, head_size, scoring);
    }
    merge(sums, sink, head_size, out);
}

}  // namespace

// row_of_token, positions [T]; slot [R]; a token whose row is PAD is left alone.
#define SIMPLE(name, T, PER_LANE)                                                                 \
    KERNEL(THREADS)                                                                               \
    name(const T* q, long long q_stride, const T* k, const T* v, const unsigned* tables,          \
         int max_blocks, int block_size, int kv_heads, int head_size, const unsigned* slot,       \
         const unsigned* row_of_token, const unsigned* positions, float scale, int window,        \
         float softcap, const float* sinks, T* out) {                                             \
        int token = blockIdx.x, head = blockIdx.y, heads = gridDim.y;                             \
        unsigned row = row_of_token[token];                                                       \
        if (row == PAD) return;                                                                   \
        int position = positions[token], kv_head = head / (heads / kv_heads);                     \
        Query query = {slot[row], kv_head, first_seen(position, window), position + 1};           \
        Blocks blocks = {tables, max_blocks, block_size, kv_heads, head_size};                    \
        float sink = sinks ? sinks[head] * LOG2E : NEGATIVE_INFINITY;                             \
        attend<T, PER_LANE>(q + token * q_stride + head * head_size, k, v, blocks, query,         \
                            Scoring(scale, softcap), sink,                                        \
                            out + (size_t(token) * heads + head) * head_size);                    \
    }                                                                                             \
    REGISTER_KERNEL(name)

SIMPLE(paged_attention_simple_f32_128, float, 4)
SIMPLE(paged_attention_simple_bf16_128, bf16, 4)
SIMPLE(paged_attention_simple_f16_128, f16, 4)
SIMPLE(paged_attention_simple_f32_512, float, 16)
SIMPLE(paged_attention_simple_bf16_512, bf16, 16)
SIMPLE(paged_attention_simple_f16_512, f16, 16)
