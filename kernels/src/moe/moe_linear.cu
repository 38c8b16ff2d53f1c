// Grouped linear: out[r, n] = sum_k x[row(r), k] * w[e(r), n, k] + bias[e(r), n], where the rows of
// an expert are neighbours (moe_group.cu) and are given as tiles of one expert's rows.
//
//   moe_linear_*_16, _64, _128   bf16, f16; tiles of up to so many rows; num_k a multiple of 8, x
//     and w 16-byte aligned
//     grid (N / 128, most tiles)   block 128   dynamic shared: 4 or 3 stages of (tile + 128) * 128
//     bytes: 72, 72 and 96 KiB, so 3, 3 and 2 blocks on a multiprocessor with 227 KiB
//   moe_linear_plain_*           any sizes, also f32; tiles of any number of rows
//     grid (N / 8, most tiles)     block 256: a warp computes out[tile, n]
//   traffic: w of an expert once per tile of its rows, from memory once, since its blocks run side
//     by side; x of a tile once per 128 n, from L2. Few rows: bound by reading w, three blocks have
//     144 KiB of it under way. Many rows: bound by the tensor cores.
//
// There are as many blocks as there can be tiles; those without one end at once. A block multiplies
// its rows with 128 rows of w, 64 k at a time, which come into shared memory while those before are
// computed. A row of 64 k, 128 bytes, lies there with its 16-byte pieces exchanged by the row's
// number, so that the eight rows of a matrix of load_matrices touch each bank once. Each sum goes
// through k in rising order in every kind of tile: the bits of a row depend on it and its expert.
#include "../linear/plain.cuh"

constexpr int THREADS = 128;
constexpr int TILE_N = 128;          // rows of w of a block
constexpr int STEP = 64;             // k of a stage
constexpr int PIECES = STEP / 8;     // of 16 bytes in a row of a stage
constexpr int COPY_ROWS = THREADS / PIECES;  // rows that the block copies at once
constexpr int OUT_STRIDE = TILE_N + 8;  // of the results in shared memory: no bank twice
constexpr int PLAIN_THREADS = 256;

// Tile `blockIdx.y`: `rows` rows of one expert, from `first` on.
struct Tile {
    int expert, first, rows;
};
__device__ __forceinline__ bool find_tile(Tile& tile, const unsigned* tiles,
                                          const unsigned* num_tiles) {
    if (blockIdx.y >= *num_tiles) return false;
    const unsigned* entry = tiles + 3 * blockIdx.y;
    tile = {int(entry[0]), int(entry[1]), int(entry[2])};
    return true;
}

// TM rows of x and TILE_N of w; WARPS_M * WARPS_N warps share them, each has (TM / WARPS_M) x
// (TILE_N / WARPS_N) of the result.
template <int TM_, int WARPS_M_, int STAGES_>
struct Shape {
    static constexpr int TM = TM_, WARPS_M = WARPS_M_, STAGES = STAGES_;
    static constexpr int WARPS_N = THREADS / WARP / WARPS_M;
    static constexpr int M = TM / WARPS_M / 16, N = TILE_N / WARPS_N / 8;  // products of a warp
    static constexpr int STAGE = (TM + TILE_N) * STEP;                     // elements
};

// What a thread copies of each stage: piece threadIdx.x % 8 of every 16th row. Where the tile or w
// has no more rows, the last or any other is read again: what comes of it is not stored.
template <typename S>
struct Copier {
    // Its piece of row 0 in the next stage, of x and of the expert's w.
    const unsigned char *x, *w;
    unsigned x_rows[S::TM / COPY_ROWS], w_rows[TILE_N / COPY_ROWS];
    unsigned row_bytes;
    int left;  // k from that piece on
    int to;    // element in a stage

    template <typename T>
    __device__ __forceinline__ void copy(T* stage) {
        // Beyond the last k both have zeros.
        bool valid = left > 0;
#pragma unroll
        for (int i = 0; i < S::TM / COPY_ROWS; i++) {
            copy_async(stage + to + i * COPY_ROWS * STEP, x + size_t(x_rows[i]) * row_bytes, valid);
        }
#pragma unroll
        for (int i = 0; i < TILE_N / COPY_ROWS; i++) {
            copy_async(stage + (S::TM + i * COPY_ROWS) * STEP + to,
                       w + size_t(w_rows[i]) * row_bytes, valid);
        }
        left -= STEP;
        x += STEP * sizeof(T);
        w += STEP * sizeof(T);
    }
};

