// A block's walk over the tokens of its row, and what it adds up on the way.
//
// The tokens are cut into one part per warp, in the order of ids, so that the sums of the warps say
// in which part a running sum passes a number: `first_past` reads the whole row once and then ever
// smaller parts of it.
#pragma once

#include "arithmetic.cuh"

// Bins of a histogram (cut.cuh). More would make the search shorter by less than they cost.
constexpr int BIN_BITS = 11, BINS = 1 << BIN_BITS;
// The most tokens that are worked on in shared memory, and the most numbers that are sorted there.
constexpr int LIST = 2048;

struct Shared {
    uint64_t numbers[LIST];         // to be sorted; or the bins' low words, then their high words
    float logits[LIST];             // the shortlist, in the order of ids
    uint32_t ids[LIST];
    uint64_t partial[WARP];         // a number per warp
    uint32_t border[2];
    int count;
};
static_assert(BINS <= LIST, "bins lie where numbers are sorted");

// ---------------------------------------------------------------------------------------------
// Tokens

// Tokens of a row in the order of their ids: all, neighbours, or a shortlist.
struct Tokens {
    const float* logits;     // with bias and bans
    const uint32_t* ids;     // null where they are first, first + 1, ..
    int first, count;
    const uint32_t* counts;  // of the tokens that are already there; null without penalties
    Penalties penalties;
    const uint32_t* mask;    // a bit for each token that may follow; null where all may

    __device__ __forceinline__ uint32_t id(int i) const { return ids ? ids[i] : first + i; }

    // What penalties and mask make of token i's logit.
    __device__ __forceinline__ float changed(int i, float logit) const {
        if (counts) {
            uint32_t count = counts[i];
            if (count != 0) logit = penalised(logit, count & ~IN_PROMPT, penalties);
        }
        if (mask && !(mask[i / 32] >> (i % 32) & 1)) logit = -INF;
        return logit;
    }
};

// The tokens begin..end of a whole row, where `begin` is a multiple of 32.
__device__ __forceinline__ Tokens neighbours(Tokens tokens, int begin, int end) {
    tokens.logits += begin;
    tokens.first = begin;
    tokens.count = max(end - begin, 0);
    if (tokens.counts) tokens.counts += begin;
    if (tokens.mask) tokens.mask += begin / 32;
    return tokens;
}

// Gives a lane's share of begin..end to `f`, with what `read` finds there; so many reads are under
// way at once.
template <int AT_ONCE, typename Read, typename F>
__device__ __forceinline__ void walk(int begin, int end, Read read, F f) {
    for (int i = begin + threadIdx.x % WARP; i < end; i += AT_ONCE * WARP) {
        decltype(read(0)) found[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) found[j] = read(min(i + j * WARP, end - 1));
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            if (i + j * WARP < end) f(i + j * WARP, found[j]);
        }
    }
}

// How many of `count` neighbours each warp has: whole groups of 32.
__device__ __forceinline__ int part_of(int count) {
    int warps = blockDim.x / WARP;
    return ceil_div(ceil_div(count, warps), WARP) * WARP;
}

// Reads logits as they are in memory.
__device__ __forceinline__ auto unchanged(const Tokens& tokens) {
    return [&](int i) { return tokens.logits[i]; };
}

// Where little is done with a token, memory is what a walk waits for.
constexpr int FEW = 4, MANY = 8;

// Gives every token to `f`, as its index and its logit as it is in memory.
template <int AT_ONCE, typename F>
__device__ __forceinline__ void each_unchanged(const Tokens& tokens, F f) {
    int part = part_of(tokens.count), begin = threadIdx.x / WARP * part;
    int end = min(begin + part, tokens.count);
    walk<AT_ONCE>(begin, end, unchanged(tokens), f);
}

// Gives every token to `f`, as its index and its logit.
template <int AT_ONCE, typename F>
__device__ __forceinline__ void each(const Tokens& tokens, F f) {
    each_unchanged<AT_ONCE>(tokens, [&](int i, float logit) { f(i, tokens.changed(i, logit)); });
}

// ---------------------------------------------------------------------------------------------
// Over a block

