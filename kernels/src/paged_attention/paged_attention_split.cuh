// How the contexts of rows that decode are cut into the items of a step, and what the parts leave
// for the combination: what plan, decode and combine agree upon.
#pragma once

#include "device.cuh"

// Positions of a split. It is cut by absolute position, and a power of two times TILE.
//
// A block has 128 KiB of keys and values to read in a split of D = 128, 4 us of a multiprocessor's
// share of an H200's bandwidth: long beside the start and the end of an item (about 1 us), which
// others cover, and short enough that one sequence of 4 k positions and 8 kv heads occupies 128 of
// 132 multiprocessors. Splits leave behind 1.6 % of what they read, for four heads a kv head.
constexpr int SPLIT = 256;

// A split of a row.
struct alignas(16) Item {
    unsigned slot, token;  // of the row
    int begin, end;        // the positions that the query sees of this split; never none
    unsigned partial;      // where sums go in the workspace; PAD: it is the row's only split
    unsigned unused[3];
};

// What a split leaves for a head: the sum of its weights, and the score they are relative to.
struct alignas(8) Partial {
    float max, sum;
};
