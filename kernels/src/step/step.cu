// What the host sends for a step, put where the other kernels look for it.
//
//   step_resolve   ids[t] = last_token[ids[t] - FROM_SLOT] where ids[t] >= FROM_SLOT
//   step_scatter   table[updates[i][0]] = updates[i][1]
//
//   grid (ceil(n / 256))   block 256   one thread an entry
//   traffic: 4 to 12 bytes an entry; bound by the launch
#include "device.cuh"

// Ids from here on are slots, whose token is the one sampled last.
constexpr unsigned FROM_SLOT = 1u << 31;

KERNEL(256) step_resolve(unsigned* ids, const unsigned* last_token, unsigned num_slots, int tokens) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= tokens) return;
    unsigned id = ids[t];
    if (id < FROM_SLOT) return;
    unsigned slot = id - FROM_SLOT;
    // A slot that does not exist has no token; what is no token embeds as zeros.
    ids[t] = slot < num_slots ? last_token[slot] : FROM_SLOT - 1;
}
REGISTER_KERNEL(step_resolve)

KERNEL(256) step_scatter(unsigned* table, unsigned table_len, const uint2* updates, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint2 update = updates[i];
    if (update.x < table_len) table[update.x] = update.y;
}
REGISTER_KERNEL(step_scatter)
