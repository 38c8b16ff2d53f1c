// Lists the splits of the rows that decode: once for a step and a window, for all layers that have
// that window (paged_attention_decode.cu works the list off, paged_attention_combine.cu merges).
//
// Splits have SPLIT positions; where all rows together would have more than max_items of them,
// twice as many, until they fit. Each row fits in one, so max_items is at least the number of rows.
//   grid (1)   block 1024   shared 32 numbers (one sum per warp)
//   traffic: 32 bytes an item -> bound by latency, a few microseconds.

#include "paged_attention.cuh"
#include "paged_attention_split.cuh"

namespace {

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / WARP;

// What a row's query sees, in splits of `size`.
struct Seen {
    int first, end;         // positions
    int first_split, size;  // number and size of the splits
    int splits = 0;

    __device__ __forceinline__ Seen(int context_len, int window, int size)
        : first(0), end(context_len), first_split(0), size(size) {
        if (context_len == 0) return;
        first = first_seen(context_len - 1, window);
        first_split = first / size;
        splits = ceil_div(end, size) - first_split;
    }

    // How many of its splits leave something to combine.
    __device__ __forceinline__ int partials() const { return splits > 1 ? splits : 0; }
};

// The sum of x over the threads before this one; all threads get the sum over all in `total`. Every
// thread must come here; ends with a barrier, so `sums` (one per warp) may be used again.
__device__ __forceinline__ int sum_before(int x, int& total, int* sums) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, sum = x;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        int before = __shfl_up_sync(ALL_LANES, sum, distance);
        if (lane >= distance) sum += before;
    }
    if (lane == WARP - 1) sums[warp] = sum;
    __syncthreads();  // every warp's sum is in `sums`
    int before = 0;
    total = 0;
    for (int i = 0; i < WARPS; i++) {
        if (i < warp) before += sums[i];
        total += sums[i];
    }
    __syncthreads();  // everyone has read `sums`
    return before + sum - x;
}

// The smallest size of splits of which there are at most max_items.
__device__ __forceinline__ int size_that_fits(const unsigned* context_len, int rows, int window,
                                              int max_items, int* sums) {
    for (int size = SPLIT;; size *= 2) {
        int splits = 0, total;
        for (int row = threadIdx.x; row < rows; row += THREADS) {
            splits += Seen(context_len[row], window, size).splits;
        }
        sum_before(splits, total, sums);
        if (total <= max_items) return size;
    }
}

}  // namespace

// slot, context_len, token [rows]; first_item [rows]; row_partials [rows + 1]: the partials of row
// r are row_partials[r].., up to those of the next row.
KERNEL(THREADS)
paged_attention_plan(const unsigned* slot, const unsigned* context_len, const unsigned* token,
                     int rows, int window, int max_items, unsigned* num_items, Item* items,
                     unsigned* row_partials, unsigned* first_item) {
    __shared__ int sums[WARPS];
    int size = size_that_fits(context_len, rows, window, max_items, sums);
    int items_before = 0, partials_before = 0;
    for (int start = 0; start < rows; start += THREADS) {
        int row = start + threadIdx.x, num_row_items, num_row_partials;
        Seen seen(row < rows ? context_len[row] : 0, window, size);
        int item = items_before + sum_before(seen.splits, num_row_items, sums);
        int partial = partials_before + sum_before(seen.partials(), num_row_partials, sums);
        if (row < rows) first_item[row] = item, row_partials[row] = partial;
        items_before += num_row_items, partials_before += num_row_partials;
    }
    if (threadIdx.x == 0) *num_items = items_before, row_partials[rows] = partials_before;
    __syncthreads();  // first_item and row_partials are there

    // A warp for each row, a lane for each of its splits.
    for (int row = threadIdx.x / WARP; row < rows; row += WARPS) {
        Seen seen(context_len[row], window, size);
        for (int i = threadIdx.x % WARP; i < seen.splits; i += WARP) {
            int begin = (seen.first_split + i) * size;
            Item item = {};
            item.slot = slot[row], item.token = token[row];
            item.begin = max(begin, seen.first), item.end = min(begin + size, seen.end);
            item.partial = seen.partials() ? row_partials[row] + i : PAD;
            items[first_item[row] + i] = item;
        }
    }
}
REGISTER_KERNEL(paged_attention_plan)
