// Logits to tokens: the rules, and their order, are those of backends/src/sampling/mod.rs, and so is
// every bit of what decides. Nothing is sorted but short lists, and no logits leave the device.
//
// sampling_draw: one token per row.
//   grid (R)   block (64..1024, a power of 2)   shared 33 KiB
//   One block has a row of V logits, and passes over it, through L2, as often as its parameters ask:
//     greedy          1: the largest logit
//     temperature     2: + the weights, of which one warp's share is then looked at again
//     top_k           2: + a gathering of the likeliest into shared memory, where all else happens
//     top_p, min_p    3: + a histogram of the weights, + the weights that are left
//     typical_p       + 4: the mean, and mostly three histograms
//     log-probabilities + 3: the largest logit, the sum, a gathering
//   traffic: 4 V bytes a pass (8 V with penalties, which have their counts beside the logits). The
//   pass over all weights is bound by f64, some 30 operations a token that weighs anything; the
//   others by what one multiprocessor reads from L2.
//
// sampling_score: the log-probability of a given token per row. The same grid; 3 passes.
//
// sampling_counts_reset: what penalties count, of sequences that are new in their slots.
//   grid (sequences)   block (1024)   traffic: 4 V bytes written, 4 read per token of the text
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
};

constexpr uint32_t MAX_TOP = 20;
enum Failure : uint32_t { FINE = 0, NO_NUMBER = 1, NO_TOKEN = 2 };

// As in mod.rs.
struct Outcome {
    uint32_t token, failure;
    float logprob;
    uint32_t num_top, ids[MAX_TOP];
    float logprobs[MAX_TOP];
};

// ---------------------------------------------------------------------------------------------
// A look at all tokens

struct Seen {
    uint64_t best;       // the largest rank key
    uint32_t best_mine;  // the largest code of this thread's tokens; 0 if it has none
    bool is_broken;      // there is NaN or +inf

    __device__ float max() const { return logit_of(uint32_t(best >> 32)); }
};

__device__ __forceinline__ Seen look(const Tokens& tokens, bool is_broken, Shared& shared) {
    Seen seen = {0, 0, false};
    int at = 0;
    each_unchanged<MANY>(tokens, [&](int i, float logit) {
        is_broken |= !(logit < INF);
        uint32_t code = code_of(tokens.changed(i, logit));
        if (code > seen.best_mine) {
            seen.best_mine = code;
            at = i;
        }
    });
    uint64_t key = seen.best_mine ? uint64_t(seen.best_mine) << 32 | uint32_t(~at) : 0;
    seen.best = over_block(key, Max(), shared);
    seen.is_broken = __syncthreads_or(is_broken);
    return seen;
}

// The k-th largest of what the threads have seen, which k tokens reach at least; k is at most the
// number of threads. It is the k-th largest of all, or little below: large ones rarely meet in one
// thread.
__device__ __forceinline__ uint32_t reached_by(int k, const Seen& seen, Shared& shared) {
    __syncthreads();  // nobody reads what is overwritten
    shared.numbers[threadIdx.x] = ~seen.best_mine;
    sort(blockDim.x, shared);
    return ~uint32_t(shared.numbers[k - 1]);
}

// ---------------------------------------------------------------------------------------------
// Log-probabilities

// ln(sum of exp(logit)): f32 exponentials, each of a relative error of some 2^-20 at most, that no
// token depends on.
__device__ __forceinline__ double log_of_sum(const Tokens& tokens, float max, Shared& shared) {
    constexpr float LOG2_E = 1.44269504f;
    double sum = 0;
    each<MANY>(tokens, [&](int, float logit) { sum += fast_exp2((logit - max) * LOG2_E); });
    return double(max) + log(over_block(sum, Sum(), shared));
}

