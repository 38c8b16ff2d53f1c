// Attention of chunks over the paged cache: FlashAttention-2 on mma.sync.
//
// A block computes a query tile, up to 128 neighbouring queries of one row and one head, against
// the keys and values that they see, STEP positions at a time, cut by absolute position. Where the
// registers allow it a warp has 32 of the queries, so that what it reads of keys and values in
// shared memory serves twice as many: with 16, shared memory and not the tensor cores would bound
// the kernel.
//   grid (H / K, K, query tiles)   block 128, or 256 where D is 256
//   shared (128 + 4 * STEP) * (D + 8) elements: the queries, then keys and values of two steps
// Blocks start in the order of x, then y, then z. The host puts the query tiles that see most
// first, so that the last blocks to run are short; and the heads of a group run side by side, so
// that what one reads of the cache the others find in L2.
//
// With scores in powers of two, so factor = scale * log2(e):
//   s = q k^T (f32), p = 2^(s * factor - max), out = sum_j p_j v_j / (sum_j p_j + 2^(sink - max))
// where p is rounded to T before it meets v, and `max` need not be the maximum, only within 2^8 of
// it: it is raised, and the sums scaled down, when a score exceeds it by more. So nearly all steps
// do no more about it than to compare. Each query raises its own, so its result does not depend on
// its neighbours; nor on how its row was cut, as a step of which it sees nothing changes no bit.
//
// traffic: q read and out written once; a query tile reads 4 * D bytes for each position it sees,
// through L2. work: 4 * D operations for each query and position it sees -> bound by the tensor
// cores, at 128 operations for each byte that comes from L2.
#include "paged_attention.cuh"

constexpr float HEADROOM = 8;     // By how much, in powers of two, a score may exceed `max`.
constexpr float LOWEST = -1e30f;  // `max` before any score; finite, so that -inf - max is -inf.
constexpr int NO_WINDOW = 1 << 30;

// What a launch is given.
template <typename T>
struct Launch {
    const T *q, *cache_k, *cache_v;  // q: a token's queries, q_stride elements apart
    T* out;                          // [T, H, D]
    const unsigned* block_tables;    // [max_slots, max_blocks]
    const unsigned* tiles;           // [tiles][2]: row or PAD; first query, counted in its row
    const unsigned *slot, *start, *len, *first;  // [R]
    const float* sinks;                          // [H] or null
    int q_stride, max_blocks, block_size, window;  // window 0: none
    unsigned reciprocal;  // ceil(2^31 / (block_size / TILE))
    float scale, softcap;                          // softcap 0: none
};

// How a block works: WARPS warps with FRAGMENTS * 16 queries each. Of the D / 16 fragments along a
// query, KEPT stay in registers, and the others are read from shared memory in every step.
template <typename Element, int HEAD_SIZE, int NUM_WARPS, int POSITIONS, int IN_REGISTERS>
struct Shape {
    using T = Element;
    static constexpr int D = HEAD_SIZE, WARPS = NUM_WARPS, STEP = POSITIONS, KEPT = IN_REGISTERS;
    static constexpr int THREADS = WARPS * WARP, QUERIES = 128;
    static constexpr int OF_WARP = QUERIES / WARPS, FRAGMENTS = OF_WARP / 16;
    // Rows in shared memory are an odd number of 16-byte vectors apart, so that the eight rows of a
    // matrix lie in different banks, at distances that do not depend on the lane.
    static constexpr int VECTORS = D / 8, STRIDE = D + 8;
    static constexpr int BUFFER = STEP * STRIDE;
    // Each tile of positions is copied by some of the threads.
    static constexpr int TILES = STEP / TILE, SHARERS = THREADS / TILES;
    static_assert(D % 16 == 0 && TILE * VECTORS % SHARERS == 0, "whole fragments, whole vectors");
};

// What a block computes.
struct Task {
    int head, kv_head;
    int position, queries;  // Of the first query in its row, and how many there are.
    int token;              // The first query in the step.
    int first_key, end;     // What any query sees.
    int window;
    const unsigned* table;
};

// Which block of its row tile `tile` of positions lies in: tile / tiles of a block.
__device__ __forceinline__ unsigned block_index(unsigned tile, unsigned reciprocal) {
    return __umulhi(2 * tile, reciprocal);
}

