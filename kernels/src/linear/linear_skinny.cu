// Linear for few tokens: out[t, n] = sum_k x[t, k] * w[n, k], bound by reading w once.
//
//   linear_skinny_*   bf16, f16; num_k a multiple of 8, x and w 16-byte aligned; T <= 8 or <= 16
//     grid (blocks, slices)   block 512   dynamic shared: sums of warps 16 or 32 KiB, then x,
//     slice_steps * 64 * 8 or 16 elements; one block on a multiprocessor
//   linear_plain_*    any sizes, also f32; T <= 16
//     grid (N / 8)   block 256: a warp computes out[:, n]
//   traffic: w read once; x once per block, from L2 -> bound by memory, target 80 % of peak for w
//     of 32 MiB, 95 % for 256 MiB: 2 us go by before the first and after the last load.
//
// A warp of linear_skinny multiplies 16 rows of w, a tile, with all tokens: w is the A of the
// tensor cores, x their B. The sum over k may go through k in any order, if x is read in the same
// one. So a lane reads 8 neighbouring k of a row at once, and uses them as the four pairs that two
// products want of it: pair p of products j = 0, 1 takes k = 8p + 4j, .., 8p + 4j + 3 of 32 k.
//
//   slices: K in parts of at most 4096, equal to one step, so that x of 16 tokens fits in shared
//     memory: one for each blockIdx.y
//   steps: 64 k, that is 128 bytes of each of the 16 rows; the warps of a tile take turns
//   tiles: a block computes 16 / warps_per_tile of them in a pass, and so on with a stride
//
// The loads of DEPTH steps are under way, 96 KiB in a block, also while a tile is finished: nothing
// but the first of them is waited for. What its warps and slices give for a tile is added up in
// their order, the slices by whoever comes last. So the bits of out[t, n] depend on row t, row n
// and (N, K), not on T or on the grid.
#include "../linear/plain.cuh"

constexpr int SKINNY_WARPS = 16, SKINNY_THREADS = SKINNY_WARPS * WARP;
constexpr int TILE = 16;   // rows of w
constexpr int STEP = 64;   // k
constexpr int DEPTH = 3;   // 48 registers of w in each lane: all that 512 threads have room for
constexpr int PLAIN_THREADS = 256;

using Pairs = Vec<uint32_t>;  // 8 halves as the tensor cores take them

// What all warps of a launch know.
template <typename T>
struct Skinny {
    const T* w;
    int tokens, num_n, num_k;
    int first_k;         // of this block's slice
    int steps;           // of it
    int warps_per_tile;  // a power of two
    int tiles;           // of all blocks
};

// Which step of which tile is next for a warp.
struct Place {
    int tile, step;

    __device__ __forceinline__ void advance(int warps_per_tile, int steps, int first, int stride) {
        step += warps_per_tile;
        if (step >= steps) {
            step = first;
            tile += stride;
        }
    }
};

// A lane's part of a step: rows group and group + 8, of each 8 k of the first and of the second 32.
template <typename T>
__device__ __forceinline__ void fetch(Pairs (&to)[2][2], const Skinny<T>& s, Place at) {
    int lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    int k = s.first_k + at.step * STEP + pair * 8;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        // Beyond the last row of w that one is read again; what comes of it is not stored.
        int n = min(at.tile * TILE + group + 8 * r, s.num_n - 1);
        const uint32_t* row = reinterpret_cast<const uint32_t*>(s.w + size_t(n) * s.num_k);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int from = k + 32 * half;
            to[r][half] = from < s.num_k ? load_once(row + from / 2) : Pairs{};
        }
    }
}

// sums += the step's w times the same step of x, for 8 * NT tokens.
template <typename T, int NT>
__device__ __forceinline__ void multiply(float (&sums)[NT][4], const Pairs (&w)[2][2],
                                         const Pairs* x, int step) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int t = 0; t < NT; t++) {
            const Pairs b = x[((2 * step + half) * NT + t) * WARP + lane];
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                mma<T>(sums[t],
                       {w[0][half].at[j], w[1][half].at[j], w[0][half].at[j + 1],
                        w[1][half].at[j + 1]},
                       {b.at[j], b.at[j + 1]});
            }
        }
    }
}

// Starts the copies of the slice's x into shared memory, in the order in which `multiply` reads it:
// for each 32 k and each 8 tokens what lane 4 * token + pair wants, k = 8 * pair, ...
template <typename T, int NT>
__device__ __forceinline__ void copy_x(Pairs* to, const T* x, const Skinny<T>& s) {
    for (int i = threadIdx.x; i < s.steps * 2 * NT * WARP; i += SKINNY_THREADS) {
        int lane = i % WARP, tile = i / WARP;
        int token = tile % NT * 8 + lane / 4, k = s.first_k + tile / NT * 32 + lane % 4 * 8;
        bool valid = token < s.tokens && k < s.num_k;
        copy_async(to + i, valid ? x + size_t(token) * s.num_k + k : x, valid);
    }
}