// Writes the `num_top` likeliest tokens, the likeliest first.
__device__ __forceinline__ void report_top(const Tokens& tokens, const Seen& seen, int num_top,
                                           double log_sum, Outcome& outcome, Shared& shared) {
    if (threadIdx.x == 0) outcome.num_top = num_top;
    if (num_top == 0) return;
    uint32_t least = reached_by(num_top, seen, shared);
    auto number = [&](int i, float logit) {
        return code_of(logit) < least ? 0 : ~rank_key(logit, i);
    };
    int found = gather(tokens, number, shared);
    if (found > LIST) {
        Goal goal = {Goal::TOKENS, uint32_t(num_top), 0};
        uint64_t cut = rank_cut(tokens, 0, Weights(seen.max(), 1), goal, shared);
        auto kept = [&](int i, float logit) {
            uint64_t key = rank_key(logit, i);
            return key < cut ? 0 : ~key;
        };
        found = gather(tokens, kept, shared);
    }
    sort(found, shared);
    if (threadIdx.x < num_top) {
        uint64_t key = ~shared.numbers[threadIdx.x];
        outcome.ids[threadIdx.x] = ~uint32_t(key);
        double logit = logit_of(uint32_t(key >> 32));
        outcome.logprobs[threadIdx.x] = float(logit - log_sum);
    }
}

// ---------------------------------------------------------------------------------------------
// A draw

// Applies bias and bans, which are few, in place; the logits before the bias go beside it. Returns
// whether this thread found NaN or +inf, which would be hidden afterwards.
__device__ __forceinline__ bool change_listed(float* logits, int vocab_size, const Row& row,
                                              uint32_t* lists) {
    bool is_broken = false;
    uint32_t* biases = lists + row.first_bias;
    for (uint32_t i = threadIdx.x; i < row.num_biases; i += blockDim.x) {
        uint32_t token = biases[3 * i];
        // Several biases of one token stand together, and are added one after the other.
        if (token >= vocab_size || (i > 0 && biases[3 * i - 3] == token)) continue;
        float logit = logits[token];
        is_broken |= !(logit < INF);
        biases[3 * i + 2] = __float_as_uint(logit);
        for (uint32_t j = i; j < row.num_biases && biases[3 * j] == token; j++) {
            logit = fminf(logit + __uint_as_float(biases[3 * j + 1]), LARGEST);
        }
        logits[token] = logit;
    }
    __syncthreads();  // the biases are added
    const uint32_t* bans = lists + row.first_ban;
    for (uint32_t i = threadIdx.x; i < row.num_bans; i += blockDim.x) {
        if (bans[i] >= vocab_size) continue;
        is_broken |= !(logits[bans[i]] < INF);
        logits[bans[i]] = -INF;
    }
    __syncthreads();  // the bans are in force
    return is_broken;
}

