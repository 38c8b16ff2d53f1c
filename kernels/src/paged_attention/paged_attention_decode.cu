// Attention of rows with one query each: the splits that the plan lists (paged_attention_plan.cu).
//
// The up to 16 query heads of a kv head are the 16 rows of mma.m16n8k16, so keys and values are
// read once for all of them; more heads take more passes, which run beside each other and find the
// tiles in the L2 cache. A piece of work is (item, kv head, pass). Warp w of a block computes tiles
// w, w + 4, .. of the item by itself, with a softmax of its own; the block's four are merged at
// the end, warp after warp.
//   grid (multiprocessors * blocks at once), fixed: blocks take every gridDim.x-th piece of work
//   block 128   shared: a ring of tiles per warp, and the queries or what is merged
//   traffic: keys and values once -> bound by memory, target 75 % of the copy bandwidth.
//
// To fill the bandwidth of an H200, 4.3 TB/s at a latency of 0.7 us, a multiprocessor needs 23 KiB
// under way. A warp has all of its ring but one tile under way (D = 128: 12 KiB), also while it
// ends one piece of work and begins the next: 144 KiB a multiprocessor, with 3 blocks. A tile of
// keys and one of values cost a multiprocessor about 160 cycles of shared memory and 64 of tensor
// cores, in the 440 cycles that memory takes to bring them.

#include "paged_attention.cuh"
#include "paged_attention_split.cuh"

namespace {

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
// Rows of an mma: query heads of a pass.
constexpr int ROWS = 16;
// Rows that are merged at a time: with them, the merge takes twice the memory of the queries.
constexpr int MERGED = 4;

// The shared memory of a block. Queries are not needed any more when rows are merged.
template <typename T, int D>
struct Shared {
    static constexpr int STAGES = D <= 128 ? 4 : 3;
    T ring[WARPS][STAGES][TILE * D];
    union {
        T queries[ROWS * D];
        float merged[WARPS][MERGED][D];
    };
    Partial partials[WARPS][ROWS];
};

template <typename T>
struct Arguments {
    const T* q;  // [T, H, D], tokens at a distance of q_stride
    long long q_stride;
    const T *k, *v;  // [N, K, B, D]
    Blocks blocks;
    const Item* items;
    int works;  // items * K * passes
    int heads, passes;
    Scoring scoring;
    const float* sinks;  // [H] or null
    T* out;              // [T, H, D]
    float* sums;         // [partials, H, D]
    Partial* partials;   // [partials, H]
};

// A piece of work: heads first_head.. of an item.
struct Work {
    Item item;
    int kv_head, first_head, num_heads;

    template <typename T>
    __device__ __forceinline__ Work(const Arguments<T>& args, int index) {
        int kv_heads = args.blocks.kv_heads, group = args.heads / kv_heads;
        int pass = index % args.passes, pair = index / args.passes;
        item = args.items[pair / kv_heads];
        kv_head = pair % kv_heads;
        first_head = kv_head * group + pass * ROWS;
        num_heads = min(group - pass * ROWS, ROWS);
    }

    // Where the first tile of `warp` begins; its next ones follow at a distance of WARPS tiles.
    __device__ __forceinline__ int first_tile(int warp) const {
        return (item.begin / TILE + warp) * TILE;
    }
};

// Copies the tiles of a warp, keys and values in turns, into the warp's ring, ahead of their use:
// it walks through the block's work by itself, and ends with it.
template <typename T, int D>
struct Loader {
    static constexpr int STAGES = Shared<T, D>::STAGES;
    T* ring;
    int index, warp, lane;
    // The tile that is copied next, where it lies, and the block of the warp's one after it.
    int position, begin, end, kv_head;
    size_t offset;
    unsigned slot, next_block;
    bool is_values = false;
    int stage = 0, taken = 0;

    __device__ __forceinline__ Loader(const Arguments<T>& args, T* ring)
        : ring(ring), index(blockIdx.x), warp(threadIdx.x / WARP), lane(threadIdx.x % WARP) {
        open(args);
        for (int i = 0; i < STAGES - 1; i++) copy(args);
    }

    // Waits for the tile that is used next, and begins another copy where the last one was.
    __device__ __forceinline__ const T* take(const Arguments<T>& args) {
        copies_wait<STAGES - 2>();
        __syncwarp();  // the copies of all lanes are there, and all have read the tile before
        copy(args);
        const T* tile = ring + taken * TILE * D;
        taken = taken + 1 == STAGES ? 0 : taken + 1;
        return tile;
    }