template <typename T, typename S>
__device__ __forceinline__ Copier<S> copier(const T* x, const T* w, const unsigned* token_of_row,
                                            const Tile& tile, int num_n, int num_k) {
    int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    Copier<S> c;
    c.x = reinterpret_cast<const unsigned char*>(x + piece * 8);
    c.w = reinterpret_cast<const unsigned char*>(w + size_t(tile.expert) * num_n * num_k +
                                                 piece * 8);
#pragma unroll
    for (int i = 0; i < S::TM / COPY_ROWS; i++) {
        int at = tile.first + min(row + i * COPY_ROWS, tile.rows - 1);
        c.x_rows[i] = token_of_row ? token_of_row[at] : at;
    }
#pragma unroll
    for (int i = 0; i < TILE_N / COPY_ROWS; i++) {
        c.w_rows[i] = min(int(blockIdx.x) * TILE_N + row + i * COPY_ROWS, num_n - 1);
    }
    c.row_bytes = num_k * sizeof(T);
    c.left = num_k - piece * 8;
    c.to = row * STEP + (piece ^ (row % 8)) * 8;
    return c;
}

// What a warp multiplies at once: 16 k of its rows of x and of w.
template <typename S>
struct Fragments {
    uint32_t a[S::M][4];
    uint32_t b[S::N / 2][4];  // two products' each

    // x and w are the rows of this warp in a stage.
    template <typename T>
    __device__ __forceinline__ void read(const T* x, const T* w, int k) {
        int lane = threadIdx.x % WARP, row = lane % 8;
#pragma unroll
        for (int m = 0; m < S::M; m++) {
            int r = m * 16 + row + lane / 8 % 2 * 8, piece = k / 8 + lane / 16;
            load_matrices(a[m], x + r * STEP + (piece ^ row) * 8);
        }
#pragma unroll
        for (int n = 0; n < S::N / 2; n++) {
            int r = n * 16 + row + lane / 16 * 8, piece = k / 8 + lane / 8 % 2;
            load_matrices(b[n], w + r * STEP + (piece ^ row) * 8);
        }
    }
};

// sums += the warp's part of a stage.
template <typename T, typename S>
__device__ __forceinline__ void multiply(float (&sums)[S::M][S::N][4], const T* x, const T* w) {
    // The fragments of 16 k are read while those before are multiplied.
    Fragments<S> fragments[2];
    fragments[0].read(x, w, 0);
#pragma unroll
    for (int i = 0; i < STEP / 16; i++) {
        if (i + 1 < STEP / 16) fragments[(i + 1) % 2].read(x, w, (i + 1) * 16);
        const Fragments<S>& f = fragments[i % 2];
#pragma unroll
        for (int m = 0; m < S::M; m++) {
#pragma unroll
            for (int n = 0; n < S::N; n++) {
                mma<T>(sums[m][n], f.a[m], {f.b[n / 2][n % 2 * 2], f.b[n / 2][n % 2 * 2 + 1]});
            }
        }
    }
}

// The warp's sums, with the bias, rounded, to the block's results in shared memory.
template <typename T, typename S>
__device__ __forceinline__ void share(T* results, const float (&sums)[S::M][S::N][4],
                                      const float* bias, int first_m, int first_n, int num_n) {
    int lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
#pragma unroll
    for (int n = 0; n < S::N; n++) {
        int column = first_n + n * 8 + pair * 2, at = blockIdx.x * TILE_N + column;
        float bias0 = bias && at < num_n ? bias[at] : 0;
        float bias1 = bias && at + 1 < num_n ? bias[at + 1] : 0;
#pragma unroll
        for (int m = 0; m < S::M; m++) {
            T* to = results + (first_m + m * 16 + group) * OUT_STRIDE + column;
            const float(&d)[4] = sums[m][n];
            *reinterpret_cast<uint32_t*>(to) = pack<T>(d[0] + bias0, d[1] + bias1);
            *reinterpret_cast<uint32_t*>(to + 8 * OUT_STRIDE) = pack<T>(d[2] + bias0, d[3] + bias1);
        }
    }
}

// The block's results from shared memory to the rows of the tile, 16 bytes at a time where the rows
// of out begin at a multiple of that.
template <typename T>
__device__ __forceinline__ void write(T* out, const T* results, const Tile& tile, int num_n) {
    constexpr int N = TILE_N / Vec<T>::N;
    int first = blockIdx.x * TILE_N;
    for (int i = threadIdx.x; i < tile.rows * N; i += THREADS) {
        int row = i / N, column = i % N * Vec<T>::N, n = first + column;
        const T* from = results + row * OUT_STRIDE + column;
        T* to = out + size_t(tile.first + row) * num_n + n;
        if (num_n % Vec<T>::N == 0) {
            if (n < num_n) store(to, load(from));
        } else {
            for (int j = 0; j < Vec<T>::N && n + j < num_n; j++) to[j] = from[j];
        }
    }
}