// Where the sum of a token and a row of a tile lies among those of a warp. A store of the four
// tokens of a quad and eight rows, and a load of four rows, touch each bank once.
__device__ __forceinline__ int sum_index(int token, int row) {
    return (token * TILE + row) ^ ((token / 2 % 4) * 8);
}

// Puts a warp's sums where `finish` finds them.
template <int NT>
__device__ __forceinline__ void share(float* to, const float (&sums)[NT][4]) {
    int lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
#pragma unroll
    for (int t = 0; t < NT; t++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[sum_index(8 * t + 2 * pair + i % 2, group + i / 2 * 8)] = sums[t][i];
        }
    }
}

// out[token, n..n+3] of a tile, as far as there are such.
template <typename T>
__device__ __forceinline__ void write(void* out, bool is_f32, const Skinny<T>& s, int token, int n,
                                      const Vec<float>& sums) {
    if (token >= s.tokens) return;
    size_t row = size_t(token) * s.num_n;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (n + i >= s.num_n) return;
        if (is_f32) {
            static_cast<float*>(out)[row + n + i] = sums.at[i];
        } else {
            static_cast<T*>(out)[row + n + i] = from_float<T>(sums.at[i]);
        }
    }
}

__device__ __forceinline__ void add(Vec<float>& sum, const Vec<float>& more) {
#pragma unroll
    for (int i = 0; i < 4; i++) sum.at[i] += more.at[i];
}

// One warp adds up a tile: first its warps, whose sums begin at `shared`, then, if there are
// several slices, those of all slices, once all are there. A lane has tokens lane / 4, lane / 4 +
// 8, .. and rows 4 * (lane % 4), ...
//   partials `[tiles, slices, 8 * NT, 16]`; counters `[tiles]`, 0 before and after
template <typename T, int NT>
__device__ void finish(const Skinny<T>& s, int tile, const float* shared, void* out, bool is_f32,
                       float* partials, unsigned* counters) {
    constexpr int SUMS = 8 * NT * TILE;
    int lane = threadIdx.x % WARP, row = lane % 4 * 4, n = tile * TILE + row;
    int slices = gridDim.y;
    Vec<float> sums[NT] = {};
    for (int warp = 0; warp < s.warps_per_tile; warp++) {
#pragma unroll
        for (int t = 0; t < NT; t++) {
            add(sums[t], load(shared + warp * SUMS + sum_index(lane / 4 + 8 * t, row)));
        }
    }
    if (slices > 1) {
        // Slice 0 of the tile; those after it follow.
        float* all = partials + size_t(tile) * slices * SUMS + lane / 4 * TILE + row;
#pragma unroll
        for (int t = 0; t < NT; t++) store(all + blockIdx.y * SUMS + t * 8 * TILE, sums[t]);
        __threadfence();  // a block that sees the count sees the sums
        __syncwarp();     // all lanes have stored theirs
        unsigned before = lane == 0 ? atomicAdd(counters + tile, 1u) : 0;
        if (__shfl_sync(ALL_LANES, before, 0) + 1 < unsigned(slices)) return;
        __threadfence();  // the others' sums are not read before the count
        if (lane == 0) counters[tile] = 0;
#pragma unroll
        for (int t = 0; t < NT; t++) {
            sums[t] = {};
            for (int slice = 0; slice < slices; slice++) {
                // Not from L1, which does not know what other multiprocessors have written.
                float4 more = __ldcg(
                    reinterpret_cast<const float4*>(all + slice * SUMS + t * 8 * TILE));
                add(sums[t], {more.x, more.y, more.z, more.w});
            }
        }
    }
#pragma unroll
    for (int t = 0; t < NT; t++) write(out, is_f32, s, lane / 4 + 8 * t, n, sums[t]);
}