    // Begins the next copy. Past the last tile it is one of nothing, so that `take` counts right.
    __device__ __forceinline__ void copy(const Arguments<T>& args) {
        if (index < args.works) {
            const T* from = (is_values ? args.v : args.k) + offset;
            T* to = ring + stage * TILE * D;
            copy_tile<D, WARP>(to, from, begin - position, end - position, lane);
            if (is_values) advance(args);
            is_values = !is_values;
        }
        copies_commit();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

    __device__ __forceinline__ void advance(const Arguments<T>& args) {
        position += WARPS * TILE;
        if (position < end) {
            lies_in(args, next_block);
        } else {
            index += gridDim.x;
            open(args);
        }
    }

    // Goes to the warp's first tile of work `index`, or of the first one after it that has any.
    __device__ __forceinline__ void open(const Arguments<T>& args) {
        for (; index < args.works; index += gridDim.x) {
            Work work(args, index);
            slot = work.item.slot, begin = work.item.begin, end = work.item.end;
            kv_head = work.kv_head, position = work.first_tile(warp);
            if (position < end) {
                lies_in(args, args.blocks.block(slot, position));
                return;
            }
        }
    }

    // Takes the block of this tile, and looks the next one up before it is needed.
    __device__ __forceinline__ void lies_in(const Arguments<T>& args, unsigned block) {
        offset = args.blocks.offset(block, kv_head, position);
        int next = position + WARPS * TILE;
        if (next < end) next_block = args.blocks.block(slot, next);
    }
};

// Copies the queries of a work into shared memory, as rows of zeros where there are fewer than 16.
template <typename T, int D>
__device__ __forceinline__ void load_queries(const Arguments<T>& args, const Work& work,
                                             T* queries) {
    constexpr int CHUNKS = D / 8;
    // row first_head of the token's queries
    const T* from = args.q + work.item.token * args.q_stride + work.first_head * D;
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        Vec<T> values = {};
        if (row < work.num_heads) values = load(from + i * 8);
        store(queries + swizzled<D>(row, chunk), values);
    }
}

// Scores of 16 queries and the 16 positions of a tile.
template <typename T, int D>
__device__ __forceinline__ void score(float (&scores)[2][4], const T* queries, const T* keys,
                                      int lane) {
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t a[4], b[4];
        load_rows<D>(a, queries, step, lane);
        load_keys<D>(b, keys, step, lane);
        mma_pair<T>(scores[0], scores[1], a, b);
    }
}

// Scales scores, and hides what is not in begin..end of the tile.
__device__ __forceinline__ void scale_and_mask(float (&scores)[2][4], const Scoring& scoring,
                                               int begin, int end, int lane) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int column = n * 8 + lane % 4 * 2 + i % 2;
            bool seen = column >= begin && column < end;
            scores[n][i] = seen ? scoring(scores[n][i]) : NEGATIVE_INFINITY;
        }
    }
}

// The warp's tiles of a work: sum of weights * values, and the softmax that the weights are of.
template <typename T, int D>
__device__ __forceinline__ RunningSoftmax attend(const Arguments<T>& args, const Work& work,
                                                 Loader<T, D>& loader, const T* queries,
                                                 float (&sums)[D / 8][4]) {
    RunningSoftmax softmax;
    int lane = loader.lane, end = work.item.end;
    for (int position = work.first_tile(loader.warp); position < end; position += WARPS * TILE) {
        float scores[2][4] = {}, correction[2];
        score<T, D>(scores, queries, loader.take(args), lane);
        scale_and_mask(scores, args.scoring, work.item.begin - position, end - position, lane);
        softmax.add(scores, correction);
        // Maxima seldom grow once a few tiles have been seen.
        if (__any_sync(ALL_LANES, correction[0] != 1 || correction[1] != 1)) {
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) sums[n][i] *= correction[i / 2];
            }
        }
        uint32_t weights[4];
        weights_as_rows<T>(weights, scores[0], scores[1]);
        const T* values = loader.take(args);
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            uint32_t b[4];
            load_values<D>(b, values, step, lane);
            mma_pair<T>(sums[2 * step], sums[2 * step + 1], weights, b);
        }
    }
    return softmax;
}

