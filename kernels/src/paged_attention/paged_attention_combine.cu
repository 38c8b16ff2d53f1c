// Merges what the splits of a row have left, in a fixed order; rows with one split are done.
//
// A block merges one head of a row: groups of D / 4 threads take every splits of their own (group g
// the splits g, g + groups, ..), 4 elements a thread, then the groups are summed in their order.
// The order depends on the number of splits alone.
//   grid (H, rows)   block 256   shared 4 KiB
//   traffic: sums read once, mostly from the L2 cache, as decode has just written them.

#include "paged_attention.cuh"
#include "paged_attention_split.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;

__device__ __forceinline__ float block_max(float x, float* partial) {
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = x;
    __syncthreads();  // every warp's maximum is in `partial`
    for (int i = 0; i < WARPS; i++) x = fmaxf(x, partial[i]);
    __syncthreads();  // everyone has read `partial`
    return x;
}

// Sums and maxima of one head of a row: `splits` of them, `heads` apart.
template <typename T>
__device__ __forceinline__ void combine(const float* sums, const Partial* partials, int splits,
                                        int heads, int head_size, float sink, T* out) {
    __shared__ float4 merged[THREADS];
    __shared__ float scratch[WARPS];
    float max = sink, total = 0;
    for (int i = threadIdx.x; i < splits; i += THREADS) max = fmaxf(max, partials[i * heads].max);
    max = block_max(max, scratch);
    for (int i = threadIdx.x; i < splits; i += THREADS) {
        Partial partial = partials[i * heads];
        total += partial.sum * fast_exp2(partial.max - max);
    }
    total = block_sum(total, scratch) + fast_exp2(sink - max);

    int vectors = head_size / 4, groups = THREADS / vectors;
    int group = threadIdx.x / vectors, column = threadIdx.x % vectors * 4;
    float4 sum = {0, 0, 0, 0};
    if (group < groups) {
#pragma unroll 4
        for (int i = group; i < splits; i += groups) {
            float weight = fast_exp2(partials[i * heads].max - max);
            Vec<float> values = load(sums + size_t(i) * heads * head_size + column);
            sum.x += values.at[0] * weight, sum.y += values.at[1] * weight;
            sum.z += values.at[2] * weight, sum.w += values.at[3] * weight;
        }
    }
    merged[threadIdx.x] = sum;
    __syncthreads();  // the sums of all groups are in `merged`
    if (group > 0) return;
    for (int i = 1; i < groups; i++) {
        float4 other = merged[i * vectors + threadIdx.x];
        sum.x += other.x, sum.y += other.y, sum.z += other.z, sum.w += other.w;
    }
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
    store_four(out + column, values, 1 / total);
}

}  // namespace

// sums [partials, H, D], partials [partials, H], row_partials [rows + 1], first_item [rows];
// out [T, H, D].
#define COMBINE(name, T)                                                                          \
    KERNEL(THREADS)                                                                               \
    name(const float* sums, const Partial* partials, const unsigned* row_partials,                \
         const unsigned* first_item, const Item* items, int head_size, const float* sinks,        \
         T* out) {                                                                                \
        int head = blockIdx.x, heads = gridDim.x, row = blockIdx.y;                               \
        unsigned first = row_partials[row], splits = row_partials[row + 1] - first;               \
        if (splits == 0) return;                                                                  \
        /* split 0 of the row, this head */                                                       \
        size_t from = size_t(first) * heads + head;                                               \
        size_t to = size_t(items[first_item[row]].token) * heads + head;                          \
        float sink = sinks ? sinks[head] * LOG2E : NEGATIVE_INFINITY;                             \
        combine(sums + from * head_size, partials + from, int(splits), heads, head_size, sink,    \
                out + to * head_size);                                                            \
    }                                                                                             \
    REGISTER_KERNEL(name)

COMBINE(paged_attention_combine_bf16, bf16)
COMBINE(paged_attention_combine_f16, f16)