// The block of the cache that this is; 0 where no query sees anything of the tile: the table may
// then hold any number, or end before it.
__device__ __forceinline__ unsigned block_of(const Task& task, int tile, unsigned reciprocal) {
    bool seen = tile * TILE < task.end && (tile + 1) * TILE > task.first_key;
    return seen ? task.table[block_index(tile, reciprocal)] : 0;
}

// Begins to copy the queries; zeros stand in for those that the row does not have.
template <typename S, typename T>
__device__ __forceinline__ void copy_queries(const Launch<T>& launch, const Task& task, T* to) {
    const T* from = launch.q + int64_t(task.token) * launch.q_stride + task.head * S::D;
#pragma unroll
    for (int i = 0; i < S::QUERIES * S::VECTORS / S::THREADS; i++) {
        int vector = i * S::THREADS + threadIdx.x;
        int row = vector / S::VECTORS, column = vector % S::VECTORS * 8;
        bool valid = row < task.queries;
        const T* source = from + int64_t(valid ? row : 0) * launch.q_stride + column;
        copy_async(to + row * S::STRIDE + column, source, valid);
    }
}

// Begins to copy this thread's part of a step: some vectors of tile `tile`, which lies in `block`
// and goes to `keys` and `values`. What no query sees becomes zeros, because a weight of 0 keeps
// out what is finite, but no infinity and no NaN.
template <typename S, typename T>
__device__ __forceinline__ void copy_tiles(const Launch<T>& launch, const Task& task, int tile,
                                           unsigned block, T* keys, T* values) {
    unsigned block_size = launch.block_size, sharer = threadIdx.x % S::SHARERS;
    // The tile in its block, the head in the block, the block in the cache.
    unsigned within = tile - block_index(tile, launch.reciprocal) * (block_size / TILE);
    unsigned head = (task.kv_head * block_size + within * TILE) * S::D + sharer * 8;
    uint64_t from = uint64_t(block) * (gridDim.y * block_size * S::D) + head;
    const T *k = launch.cache_k + from, *v = launch.cache_v + from;
    int row = sharer / S::VECTORS, column = sharer % S::VECTORS;
    // Counted from the first position that is seen.
    int position = tile * TILE + row - task.first_key, count = task.end - task.first_key;
    keys += row * S::STRIDE + column * 8;
    values += row * S::STRIDE + column * 8;
#pragma unroll
    for (int i = 0; i < TILE * S::VECTORS / S::SHARERS; i++) {
        bool seen = unsigned(position) < unsigned(count);
        copy_async(keys, k + i * S::SHARERS * 8, seen);
        copy_async(values, v + i * S::SHARERS * 8, seen);
        // SHARERS vectors on, in row-major order.
        int rows = S::SHARERS / S::VECTORS;
        column += S::SHARERS % S::VECTORS;
        if (S::SHARERS % S::VECTORS != 0 && column >= S::VECTORS) {
            column -= S::VECTORS;
            rows++;
        }
        position += rows;
        keys += S::SHARERS * 8 + rows * 8;  // Each row has 8 elements more here.
        values += S::SHARERS * 8 + rows * 8;
    }
}

// What a warp holds, as `mma` lays it out: lane 4 * group + pair has, of the 16 queries of each
// fragment, query `group` (half 0) and query `group + 8` (half 1).
template <typename S>
struct Queries {
    uint32_t kept[S::KEPT > 0 ? S::KEPT : 1][S::FRAGMENTS][4];
    float scores[S::FRAGMENTS][S::STEP / 8][4];
    float out[S::FRAGMENTS][S::D / 8][4];
    float max[S::FRAGMENTS][2];  // in powers of two
    float sum[S::FRAGMENTS][2];  // of this lane's columns
};

// Columns 16 * k.. of the fragments of a warp whose first row in shared memory is `rows`.
template <typename S, typename T>
__device__ __forceinline__ void load_queries(const T* rows, int k,
                                             uint32_t (&to)[S::FRAGMENTS][4]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < S::FRAGMENTS; m++) {
        load_matrices(to[m], rows + (m * 16 + lane % 16) * S::STRIDE + k * 16 + lane / 16 * 8);
    }
}

// scores = q k^T
template <typename S, typename T>
__device__ __forceinline__ void multiply_keys(Queries<S>& q, const T* rows, const T* keys) {
    int lane = threadIdx.x % WARP;
    // Matrices of keys 0-7, keys 8-15, times columns 0-7, columns 8-15, the columns first.
    keys += (lane / 16 * 8 + lane % 8) * S::STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int m = 0; m < S::FRAGMENTS; m++) {
#pragma unroll
        for (int n = 0; n < S::STEP / 8; n++) {
            for (int i = 0; i < 4; i++) q.scores[m][n][i] = 0;
        }
    }
