// The emulator's own tests; each is run in a process of its own by self_test.cpp.
#pragma once

#include <numeric>

#include "driver.h"

namespace test {

constexpr int LAUNCH_FAILED = 719;

// 0, 1, 2, ..
inline std::vector<unsigned> counting(size_t count) {
    std::vector<unsigned> values(count);
    std::iota(values.begin(), values.end(), 0u);
    return values;
}

// self_test_kernels.cpp
void threads_and_blocks_have_their_numbers();
void barriers_order_shared_memory();
void lanes_exchange_values();
void atomics_lose_nothing();
void halves_round_as_on_a_gpu();
void tensor_cores_multiply();
void copies_in_two_stages_arrive();
void a_barrier_that_a_thread_does_not_reach_fails();
void different_barriers_in_branches_fail();
void a_mask_with_lanes_that_do_not_come_fails();
void a_misaligned_load_fails();
void a_misaligned_vector_fails();
void an_index_outside_a_shared_array_fails();
void writing_behind_dynamic_shared_memory_fails();
void an_index_that_overflows_fails();
void an_assertion_fails();
void load_matrices_from_global_memory_fails();
void copy_async_from_shared_memory_fails();
void too_much_stack_ends_the_process();
void a_kernel_that_does_not_end_is_named();
void a_pointer_to_the_host_fails();
void an_access_behind_an_allocation_ends_the_process();
void an_access_to_freed_memory_ends_the_process();
void a_missing_barrier_shows();
void a_missing_wait_shows();
void unwritten_shared_memory_shows();

// self_test_driver.cpp
void launches_outside_the_limits_are_refused();
void a_graph_replays_launches_copies_and_products();
void what_a_capture_does_not_allow_breaks_it();
void events_order_streams();
void an_early_host_is_seen();
void products_are_those_of_cublas();
void a_product_behind_a_matrix_is_refused();

}  // namespace test
