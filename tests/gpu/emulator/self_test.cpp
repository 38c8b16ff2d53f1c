// The emulator's own tests. Each runs in a process of its own, since a failed launch stays; those
// with a message must print it, the others must print nothing.
//
//   self_test            runs all
//   self_test NAME       runs one here
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>

#include "driver.h"
#include "halves.h"

namespace {

constexpr int LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901;

std::vector<unsigned> counting(size_t count) {
    std::vector<unsigned> values(count);
    std::iota(values.begin(), values.end(), 0u);
    return values;
}

// ---------------------------------------------------------------------------------------------
// Kernels that are right

void threads_and_blocks_have_their_numbers() {
    Buffer<unsigned> out(3 * 2 * 64);
    launch("test_index", {3, 2, 16, 4}, out.address, 7u);
    auto values = out.values();
    for (unsigned i = 0; i < values.size(); i++) EXPECT(values[i] == 7 + i / 64 * 1000 + i % 64);
    launch("test_no_arguments", {});
}

void barriers_order_shared_memory() {
    for (unsigned threads : {32, 96, 1024}) {
        std::vector<float> in(4 * threads);
        for (size_t i = 0; i < in.size(); i++) in[i] = float(i % 13);
        Buffer<float> from(in), to(in.size());
        launch("test_block_sum", {4, 1, threads}, from.address, to.address);
        auto out = to.values();
        for (size_t i = 0; i < in.size(); i++) {
            auto first = in.begin() + i / threads * threads;
            EXPECT(out[i] == std::accumulate(first, first + threads, 0.0f) + 1000.0f * threads);
        }
    }
    Buffer<unsigned> from(counting(1000)), to(1000);
    launch("test_reverse", {1, 1, 1000, 1, 4000}, from.address, to.address);
    auto out = to.values();
    for (unsigned i = 0; i < 1000; i++) EXPECT(out[i] == 999 - i);
}

void lanes_exchange_values() {
    Buffer<unsigned> out(64 * 12);
    launch("test_shuffles", {1, 1, 64}, out.address);
    auto values = out.values();
    for (unsigned thread = 0; thread < 64; thread++) {
        unsigned lane = thread % 32;
        const unsigned* mine = &values[thread * 12];
        EXPECT(mine[0] == 105);
        EXPECT(mine[1] == 100 + lane / 8 * 8 + 3);
        EXPECT(mine[2] == 100 + (lane < 2 ? lane : lane - 2));
        EXPECT(mine[3] == 100 + (lane % 16 + 3 < 16 ? lane + 3 : lane));
        EXPECT(mine[4] == 100 + (lane ^ 9));
        EXPECT(mine[5] == 0x49249249u);
        EXPECT(mine[6] == 1);
        EXPECT(mine[7] == (lane < 16 ? 100 + (lane ^ 1) : (16 + 31) * 8u));
        EXPECT(mine[8] == 0x11111111u << lane % 4);
        EXPECT(mine[9] == 6 && mine[10] == 9 && mine[11] == 31);
    }
}

void atomics_lose_nothing() {
    Buffer<unsigned> counters(std::vector<unsigned>{0, 0, 5000, 0, 0, 0, 0});
    Buffer<float> sum(std::vector<float>{0});
    launch("test_atomics", {3, 1, 128}, counters.address, sum.address);
    auto out = counters.values();
    EXPECT(out[0] == 384 && out[1] == 127 && out[2] == 873 && out[3] == ~0u);
    EXPECT(out[4] != 0 && out[4] == out[5]);
    EXPECT(out[6] == 64 * 100 + 10);
    EXPECT(sum.values()[0] == 192);
}

void halves_round_as_on_a_gpu() {
    struct Case {
        float value;
        unsigned bf16, f16;
    };
    const std::vector<Case> cases = {
        {0.0f, 0, 0}, {-0.0f, 0x8000, 0x8000}, {1.0f, 0x3f80, 0x3c00}, {-2.5f, 0xc020, 0xc100},
        {INFINITY, 0x7f80, 0x7c00}, {-INFINITY, 0xff80, 0xfc00}, {-NAN, 0x7fff, 0x7fff},
        // Ties go to the even one.
        {0x1.01p0f, 0x3f80, 0x3c04}, {0x1.03p0f, 0x3f82, 0x3c0c},
        {0x1.002p0f, 0x3f80, 0x3c00}, {0x1.006p0f, 0x3f80, 0x3c02}, {0x1.0060002p0f, 0x3f80, 0x3c02},
        // The largest f16, its overflow, and the largest float.
        {65504.0f, 0x4780, 0x7bff}, {65519.0f, 0x4780, 0x7bff}, {65520.0f, 0x4780, 0x7c00},
        {3.4028235e38f, 0x7f80, 0x7c00},
        // The smallest normal f16, subnormal ones, the smallest, and half of it.
        {0x1p-14f, 0x3880, 0x0400}, {0x1.ff8p-15f, 0x3880, 0x03ff}, {0x1.ffcp-15f, 0x3880, 0x0400},
        {0x1p-24f, 0x3380, 0x0001}, {0x1p-25f, 0x3300, 0x0000}, {0x1.8p-24f, 0x33c0, 0x0002},
        {-0x1.000002p-25f, 0xb300, 0x8001},
    };
    std::vector<float> in;
    for (const Case& c : cases) in.push_back(c.value);
    Buffer<float> from(in), back(2 * in.size());
    Buffer<unsigned> to(in.size());
    launch("test_conversions", {1, 1, 64}, from.address, to.address, back.address, int(in.size()));
    auto bits = to.values();
    auto values = back.values();
    for (size_t i = 0; i < cases.size(); i++) {
        EXPECT((bits[i] & 0xffff) == cases[i].bf16 && bits[i] >> 16 == cases[i].f16);
        EXPECT(std::isnan(in[i]) == std::isnan(values[2 * i]));
        EXPECT(std::isnan(in[i]) == std::isnan(values[2 * i + 1]));
    }
    // Every f16 that is a number comes back.
    for (unsigned half = 0; half < 0x10000; half++) {
        float value = emulator::f16_value(uint16_t(half));
        EXPECT((half & 0x7fff) > 0x7c00 ? std::isnan(value) : emulator::f16_bits(value) == half);
    }
    EXPECT(emulator::f16_value(0x0001) == 0x1p-24f && emulator::f16_value(0xfbff) == -65504.0f);
}

struct Matrices {
    std::vector<float> product;          // [16][8], of what the halves are worth
    std::vector<uint16_t> a, b, b_rows;  // [16][16], [8][16], [16][8]
};
Matrices matrices(uint16_t (*bits)(float), float (*value)(uint16_t)) {
    Matrices out;
    unsigned state = 1;
    auto next = [&] {
        state = state * 1664525u + 1013904223u;
        return bits(float(int(state >> 16) - 32768) / 20000.0f);
    };
    for (int i = 0; i < 256; i++) out.a.push_back(next());
    for (int i = 0; i < 128; i++) out.b.push_back(next());
    for (int i = 0; i < 128; i++) out.b_rows.push_back(out.b[i % 8 * 16 + i / 8]);
    for (int i = 0; i < 128; i++) {
        double sum = 0;
        for (int k = 0; k < 16; k++) {
            sum += double(value(out.a[i / 8 * 16 + k])) * value(out.b[i % 8 * 16 + k]);
        }
        out.product.push_back(float(sum));
    }
    return out;
}

void tensor_cores_multiply() {
    for (bool is_bf16 : {true, false}) {
        auto m = is_bf16 ? matrices(emulator::bf16_bits, emulator::bf16_value)
                         : matrices(emulator::f16_bits, emulator::f16_value);
        Buffer<uint16_t> a(m.a), b(m.b), b_rows(m.b_rows);
        Buffer<float> c(256);
        launch(is_bf16 ? "test_mma_bf16" : "test_mma_f16", {}, a.address, b.address, c.address);
        auto out = c.values();
        for (int i = 0; i < 128; i++) EXPECT(std::fabs(out[i] - 1 - m.product[i]) < 1e-5);
        if (!is_bf16) continue;
        launch("test_load_matrices", {}, a.address, b.address, b_rows.address, c.address);
        out = c.values();
        for (int i = 0; i < 256; i++) EXPECT(std::fabs(out[i] - m.product[i % 128]) < 1e-5);
    }
}

void copies_in_two_stages_arrive() {
    std::vector<float> in(1996);
    std::iota(in.begin(), in.end(), 0.0f);
    Buffer<float> from(in), to(in.size());
    launch("test_two_stages", {1, 1, 64}, from.address, to.address, int(in.size()));
    EXPECT(to.values() == in);
}

// ---------------------------------------------------------------------------------------------
// Kernels that are wrong

template <typename... Arguments>
void fails(const char* name, Shape shape, Arguments... arguments) {
    CHECK_GIVES(LAUNCH_FAILED, try_launch(name, shape, arguments...));
    // The failure stays.
    CHECK_GIVES(LAUNCH_FAILED, cuCtxSynchronize());
}
void a_barrier_that_a_thread_does_not_reach_fails() {
    Buffer<unsigned> out(128);
    fails("test_wrong_barrier_returned", {1, 1, 128}, out.address);
}
void different_barriers_in_branches_fail() {
    Buffer<unsigned> out(128);
    fails("test_wrong_barrier_branches", {1, 1, 128}, out.address);
}
void a_mask_with_lanes_that_do_not_come_fails() {
    Buffer<unsigned> out(128);
    fails("test_wrong_mask", {1, 1, 128}, out.address);
}
void a_misaligned_load_fails() {
    Buffer<uint16_t> in(64), out(64);
    fails("test_wrong_alignment", {1, 1, 1}, in.address, out.address);
}
void a_misaligned_vector_fails() {
    Buffer<float> in(64), out(64);
    fails("test_wrong_vector", {1, 1, 1}, in.address, out.address);
}
void an_index_outside_a_shared_array_fails() {
    Buffer<unsigned> out(32);
    fails("test_wrong_array", {}, out.address, 1);
}
void writing_behind_dynamic_shared_memory_fails() {
    Buffer<unsigned char> out(32);
    fails("test_wrong_dynamic", {1, 1, 1, 1, 100}, out.address, 101);
}
void an_index_that_overflows_fails() {
    Buffer<long long> out(32);
    fails("test_wrong_product", {1, 1, 1}, out.address, 70000);
}
void an_assertion_fails() {
    Buffer<unsigned> in(counting(32));
    fails("test_wrong_assert", {}, in.address);
}
void a_pointer_to_the_host_fails() {
    unsigned values[32];
    fails("test_increment", {}, static_cast<unsigned*>(values), 1u, 32);
}
void an_access_behind_an_allocation_ends_the_process() {
    Buffer<unsigned> out(128);
    try_launch("test_wrong_index", {1, 1, 128}, out.address, 1);
}
void an_access_to_freed_memory_ends_the_process() {
    uint64_t freed;
    { freed = Buffer<unsigned>(128).address; }
    Buffer<unsigned> out(128);
    try_launch("test_wrong_index", {1, 1, 128}, out.address, int(int64_t(freed - out.address) / 4));
}

void a_missing_barrier_shows() {
    Buffer<unsigned> out(128);
    launch("test_missing_barrier", {1, 1, 128}, out.address);
    unsigned wrong = 0;
    for (unsigned i = 0; i < 128; i++) wrong += out.values()[i] != (i + 64) % 128;
    EXPECT(wrong > 0 && wrong < 128);
}
void a_missing_wait_shows() {
    Buffer<unsigned> in(counting(128)), out(32);
    launch("test_missing_wait", {}, in.address, out.address);
    for (unsigned value : out.values()) EXPECT(value == ~0u);
}
void unwritten_shared_memory_shows() {
    Buffer<unsigned> out(64);
    launch("test_unwritten", {2, 1, 32, 1, 64}, out.address);
    auto values = out.values();
    for (unsigned i = 0; i < 32; i++) EXPECT(values[i] == (i < 16 ? 3 : ~0u));
    for (unsigned i = 32; i < 64; i++) EXPECT(values[i] == 0xff);
}

// ---------------------------------------------------------------------------------------------
// The driver

void launches_outside_the_limits_are_refused() {
    Buffer<unsigned> data(4096);
    EXPECT(try_launch("test_index", {1, 1, 512}, data.address, 0u) == 1);
    EXPECT(try_launch("test_index", {1, 65536, 1}, data.address, 0u) == 1);
    EXPECT(try_launch("test_reverse", {1, 1, 32, 1, 49153}, data.address, data.address) == 1);
    CHECK(cuFuncSetAttribute(function("test_reverse"), 8, 65536));
    launch("test_reverse", {1, 1, 32, 1, 65536}, data.address, data.address);
    CHECK_GIVES(1, cuFuncSetAttribute(function("test_reverse"), 8, 232449));
    Handle module, found;
    CHECK(cuModuleLoadData(&module, "any"));
    CHECK_GIVES(500, cuModuleGetFunction(&found, module, "no_such_kernel"));
    uint64_t address;
    CHECK_GIVES(2, cuMemAlloc_v2(&address, size_t(3) << 30));
    size_t available, total, after;
    CHECK(cuMemGetInfo_v2(&available, &total));
    Buffer<unsigned> more(1000);
    CHECK(cuMemGetInfo_v2(&after, &total));
    EXPECT(available - after == 4000);
    CHECK_GIVES(1, cuMemcpyHtoD_v2(more.address, &total, 4001));
    CHECK_GIVES(1, cuMemFree_v2(more.address + 16));
}

void a_graph_replays_launches_copies_and_products() {
    Handle stream, graph, executable;
    CHECK(cuStreamCreate(&stream, 1));
    unsigned* host;
    CHECK(cuMemHostAlloc(reinterpret_cast<void**>(&host), 4 * 64, 0));
    Buffer<unsigned> data(64);
    Buffer<float> a(std::vector<float>{1, 2, 3, 4}), c(4);
    Handle blas;
    CHECK(cublasCreate_v2(&blas));
    CHECK(cublasSetStream_v2(blas, stream));
    float one = 1, zero = 0;

    CHECK(cuStreamBeginCapture_v2(stream, 0));
    CHECK(cuMemcpyHtoDAsync_v2(data.address, host, 4 * 32, stream));
    CHECK(cuMemsetD32Async(data.address + 4 * 32, 500, 32, stream));
    launch("test_increment", {2, 1, 32, 1, 0, stream}, data.address, 3u, 64);
    CHECK(cublasGemmEx(blas, 0, 0, 2, 2, 2, &one, reinterpret_cast<void*>(a.address), 0, 2,
                       reinterpret_cast<void*>(a.address), 0, 2, &zero,
                       reinterpret_cast<void*>(c.address), 0, 2, 68, 0));
    CHECK(cuMemcpyDtoHAsync_v2(host + 32, data.address + 4 * 16, 4 * 32, stream));
    int status;
    CHECK(cuStreamIsCapturing(stream, &status));
    EXPECT(status == 1);
    CHECK(cuStreamEndCapture(stream, &graph));
    CHECK(cuGraphInstantiateWithFlags(&executable, graph, 0));
    CHECK(cuGraphDestroy(graph));
    EXPECT(data.values()[0] == ~0u);

    for (unsigned step = 0; step < 3; step++) {
        for (unsigned i = 0; i < 32; i++) host[i] = 10 * step + i;
        CHECK(cuGraphLaunch(executable, stream));
        CHECK(cuStreamSynchronize(stream));
        for (unsigned i = 0; i < 32; i++) {
            EXPECT(host[32 + i] == (i < 16 ? 10 * step + i + 16 + 3 : 503));
        }
        EXPECT((c.values() == std::vector<float>{7, 10, 15, 22}));
    }
    CHECK(cuGraphExecDestroy(executable));
    CHECK(cuMemFreeHost(host));
    CHECK(cuStreamDestroy_v2(stream));
}

void what_a_capture_does_not_allow_breaks_it() {
    Handle stream, graph;
    CHECK(cuStreamCreate(&stream, 1));
    Buffer<unsigned> data(counting(32));
    uint64_t address;
    CHECK(cuStreamBeginCapture_v2(stream, 0));
    CHECK_GIVES(CAPTURE_UNSUPPORTED, cuStreamSynchronize(stream));
    CHECK_GIVES(CAPTURE_INVALIDATED,
                try_launch("test_increment", {1, 1, 32, 1, 0, stream}, data.address, 3u, 32));
    CHECK_GIVES(CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
    CHECK(cuStreamBeginCapture_v2(stream, 1));
    CHECK_GIVES(CAPTURE_UNSUPPORTED, cuMemAlloc_v2(&address, 64));
    CHECK_GIVES(CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
    CHECK(cuStreamBeginCapture_v2(stream, 2));
    CHECK(cuMemAlloc_v2(&address, 64));
    CHECK(cuStreamEndCapture(stream, &graph));
    CHECK_GIVES(401, cuStreamEndCapture(stream, &graph));
    EXPECT(data.values() == counting(32));
}

void events_order_streams() {
    Handle first, second, begin, end;
    CHECK(cuStreamCreate(&first, 1));
    CHECK(cuStreamCreate(&second, 1));
    CHECK(cuEventCreate(&begin, 0));
    CHECK(cuEventCreate(&end, 0));
    Buffer<unsigned> data(std::vector<unsigned>(5000));
    CHECK(cuEventRecord(begin, first));
    for (int i = 0; i < 20; i++) {
        Handle from = i % 2 ? second : first, to = i % 2 ? first : second;
        launch("test_increment", {5, 1, 1000, 1, 0, from}, data.address, 1u, 5000);
        CHECK(cuEventRecord(end, from));
        CHECK(cuStreamWaitEvent(to, end, 0));
    }
    CHECK(cuEventSynchronize(end));
    CHECK(cuEventQuery(end));
    float milliseconds;
    CHECK(cuEventElapsedTime_v2(&milliseconds, begin, end));
    EXPECT(milliseconds > 0);
    for (unsigned value : data.values()) EXPECT(value == 20);
}

// With MILLSTREAM_EMULATOR_ASYNC=1: a copy reads pinned memory when it runs, other memory at once.
void an_early_host_is_seen() {
    Handle stream, event;
    CHECK(cuStreamCreate(&stream, 1));
    CHECK(cuEventCreate(&event, 0));
    unsigned *pinned, *result;
    CHECK(cuMemHostAlloc(reinterpret_cast<void**>(&pinned), 4 * 1024, 0));
    CHECK(cuMemHostAlloc(reinterpret_cast<void**>(&result), 4, 0));
    Buffer<unsigned> data(1024), other(1024);
    std::vector<unsigned> plain(1024, 1);
    for (int i = 0; i < 1024; i++) pinned[i] = 1;
    *result = 77;
    CHECK(cuMemcpyHtoDAsync_v2(data.address, pinned, 4096, stream));
    CHECK(cuMemcpyHtoDAsync_v2(other.address, plain.data(), 4096, stream));
    CHECK(cuMemcpyDtoHAsync_v2(result, data.address, 4, stream));
    CHECK(cuEventRecord(event, stream));
    EXPECT(*result == 77);
    CHECK_GIVES(600, cuEventQuery(event));
    for (int i = 0; i < 1024; i++) plain[i] = pinned[i] = 2;
    CHECK(cuEventSynchronize(event));
    EXPECT(*result == 2);
    EXPECT(data.values()[1023] == 2 && other.values()[1023] == 1);
}

// ---------------------------------------------------------------------------------------------
// cuBLAS: all transposes and types, with and without what was there, against a plain sum.

float half_value(int type, uint16_t bits) {
    return type == 14 ? emulator::bf16_value(bits) : emulator::f16_value(bits);
}
void check_product(int type, int c_type, bool ta, bool tb, float beta) {
    int m = 5, n = 3, k = 7, lda = (ta ? k : m) + 1, ldb = (tb ? n : k) + 2, ldc = m + 1, batches = 2;
    auto bits = type == 14 ? emulator::bf16_bits : emulator::f16_bits;
    std::vector<uint16_t> a(2 * lda * 8), b(2 * ldb * 8);
    for (size_t i = 0; i < a.size(); i++) a[i] = bits(float(i % 11) - 5);
    for (size_t i = 0; i < b.size(); i++) b[i] = bits(float(i % 7) - 2);
    std::vector<float> before(2 * ldc * n);
    for (size_t i = 0; i < before.size(); i++) before[i] = beta == 0 ? NAN : float(i % 5);
    std::vector<uint16_t> before_halves;
    for (float value : before) before_halves.push_back(bits(value));
    Buffer<uint16_t> da(a), db(b), halves(before_halves);
    Buffer<float> floats(before);
    Handle blas;
    CHECK(cublasCreate_v2(&blas));
    float alpha = 2;
    uint64_t c = c_type == 0 ? floats.address : halves.address;
    CHECK(cublasGemmStridedBatchedEx(
        blas, ta, tb, m, n, k, &alpha, reinterpret_cast<void*>(da.address), type, lda, lda * 8,
        reinterpret_cast<void*>(db.address), type, ldb, ldb * 8, &beta, reinterpret_cast<void*>(c),
        c_type, ldc, ldc * n, batches, 68, -1));
    auto out = floats.values();
    auto out_halves = halves.values();
    for (int at = 0; at < batches * n * ldc; at++) {
        int batch = at / (n * ldc), j = at / ldc % n, i = at % ldc;
        float value = c_type == 0 ? out[at] : half_value(type, out_halves[at]);
        if (i == m) {  // between the columns
            EXPECT(std::isnan(value) == std::isnan(before[at]));
            continue;
        }
        double sum = 0;
        for (int l = 0; l < k; l++) {
            sum += half_value(type, a[batch * lda * 8 + (ta ? l + i * lda : i + l * lda)]) *
                   half_value(type, b[batch * ldb * 8 + (tb ? j + l * ldb : l + j * ldb)]);
        }
        double expected = 2 * sum + (beta == 0 ? 0 : beta * before[at]);
        EXPECT(std::fabs(value - expected) <= (c_type == 0 ? 1e-4 : 1.0));
    }
}
void products_are_those_of_cublas() {
    for (int type : {14, 2}) {
        for (int c_type : {0, type}) {
            for (int choice = 0; choice < 8; choice++) {
                check_product(type, c_type, choice & 1, choice & 2, choice & 4 ? 0.5f : 0.0f);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------

struct Test {
    const char* name;
    void (*run)();
    std::vector<std::string> settings;  // of the environment; each is a run of its own
    const char* message;                // on stderr, or null when there must be none
};
#define TEST(name) #name, name
const std::string ORDER = "MILLSTREAM_EMULATOR_ORDER=", ASYNC = "MILLSTREAM_EMULATOR_ASYNC=1";
const std::vector<std::string> NONE = {""}, ALL = {"", ORDER + "reverse", ORDER + "1", ORDER + "2",
                                                   ASYNC};

const std::vector<Test> TESTS = {
    {TEST(threads_and_blocks_have_their_numbers), ALL, nullptr},
    {TEST(barriers_order_shared_memory), ALL, nullptr},
    {TEST(lanes_exchange_values), ALL, nullptr},
    {TEST(atomics_lose_nothing), ALL, nullptr},
    {TEST(halves_round_as_on_a_gpu), NONE, nullptr},
    {TEST(tensor_cores_multiply), ALL, nullptr},
    {TEST(copies_in_two_stages_arrive), ALL, nullptr},
    {TEST(a_barrier_that_a_thread_does_not_reach_fails), NONE,
     "kernel test_wrong_barrier_returned, block (0, 0, 0): stuck, not all threads come to where "
     "others wait: threads 0 to 69 at __syncthreads at "},
    {TEST(different_barriers_in_branches_fail), {"", ORDER + "reverse"}, "different barriers"},
    {TEST(a_mask_with_lanes_that_do_not_come_fails), {"", ORDER + "reverse"},
     "threads 0 to 19 in __shfl_xor_sync with mask ffffffff at "},
    {TEST(a_misaligned_load_fails), NONE, "load at "},
    {TEST(a_misaligned_vector_fails), NONE, "not aligned for it at "},
    {TEST(an_index_outside_a_shared_array_fails), NONE,
     "kernel test_wrong_array, block (0, 0, 0), thread (31, 0, 0): index 32 is outside the array"},
    {TEST(writing_behind_dynamic_shared_memory_fails), NONE, "behind the end of its dynamic"},
    {TEST(an_index_that_overflows_fails), NONE, "an integer product overflows"},
    {TEST(an_assertion_fails), NONE, "thread (10, 0, 0): assertion failed: in[threadIdx.x] < 10"},
    {TEST(a_pointer_to_the_host_fails), NONE, "is not device memory"},
    {TEST(an_access_behind_an_allocation_ends_the_process), NONE,
     "kernel test_wrong_index, block (0, 0, 0), thread (127, 0, 0): touched memory it must not"},
    {TEST(an_access_to_freed_memory_ends_the_process), NONE, "of a freed allocation"},
    {TEST(a_missing_barrier_shows), {"", ORDER + "reverse", ORDER + "1"}, nullptr},
    {TEST(a_missing_wait_shows), NONE, nullptr},
    {TEST(unwritten_shared_memory_shows), NONE, nullptr},
    {TEST(launches_outside_the_limits_are_refused), NONE, "at most 256"},
    {TEST(a_graph_replays_launches_copies_and_products), {"", ASYNC}, nullptr},
    {TEST(what_a_capture_does_not_allow_breaks_it), {"", ASYNC}, nullptr},
    {TEST(events_order_streams), {"", ASYNC}, nullptr},
    {TEST(an_early_host_is_seen), {ASYNC}, nullptr},
    {TEST(products_are_those_of_cublas), {"", ASYNC}, nullptr},
};

int run_here(const Test& test) {
    try {
        open_device();
        test.run();
        return 0;
    } catch (const std::exception& error) {
        printf("%s\n", error.what());
        return 1;
    }
}

// Runs the test in a process; false when it did not do what it should.
bool run_apart(const char* program, const Test& test, const std::string& setting) {
    std::string command = setting + " " + program + " " + test.name + " 2>&1";
    FILE* pipe = popen(command.c_str(), "r");
    std::string output;
    char text[400];
    while (fgets(text, sizeof text, pipe)) output += text;
    bool succeeded = pclose(pipe) == 0;
    bool ends_process = strstr(test.name, "ends_the_process");
    bool right = succeeded != ends_process &&
                 (test.message ? output.find(test.message) != std::string::npos : output.empty());
    printf("%-6s %s %s\n", right ? "ok" : "FAILED", test.name, setting.c_str());
    if (!right) printf("%s", output.c_str());
    fflush(stdout);
    return right;
}

}  // namespace

int main(int count, char** arguments) {
    int failures = 0;
    for (const Test& test : TESTS) {
        if (count > 1 && strcmp(arguments[1], test.name) == 0) return run_here(test);
        if (count > 1) continue;
        for (const std::string& setting : test.settings) {
            failures += !run_apart(arguments[0], test, setting);
        }
    }
    if (count > 1) printf("no test %s\n", arguments[1]);
    return count > 1 || failures > 0;
}
