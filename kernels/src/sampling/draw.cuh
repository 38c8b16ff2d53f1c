// The draw of one row's token, once its logits have been looked at.
//
// What is left by the filters is known by few numbers (`Kept`), so that every pass tells by itself
// what a token weighs. Where other blocks have looked at parts of the row, and weighed them, what
// they found (`Findings`) stands for two passes of this block.
#pragma once

#include "cut.cuh"

constexpr uint32_t NONE = 0xffffffffu;

// As in mod.rs.
struct Row {
    uint32_t slot;  // NONE: padding, for which nothing is done
    uint32_t position, seed[2], choice;
    float temperature;
    uint32_t top_k;
    float top_p, min_p, typical_p;
    Penalties penalties;
    uint32_t num_top;                 // NONE: no log-probabilities
    uint32_t first_bias, num_biases;  // in `lists`: (token, bias, room for a logit)
    uint32_t first_ban, num_bans;     // in `lists`: tokens
    uint32_t mask;                    // NONE: every token may follow

    // Whether the logits that are drawn from are not those of the model.
    __device__ bool has_changes() const {
        return num_biases + num_bans > 0 || !penalties.is_off() || mask != NONE;
    }
    // Whether one block does everything: others would spare it little.
    __device__ bool is_for_one_block(int vocab_size) const {
        bool has_filter = (top_k > 0 && top_k < vocab_size) || typical_p < 1;
        return num_top != NONE || (temperature > 0 && has_filter);
    }
    __device__ Goal nucleus() const { return {Goal::WEIGHT, 0, top_p}; }
    // The least weight that stays.
    __device__ uint64_t least_weight() const {
        return min_p > 0 ? uint64_t(ceil(__dmul_rn(double(min_p), 1099511627776.0))) : 1;
    }
};

// ---------------------------------------------------------------------------------------------
// Parts of a row

// A part has whole words of the mask; a lane joins what each has found.
constexpr int MAX_PARTS = WARP;

// What the blocks that share a row leave for each other.
struct Findings {
    uint64_t best[MAX_PARTS];     // of each part, as of `Seen`
    uint64_t weight[MAX_PARTS];   // what is left of each part weighs, if there is no top_p
    uint64_t bins[BINS];          // `fill_coarse_bins` over all parts, if there is top_p

    __device__ __forceinline__ Seen seen(int num_parts) const {
        int lane = threadIdx.x % WARP;
        return {over_warp(lane < num_parts ? best[lane] : 0, Max()), 0};
    }
};

__device__ __forceinline__ Tokens part_of_row(const Tokens& tokens, int part, int num_parts) {
    int size = ceil_div(ceil_div(tokens.count, num_parts), 32) * 32;
    return neighbours(tokens, part * size, min((part + 1) * size, tokens.count));
}

// ---------------------------------------------------------------------------------------------
// Filters

// The k-th largest of what the threads have seen, which k tokens reach at least; k is at most the
// number of threads. It is the k-th largest of all, or little below: large ones rarely meet in one
// thread.
__device__ __forceinline__ uint32_t reached_by(int k, const Seen& seen, Shared& shared) {
    __syncthreads();  // nobody reads what is overwritten
    shared.numbers[threadIdx.x] = ~seen.best_mine;
    sort(blockDim.x, shared);
    return ~uint32_t(shared.numbers[k - 1]);
}

// Moves the k likeliest tokens, and few others, to shared memory, if there is room for them.
__device__ __forceinline__ void shorten(Tokens& tokens, int k, const Seen& seen, Shared& shared) {
    // Where nearly every thread's best is asked for, the least of them says little.
    if (k > blockDim.x / 4 * 3) return;
    uint32_t least = reached_by(k, seen, shared);
    auto number = [&](int i, float logit) {
        uint32_t code = code_of(logit);
        return code < least ? 0 : uint64_t(tokens.id(i)) << 32 | code;
    };
    int found = gather(tokens, number, shared);
    if (found > LIST) return;
    sort(found, shared);
    for (int i = threadIdx.x; i < found; i += blockDim.x) {
        shared.ids[i] = uint32_t(shared.numbers[i] >> 32);
        shared.logits[i] = logit_of(uint32_t(shared.numbers[i]));
    }
    __syncthreads();  // the list is there
    tokens = {shared.logits, shared.ids, 0, found, nullptr, {}, nullptr};
}

// What the filters leave.
struct Kept {
    Weights weights;
    uint64_t cut;    // the least rank key
    uint64_t least;  // the least weight
    bool is_typical;
    uint64_t mean, typical_cut;  // the mean depth, and the least key of typicality

