// Logits to tokens: the rules, and their order, are those of backends/src/sampling/mod.rs, and so
// is every bit of what decides. Nothing is sorted but short lists, and no logits leave the device.
//
// sampling_draw: one token per row.
//   grid (R)   block (64..512, a power of 2)   shared 33 KiB
//   One block has a row of V logits, and passes over it, through L2, as often as it is asked for:
//     greedy             1: the largest logit
//     temperature        2: + the weights, of which one warp's share is then looked at again
//     top_k              2: + a gathering of the likeliest into shared memory, for all the rest
//     top_p              3: + a histogram of the weights, + the weights that are left
//     typical_p        + 4: the mean, and mostly three histograms
//     penalties, bias, bans, mask + 1: the largest logit once more
//     log-probabilities  + 2: the sum, a gathering
//   traffic: 4 V bytes a pass (8 V with penalties, which have their counts beside the logits). The
//   pass over all weights is bound by f64, some 30 operations a token that weighs anything; the
//   others by what one multiprocessor reads from L2.
//
// sampling_look, sampling_weigh: the first two of these passes, of rows with neither top_k nor
// typical_p nor log-probabilities: by several blocks for each row, so that few rows are on many
// multiprocessors and many rows are spread evenly.
//   grid (parts, R)   block as above   traffic: 4 V bytes a row each
//
// sampling_score: the log-probability of a given token per row. As sampling_draw; 3 passes.
//
// sampling_counts_reset: what penalties count, of sequences that are new in their slots.
//   grid (sequences)   block (1024)   traffic: 4 V bytes written, 4 read per token of the text
#include "draw.cuh"

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
        uint64_t cut = rank_cut(tokens, 0, Weights(seen.max(), 1), goal, nullptr, shared);
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
// What changes logits

// Applies bias and bans, which are few, in place, to the tokens begin..end; the logits before the
// bias go beside it. Ends with a barrier.
__device__ __forceinline__ void change_listed(float* logits, int begin, int end, const Row& row,
                                              uint32_t* lists) {
    auto is_inside = [&](uint32_t token) { return token >= begin && token < end; };
    uint32_t* biases = lists + row.first_bias;
    for (uint32_t i = threadIdx.x; i < row.num_biases; i += blockDim.x) {
        uint32_t token = biases[3 * i];
        // Several biases of one token stand together, and are added one after the other.
        if (!is_inside(token) || (i > 0 && biases[3 * i - 3] == token)) continue;
        float logit = logits[token];
        biases[3 * i + 2] = __float_as_uint(logit);
        for (uint32_t j = i; j < row.num_biases && biases[3 * j] == token; j++) {
            logit = fminf(logit + __uint_as_float(biases[3 * j + 1]), LARGEST);
        }
        logits[token] = logit;
    }
    __syncthreads();  // the biases are added
    const uint32_t* bans = lists + row.first_ban;
    for (uint32_t i = threadIdx.x; i < row.num_bans; i += blockDim.x) {
        if (is_inside(bans[i])) logits[bans[i]] = -INF;
    }
    __syncthreads();  // the bans are in force
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

// ---------------------------------------------------------------------------------------------
// Kernels

// Where a launch has its data.
struct Batch {
    float* logits;  // [R, width]
    int width, vocab_size;
    const uint32_t* masks;
    uint32_t* counts;  // [S, V]

    __device__ float* row(int row) const { return logits + int64_t(row) * width; }
    // A row's tokens as the model gave them.
    __device__ Tokens given(int row) const {
        return {this->row(row), nullptr, 0, vocab_size, nullptr, {}, nullptr};
    }
    // What its penalties and its mask make of them.
    __device__ Tokens changed(Tokens given, const Row& row) const {
        if (!row.penalties.is_off()) given.counts = counts + int64_t(row.slot) * vocab_size;
        given.penalties = row.penalties;
        if (row.mask != NONE) given.mask = masks + int64_t(row.mask) * ceil_div(vocab_size, 32);
        return given;
    }
};

KERNEL(512) sampling_look(float* logits, int width, int vocab_size, const Row* rows,
                          uint32_t* lists, const uint32_t* masks, uint32_t* counts,
                          Findings* all_findings) {
    __shared__ Shared shared;
    const Row& row = rows[blockIdx.y];
    if (row.slot == NONE || row.is_for_one_block(vocab_size)) return;
    Batch batch = {logits, width, vocab_size, masks, counts};
    Findings& findings = all_findings[blockIdx.y];
    // Each block empties its share of the bins.
    int first_bin = row.top_p < 1 ? blockIdx.x * blockDim.x + threadIdx.x : BINS;
    for (int bin = first_bin; bin < BINS; bin += gridDim.x * blockDim.x) findings.bins[bin] = 0;
    Tokens given = batch.given(blockIdx.y);
    Tokens part = part_of_row(given, blockIdx.x, gridDim.x);
    Seen seen = look(part, shared);
    if (!seen.is_broken() && row.has_changes()) {
        change_listed(batch.row(blockIdx.y), part.first, part.first + part.count, row, lists);
        seen = look(part_of_row(batch.changed(given, row), blockIdx.x, gridDim.x), shared);
    }
    if (threadIdx.x == 0) findings.best[blockIdx.x] = seen.best;
}

KERNEL(512) sampling_weigh(float* logits, int width, int vocab_size, const Row* rows,
                           const uint32_t* masks, uint32_t* counts, Findings* all_findings) {
    __shared__ Shared shared;
    const Row& row = rows[blockIdx.y];
    if (row.slot == NONE || row.temperature == 0 || row.is_for_one_block(vocab_size)) return;
    Findings& findings = all_findings[blockIdx.y];
    Seen seen = findings.seen(gridDim.x);
    if (seen.is_broken() || seen.max() == -INF) return;
    Batch batch = {logits, width, vocab_size, masks, counts};
    Tokens tokens = batch.changed(batch.given(blockIdx.y), row);
    Tokens part = part_of_row(tokens, blockIdx.x, gridDim.x);
    Weights weights(seen.max(), row.temperature);
    if (row.top_p < 1) {
        fill_coarse_bins(part, 0, weights, row.nucleus(), shared);
        for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) {
            unsigned long long weight = bin_at(bin, shared);
            auto* sum = reinterpret_cast<unsigned long long*>(&findings.bins[bin]);
            if (weight != 0) atomicAdd(sum, weight);
        }
        return;
    }
    Kept kept = {weights, 0, row.least_weight(), false, 0, 0};
    uint64_t sum = 0;
    each<FEW>(part, [&](int i, float logit) { sum += kept.weigh(part.id(i), logit); });
    sum = over_block(sum, Sum(), shared);
    if (threadIdx.x == 0) findings.weight[blockIdx.x] = sum;
}

