// Kernels for the emulator's own tests: each uses one thing that kernels may rely on, and those
// with `wrong` in their name make one mistake that the emulator has to see.
#include "device.cuh"

// ---------------------------------------------------------------------------------------------
// Right ones

KERNEL(256) test_index(unsigned* out, unsigned base) {
    unsigned row = blockIdx.y * gridDim.x + blockIdx.x;
    unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
    out[row * blockDim.x * blockDim.y + thread] = base + row * 1000 + thread;
}

// out[i] = the sum of a block's inputs, through shared memory and shuffles.
KERNEL(1024) test_block_sum(const float* in, float* out) {
    __shared__ float partial[32];
    float sum = block_sum(in[blockIdx.x * blockDim.x + threadIdx.x], partial);
    float again = block_sum(1.0f, partial);
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum + 1000 * again;
}

// Each thread reverses the block's values through dynamic shared memory.
KERNEL(1024) test_reverse(const unsigned* in, unsigned* out) {
    DYNAMIC_SHARED(shared);
    unsigned* values = reinterpret_cast<unsigned*>(shared);
    values[threadIdx.x] = in[threadIdx.x];
    __syncthreads();  // all values are there
    out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

KERNEL(64) test_shuffles(unsigned* out) {
    unsigned lane = threadIdx.x % WARP, value = 100 + lane;
    unsigned* mine = out + threadIdx.x * 12;
    mine[0] = __shfl_sync(ALL_LANES, value, 5);
    mine[1] = __shfl_sync(ALL_LANES, value, 3, 8);
    mine[2] = __shfl_up_sync(ALL_LANES, value, 2);
    mine[3] = __shfl_down_sync(ALL_LANES, value, 3, 16);
    mine[4] = __shfl_xor_sync(ALL_LANES, value, 9);
    mine[5] = __ballot_sync(ALL_LANES, lane % 3 == 0);
    mine[6] = __any_sync(ALL_LANES, lane == 7) + 2 * __all_sync(ALL_LANES, lane < 31);
    // Two halves of the warp do different things at once.
    if (lane < 16) {
        mine[7] = __shfl_xor_sync(0xffffu, value, 1);
    } else {
        mine[7] = __reduce_add_sync(0xffff0000u, lane);
    }
    mine[8] = __match_any_sync(ALL_LANES, lane % 4);
    mine[9] = unsigned(__shfl_sync(ALL_LANES, (unsigned long long)(lane) << 40, 6) >> 40);
    mine[10] = unsigned(__shfl_sync(ALL_LANES, double(lane) + 0.5, 4) * 2);
    mine[11] = __reduce_max_sync(ALL_LANES, lane * 7 % 32);
}

KERNEL(256) test_atomics(unsigned* counters, float* sum) {
    atomicAdd(&counters[0], 1u);
    atomicMax(&counters[1], threadIdx.x);
    atomicMin(&counters[2], 1000 - threadIdx.x);
    atomicOr(&counters[3], 1u << threadIdx.x % 32);
    unsigned old = atomicCAS(&counters[4], 0u, threadIdx.x + 1);
    if (old == 0) atomicExch(&counters[5], threadIdx.x + 1);
    atomicAdd(sum, 0.5f);
    int votes = __syncthreads_count(threadIdx.x % 2);
    int any = __syncthreads_or(threadIdx.x == 3), all = __syncthreads_and(threadIdx.x < 100);
    if (threadIdx.x == 0) counters[6] = votes * 100 + any * 10 + all;
}

// out[i] = the bits that in[i] rounds to, in bf16 and f16, and what they are worth.
KERNEL(256) test_conversions(const float* in, unsigned* out, float* values, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    bf16 b = from_float<bf16>(in[i]);
    f16 h = from_float<f16>(in[i]);
    out[i] = pack<bf16>(in[i], 0) | unsigned(h.bits) << 16;
    values[2 * i] = to_float(b);
    values[2 * i + 1] = to_float(h);
}

// c[16][8] = a[16][16] * b[8][16]^T, the fragments filled element by element.
template <typename T>
__device__ void plain_mma(const T* a, const T* b, float* c) {
    int lane = threadIdx.x, group = lane / 4, pair = lane % 4;
    // Two neighbours of a row are one register.
    auto two = [](const T* at) { return uint32_t(at[0].bits) | uint32_t(at[1].bits) << 16; };
    uint32_t fa[4] = {two(a + group * 16 + 2 * pair), two(a + (group + 8) * 16 + 2 * pair),
                      two(a + group * 16 + 2 * pair + 8), two(a + (group + 8) * 16 + 2 * pair + 8)};
    uint32_t fb[2] = {two(b + group * 16 + 2 * pair), two(b + group * 16 + 2 * pair + 8)};
    float d[4] = {1, 1, 1, 1};
    mma<T>(d, fa, fb);
    for (int i = 0; i < 4; i++) c[(group + i / 2 * 8) * 8 + 2 * pair + i % 2] = d[i];
}
KERNEL(32) test_mma_bf16(const bf16* a, const bf16* b, float* c) { plain_mma(a, b, c); }
KERNEL(32) test_mma_f16(const f16* a, const f16* b, float* c) { plain_mma(a, b, c); }

// The same by load_matrices: a and b [8][16] through copies into shared memory; and with b given as
// [16][8], transposed while it is loaded.
KERNEL(32) test_load_matrices(const bf16* a, const bf16* b, const bf16* b_rows, float* c) {
    __shared__ __align__(16) bf16 sa[16 * 16], sb[8 * 16], st[16 * 8];
    int lane = threadIdx.x, group = lane / 4, pair = lane % 4;
    copy_async(sa + 8 * lane, a + 8 * lane);
    if (lane < 16) copy_async(sb + 8 * lane, b + 8 * lane);
    if (lane < 16) copy_async(st + 8 * lane, b_rows + 8 * lane);
    copies_commit();
    copies_wait<0>();
    __syncthreads();  // the copies of all lanes are there
    uint32_t fa[4], fb[4], ft[4];
    // Matrices 0..3: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15.
    load_matrices(fa, sa + lane % 16 * 16 + lane / 16 * 8);
    // Matrices 0, 1: columns 0-7, 8-15 of b; 2, 3: again.
    load_matrices(fb, sb + lane % 8 * 16 + lane / 8 % 2 * 8);
    load_matrices_transposed(ft, st + lane % 16 * 8);
    float d[4] = {}, e[4] = {};
    uint32_t b0[2] = {fb[0], fb[1]}, b1[2] = {ft[0], ft[1]};
    mma<bf16>(d, fa, b0);
    mma<bf16>(e, fa, b1);
    for (int i = 0; i < 4; i++) {
        int at = (group + i / 2 * 8) * 8 + 2 * pair + i % 2;
        c[at] = d[i];
        c[128 + at] = e[i];
    }
}

// out = in, in tiles of 16 bytes a thread, the next tile under way while one is used. The last tile
// is cut: it ends after `count` elements.
KERNEL(64) test_two_stages(const float* in, float* out, int count) {
    __shared__ __align__(16) float stage[2][64 * 4];
    int tile = blockDim.x * 4, tiles = ceil_div(count, tile), mine = threadIdx.x * 4;
    auto fetch = [&](int i) {
        int at = i * tile + mine;
        bool valid = at < count;
        if (i < tiles) copy_async(&stage[i % 2][mine], in + (valid ? at : 0), valid);
        copies_commit();
    };
    fetch(0);
    for (int i = 0; i < tiles; i++) {
        fetch(i + 1);
        copies_wait<1>();
        __syncthreads();  // tile i is there
        // The neighbour's part, to depend on the barrier.
        int other = (threadIdx.x + 1) % blockDim.x * 4;
        for (int j = 0; j < 4; j++) {
            if (i * tile + other + j < count) out[i * tile + other + j] = stage[i % 2][other + j];
        }
        __syncthreads();  // tile i has been read; its stage may be filled again
    }
}

KERNEL(1024) test_increment(unsigned* values, unsigned by, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) values[i] += by;
}