// Merges what the warps have of MERGED heads, from row `first` on, and writes it out.
template <typename T, int D>
__device__ __forceinline__ void merge(const Arguments<T>& args, const Work& work,
                                      const Shared<T, D>& shared, int first) {
    constexpr int VECTORS = D / 4;
    for (int i = threadIdx.x; i < MERGED * VECTORS; i += THREADS) {
        int row = first + i / VECTORS, column = i % VECTORS * 4, head = work.first_head + row;
        if (row >= work.num_heads) break;
        bool whole = work.item.partial == PAD;
        float sink = whole && args.sinks ? args.sinks[head] * LOG2E : NEGATIVE_INFINITY;
        float max = sink, total = 0, sums[4] = {};
        for (int warp = 0; warp < WARPS; warp++) max = fmaxf(max, shared.partials[warp][row].max);
        for (int warp = 0; warp < WARPS; warp++) {
            Partial partial = shared.partials[warp][row];
            float weight = fast_exp2(partial.max - max);
            total += partial.sum * weight;
            const float* from = &shared.merged[warp][row - first][column];
            for (int j = 0; j < 4; j++) sums[j] += from[j] * weight;
        }
        if (whole) {
            total += fast_exp2(sink - max);
            // row `token` of out
            T* out = args.out + (size_t(work.item.token) * args.heads + head) * D + column;
            store_four(out, sums, 1 / total);
        } else {
            size_t at = size_t(work.item.partial) * args.heads + head;
            store(args.sums + at * D + column, Vec<float>{sums[0], sums[1], sums[2], sums[3]});
            if (column == 0) args.partials[at] = {max, total};
        }
    }
}

// Brings the sums of the block's warps together, a few rows at a time.
template <typename T, int D>
__device__ __forceinline__ void finish(const Arguments<T>& args, const Work& work,
                                       Shared<T, D>& shared, const RunningSoftmax& softmax,
                                       const float (&sums)[D / 8][4]) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = warp_sum<4>(softmax.sum[half]);
        if (pair == 0) shared.partials[warp][group + 8 * half] = {softmax.max[half], sum};
    }
#pragma unroll
    for (int first = 0; first < ROWS; first += MERGED) {
        if (first >= work.num_heads) break;
        __syncthreads();  // queries, or the rows before, have been read; partials are there
        if (group / MERGED == first % 8 / MERGED) {
            float* to = shared.merged[warp][group % MERGED] + pair * 2;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                to[n * 8] = sums[n][first / 8 * 2];
                to[n * 8 + 1] = sums[n][first / 8 * 2 + 1];
            }
        }
        __syncthreads();  // the warps' rows are in `merged`
        merge(args, work, shared, first);
    }
}

template <typename T, int D>
__device__ __forceinline__ void decode(const Arguments<T>& args, unsigned char* memory) {
    auto& shared = *reinterpret_cast<Shared<T, D>*>(memory);
    Loader<T, D> loader(args, shared.ring[threadIdx.x / WARP][0]);
    for (int index = blockIdx.x; index < args.works; index += gridDim.x) {
        Work work(args, index);
        load_queries<T, D>(args, work, shared.queries);
        __syncthreads();  // the queries are there
        float sums[D / 8][4] = {};
        RunningSoftmax softmax = attend<T, D>(args, work, loader, shared.queries, sums);
        finish<T, D>(args, work, shared, softmax, sums);
        __syncthreads();  // the last rows have been read
    }
}

}  // namespace

// Pointers of T are 16-byte aligned, q_stride is a multiple of 8.
#define DECODE(name, T, D, blocks_at_once)                                                        \
    KERNEL_OCCUPIED(THREADS, blocks_at_once)                                                      \
    name(const T* q, long long q_stride, const T* k, const T* v, const unsigned* tables,          \
         int max_blocks, int block_size, int heads, int kv_heads, const unsigned* num_items,      \
         const Item* items, float scale, float softcap, const float* sinks, T* out,               \
         float* sums, Partial* partials) {                                                        \
        DYNAMIC_SHARED(memory);                                                                   \
        int passes = ceil_div(heads / kv_heads, ROWS), works = *num_items * kv_heads * passes;    \
        Blocks blocks = {tables, max_blocks, block_size, kv_heads, D};                            \
        Scoring scoring(scale, softcap);                                                          \
        Arguments<T> args = {q,     q_stride, k,       v,     blocks, items, works,               \
                             heads, passes,   scoring, sinks, out,    sums,  partials};           \
        decode<T, D>(args, memory);                                                               \
    }                                                                                             \
    REGISTER_KERNEL(name)

DECODE(paged_attention_decode_bf16_64, bf16, 64, 4)
DECODE(paged_attention_decode_bf16_80, bf16, 80, 4)
DECODE(paged_attention_decode_bf16_96, bf16, 96, 3)
DECODE(paged_attention_decode_bf16_128, bf16, 128, 3)
DECODE(paged_attention_decode_bf16_256, bf16, 256, 2)
DECODE(paged_attention_decode_f16_64, f16, 64, 4)
DECODE(paged_attention_decode_f16_80, f16, 80, 4)
DECODE(paged_attention_decode_f16_96, f16, 96, 3)
DECODE(paged_attention_decode_f16_128, f16, 128, 3)
DECODE(paged_attention_decode_f16_256, f16, 256, 2)