#pragma unroll
    for (int k = 0; k < S::D / 16; k++) {
        constexpr int LAST = S::KEPT > 0 ? S::KEPT - 1 : 0;
        uint32_t read[S::FRAGMENTS][4];
        if (k >= S::KEPT) load_queries<S>(rows, k, read);
        auto& a = k < S::KEPT ? q.kept[k < LAST ? k : LAST] : read;
#pragma unroll
        for (int n = 0; n < S::STEP / 16; n++) {
            uint32_t b[4];
            load_matrices(b, keys + n * 16 * S::STRIDE + k * 16);
#pragma unroll
            for (int m = 0; m < S::FRAGMENTS; m++) {
                mma_pair<T>(q.scores[m][2 * n], q.scores[m][2 * n + 1], a[m], b);
            }
        }
    }
}

// scores = softcap * tanh(scores * scale / softcap), in powers of two.
template <typename S>
__device__ __forceinline__ void cap_scores(Queries<S>& q, float scale, float softcap) {
    float cap = softcap * LOG2E, doubled = 2 * LOG2E * scale / softcap;
#pragma unroll
    for (int m = 0; m < S::FRAGMENTS; m++) {
#pragma unroll
        for (int n = 0; n < S::STEP / 8; n++) {
            for (int i = 0; i < 4; i++) {
                // tanh(x) = 1 - 2 / (1 + e^2x), right to 1e-7, and +-1 where e^2x leaves f32.
                float e = fast_exp2(q.scores[m][n][i] * doubled);
                q.scores[m][n][i] = cap - __fdividef(2 * cap, 1 + e);
            }
        }
    }
}

// Takes away what a query does not see. Query 0 of the warp sees `last - window + 1 ..= last`,
// counted from the step's first position, and each other one as much later as it comes.
template <typename S>
__device__ __forceinline__ void mask_scores(Queries<S>& q, int last, int window) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < S::FRAGMENTS; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Of this lane's query, counted from this lane's first column.
            int to = last + m * 16 + half * 8 + lane / 4 - lane % 4 * 2, from = to - window;
#pragma unroll
            for (int n = 0; n < S::STEP / 8; n++) {
                for (int i = 0; i < 2; i++) {
                    float& score = q.scores[m][n][2 * half + i];
                    int column = n * 8 + i;
                    score = column <= to && column > from ? score : NEGATIVE_INFINITY;
                }
            }
        }
    }
}

// Raises each `max` that a score exceeds by more than HEADROOM to the largest score of its query,
// and scales down what was summed up so far.
template <typename S>
__device__ __forceinline__ void raise_max(Queries<S>& q, float factor) {
    float largest[S::FRAGMENTS][2];
    bool exceeds = false;
#pragma unroll
    for (int m = 0; m < S::FRAGMENTS; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float x = fmaxf(q.scores[m][0][2 * half], q.scores[m][0][2 * half + 1]);
            for (int n = 1; n < S::STEP / 8; n++) {
                x = fmaxf(x, fmaxf(q.scores[m][n][2 * half], q.scores[m][n][2 * half + 1]));
            }
            largest[m][half] = x * factor;
            exceeds |= largest[m][half] > q.max[m][half] + HEADROOM;
        }
    }
    if (!__any_sync(ALL_LANES, exceeds)) return;
#pragma unroll
    for (int m = 0; m < S::FRAGMENTS; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float x = warp_max<4>(largest[m][half]), before = q.max[m][half];
            bool raised = x > before + HEADROOM;
            float by = raised ? fast_exp2(before - x) : 1;
            q.max[m][half] = raised ? x : before;
            q.sum[m][half] *= by;
#pragma unroll
            for (int n = 0; n < S::D / 8; n++) {
                q.out[m][n][2 * half] *= by;
                q.out[m][n][2 * half + 1] *= by;
            }
        }
    }
}

