// Runs the emulator's own tests. Each runs in a process of its own, since a failed launch stays;
// those with a message must print it, the others must print nothing.
//
//   self_test            runs all
//   self_test NAME       runs one here
#include "self_test.h"

#include <cstdio>
#include <cstdlib>

namespace {

struct Test {
    const char* name;
    void (*run)();
    std::vector<std::string> settings;  // of the environment; each is a run of its own
    const char* message;                // on stderr, or null when there must be none
};
#define TEST(name) #name, test::name
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
    {TEST(load_matrices_from_global_memory_fails), NONE, "which is not shared memory"},
    {TEST(copy_async_from_shared_memory_fails), NONE, "which is not global memory"},
    {TEST(too_much_stack_ends_the_process), NONE, "outside of the stack of a thread"},
    {TEST(a_kernel_that_does_not_end_is_named), {"MILLSTREAM_EMULATOR_PATIENCE_S=1"},
     "kernel test_endless, block (0, 0, 0), thread (0, 0, 0): still running"},
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
    {TEST(a_product_behind_a_matrix_is_refused), NONE, "matrix B of a product: 72 bytes"},
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