KERNEL(512) sampling_draw(float* logits, int width, int vocab_size, const Row* rows,
                          uint32_t* lists, const uint32_t* masks, uint32_t* counts,
                          const Findings* all_findings, unsigned num_parts,
                          uint32_t* last_token, Outcome* outcomes) {
    __shared__ Shared shared;
    const Row& row = rows[blockIdx.x];
    if (row.slot == NONE) return;
    Batch batch = {logits, width, vocab_size, masks, counts};
    Outcome& outcome = outcomes[blockIdx.x];
    Tokens given = batch.given(blockIdx.x), tokens = batch.changed(given, row);
    bool reports = row.num_top != NONE, is_alone = row.is_for_one_block(vocab_size);
    const Findings* findings = is_alone ? nullptr : all_findings + blockIdx.x;
    Seen seen = findings ? findings->seen(num_parts) : look(given, shared);
    double log_sum = 0;
    if (reports && !seen.is_broken()) {
        log_sum = log_of_sum(given, seen.max(), shared);
        int num_top = min(min(row.num_top, MAX_TOP), uint32_t(vocab_size));
        report_top(given, seen, num_top, log_sum, outcome, shared);
    }
    if (!findings && !seen.is_broken() && row.has_changes()) {
        change_listed(batch.row(blockIdx.x), 0, vocab_size, row, lists);
        seen = look(tokens, shared);
    }
    uint32_t failure = seen.is_broken() ? NO_NUMBER : seen.max() == -INF ? NO_TOKEN : FINE;
    uint32_t token = ~uint32_t(seen.best);
    if (failure == FINE && row.temperature > 0) {
        token = draw(tokens, seen, row, findings, num_parts, shared);
    }
    if (threadIdx.x > 0) return;
    outcome.token = token;
    outcome.failure = failure;
    if (failure != FINE) return;
    last_token[row.slot] = token;
    if (!row.penalties.is_off()) counts[int64_t(row.slot) * vocab_size + token]++;
    outcome.logprob = reports ? float(unbiased(given.logits, token, row, lists) - log_sum) : 0;
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
    Tokens tokens = {logits, nullptr, 0, vocab_size, nullptr, {}, nullptr};
    Seen seen = look(tokens, shared);
    if (threadIdx.x == 0) {
        outcome.token = token;
        outcome.failure = seen.is_broken() ? NO_NUMBER : FINE;
    }
    if (seen.is_broken()) return;
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

REGISTER_KERNEL(sampling_look)
REGISTER_KERNEL(sampling_weigh)
REGISTER_KERNEL(sampling_draw)
REGISTER_KERNEL(sampling_score)
REGISTER_KERNEL(sampling_counts_reset)
