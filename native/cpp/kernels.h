// What each instruction set offers.
#pragma once

#include "calls.h"
#include "linear_calls.h"

namespace regard {

struct Kernels {
    const char* isa;
    int64_t (*forward_bytes)(const Attention&, int64_t heads);
    void (*forward_row)(const Attention&, const Part&, bool join, int64_t b, int64_t first, int64_t heads, int64_t plane,
                        int64_t row, char* memory);
    int64_t (*backward_bytes)(const Attention&);
    void (*backward_start)(const AttentionGradients&, int64_t b, int64_t h, char* memory);
    void (*backward_column)(const AttentionGradients&, const Part&, int64_t slot, int64_t b, int64_t g, int64_t column,
                            char* memory);
    void (*backward_sum)(const AttentionGradients&, int64_t b, int64_t h);
    // One head of one sequence: `number` counts the heads of all sequences.
    int64_t (*linear_forward_bytes)(const FeatureAttention&);
    void (*linear_forward)(const FeatureAttention&, int64_t number, char* memory);
    int64_t (*linear_backward_bytes)(const FeatureGradients&);
    void (*linear_backward)(const FeatureGradients&, int64_t number, char* memory);
    int64_t (*delta_forward_bytes)(const DeltaRule&);
    void (*delta_forward)(const DeltaRule&, int64_t number, char* memory);
    int64_t (*delta_backward_bytes)(const DeltaGradients&);
    void (*delta_backward)(const DeltaGradients&, int64_t number, char* memory);
};

// The kernels for numbers of this size, 4 or 8 bytes, on the best instruction set of this machine that REGARD_ISA allows.
const Kernels& kernels(int bytes);

// Those for attention over inputs of this dtype, on units made for it where there are any and they pay.
const Kernels& attention_kernels(Dtype dtype);

}  // namespace regard