// sum += p, out += p v. The weights of 16 positions at a time, so that the tensor cores multiply
// some while the next ones are made.
template <typename S, typename T>
__device__ __forceinline__ void multiply_values(Queries<S>& q, const T* values, float factor) {
    int lane = threadIdx.x % WARP;
    // Matrices of positions 0-7, positions 8-15, times columns 0-7, columns 8-15, positions first.
    values += lane % 16 * S::STRIDE + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < S::STEP / 16; k++) {
        uint32_t p[S::FRAGMENTS][4];
#pragma unroll
        for (int m = 0; m < S::FRAGMENTS; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // Positions 0-7 and 8-15 of both halves.
                float* score = &q.scores[m][2 * k + i / 2][i % 2 * 2];
                score[0] = fast_exp2(score[0] * factor - q.max[m][i % 2]);
                score[1] = fast_exp2(score[1] * factor - q.max[m][i % 2]);
                q.sum[m][i % 2] += score[0] + score[1];
            }
            weights_as_rows<T>(p[m], q.scores[m][2 * k], q.scores[m][2 * k + 1]);
        }
#pragma unroll
        for (int n = 0; n < S::D / 16; n++) {
            uint32_t b[4];
            load_matrices_transposed(b, values + k * 16 * S::STRIDE + n * 16);
#pragma unroll
            for (int m = 0; m < S::FRAGMENTS; m++) {
                mma_pair<T>(q.out[m][2 * n], q.out[m][2 * n + 1], p[m], b);
            }
        }
    }
}

// From a step's scores to the sums: the warp's first query is at `position`, the first key at `at`.
template <typename S, typename T>
__device__ __forceinline__ void add_step(Queries<S>& q, const Launch<T>& launch, int window,
                                         const T* values, int position, int at) {
    float factor = launch.scale * LOG2E;
    if (launch.softcap > 0) {
        cap_scores(q, launch.scale, launch.softcap);
        factor = 1;
    }
    bool all_seen = at + S::STEP <= position + 1 && at > position + S::OF_WARP - 1 - window;
    if (!all_seen) mask_scores(q, position - at, window);
    raise_max(q, factor);
    multiply_values<S>(q, values, factor);
}

// Writes the warp's results by way of its rows in shared memory, which make whole vectors of them.
template <typename S, typename T>
__device__ __forceinline__ void write(Queries<S>& q, const Launch<T>& launch, const Task& task,
                                      T* rows, int first_row) {
    int lane = threadIdx.x % WARP, heads = gridDim.x * gridDim.y;
    float sink = launch.sinks ? launch.sinks[task.head] * LOG2E : NEGATIVE_INFINITY;
    __syncwarp();  // All lanes have read the queries, whose place the results take.
#pragma unroll
    for (int m = 0; m < S::FRAGMENTS; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = warp_sum<4>(q.sum[m][half]) + fast_exp2(sink - q.max[m][half]);
            float inverse = __fdividef(1, sum);
            T* row = rows + (m * 16 + half * 8 + lane / 4) * S::STRIDE + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < S::D / 8; n++) {
                const float* x = &q.out[m][n][2 * half];
                *reinterpret_cast<uint32_t*>(row + n * 8) = pack<T>(x[0] * inverse, x[1] * inverse);
            }
        }
    }
    __syncwarp();  // The results of all lanes are in shared memory.
    T* out = launch.out + (int64_t(task.token + first_row) * heads + task.head) * S::D;
    for (int i = lane; i < S::OF_WARP * S::VECTORS; i += WARP) {
        int row = i / S::VECTORS, column = i % S::VECTORS * 8;
        if (first_row + row >= task.queries) break;
        store(out + int64_t(row) * heads * S::D + column, load(rows + row * S::STRIDE + column));
    }
}

