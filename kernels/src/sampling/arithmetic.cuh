// What the sampler computes of one token, to the bit as the processor's does: weights.rs, rank.rs,
// typical.rs, penalties.rs and philox.rs of backends/src/sampling, which give the reasons.
//
// Sums are of whole numbers, so their order is free. What is rounded is rounded in the same places:
// no product is fused with a sum, and no function of the C library decides anything.
#pragma once

#include "device.cuh"

constexpr float INF = INFINITY;
constexpr float LARGEST = 0x1.fffffep127f;

// ---------------------------------------------------------------------------------------------
// Ranks: larger the likelier the token is; among equal logits the smaller id ranks higher.

constexpr uint32_t LOWEST_CODE = 0x007fffffu;   // of -inf
constexpr uint32_t HIGHEST_CODE = 0xff800000u;  // of +inf

// Orders logits as whole numbers; -0 and 0 are equal.
__device__ __forceinline__ uint32_t code_of(float logit) {
    uint32_t bits = __float_as_uint(logit + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(uint32_t code) {
    return __uint_as_float(code >> 31 ? code & 0x7fffffffu : ~code);
}
__device__ __forceinline__ uint64_t rank_key(float logit, uint32_t id) {
    return uint64_t(code_of(logit)) << 32 | uint32_t(~id);
}

// ---------------------------------------------------------------------------------------------
// Weights

// exp(x) * 2^40 for x <= 0, and 0 below -40: the nearest power of 2, and the series of the rest.
__device__ __forceinline__ double exp_scaled(double x) {
    constexpr double ROUNDER = 6755399441055744.0;  // 1.5 * 2^52
    constexpr double LOG2_E = 1.44269504088896340735992468100189214;
    constexpr double LN_2 = 0.693147180559945309417232121458176568;
    constexpr double COEFFICIENTS[10] = {1.0 / 362880.0, 1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0,
                                         1.0 / 120.0,    1.0 / 24.0,    1.0 / 6.0,    1.0 / 2.0,
                                         1.0,            1.0};
    double rounded = __dadd_rn(__dmul_rn(x, LOG2_E), ROUNDER);
    double r = __dsub_rn(x, __dmul_rn(__dsub_rn(rounded, ROUNDER), LN_2));
    double series = 1.0 / 3628800.0;
#pragma unroll
    for (int i = 0; i < 10; i++) series = __dadd_rn(__dmul_rn(series, r), COEFFICIENTS[i]);
    // The factor 2^40 moves an exponent that has room for it, so nothing is rounded otherwise.
    uint64_t n = uint64_t(__double_as_longlong(rounded));
    double power = __longlong_as_double(static_cast<long long>((n + 1023 + 40) << 52));
    return x < -40.0 ? 0.0 : __dmul_rn(series, power);
}

// The depth from which on the weight is 0 for certain: exp(-27.73) is 2^-40, and the rest is room
// for rounding in f32.
constexpr float WINDOW = 27.8f;

// What tokens weigh at a temperature.
struct Weights {
    float max;     // the largest logit
    double beta;   // 1 / temperature
    float beta32;  // the same, roughly, but finite

    __device__ Weights(float max, float temperature)
        : max(max),
          beta(__ddiv_rn(1.0, double(temperature))),
          beta32(float(fmin(beta, double(LARGEST)))) {}

    // How far below the largest logit, in units of the temperature; never falls with the logit.
    __device__ __forceinline__ float depth32(float logit) const { return (max - logit) * beta32; }

    // Whether the token weighs nothing, told without f64 but where f32 overflows.
    __device__ __forceinline__ bool is_light(float logit) const {
        return depth32(logit) > WINDOW && (max - logit < INF || logit == -INF);
    }

    // In 0..=2^40.
    __device__ __forceinline__ uint64_t of(float logit) const {
        if (is_light(logit)) return 0;
        return uint64_t(exp_scaled(__dmul_rn(__dsub_rn(double(logit), double(max)), beta)));
    }

    // The depth of a token that is not light, in units of 2^-32.
    __device__ __forceinline__ uint64_t depth(float logit) const {
        double depth = __dmul_rn(__dsub_rn(double(max), double(logit)), beta);
        return uint64_t(__dmul_rn(depth, 4294967296.0));
    }
};

// The least that a share of `total` weighs, at least 1.
__device__ __forceinline__ uint64_t mass_of(float share, uint64_t total) {
    uint64_t mass = uint64_t(ceil(__dmul_rn(double(share), double(total))));
    return mass < 1 ? 1 : mass > total ? total : mass;
}

// ---------------------------------------------------------------------------------------------
// Typicality

constexpr uint64_t MAX_DEVIATION = uint64_t(28) << 32;
constexpr int TYPICAL_ID_BITS = 24;

// Larger the closer a depth is to `mean`.
__device__ __forceinline__ uint64_t closeness(uint64_t depth, uint64_t mean) {
    return MAX_DEVIATION - (depth > mean ? depth - mean : mean - depth);
}
__device__ __forceinline__ uint64_t typical_key(uint64_t closeness, uint32_t id) {
    return closeness << TYPICAL_ID_BITS | (~id & ((1u << TYPICAL_ID_BITS) - 1));
}

// ---------------------------------------------------------------------------------------------
// Penalties

// How often a token stands in the output, and in the highest bit whether it is in the prompt.
constexpr uint32_t IN_PROMPT = 0x80000000u;

struct Penalties {
    float repetition, presence, frequency;

    __device__ bool is_off() const { return repetition == 1 && presence == 0 && frequency == 0; }
};

// The logit of a token that is already there. Few tokens come here, so it is no part of the loops.
__device__ __noinline__ float penalised(float logit, uint32_t num_outputs, Penalties penalties) {
    if (logit == -INF) return logit;
    double x = logit, repetition = penalties.repetition;
    x = x > 0 ? __ddiv_rn(x, repetition) : __dmul_rn(x, repetition);
    if (num_outputs > 0) {
        x = __dsub_rn(x, __dmul_rn(double(num_outputs), double(penalties.frequency)));
        x = __dsub_rn(x, double(penalties.presence));
    }
    return float(fmin(fmax(x, -double(LARGEST)), double(LARGEST)));
}

// ---------------------------------------------------------------------------------------------
// Randomness

// Philox4x32-10: the 64 random bits of one token.
__device__ __forceinline__ uint64_t random_bits(const uint32_t (&seed)[2], uint32_t choice,
                                                uint32_t position) {
    uint32_t counter[4] = {position, 0, choice, 0}, key[2] = {seed[0], seed[1]};
    for (int round = 0; round < 10; round++) {
        uint64_t first = uint64_t(counter[0]) * 0xd2511f53u;
        uint64_t second = uint64_t(counter[2]) * 0xcd9e8d57u;
        uint32_t next[2] = {uint32_t(second >> 32) ^ counter[1] ^ key[0],
                            uint32_t(first >> 32) ^ counter[3] ^ key[1]};
        counter[0] = next[0];
        counter[1] = uint32_t(second);
        counter[2] = next[1];
        counter[3] = uint32_t(first);
        key[0] += 0x9e3779b9u;
        key[1] += 0xbb67ae85u;
    }
    return uint64_t(counter[1]) << 32 | counter[0];
}
