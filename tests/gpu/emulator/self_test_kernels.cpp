// Tests of what kernels do, the right and the wrong ones of self_test.cu.
#include <cmath>
#include <thread>

#include "halves.h"
#include "self_test.h"

using namespace test;

// ---------------------------------------------------------------------------------------------
// Kernels that are right

void test::threads_and_blocks_have_their_numbers() {
    Buffer<unsigned> out(3 * 2 * 64);
    launch("test_index", {3, 2, 16, 4}, out.address, 7u);
    auto values = out.values();
    for (unsigned i = 0; i < values.size(); i++) EXPECT(values[i] == 7 + i / 64 * 1000 + i % 64);
    launch("test_no_arguments", {});
}

void test::barriers_order_shared_memory() {
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

void test::lanes_exchange_values() {
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

void test::atomics_lose_nothing() {
    Buffer<unsigned> counters(std::vector<unsigned>{0, 0, 5000, 0, 0, 0, 0});
    Buffer<float> sum(std::vector<float>{0});
    launch("test_atomics", {3, 1, 128}, counters.address, sum.address);
    auto out = counters.values();
    EXPECT(out[0] == 384 && out[1] == 127 && out[2] == 873 && out[3] == ~0u);
    EXPECT(out[4] != 0 && out[4] == out[5]);
    EXPECT(out[6] == 64 * 100 + 10);
    EXPECT(sum.values()[0] == 192);
}

void test::halves_round_as_on_a_gpu() {
    struct Case {
        float value;
        unsigned bf16, f16;
    };
    const std::vector<Case> cases = {
        {0.0f, 0, 0}, {-0.0f, 0x8000, 0x8000}, {1.0f, 0x3f80, 0x3c00}, {-2.5f, 0xc020, 0xc100},
        {INFINITY, 0x7f80, 0x7c00}, {-INFINITY, 0xff80, 0xfc00}, {-NAN, 0x7fff, 0x7fff},
        // Ties go to the even one.
        {0x1.01p0f, 0x3f80, 0x3c04}, {0x1.03p0f, 0x3f82, 0x3c0c},
        {0x1.002p0f, 0x3f80, 0x3c00}, {0x1.006p0f, 0x3f80, 0x3c02},
        {0x1.006002p0f, 0x3f80, 0x3c02}, {0x1.002002p0f, 0x3f80, 0x3c01},
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
static Matrices matrices(uint16_t (*bits)(float), float (*value)(uint16_t)) {
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

void test::tensor_cores_multiply() {
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

void test::copies_in_two_stages_arrive() {
    std::vector<float> in(1996);
    std::iota(in.begin(), in.end(), 0.0f);
    Buffer<float> from(in), to(in.size());
    launch("test_two_stages", {1, 1, 64}, from.address, to.address, int(in.size()));
    EXPECT(to.values() == in);
}

// ---------------------------------------------------------------------------------------------
// Kernels that are wrong

template <typename... Arguments>
static void fails(const char* name, Shape shape, Arguments... arguments) {
    CHECK_GIVES(LAUNCH_FAILED, try_launch(name, shape, arguments...));
    // The failure stays.
    CHECK_GIVES(LAUNCH_FAILED, cuCtxSynchronize());
}
void test::a_barrier_that_a_thread_does_not_reach_fails() {
    Buffer<unsigned> out(128);
    fails("test_wrong_barrier_returned", {1, 1, 128}, out.address);
}
void test::different_barriers_in_branches_fail() {
    Buffer<unsigned> out(128);
    fails("test_wrong_barrier_branches", {1, 1, 128}, out.address);
}
void test::a_mask_with_lanes_that_do_not_come_fails() {
    Buffer<unsigned> out(128);
    fails("test_wrong_mask", {1, 1, 128}, out.address);
}
void test::a_misaligned_load_fails() {
    Buffer<uint16_t> in(64), out(64);
    fails("test_wrong_alignment", {1, 1, 1}, in.address, out.address);
}
void test::a_misaligned_vector_fails() {
    Buffer<float> in(64), out(64);
    fails("test_wrong_vector", {1, 1, 1}, in.address, out.address);
}
void test::an_index_outside_a_shared_array_fails() {
    Buffer<unsigned> out(32);
    fails("test_wrong_array", {}, out.address, 1);
}
void test::writing_behind_dynamic_shared_memory_fails() {
    Buffer<unsigned char> out(32);
    fails("test_wrong_dynamic", {1, 1, 1, 1, 100}, out.address, 101);
}
void test::an_index_that_overflows_fails() {
    Buffer<long long> out(32);
    fails("test_wrong_product", {1, 1, 1}, out.address, 70000);
}
void test::an_assertion_fails() {
    Buffer<unsigned> in(counting(32));
    fails("test_wrong_assert", {}, in.address);
}
void test::load_matrices_from_global_memory_fails() {
    Buffer<uint16_t> in(256);
    Buffer<unsigned> out(32);
    fails("test_wrong_memory", {}, in.address, out.address);
}
void test::copy_async_from_shared_memory_fails() {
    Buffer<uint16_t> out(32);
    fails("test_wrong_copy", {}, out.address);
}
void test::too_much_stack_ends_the_process() {
    Buffer<unsigned> out(32);
    try_launch("test_deep_stack", {}, out.address, 32768);
}
void test::a_kernel_that_does_not_end_is_named() {
    Buffer<unsigned> flag(1);
    std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(2500));
        *reinterpret_cast<volatile unsigned*>(flag.address) = 1;
    });
    launch("test_endless", {}, flag.address);
    other.join();
}
void test::a_pointer_to_the_host_fails() {
    unsigned values[32];
    fails("test_increment", {}, static_cast<unsigned*>(values), 1u, 32);
}
void test::an_access_behind_an_allocation_ends_the_process() {
    Buffer<unsigned> out(128);
    try_launch("test_wrong_index", {1, 1, 128}, out.address, 1);
}
void test::an_access_to_freed_memory_ends_the_process() {
    uint64_t freed;
    { freed = Buffer<unsigned>(128).address; }
    Buffer<unsigned> out(128);
    try_launch("test_wrong_index", {1, 1, 128}, out.address, int(int64_t(freed - out.address) / 4));
}

void test::a_missing_barrier_shows() {
    Buffer<unsigned> out(128);
    launch("test_missing_barrier", {1, 1, 128}, out.address);
    unsigned wrong = 0;
    for (unsigned i = 0; i < 128; i++) wrong += out.values()[i] != (i + 64) % 128;
    EXPECT(wrong > 0 && wrong < 128);
}
void test::a_missing_wait_shows() {
    Buffer<unsigned> in(counting(128)), out(32);
    launch("test_missing_wait", {}, in.address, out.address);
    for (unsigned value : out.values()) EXPECT(value == ~0u);
}
void test::unwritten_shared_memory_shows() {
    Buffer<unsigned> out(64);
    launch("test_unwritten", {2, 1, 32, 1, 64}, out.address);
    auto values = out.values();
    for (unsigned i = 0; i < 32; i++) EXPECT(values[i] == (i < 16 ? 3 : ~0u));
    for (unsigned i = 32; i < 64; i++) EXPECT(values[i] == 0xff);
}
