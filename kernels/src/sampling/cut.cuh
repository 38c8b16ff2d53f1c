// Cuts through the tokens in an order of rank, without sorting them.
//
// A cut keeps the fewest tokens, highest rank first, that measure what is needed together; what a
// token measures is its weight, or 1. The search makes a histogram of that, by value (a rank
// without its id), finds the bin in which the sum from above reaches what is needed, and goes on
// with the values of that bin; it ends when all of the bin is needed. Among tokens of one value the
// smaller ids rank higher, and the sum is taken in the order of ids.
//
// The first histogram is over depths, not over bits: it spreads the tokens over all bins, so that
// threads rarely add to the same one, and a bin is so narrow that one is mostly enough.
#pragma once

#include "row.cuh"

// What is to be kept, at most all there is: that many tokens, or that share of the weight.
struct Goal {
    enum Measure { TOKENS, TOKENS_THAT_WEIGH, WEIGHT } measure;
    uint32_t tokens;
    float share;

    // What a token measures. Never falls with the logit.
    __device__ __forceinline__ uint64_t of(const Weights& weights, float logit) const {
        if (measure == WEIGHT) return weights.of(logit);
        return measure == TOKENS || !weights.is_light(logit);
    }
    // What is needed of tokens that measure `total`.
    __device__ __forceinline__ uint64_t need(uint64_t total) const {
        return measure == WEIGHT ? mass_of(share, total) : min(uint64_t(tokens), total);
    }
};

// The cut lies among the tokens whose values are low..=high.
struct Search {
    uint64_t low, high;
    uint64_t need;    // what is needed of them
    uint64_t inside;  // what they measure together
};

// The bins of `shared`: the lower halves of all, then the higher halves.
__device__ __forceinline__ uint32_t* bin_words(Shared& shared) {
    return reinterpret_cast<uint32_t*>(shared.numbers);
}
__device__ __forceinline__ uint64_t bin_at(int bin, Shared& shared) {
    return uint64_t(bin_words(shared)[BINS + bin]) << 32 | bin_words(shared)[bin];
}

// Adds to a bin, 32 bits at a time: shared memory has no addition of 64.
__device__ __forceinline__ void add_to_bin(int bin, uint64_t amount, Shared& shared) {
    uint32_t part = uint32_t(amount);
    uint32_t carry = atomicAdd(&bin_words(shared)[bin], part) + part < part;
    uint32_t rest = uint32_t(amount >> 32) + carry;
    if (rest != 0) atomicAdd(&bin_words(shared)[BINS + bin], rest);
}

// Fills the bins with what the tokens of low..=high measure, the highest values first, and returns
// the logarithm of a bin's width. `value(i, logit)` may be any number above `high` for tokens that
// measure nothing. Begins and ends with a barrier.
template <typename Value, typename Measure>
__device__ __forceinline__ int fill_bins(const Tokens& tokens, const Search& search, Value value,
                                         Measure measure, Shared& shared) {
    int shift = max(64 - __clzll(search.high - search.low) - BIN_BITS, 0);
    __syncthreads();  // nobody reads the bins of before
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) shared.numbers[bin] = 0;
    __syncthreads();  // the bins are empty
    each<FEW>(tokens, [&](int i, float logit) {
        uint64_t below = search.high - value(i, logit);
        if (below > search.high - search.low) return;
        uint64_t amount = measure(i, logit);
        if (amount != 0) add_to_bin(int(below >> shift), amount, shared);
    });
    __syncthreads();  // the bins are full
    return shift;
}

// Fills the bins with what `bins` holds, each as one number. Ends with a barrier.
__device__ __forceinline__ void copy_bins(const uint64_t* bins, Shared& shared) {
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) {
        bin_words(shared)[bin] = uint32_t(bins[bin]);
        bin_words(shared)[BINS + bin] = uint32_t(bins[bin] >> 32);
    }
    __syncthreads();  // the bins are full
}

__device__ __noinline__ uint64_t sum_of_bins(Shared& shared) {
    uint64_t sum = 0;
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) sum += bin_at(bin, shared);
    return over_block(sum, Sum(), shared);
}

