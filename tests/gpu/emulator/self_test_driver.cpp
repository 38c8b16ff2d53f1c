// Tests of the functions of the driver and of cuBLAS.
#include <cmath>

#include "halves.h"
#include "self_test.h"

using namespace test;

constexpr int CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901;

// ---------------------------------------------------------------------------------------------
// The driver

void test::launches_outside_the_limits_are_refused() {
    Buffer<unsigned> data(4096);
    EXPECT(try_launch("test_index", {1, 1, 512}, data.address, 0u) == 1);
    EXPECT(try_launch("test_index", {1, 65536, 1}, data.address, 0u) == 1);
    EXPECT(try_launch("test_reverse", {1, 1, 32, 1, 49153}, data.address, data.address) == 1);
    CHECK(cuFuncSetAttribute(function("test_reverse"), 8, 65536));
    launch("test_reverse", {1, 1, 32, 1, 65536}, data.address, data.address);
    CHECK_GIVES(1, cuFuncSetAttribute(function("test_reverse"), 8, 232449));
    // Another module has other limits.
    Handle module, found;
    CHECK(cuModuleLoadData(&module, "any"));
    CHECK(cuModuleGetFunction(&found, module, "test_reverse"));
    CHECK(cuFuncSetAttribute(found, 8, 50000));
    launch("test_reverse", {1, 1, 32, 1, 65536}, data.address, data.address);
    CHECK_GIVES(500, cuModuleGetFunction(&found, module, "no_such_kernel"));
    size_t offset, size;
    CHECK(cuFuncGetParamInfo(function("test_two_stages"), 2, &offset, &size));
    EXPECT(offset == 16 && size == 4);
    CHECK_GIVES(1, cuFuncGetParamInfo(function("test_two_stages"), 3, &offset, &size));
    void* one_argument[] = {&data.address, nullptr};
    CHECK_GIVES(1, cuLaunchKernel(function("test_index"), 1, 1, 1, 32, 1, 1, 0, nullptr,
                                  one_argument, nullptr));
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

void test::a_graph_replays_launches_copies_and_products() {
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
    function("test_increment");

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

void test::what_a_capture_does_not_allow_breaks_it() {
    Handle stream, graph;
    CHECK(cuStreamCreate(&stream, 1));
    Buffer<unsigned> data(counting(32));
    uint64_t address;
    function("test_increment");
    CHECK(cuStreamBeginCapture_v2(stream, 0));
    CHECK_GIVES(CAPTURE_UNSUPPORTED, cuStreamSynchronize(stream));
    CHECK_GIVES(CAPTURE_INVALIDATED,
                try_launch("test_increment", {1, 1, 32, 1, 0, stream}, data.address, 3u, 32));
    CHECK_GIVES(CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
    CHECK(cuStreamBeginCapture_v2(stream, 1));
    CHECK_GIVES(CAPTURE_UNSUPPORTED, cuMemAlloc_v2(&address, 64));
    CHECK_GIVES(CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
    CHECK(cuStreamBeginCapture_v2(stream, 1));
    Handle module;
    CHECK_GIVES(CAPTURE_UNSUPPORTED, cuModuleLoadData(&module, "any"));
    CHECK_GIVES(CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
    CHECK(cuStreamBeginCapture_v2(stream, 2));
    CHECK(cuMemAlloc_v2(&address, 64));
    CHECK(cuStreamEndCapture(stream, &graph));
    CHECK_GIVES(401, cuStreamEndCapture(stream, &graph));
    EXPECT(data.values() == counting(32));
}

void test::events_order_streams() {
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
void test::an_early_host_is_seen() {
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

static float half_value(int type, uint16_t bits) {
    return type == 14 ? emulator::bf16_value(bits) : emulator::f16_value(bits);
}
static void check_product(int type, int c_type, bool ta, bool tb, float beta) {
    int m = 5, n = 3, k = 7, batches = 2;
    int lda = (ta ? k : m) + 1, ldb = (tb ? n : k) + 2, ldc = m + 1;
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
void test::a_product_behind_a_matrix_is_refused() {
    Buffer<float> a(12), b(12), c(12);
    Handle blas;
    CHECK(cublasCreate_v2(&blas));
    float one = 1, zero = 0;
    // b is stored as 4 columns of 3, with 5 from one to the next: 3 * 5 + 3 elements.
    CHECK_GIVES(7, cublasGemmEx(blas, 0, 1, 3, 3, 4, &one, reinterpret_cast<void*>(a.address), 0, 3,
                                reinterpret_cast<void*>(b.address), 0, 5, &zero,
                                reinterpret_cast<void*>(c.address), 0, 3, 68, 0));
}
void test::products_are_those_of_cublas() {
    for (int type : {14, 2}) {
        for (int c_type : {0, type}) {
            for (int choice = 0; choice < 8; choice++) {
                check_product(type, c_type, choice & 1, choice & 2, choice & 4 ? 0.5f : 0.0f);
            }
        }
    }
}