KERNEL(32) test_no_arguments() {}

// ---------------------------------------------------------------------------------------------
// Wrong ones

KERNEL(128) test_wrong_barrier_returned(unsigned* out) {
    if (threadIdx.x == 70) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
KERNEL(128) test_wrong_barrier_branches(unsigned* out) {
    if (threadIdx.x < 64) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}
KERNEL(128) test_wrong_mask(unsigned* out) {
    if (threadIdx.x % 32 < 20) out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, threadIdx.x, 1);
}
KERNEL(128) test_wrong_index(unsigned* out, int offset) { out[int(threadIdx.x) + offset] = 1; }
KERNEL(32) test_wrong_alignment(const bf16* in, bf16* out) { store(out, load(in + 4)); }
KERNEL(32) test_wrong_vector(const float* in, float* out) {
    *reinterpret_cast<float4*>(out) = *reinterpret_cast<const float4*>(in + 2);
}
KERNEL(32) test_wrong_array(unsigned* out, int index) {
    __shared__ unsigned values[32];
    values[index + threadIdx.x] = 1;
    out[threadIdx.x] = values[threadIdx.x];
}
KERNEL(32) test_wrong_dynamic(unsigned char* out, int bytes) {
    DYNAMIC_SHARED(shared);
    for (int i = 0; i < bytes; i++) shared[i] = 1;
    out[0] = shared[0];
}
KERNEL(32) test_wrong_product(long long* out, int rows) { out[rows * 70000] = 1; }
KERNEL(32) test_wrong_assert(const unsigned* in) { assert(in[threadIdx.x] < 10); }

