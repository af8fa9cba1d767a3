// The C interface: what Python fills in (src/regard/engines/native_*.py mirror every struct, field by field).
//
// Sizes, strides and positions are 64-bit; strides count elements. Pointers that may be absent say so.
#pragma once

#include <stdint.h>

namespace regard {

enum Dtype : int32_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

// A tensor (B, H, rows, width) in any memory layout.
struct Tensor {
    void* data;
    int64_t batch, head, row, column;  // strides
    Dtype dtype;
};

// One part of a plan (regard.patterns.plan.Part). Tiles are 64 x 64.
struct Part {
    int64_t planes_batch;  // sequences told apart: 1 or B
    int64_t by_head;       // whether each head has a plane of its own
    int64_t heads;         // how many heads the part concerns
    const int64_t* head;   // which
    int64_t natural;       // rows stand in their natural order
    int64_t rows, columns;                        // of tiles
    const int64_t *query_rows, *key_rows;         // the row at each place, -1 where there is none
    const int64_t *row_pointer, *column, *mask;   // the tiles row by row; mask -1: all pairs are allowed
    const int64_t *column_pointer, *by_column;    // for each column of tiles its tiles' numbers
    const int64_t* row;                           // and their plane * rows + row
    const uint64_t *mask_by_query, *mask_by_key;  // 64 words a mask: bit k of word q, and bit q of word k
};

// score += values[h][code_query - code_key + shift], a bias that depends on the difference of two codes only.
struct Difference {
    const void* values;  // in the dtype of the sums; in backward reversed: code_key - code_query + shift
    int64_t head;        // stride, 0 where heads share
    int64_t shift;
    const int64_t *query_code, *key_code;  // absent: the codes are the rows themselves
    void* gradient;                        // (slots, B, H, length), or absent
    int64_t length;
};

// One change of the scores: a bias, or where `cap` is not 0 the score becomes cap tanh(score / cap).
struct Term {
    double cap;
    Difference bias;
};

struct Attention {
    int64_t batch, heads, groups, n, m, width, value_width;
    Tensor query, key, value, out;
    void* lse;  // (B, H, N), in the dtype of the sums
    double scale;
    int64_t parts;
    const Part* part;
    const uint8_t* key_mask;         // (rows, M), or absent
    const int64_t* key_mask_row;     // of each sequence
    Tensor attn_mask;                // strides 0 where it broadcasts; data absent without one
    int64_t attn_mask_bool;          // 1: bytes that say who takes part; 0: numbers that are added
    const int64_t* attn_mask_row;    // of each sequence
    int64_t terms;
    const Term* term;
    double dropout;
    uint64_t seed;
    int64_t threads;
};

struct AttentionGradients {
    Attention call;
    Tensor grad_out;
    const void* grad_lse;  // (B, H, N), or absent
    void* mean;            // (B, H, N): room for the mean gradient of each row of weights
    Tensor query, key, value;  // in the dtype of the sums; those of queries once a slot
    int64_t query_slot;        // stride of the slots
    int64_t accumulate;        // keys' and values' are zeroed already and added to, by the first part too
    void* attn_mask;           // like attn_mask and contiguous, (slots or 1, ...), or absent
    int64_t attn_mask_strides[4], attn_mask_slot;
    int64_t slots;             // slices of the keys, each with gradients of the queries of its own
    int64_t together;          // one worker does all sequences and heads of a slice: they share attn_mask
};

}  // namespace regard