    __device__ __forceinline__ uint64_t weigh(uint32_t id, float logit) const {
        if (rank_key(logit, id) < cut) return 0;
        uint64_t weight = weights.of(logit);
        if (weight < least) return 0;
        if (is_typical && typical_key(closeness(weights.depth(logit), mean), id) < typical_cut) {
            return 0;
        }
        return weight;
    }
};

// Leaves the most typical tokens whose mass is `share` of what is left.
__device__ __forceinline__ void keep_typical(const Tokens& tokens, float share, Kept& kept,
                                             Shared& shared) {
    auto weigh = [&](int i, float logit) { return kept.weigh(tokens.id(i), logit); };
    // A product has 77 bits: the lowest 40 are summed by themselves.
    uint64_t total = 0, low = 0, high = 0;
    each<FEW>(tokens, [&](int i, float logit) {
        uint64_t weight = weigh(i, logit);
        if (weight == 0) return;
        uint64_t depth = kept.weights.depth(logit), product = weight * depth;
        total += weight;
        low += product & ((uint64_t(1) << 40) - 1);
        high += __umul64hi(weight, depth) << 24 | product >> 40;
    });
    total = over_block(total, Sum(), shared);
    low = over_block(low, Sum(), shared);
    high = over_block(high, Sum(), shared);
    kept.mean = uint64_t(((static_cast<unsigned __int128>(high) << 40) + low) / total);
    auto value = [&](int, float logit) {
        bool is_light = kept.weights.is_light(logit);
        return is_light ? ~uint64_t(0) : closeness(kept.weights.depth(logit), kept.mean);
    };
    Search search = {0, MAX_DEVIATION, mass_of(share, total), total};
    while (search.inside > search.need && search.low < search.high) {
        int shift = fill_bins(tokens, search, value, weigh, shared);
        search = in_one_bin(search, shift, shared);
    }
    kept.typical_cut = search.low << TYPICAL_ID_BITS;
    if (search.inside > search.need) {
        auto tied = [&](int i, float logit) {
            return value(i, logit) == search.low ? weigh(i, logit) : 0;
        };
        int last = last_kept(tokens, search.need, tied, shared);
        kept.typical_cut = typical_key(search.low, tokens.id(last));
    }
    kept.is_typical = true;
}

// ---------------------------------------------------------------------------------------------
// The draw

// Draws from `tokens`, all of a row, at a temperature above 0. `findings` are those of that many
// parts, or null.
__device__ __forceinline__ uint32_t draw(Tokens tokens, const Seen& seen, const Row& row,
                                         const Findings* findings, int num_parts, Shared& shared) {
    Weights weights(seen.max(), row.temperature);
    Kept kept = {weights, 0, 1, false, 0, 0};
    if (row.top_k > 0 && row.top_k < tokens.count) {
        shorten(tokens, int(row.top_k), seen, shared);
        // What weighs nothing need not be counted: it comes last, and is not drawn.
        Goal goal = {Goal::TOKENS_THAT_WEIGH, row.top_k, 0};
        kept.cut = rank_cut(tokens, 0, weights, goal, nullptr, shared);
    }
    if (row.top_p < 1) {
        const uint64_t* bins = findings ? findings->bins : nullptr;
        kept.cut = rank_cut(tokens, kept.cut, weights, row.nucleus(), bins, shared);
    }
    kept.least = row.least_weight();
    if (row.typical_p < 1) keep_typical(tokens, row.typical_p, kept, shared);
    uint64_t random = random_bits(row.seed, row.choice, row.position);
    auto weigh = [&](int i, float logit) {
        return kept.weigh(tokens.id(i), tokens.changed(i, logit));
    };
    uint64_t known_target = 0;
    bool is_known = findings && row.top_p == 1;
    if (is_known) {
        // The part in which the token is; what comes before it is no part of the sum.
        int lane = threadIdx.x % WARP;
        uint64_t weight = lane < num_parts ? findings->weight[lane] : 0;
        uint64_t target = __umul64hi(random, over_warp(weight, Sum()));
        Place part = first_lane_past(weight, 0, target);
        tokens = part_of_row(tokens, part.index, num_parts);
        known_target = target - part.before;
    }
    auto target = [&](uint64_t total) {
        return is_known ? known_target : __umul64hi(random, total);
    };
    return tokens.id(first_past(tokens.count, unchanged(tokens), weigh, target, shared).index);
}
