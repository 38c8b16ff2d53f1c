// Route: the experts of each token and their weights, by the rules of route/mod.rs.
//
//   grid (T / 4)   block 128: a warp routes a token   dynamic shared: 4 * (2 * E + groups) words
//   traffic: logits read once; nothing else counts. Bound by the latency of choosing top_k times in
//     turn: some 100 cycles each, 1 us for 8 of 128.
//
// What is chosen by is kept as a number without a sign whose order is that of the choices, with a
// NaN above all, and 0 for what cannot be chosen (any more). A warp's lanes hold every 32nd of
// them, so a choice is the largest over lanes of what each lane knows to be the largest of its own,
// and of those that are equal the smallest id. Then only the lane that had it looks through its own
// again.
#include "device.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP;

// What a launch is asked for; the numbers are those of moe/cuda/route.rs.
enum Score { SOFTMAX = 0, SIGMOID = 1 };
enum Order { SCORE_THEN_TOP_K = 0, TOP_K_THEN_SCORE = 1 };

__device__ __forceinline__ unsigned to_order(float x) {
    if (x != x) return 0xffffffffu;
    unsigned bits = __float_as_uint(x + 0.0f);  // -0 is equal to 0
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_order(unsigned order) {
    return __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}

// A lane's largest of `orders[lane], orders[lane + 32], ..`, the first of those that are equal.
struct Best {
    unsigned order;
    int id;

    __device__ __forceinline__ void find(const unsigned* orders, int count) {
        order = 0, id = 0x7fffffff;
        for (int i = threadIdx.x % WARP; i < count; i += WARP) {
            if (orders[i] > order) order = orders[i], id = i;
        }
    }
    // The warp's largest, which is taken out: its order becomes 0.
    __device__ __forceinline__ int take(unsigned* orders, int count) {
        unsigned most = __reduce_max_sync(ALL_LANES, order);
        int taken = __reduce_min_sync(ALL_LANES, order == most ? id : 0x7fffffff);
        if (taken == id) {
            orders[taken] = 0;
            find(orders, count);
        }
        return taken;
    }
};

// Takes away what is not in the `keep` most valuable of `groups` groups of neighbours.
__device__ __forceinline__ void keep_groups(unsigned* orders, unsigned* worths, int experts,
                                            int groups, int keep) {
    int lane = threadIdx.x % WARP, size = experts / groups;
    for (int group = lane; group < groups; group += WARP) {
        unsigned first = 0, second = 0;
        for (int i = group * size; i < (group + 1) * size; i++) {
            unsigned order = orders[i];
            if (order > first) {
                second = first, first = order;
            } else if (order > second) {
                second = order;
            }
        }
        worths[group] = to_order(from_order(first) + from_order(second));
    }
    // A lane looks through the groups whose worth it has written, so nobody has to wait for that.
    Best best;
    best.find(worths, groups);
    for (int i = 0; i < keep; i++) best.take(worths, groups);
    __syncwarp();  // the groups that are kept are those whose worth has been taken
    for (int i = lane; i < experts; i += WARP) {
        if (worths[i / size] != 0) orders[i] = 0;
    }
}

// The softmax over a warp of what each lane brings where `valid`; 0 elsewhere.
__device__ __forceinline__ float softmax_of_lanes(float x, bool valid) {
    float most = warp_max(valid ? x : -INFINITY);
    float e = valid ? expf(x - most) : 0.0f;
    return e / warp_sum(e);
}

// Makes scores of a token's logits, in place; lane l has every 32nd.
__device__ __forceinline__ void score_all(float* x, int experts, int score) {
    int lane = threadIdx.x % WARP;
    if (score == SIGMOID) {
        for (int i = lane; i < experts; i += WARP) x[i] = 1.0f / (1.0f + expf(-x[i]));
        return;
    }
    float most = -INFINITY, total = 0;
    for (int i = lane; i < experts; i += WARP) most = fmaxf(most, x[i]);
    most = warp_max(most);
    for (int i = lane; i < experts; i += WARP) {
        x[i] = expf(x[i] - most);
        total += x[i];
    }
    total = warp_sum(total);
    for (int i = lane; i < experts; i += WARP) x[i] /= total;
}

// logits `[T, E]`; logits_bias, select_bias `[E]` or null; experts, weights `[T, top_k]`.
KERNEL(THREADS)
moe_route(const float* logits, const float* logits_bias, const float* select_bias,
          unsigned* experts, float* weights, int tokens, int num_experts, int top_k, int score,
          int order, int renormalize, float scale, int groups, int keep) {
    DYNAMIC_SHARED(shared);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, token = blockIdx.x * WARPS + warp;
    if (token >= tokens) return;
    float* scores = reinterpret_cast<float*>(shared) + warp * (2 * num_experts + groups);
    unsigned* orders = reinterpret_cast<unsigned*>(scores + num_experts);

    const float* row = logits + size_t(token) * num_experts;
    for (int i = lane; i < num_experts; i += WARP) {
        scores[i] = logits_bias ? row[i] + logits_bias[i] : row[i];
    }
    if (order == SCORE_THEN_TOP_K) score_all(scores, num_experts, score);
    for (int i = lane; i < num_experts; i += WARP) {
        orders[i] = to_order(select_bias ? scores[i] + select_bias[i] : scores[i]);
    }
    __syncwarp();  // scores and orders of all lanes are there
    if (groups > 0) keep_groups(orders, orders + num_experts, num_experts, groups, keep);

    // Lane i gets the i-th choice.
    int chosen = 0;
    Best best;
    best.find(orders, num_experts);
    for (int i = 0; i < top_k; i++) {
        int id = best.take(orders, num_experts);
        if (lane == i) chosen = id;
    }
    bool valid = lane < top_k;
    float weight = valid ? scores[chosen] : 0.0f;
    if (order == TOP_K_THEN_SCORE) {
        weight = score == SOFTMAX ? softmax_of_lanes(weight, valid)
                                  : (valid ? 1.0f / (1.0f + expf(-weight)) : 0.0f);
    }
    // Where the scores of all are too small for f32, nothing is divided by 0.
    if (renormalize) weight /= warp_sum(weight) + 1e-20f;
    if (!valid) return;
    experts[size_t(token) * top_k + lane] = chosen;
    weights[size_t(token) * top_k + lane] = weight * scale;
}

REGISTER_KERNEL(moe_route)