template <typename T, int NT>
__device__ __forceinline__ void linear_skinny(const T* x, const T* w, void* out, int is_f32,
                                              float* partials, unsigned* counters, int tokens,
                                              int num_n, int num_k, int warps_per_tile) {
    constexpr int SUMS = 8 * NT * TILE;  // of a warp
    DYNAMIC_SHARED(shared);
    // The sums of the warps, of this pass and of the one before; then x.
    float* shared_sums = reinterpret_cast<float*>(shared);
    Pairs* shared_x = reinterpret_cast<Pairs*>(shared_sums + 2 * SKINNY_WARPS * SUMS);

    int warp = threadIdx.x / WARP, slice = blockIdx.y, slices = gridDim.y;
    int all_steps = ceil_div(num_k, STEP);
    int first_step = slice * all_steps / slices;
    int steps = (slice + 1) * all_steps / slices - first_step;
    Skinny<T> s = {w,     tokens,         num_n, num_k, first_step * STEP,
                   steps, warps_per_tile, ceil_div(num_n, TILE)};
    // The tile of this warp in a pass, and its number among the warps of that tile.
    int tiles_per_pass = SKINNY_WARPS / warps_per_tile;
    int stride = gridDim.x * tiles_per_pass;
    int first_tile = blockIdx.x * tiles_per_pass + warp / warps_per_tile;
    int first = warp % warps_per_tile;
    int passes = max(0, ceil_div(s.tiles - int(blockIdx.x) * tiles_per_pass, stride));

    Pairs under_way[DEPTH][2][2];
    Place next = {first_tile, first}, here = next;
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
        if (next.tile < s.tiles) fetch(under_way[i], s, next);
        next.advance(warps_per_tile, steps, first, stride);
    }
    copy_x<T, NT>(shared_x, x, s);
    copies_commit();
    copies_wait<0>();
    __syncthreads();  // x is there

    float sums[NT][4] = {};
    int pass = 0;
    auto finish_pass = [&] {
        float* of_pass = shared_sums + pass % 2 * SKINNY_WARPS * SUMS;
        share<NT>(of_pass + warp * SUMS, sums);
        // The sums of this pass are there, and those of the pass before the last are read: that is
        // why there is room for two.
        __syncthreads();
        if (here.tile < s.tiles && first == pass % warps_per_tile) {
            finish<T, NT>(s, here.tile, of_pass + (warp - first) * SUMS, out, is_f32, partials,
                          counters);
        }
        pass++;
    };
    while (here.tile < s.tiles) {
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            if (here.tile >= s.tiles) break;
            multiply<T, NT>(sums, under_way[i], shared_x, here.step);
            if (next.tile < s.tiles) fetch(under_way[i], s, next);
            next.advance(warps_per_tile, steps, first, stride);
            if (here.step + warps_per_tile >= steps) {
                finish_pass();
#pragma unroll
                for (int t = 0; t < NT; t++) {
                    sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = 0;
                }
            }
            here.advance(warps_per_tile, steps, first, stride);
        }
    }
    // The other warps of the block may have a tile in the last pass where this one has none.
    while (pass < passes) finish_pass();
}

#define LINEAR_SKINNY(name, T, NT)                                                                \
    KERNEL(SKINNY_THREADS)                                                                        \
    name(const T* x, const T* w, void* out, int is_f32, float* partials, unsigned* counters,      \
         int tokens, int num_n, int num_k, int warps_per_tile) {                                  \
        linear_skinny<T, NT>(x, w, out, is_f32, partials, counters, tokens, num_n, num_k,         \
                             warps_per_tile);                                                     \
    }
LINEAR_SKINNY(linear_skinny_bf16_8, bf16, 1)
LINEAR_SKINNY(linear_skinny_bf16_16, bf16, 2)
LINEAR_SKINNY(linear_skinny_f16_8, f16, 1)
LINEAR_SKINNY(linear_skinny_f16_16, f16, 2)

template <typename T>
__device__ __forceinline__ void linear_plain(const T* x, const T* w, void* out, int is_f32,
                                             int tokens, int num_n, int num_k) {
    int n = blockIdx.x * (PLAIN_THREADS / WARP) + threadIdx.x / WARP;
    if (n >= num_n) return;
    int rows[PLAIN_ROWS];
    for (int t = 0; t < PLAIN_ROWS; t++) rows[t] = t;
    float sums[PLAIN_ROWS];
    plain_products(sums, x, rows, tokens, w + size_t(n) * num_k, num_k);
#pragma unroll
    for (int t = 0; t < PLAIN_ROWS; t++) {
        if (t >= tokens || threadIdx.x % WARP != t) continue;
        size_t at = size_t(t) * num_n + n;
        if (is_f32) {
            static_cast<float*>(out)[at] = sums[t];
        } else {
            static_cast<T*>(out)[at] = from_float<T>(sums[t]);
        }
    }
}

#define LINEAR_PLAIN(name, T)                                                                     \
    KERNEL(PLAIN_THREADS)                                                                         \
    name(const T* x, const T* w, void* out, int is_f32, int tokens, int num_n, int num_k) {       \
        linear_plain(x, w, out, is_f32, tokens, num_n, num_k);                                    \
    }
LINEAR_PLAIN(linear_plain_f32, float)
LINEAR_PLAIN(linear_plain_bf16, bf16)
LINEAR_PLAIN(linear_plain_f16, f16)

REGISTER_KERNEL(linear_skinny_bf16_8)
REGISTER_KERNEL(linear_skinny_bf16_16)
REGISTER_KERNEL(linear_skinny_f16_8)
REGISTER_KERNEL(linear_skinny_f16_16)
REGISTER_KERNEL(linear_plain_f32)
REGISTER_KERNEL(linear_plain_bf16)
REGISTER_KERNEL(linear_plain_f16)