template <typename S, typename T>
__device__ __forceinline__ void compute(const Launch<T>& launch, const Task& task, T* shared) {
    // Two buffers, each for the keys and then the values of a step, and this thread's tile in them.
    T* buffers = shared + S::QUERIES * S::STRIDE;
    int own = threadIdx.x / S::SHARERS, own_row = own * TILE * S::STRIDE;
    int warp_row = threadIdx.x / WARP * S::OF_WARP;
    int position = task.position + warp_row;
    T* rows = shared + warp_row * S::STRIDE;

    Queries<S> q;
#pragma unroll
    for (int m = 0; m < S::FRAGMENTS; m++) {
        for (int half = 0; half < 2; half++) q.max[m][half] = LOWEST, q.sum[m][half] = 0;
        for (int n = 0; n < S::D / 8; n++) {
            for (int i = 0; i < 4; i++) q.out[m][n][i] = 0;
        }
    }
    int at = task.first_key / S::STEP * S::STEP, tile = at / TILE + own, buffer = 0;
    unsigned block = block_of(task, tile, launch.reciprocal);
    copy_queries<S>(launch, task, shared);
    copy_tiles<S>(launch, task, tile, block, buffers + own_row, buffers + own_row + S::BUFFER);
    copies_commit();
    // Tables are read a step before they are needed, as copies would otherwise wait for them.
    block = block_of(task, tile + S::TILES, launch.reciprocal);
    if (S::KEPT > 0) {
        copies_wait<0>();
        __syncthreads();  // The queries are there.
#pragma unroll
        for (int k = 0; k < S::KEPT; k++) load_queries<S>(rows, k, q.kept[k]);
    }
    for (; at < task.end; at += S::STEP) {
        copies_wait<0>();
        __syncthreads();  // This step is there, and nobody reads the one before it any more.
        T* keys = buffers + buffer;
        bool sees_some = warp_row < task.queries && at < position + S::OF_WARP &&
                         at + S::STEP > position + 1 - task.window;
        if (sees_some) multiply_keys<S>(q, rows, keys);
        if (at + S::STEP < task.end) {
            buffer = 2 * S::BUFFER - buffer;
            tile += S::TILES;
            T* to = buffers + buffer + own_row;
            copy_tiles<S>(launch, task, tile, block, to, to + S::BUFFER);
            copies_commit();
            block = block_of(task, tile + S::TILES, launch.reciprocal);
        }
        if (sees_some) add_step(q, launch, task.window, keys + S::BUFFER, position, at);
    }
    if (warp_row < task.queries) write(q, launch, task, rows, warp_row);
}

template <typename S, typename T>
__device__ __forceinline__ void prefill(const Launch<T>& launch) {
    DYNAMIC_SHARED(shared);
    unsigned row = launch.tiles[2 * blockIdx.z];
    if (row == PAD) return;
    int first_query = launch.tiles[2 * blockIdx.z + 1], len = launch.len[row];
    if (first_query >= len) return;
    Task task;
    task.kv_head = blockIdx.y;
    task.head = blockIdx.y * gridDim.x + blockIdx.x;
    task.position = launch.start[row] + first_query;
    task.queries = min(S::QUERIES, len - first_query);
    task.token = launch.first[row] + first_query;
    task.window = launch.window > 0 ? min(launch.window, NO_WINDOW) : NO_WINDOW;
    task.first_key = first_seen(task.position, launch.window);
    task.end = task.position + task.queries;
    task.table = launch.block_tables + size_t(launch.slot[row]) * launch.max_blocks;
    compute<S>(launch, task, reinterpret_cast<T*>(shared));
}

// BLOCKS run on a multiprocessor at once.
#define PREFILL(name, T, D, WARPS, BLOCKS, STEP, KEPT)                                            \
    KERNEL_OCCUPIED(WARPS* WARP, BLOCKS)                                                          \
    name(const T* q, const T* cache_k, const T* cache_v, T* out, const unsigned* block_tables,    \
         const unsigned* tiles, const unsigned* slot, const unsigned* start, const unsigned* len, \
         const unsigned* first, const float* sinks, int q_stride, int max_blocks, int block_size, \
         int window, unsigned reciprocal, float scale, float softcap) {                           \
        prefill<Shape<T, D, WARPS, STEP, KEPT>>(Launch<T>{                                        \
            q, cache_k, cache_v, out, block_tables, tiles, slot, start, len, first, sinks,        \
            q_stride, max_blocks, block_size, window, reciprocal, scale, softcap});               \
    }                                                                                             \
    REGISTER_KERNEL(name)

PREFILL(paged_attention_prefill_bf16_64, bf16, 64, 4, 3, 32, 2)
PREFILL(paged_attention_prefill_bf16_80, bf16, 80, 4, 2, 64, 5)
PREFILL(paged_attention_prefill_bf16_96, bf16, 96, 4, 2, 64, 4)
PREFILL(paged_attention_prefill_bf16_128, bf16, 128, 4, 2, 64, 0)
PREFILL(paged_attention_prefill_bf16_256, bf16, 256, 8, 1, 32, 16)
PREFILL(paged_attention_prefill_f16_64, f16, 64, 4, 3, 32, 2)
PREFILL(paged_attention_prefill_f16_80, f16, 80, 4, 2, 64, 5)
PREFILL(paged_attention_prefill_f16_96, f16, 96, 4, 2, 64, 4)
PREFILL(paged_attention_prefill_f16_128, f16, 128, 4, 2, 64, 0)
PREFILL(paged_attention_prefill_f16_256, f16, 256, 8, 1, 32, 16)