struct Sum {
    template <typename T>
    __device__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct Max {
    template <typename T>
    __device__ T operator()(T a, T b) const {
        return a > b ? a : b;
    }
};

template <typename T, typename Join>
__device__ __forceinline__ T over_warp(T x, Join join) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x = join(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

// What all threads bring, joined: 8 bytes each, at least 0. All of them get it.
template <typename T, typename Join>
__device__ __forceinline__ T over_block(T x, Join join, Shared& shared) {
    static_assert(sizeof(T) == sizeof(uint64_t), "a number per warp");
    T* partial = reinterpret_cast<T*>(shared.partial);
    int warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    x = over_warp(x, join);
    if (lane == 0) partial[threadIdx.x / WARP] = x;
    __syncthreads();  // every warp's number is in `partial`
    x = over_warp(lane < warps ? partial[lane] : T(), join);
    __syncthreads();  // everyone has read `partial`
    return x;
}

// What is seen of tokens at first.
struct Seen {
    uint64_t best;       // the largest rank key; 0 of no tokens, ~0 if one is NaN or +inf
    uint32_t best_mine;  // the largest code of this thread's tokens; 0 of none

    __device__ bool is_broken() const { return best == ~uint64_t(0); }
    __device__ float max() const { return logit_of(uint32_t(best >> 32)); }
};

__device__ __forceinline__ Seen look(const Tokens& tokens, Shared& shared) {
    Seen seen = {0, 0};
    int at = 0;
    bool is_broken = false;
    each_unchanged<MANY>(tokens, [&](int i, float logit) {
        is_broken |= !(logit < INF);
        uint32_t code = code_of(tokens.changed(i, logit));
        if (code > seen.best_mine) {
            seen.best_mine = code;
            at = i;
        }
    });
    uint64_t key = uint64_t(seen.best_mine) << 32 | uint32_t(~tokens.id(at));
    if (seen.best_mine == 0) key = 0;
    seen.best = over_block(is_broken ? ~uint64_t(0) : key, Max(), shared);
    return seen;
}

// ---------------------------------------------------------------------------------------------
// Where a running sum passes a number

struct Place {
    int index;
    uint64_t before;  // the sum of what comes before it
};

// The first lane with which the sum over the lanes, from `before` on, is above `target`; the last
// one if there is none.
__device__ __forceinline__ Place first_lane_past(uint64_t mine, uint64_t before, uint64_t target) {
    int lane = threadIdx.x % WARP;
    uint64_t sum = mine;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        uint64_t other = __shfl_up_sync(ALL_LANES, sum, distance);
        if (lane >= distance) sum += other;
    }
    unsigned past = __ballot_sync(ALL_LANES, before + sum > target);
    int first = past ? __ffs(int(past)) - 1 : WARP - 1;
    return {first, before + __shfl_sync(ALL_LANES, sum - mine, first)};
}

// The first i below `count` with which the sum of `measure(i, read(i))` is above
// `target_of(total)`, where `total` is the sum of all. There is one; all threads get it.
template <typename Read, typename Measure, typename Target>
__device__ __forceinline__ Place first_past(int count, Read read, Measure measure, Target target_of,
                                            Shared& shared) {
    int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int begin = 0, end = count;
    uint64_t before = 0, target = 0;
    bool is_whole = true;
    do {
        int part = part_of(end - begin), mine = begin + warp * part;
        uint64_t sum = 0;
        walk<FEW>(mine, min(mine + part, end), read,
                  [&](int i, auto found) { sum += measure(i, found); });
        sum = over_warp(sum, Sum());
        if (lane == 0) shared.partial[warp] = sum;
        __syncthreads();  // every warp's sum is in `partial`
        sum = lane < warps ? shared.partial[lane] : 0;
        if (is_whole) target = target_of(over_warp(sum, Sum()));
        is_whole = false;
        Place place = first_lane_past(sum, before, target);
        before = place.before;
        begin += place.index * part;
        end = min(begin + part, end);
        __syncthreads();  // everyone has read `partial`
    } while (end - begin > WARP);
    int i = begin + lane;
    Place place = first_lane_past(i < end ? measure(i, read(i)) : 0, before, target);
    return {begin + place.index, place.before};
}

// ---------------------------------------------------------------------------------------------
// Short lists

// Sorts the first `count` of `shared.numbers`, at most LIST of them, the smallest first: a bitonic
// network, which has room for the next power of two. Begins and ends with a barrier.
__device__ __forceinline__ void sort(int count, Shared& shared) {
    int size = 2;
    while (size < count) size *= 2;
    for (int i = count + threadIdx.x; i < size; i += blockDim.x) shared.numbers[i] = ~uint64_t(0);
    __syncthreads();  // the numbers are there
    for (int run = 2; run <= size; run *= 2) {
        for (int distance = run / 2; distance > 0; distance /= 2) {
            for (int pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
                int low = 2 * pair - pair % distance, high = low + distance;
                uint64_t a = shared.numbers[low], b = shared.numbers[high];
                // Every second run falls, so that two of them rise and fall.
                if ((a > b) == ((low & run) == 0)) {
                    shared.numbers[low] = b;
                    shared.numbers[high] = a;
                }
            }
            __syncthreads();  // the pairs of this distance are in order
        }
    }
}

// Puts `number(i, logit)` of the tokens for which it is not 0 into `shared.numbers`, in no order,
// and returns how many there are; more than LIST if there is no room. Begins and ends with a
// barrier.
template <typename Number>
__device__ __forceinline__ int gather(const Tokens& tokens, Number number, Shared& shared) {
    __syncthreads();  // nobody reads what is overwritten
    if (threadIdx.x == 0) shared.count = 0;
    __syncthreads();  // the count is 0
    each<MANY>(tokens, [&](int i, float logit) {
        uint64_t found = number(i, logit);
        // Where too many have come already there is nothing to be gained by counting on.
        if (found == 0 || *static_cast<volatile int*>(&shared.count) > LIST) return;
        int at = atomicAdd(&shared.count, 1);
        if (at < LIST) shared.numbers[at] = found;
    });
    __syncthreads();  // all numbers are there
    return shared.count;
}