KERNEL(32) test_wrong_memory(const bf16* in, unsigned* out) {
    uint32_t registers[4];
    load_matrices(registers, in);
    out[threadIdx.x] = registers[0];
}
KERNEL(32) test_wrong_copy(bf16* out) {
    __shared__ __align__(16) bf16 values[16];
    copy_async(values, values + 8);
    copies_wait<0>();
    out[0] = values[0];
}
KERNEL(32) test_deep_stack(unsigned* out, int depth) {
    volatile unsigned local[32768];
    for (int i = 0; i < depth; i++) local[i] = threadIdx.x;
    out[threadIdx.x] = local[depth / 2];
}

KERNEL(32) test_endless(volatile unsigned* flag) {
    while (*flag != 1) {
    }
}

// What it gives depends on the order of the threads, since a barrier is missing.
KERNEL(128) test_missing_barrier(unsigned* out) {
    __shared__ unsigned values[128];
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = values[(threadIdx.x + 64) % 128];
}
// Reads what it copied without waiting.
KERNEL(32) test_missing_wait(const unsigned* in, unsigned* out) {
    __shared__ __align__(16) unsigned values[128];
    copy_async(values + 4 * threadIdx.x, in + 4 * threadIdx.x);
    copies_commit();
    out[threadIdx.x] = values[4 * threadIdx.x];
}
// Reads shared memory that nobody wrote.
KERNEL(32) test_unwritten(unsigned* out) {
    __shared__ unsigned values[32];
    DYNAMIC_SHARED(shared);
    if (threadIdx.x < 16) values[threadIdx.x] = 3;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
    out[32 + threadIdx.x] = shared[threadIdx.x];
}

REGISTER_KERNEL(test_index)
REGISTER_KERNEL(test_block_sum)
REGISTER_KERNEL(test_reverse)
REGISTER_KERNEL(test_shuffles)
REGISTER_KERNEL(test_atomics)
REGISTER_KERNEL(test_conversions)
REGISTER_KERNEL(test_mma_bf16)
REGISTER_KERNEL(test_mma_f16)
REGISTER_KERNEL(test_load_matrices)
REGISTER_KERNEL(test_two_stages)
REGISTER_KERNEL(test_increment)
REGISTER_KERNEL(test_no_arguments)
REGISTER_KERNEL(test_wrong_barrier_returned)
REGISTER_KERNEL(test_wrong_barrier_branches)
REGISTER_KERNEL(test_wrong_mask)
REGISTER_KERNEL(test_wrong_index)
REGISTER_KERNEL(test_wrong_alignment)
REGISTER_KERNEL(test_wrong_vector)
REGISTER_KERNEL(test_wrong_array)
REGISTER_KERNEL(test_wrong_dynamic)
REGISTER_KERNEL(test_wrong_product)
REGISTER_KERNEL(test_wrong_assert)
REGISTER_KERNEL(test_wrong_memory)
REGISTER_KERNEL(test_wrong_copy)
REGISTER_KERNEL(test_deep_stack)
REGISTER_KERNEL(test_endless)
REGISTER_KERNEL(test_missing_barrier)
REGISTER_KERNEL(test_missing_wait)
REGISTER_KERNEL(test_unwritten)
