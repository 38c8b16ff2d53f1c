// Embedding: `out[t] = scale * table[ids[t]]`, widened to f32.
//
//   grid (T, ceil(hidden / CHUNK))   block 256   no shared memory
//   A block writes CHUNK elements of one row. A thread owns every 256th unit of 4 elements of it: 8
//   bytes of a table of halves, 16 of f32, so that what a warp reads and writes is contiguous.
//   traffic, hidden 4096, halves: 8 KiB read, 16 KiB written a token; nothing is read twice but by
//   tokens that are the same. Bound by memory, or by the launch where tokens are few.
//
// A hidden size that is not a multiple of 4 goes element by element.
#include "device.cuh"

constexpr int THREADS = 256;
constexpr int UNIT = 4;
// Four loads of a thread are under way at once, which a row of 4096 has for one block.
constexpr int UNITS = 4;
constexpr int CHUNK = THREADS * UNIT * UNITS;

template <typename T>
struct alignas(UNIT * sizeof(T)) Unit {
    T at[UNIT];
};

// table `[V, hidden]`, ids `[T]`, out `[T, hidden]`. An id that is no row of the table gives zeros.
template <typename T>
__device__ __forceinline__ void embedding(const T* __restrict__ table,
                                          const unsigned* __restrict__ ids, float scale, float* out,
                                          unsigned vocabulary, int hidden) {
    unsigned id = ids[blockIdx.x];
    bool known = id < vocabulary;
    const T* from = table + size_t(known ? id : 0) * hidden;  // row id of table
    float* to = out + size_t(blockIdx.x) * hidden;            // row t of out
    int start = blockIdx.y * CHUNK;
    if (hidden % UNIT != 0) {
        int end = min(start + CHUNK, hidden);
        for (int i = start + threadIdx.x; i < end; i += THREADS) {
            to[i] = known ? scale * to_float(from[i]) : 0;
        }
        return;
    }
    Unit<T> units[UNITS] = {};
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int i = start + (u * THREADS + threadIdx.x) * UNIT;
        if (known && i < hidden) units[u] = *reinterpret_cast<const Unit<T>*>(from + i);
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int i = start + (u * THREADS + threadIdx.x) * UNIT;
        if (i >= hidden) continue;
        Vec<float> wide;
#pragma unroll
        for (int e = 0; e < UNIT; e++) wide.at[e] = known ? scale * to_float(units[u].at[e]) : 0;
        store(to + i, wide);
    }
}

#define EMBEDDING(name, T)                                                                     \
    KERNEL(THREADS)                                                                            \
    name(const T* table, const unsigned* ids, float scale, float* out, unsigned vocabulary,    \
         int hidden) {                                                                         \
        embedding(table, ids, scale, out, vocabulary, hidden);                                 \
    }                                                                                          \
    REGISTER_KERNEL(name)

EMBEDDING(embedding_f32, float)
EMBEDDING(embedding_bf16, bf16)
EMBEDDING(embedding_f16, f16)