// Goes on with the values of the bin, 2^shift wide, in which what is needed is reached.
__device__ __noinline__ Search in_one_bin(Search search, int shift, Shared& shared) {
    auto read = [&](int bin) { return bin_at(bin, shared); };
    auto target = [&](uint64_t) { return search.need - 1; };
    auto amount = [](int, uint64_t amount) { return amount; };
    Place place = first_past(BINS, read, amount, target, shared);
    uint64_t high = search.high - (uint64_t(place.index) << shift);
    // The last bin may reach below what is searched.
    uint64_t low = high - min(high - search.low, (uint64_t(1) << shift) - 1);
    return {low, high, search.need - place.before, bin_at(place.index, shared)};
}

// The index of the last token that is kept of those of one value, which `measure` leaves.
template <typename Measure>
__device__ __forceinline__ int last_kept(const Tokens& tokens, uint64_t need, Measure measure,
                                         Shared& shared) {
    auto target = [&](uint64_t) { return need - 1; };
    auto changed = [&](int i, float logit) { return measure(i, tokens.changed(i, logit)); };
    return first_past(tokens.count, unchanged(tokens), changed, target, shared).index;
}

// Which bin of the first histogram, from the likeliest tokens on. Never rises with the logit.
__device__ __forceinline__ int coarse_bin(const Weights& weights, float logit) {
    float depth = weights.depth32(logit);
    // Where every logit is -inf, depths are NaN.
    return depth < WINDOW ? min(int(depth * (BINS / WINDOW)), BINS - 1) : BINS - 1;
}

// The lowest code, up to that of the largest logit, whose logit is in `bin` or one before it; one
// more than that of the largest logit for bin -1.
__device__ __forceinline__ uint32_t lowest_code(const Weights& weights, int bin) {
    uint32_t low = LOWEST_CODE, high = code_of(weights.max) + 1;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        bool is_inside = coarse_bin(weights, logit_of(middle)) <= bin;
        low = is_inside ? low : middle + 1;
        high = is_inside ? middle : high;
    }
    return low;
}

// The first search: its values are the coarse bins, the lowest last.
__device__ __forceinline__ Search coarse_search() { return {0, BINS - 1, 0, 0}; }

// Fills the bins of the first search with what tokens of at least the rank key `cut` measure.
__device__ __forceinline__ void fill_coarse_bins(const Tokens& tokens, uint64_t cut,
                                                 const Weights& weights, const Goal& goal,
                                                 Shared& shared) {
    auto value = [&](int, float logit) { return uint64_t(BINS - 1 - coarse_bin(weights, logit)); };
    auto measure = [&](int i, float logit) {
        return rank_key(logit, tokens.id(i)) < cut ? 0 : goal.of(weights, logit);
    };
    fill_bins(tokens, coarse_search(), value, measure, shared);
}

// The rank key of the least likely token that the goal keeps of those with at least the key `cut`.
// `bins` are those of `fill_coarse_bins`, where they are known; else null.
__device__ __noinline__ uint64_t rank_cut(Tokens tokens, uint64_t cut, Weights weights, Goal goal,
                                          const uint64_t* bins, Shared& shared) {
    auto measure = [&](int i, float logit) {
        return rank_key(logit, tokens.id(i)) < cut ? 0 : goal.of(weights, logit);
    };
    if (bins) {
        copy_bins(bins, shared);
    } else {
        fill_coarse_bins(tokens, cut, weights, goal, shared);
    }
    Search search = coarse_search();
    search.need = goal.need(sum_of_bins(shared));
    search = in_one_bin(search, 0, shared);
    // One warp finds where the bin's codes begin, another where those of the bin above do.
    int bin = BINS - 1 - int(search.low), warp = threadIdx.x / WARP;
    if (warp < 2 && threadIdx.x % WARP == 0) shared.border[warp] = lowest_code(weights, bin - warp);
    __syncthreads();  // the borders are known
    search.low = shared.border[0];
    search.high = shared.border[1] - 1;
    auto code = [](int, float logit) { return uint64_t(code_of(logit)); };
    // Where even the lightest token that may be there is needed, all are.
    while (search.inside - search.need >= goal.of(weights, logit_of(uint32_t(search.low)))) {
        if (search.low == search.high) {
            auto tied = [&](int i, float logit) {
                return code_of(logit) == uint32_t(search.low) ? measure(i, logit) : 0;
            };
            int last = last_kept(tokens, search.need, tied, shared);
            return search.low << 32 | uint32_t(~tokens.id(last));
        }
        int shift = fill_bins(tokens, search, code, measure, shared);
        search = in_one_bin(search, shift, shared);
    }
    return max(search.low << 32, cut);
}
