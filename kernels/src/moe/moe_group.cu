// Grouping: one row per token and expert, those of an expert side by side and in the order of their
// tokens; and the tiles of rows that grouped products work through.
//
//   grid (T * top_k / 1024, at least 1)   block 1024   shared 12.3 KiB
//   traffic: each block reads all T * top_k experts, from L2. 3 us for up to 1024 choices, 12 us
//     for 65536: nothing beside the products.
//
// A block gives rows to 1024 choices, t * top_k + k. For that it counts how often each expert is
// chosen, and how often before its own choices: counts are the same in whatever order they are
// made. Its own choices it numbers warp by warp, in their order. So no block waits for another, and
// the rows are those of a stable sort.
#include "device.cuh"

constexpr int CHOICES = 1024;      // of a block; one for each thread
constexpr int MAX_EXPERTS = 1024;  // one for each thread
constexpr unsigned PAD = 0xffffffffu;

// The expert of choice i, or PAD: choices of padding, and experts that do not exist, get no rows.
__device__ __forceinline__ unsigned expert_of(int i, const unsigned* experts,
                                              const unsigned* padding, int top_k, int num_experts) {
    if (padding && padding[i / top_k] == PAD) return PAD;
    unsigned expert = experts[i];
    return expert < unsigned(num_experts) ? expert : PAD;
}

// Two sums over all threads up to this one, itself included; `totals` has one for each warp.
__device__ __forceinline__ int2 sums_up_to(int2 mine, int2* totals) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int distance = 1; distance < WARP; distance *= 2) {
        int x = __shfl_up_sync(ALL_LANES, mine.x, distance);
        int y = __shfl_up_sync(ALL_LANES, mine.y, distance);
        if (lane >= distance) mine.x += x, mine.y += y;
    }
    if (lane == WARP - 1) totals[warp] = mine;
    __syncthreads();  // the sums of all warps are there
    for (int i = 0; i < warp; i++) mine.x += totals[i].x, mine.y += totals[i].y;
    return mine;
}

// experts `[choices]`; padding `[T]` or null, PAD for tokens that take part in nothing
//   token_of_row, expert_of_row `[choices]`: PAD beyond the last row
//   row_of_choice `[choices]`: PAD where a choice has no row
//   ends `[E]`: the rows of expert e end before ends[e]
//   tiles `[.., 3]`: expert, first row, rows, of at most tile_rows; num_tiles `[1]`
KERNEL(CHOICES)
moe_group(const unsigned* experts, const unsigned* padding, unsigned* token_of_row,
          unsigned* expert_of_row, unsigned* row_of_choice, unsigned* ends, unsigned* tiles,
          unsigned* num_tiles, int choices, int top_k, int num_experts, int tile_rows) {
    // Of each expert: choices before this block's; all others; the row of its next choice.
    __shared__ int before[MAX_EXPERTS], others[MAX_EXPERTS], next[MAX_EXPERTS];
    __shared__ int2 totals[CHOICES / WARP];
    __shared__ int num_rows;
    int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    int begin = blockIdx.x * CHOICES;

    before[thread] = others[thread] = 0;
    __syncthreads();  // the counts are 0
    for (int i = thread; i < choices; i += CHOICES) {
        unsigned expert = expert_of(i, experts, padding, top_k, num_experts);
        if (expert != PAD) atomicAdd(i < begin ? &before[expert] : &others[expert], 1);
    }
    __syncthreads();  // everything is counted

    // Thread e places expert e.
    int count = before[thread] + others[thread];
    int count_tiles = ceil_div(count, tile_rows);
    int2 end = sums_up_to({count, count_tiles}, totals);
    int first = end.x - count, first_tile = end.y - count_tiles;
    next[thread] = first + before[thread];
    if (thread == CHOICES - 1) num_rows = end.x;
    if (blockIdx.x == 0) {
        if (thread < num_experts) ends[thread] = end.x;
        if (thread == CHOICES - 1) *num_tiles = end.y;
        for (int i = 0; i < count_tiles; i++) {
            unsigned* tile = tiles + 3 * (first_tile + i);
            tile[0] = thread;
            tile[1] = first + i * tile_rows;
            tile[2] = min(tile_rows, count - i * tile_rows);
        }
    }
    __syncthreads();  // the next rows and their number are there

    int choice = begin + thread;
    bool exists = choice < choices;
    unsigned expert = exists ? expert_of(choice, experts, padding, top_k, num_experts) : PAD;
    unsigned same = __match_any_sync(ALL_LANES, expert);
    int earlier = __popc(same & ((1u << lane) - 1));
    int row = 0, turns = ceil_div(min(CHOICES, choices - begin), WARP);
    for (int turn = 0; turn < turns; turn++) {
        if (warp == turn) {
            if (expert != PAD) row = next[expert] + earlier;
            __syncwarp();  // all lanes have read
            if (expert != PAD && earlier == 0) next[expert] += __popc(same);
        }
        __syncthreads();  // the warps before have taken their rows
    }
    if (!exists) return;
    row_of_choice[choice] = expert == PAD ? PAD : unsigned(row);
    if (expert != PAD) {
        token_of_row[row] = choice / top_k;
        expert_of_row[row] = expert;
    }
    if (choice >= num_rows) token_of_row[choice] = expert_of_row[choice] = PAD;
}

REGISTER_KERNEL(moe_group)