template <typename T, typename S>
__device__ __forceinline__ void moe_linear(const T* x, const T* w, const float* bias, T* out,
                                           const unsigned* token_of_row, const unsigned* tiles,
                                           const unsigned* num_tiles, int num_n, int num_k) {
    DYNAMIC_SHARED(shared);
    T* stages = reinterpret_cast<T*>(shared);
    Tile tile;
    if (!find_tile(tile, tiles, num_tiles)) return;

    int warp = threadIdx.x / WARP;
    int first_m = warp / S::WARPS_N * S::M * 16, first_n = warp % S::WARPS_N * S::N * 8;
    int steps = ceil_div(num_k, STEP);
    auto c = copier<T, S>(x, w, token_of_row, tile, num_n, num_k);
#pragma unroll
    for (int i = 0; i < S::STAGES - 1; i++) {
        if (i < steps) c.copy(stages + i * S::STAGE);
        copies_commit();
    }
    float sums[S::M][S::N][4] = {};
    for (int step = 0; step < steps; step++) {
        copies_wait<S::STAGES - 2>();
        // The copies of this step by all threads are there, and the step before has been computed
        // by all, so that its stage can be filled again.
        __syncthreads();
        int next = step + S::STAGES - 1;
        if (next < steps) c.copy(stages + next % S::STAGES * S::STAGE);
        copies_commit();
        const T* stage = stages + step % S::STAGES * S::STAGE;
        if (first_m < tile.rows) {
            multiply<T, S>(sums, stage + first_m * STEP, stage + (S::TM + first_n) * STEP);
        }
    }
    copies_wait<0>();
    __syncthreads();  // the stages are read: the results go over them
    share<T, S>(stages, sums, bias ? bias + size_t(tile.expert) * num_n : nullptr, first_m, first_n,
                num_n);
    __syncthreads();  // the results are there
    write(out, stages, tile, num_n);
}

#define MOE_LINEAR(name, T, TM, WARPS_M, STAGES)                                                  \
    KERNEL(THREADS)                                                                               \
    name(const T* x, const T* w, const float* bias, T* out, const unsigned* token_of_row,         \
         const unsigned* tiles, const unsigned* num_tiles, int num_n, int num_k) {                \
        moe_linear<T, Shape<TM, WARPS_M, STAGES>>(x, w, bias, out, token_of_row, tiles,           \
                                                  num_tiles, num_n, num_k);                       \
    }
MOE_LINEAR(moe_linear_bf16_16, bf16, 16, 1, 4)
MOE_LINEAR(moe_linear_bf16_64, bf16, 64, 2, 3)
MOE_LINEAR(moe_linear_bf16_128, bf16, 128, 2, 3)
MOE_LINEAR(moe_linear_f16_16, f16, 16, 1, 4)
MOE_LINEAR(moe_linear_f16_64, f16, 64, 2, 3)
MOE_LINEAR(moe_linear_f16_128, f16, 128, 2, 3)

template <typename T>
__device__ __forceinline__ void moe_linear_plain(const T* x, const T* w, const float* bias, T* out,
                                                 const unsigned* token_of_row,
                                                 const unsigned* tiles, const unsigned* num_tiles,
                                                 int num_n, int num_k) {
    Tile tile;
    if (!find_tile(tile, tiles, num_tiles)) return;
    int n = blockIdx.x * (PLAIN_THREADS / WARP) + threadIdx.x / WARP;
    if (n >= num_n) return;
    size_t row = size_t(tile.expert) * num_n + n;
    for (int first = 0; first < tile.rows; first += PLAIN_ROWS) {
        int rows[PLAIN_ROWS];
#pragma unroll
        for (int t = 0; t < PLAIN_ROWS; t++) {
            int at = tile.first + min(first + t, tile.rows - 1);
            rows[t] = token_of_row ? token_of_row[at] : at;
        }
        float sums[PLAIN_ROWS];
        int count = min(PLAIN_ROWS, tile.rows - first);
        plain_products(sums, x, rows, count, w + row * num_k, num_k);
#pragma unroll
        for (int t = 0; t < PLAIN_ROWS; t++) {
            if (t >= count || threadIdx.x % WARP != t) continue;
            float sum = sums[t] + (bias ? bias[row] : 0);
            out[size_t(tile.first + first + t) * num_n + n] = from_float<T>(sum);
        }
    }
}

#define MOE_LINEAR_PLAIN(name, T)                                                                 \
    KERNEL(PLAIN_THREADS)                                                                         \
    name(const T* x, const T* w, const float* bias, T* out, const unsigned* token_of_row,         \
         const unsigned* tiles, const unsigned* num_tiles, int num_n, int num_k) {                \
        moe_linear_plain(x, w, bias, out, token_of_row, tiles, num_tiles, num_n, num_k);          \
    }
MOE_LINEAR_PLAIN(moe_linear_plain_f32, float)
MOE_LINEAR_PLAIN(moe_linear_plain_bf16, bf16)
MOE_LINEAR_PLAIN(moe_linear_plain_f16, f16)

REGISTER_KERNEL(moe_linear_bf16_16)
REGISTER_KERNEL(moe_linear_bf16_64)
REGISTER_KERNEL(moe_linear_bf16_128)
REGISTER_KERNEL(moe_linear_f16_16)
REGISTER_KERNEL(moe_linear_f16_64)
REGISTER_KERNEL(moe_linear_f16_128)
REGISTER_KERNEL(moe_linear_plain_f32)
REGISTER_KERNEL(moe_linear_plain_bf16)
REGISTER_KERNEL(moe_linear_plain_f16)