// The logit that `change_listed` found for a token that is not banned.
__device__ __forceinline__ float unbiased(const float* logits, uint32_t token, const Row& row,
                                          const uint32_t* lists) {
    const uint32_t* biases = lists + row.first_bias;
    for (uint32_t i = 0; i < row.num_biases; i++) {
        if (biases[3 * i] == token) return __uint_as_float(biases[3 * i + 2]);
    }
    return logits[token];
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
    tokens = {shared.logits, shared.ids, found, nullptr, {}, nullptr};
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

__device__ __forceinline__ uint32_t draw(Tokens tokens, const Seen& seen, const Row& row,
                                         Shared& shared) {
    Weights weights(seen.max(), row.temperature);
    Kept kept = {weights, 0, 1, false, 0, 0};
    if (row.top_k > 0 && row.top_k < tokens.count) {
        shorten(tokens, int(row.top_k), seen, shared);
        // What weighs nothing need not be counted: it comes last, and is not drawn.
        Goal goal = {Goal::TOKENS_THAT_WEIGH, row.top_k, 0};
        kept.cut = rank_cut(tokens, 0, weights, goal, shared);
    }
    if (row.top_p < 1) {
        Goal goal = {Goal::WEIGHT, 0, row.top_p};
        kept.cut = rank_cut(tokens, kept.cut, weights, goal, shared);
    }
    if (row.min_p > 0) {
        kept.least = uint64_t(ceil(__dmul_rn(double(row.min_p), 1099511627776.0)));
    }
    if (row.typical_p < 1) keep_typical(tokens, row.typical_p, kept, shared);
    uint64_t random = random_bits(row.seed, row.choice, row.position);
    auto weigh = [&](int i, float logit) {
        return kept.weigh(tokens.id(i), tokens.changed(i, logit));
    };
    auto target = [&](uint64_t total) { return __umul64hi(random, total); };
    return tokens.id(first_past(tokens.count, unchanged(tokens), weigh, target, shared).index);
}

// ---------------------------------------------------------------------------------------------
// Kernels

KERNEL(512) sampling_draw(float* all_logits, int width, int vocab_size, const Row* rows,
                           uint32_t* lists, const uint32_t* masks, uint32_t* all_counts,
                           uint32_t* last_token, Outcome* outcomes) {
    __shared__ Shared shared;
    const Row& row = rows[blockIdx.x];
    if (row.slot == NONE) return;
    Outcome& outcome = outcomes[blockIdx.x];
    float* logits = all_logits + int64_t(blockIdx.x) * width;  // this row's
    uint32_t* counts = all_counts + int64_t(row.slot) * vocab_size;  // its slot's
    bool has_penalties = !row.penalties.is_off(), has_mask = row.mask != NONE;
    bool reports = row.num_top != NONE;

    Tokens tokens = {logits, nullptr, vocab_size, nullptr, row.penalties, nullptr};
    Seen seen = look(tokens, false, shared);
    double log_sum = 0;
    if (reports && !seen.is_broken) {
        log_sum = log_of_sum(tokens, seen.max(), shared);
        int num_top = min(min(row.num_top, MAX_TOP), uint32_t(vocab_size));
        report_top(tokens, seen, num_top, log_sum, outcome, shared);
    }
    if (has_penalties || has_mask || row.num_biases + row.num_bans > 0) {
        bool is_broken = change_listed(logits, vocab_size, row, lists) || seen.is_broken;
        tokens.counts = has_penalties ? counts : nullptr;
        if (has_mask) tokens.mask = masks + int64_t(row.mask) * ceil_div(vocab_size, 32);
        seen = look(tokens, is_broken, shared);
    }
    uint32_t failure = seen.is_broken ? NO_NUMBER : seen.max() == -INF ? NO_TOKEN : FINE;
    uint32_t token = NONE;
    if (failure == FINE) {
        token = row.temperature == 0 ? ~uint32_t(seen.best) : draw(tokens, seen, row, shared);
    }
    if (threadIdx.x > 0) return;
    outcome.token = token;
    outcome.failure = failure;
    if (failure != FINE) return;
    last_token[row.slot] = token;
    if (has_penalties) counts[token]++;
    outcome.logprob = reports ? float(unbiased(logits, token, row, lists) - log_sum) : 0;
    if (!reports) outcome.num_top = 0;
}

KERNEL(512) sampling_score(const float* all_logits, int width, int vocab_size,
                           const uint32_t* tokens_given, const uint32_t* num_tops,
                           Outcome* outcomes) {
    __shared__ Shared shared;
    uint32_t token = tokens_given[blockIdx.x];
    if (token >= vocab_size) return;  // padding
    Outcome& outcome = outcomes[blockIdx.x];
    const float* logits = all_logits + int64_t(blockIdx.x) * width;  // this row's
    Tokens tokens = {logits, nullptr, vocab_size, nullptr, {}, nullptr};
    Seen seen = look(tokens, false, shared);
    if (threadIdx.x == 0) {
        outcome.token = token;
        outcome.failure = seen.is_broken ? NO_NUMBER : FINE;
    }
    if (seen.is_broken) return;
    double log_sum = log_of_sum(tokens, seen.max(), shared);
    int num_top = min(min(num_tops[blockIdx.x], MAX_TOP), uint32_t(vocab_size));
    report_top(tokens, seen, num_top, log_sum, outcome, shared);
    if (threadIdx.x == 0) outcome.logprob = float(logits[token] - log_sum);
}

// A sequence that is new in its slot: its tokens lie in `lists`, the prompt first.
struct Text {
    uint32_t slot, first, prompt_len, len;
};

KERNEL(1024) sampling_counts_reset(uint32_t* all_counts, int vocab_size, const Text* texts,
                                   const uint32_t* lists) {
    const Text text = texts[blockIdx.x];
    if (text.slot == NONE) return;
    uint32_t* counts = all_counts + int64_t(text.slot) * vocab_size;  // its slot's
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) counts[i] = 0;
    __syncthreads();  // all counts are 0
    for (uint32_t i = threadIdx.x; i < text.len; i += blockDim.x) {
        uint32_t token = lists[text.first + i];
        if (token >= vocab_size) continue;
        if (i < text.prompt_len) {
            atomicOr(&counts[token], IN_PROMPT);
        } else {
            atomicAdd(&counts[token], 1u);
        }
    }
}

REGISTER_KERNEL(sampling_draw)
REGISTER_KERNEL(sampling_score)
REGISTER_KERNEL(sampling_counts_reset)
