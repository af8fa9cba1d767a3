// The C interface of attention by features and of the delta rule: mirrored by src/regard/ops/native_features.py and
// src/regard/ops/native_delta_rule.py, field by field. Conventions as in calls.h.
#pragma once

#include "calls.h"

namespace regard {

enum FeatureKind : int64_t { ELU, RELU, SOFTMAX, SYMMETRIC };

// y_i = sum_j phi(q_i) . phi(k_j) v_j / (sum_j phi(q_i) . phi(k_j) + eps)
struct FeatureAttention {
    int64_t batch, heads, n, m, width, value_width;
    int64_t features;  // of a token
    int64_t rows;      // of the projection: as many as features, or half of them, or none
    FeatureKind kind;
    int64_t causal;
    double eps;
    Tensor query, key, value, out;
    const uint8_t* key_mask;  // (B, M), or absent
    // All that follows is contiguous and in the dtype of the sums.
    const void* projection;          // (heads or 1, rows, width rounded up to 64 bytes)
    int64_t projection_head;         // stride, 0 where heads share
    const void *before, *exponent_before;  // sums over earlier keys: (B, H, features, value_width + 1) and (B, H)
    void *after, *exponent_after;          // the same over all keys
    void* total;                           // (B, H, N), the denominators
    int64_t threads;
};

struct FeatureGradients {
    FeatureAttention call;
    Tensor grad_out, query, key, value;
    const void* grad_after;  // of the sums over all keys
    void* grad_before;       // of the sums over earlier keys
    void* projection;        // (B, H, rows, rounded width) zeros, or absent: that of each head, relative to W x
    void* exponents;         // (B, H, chunks of queries): room for the exponent before each
    void* totals;            // (B, H, N): room for the gradients of the denominators
};

// S_t = S_{t-1} + k_t beta_t (v_t - S_{t-1}^T k_t)^T,  y_t = scale S_t^T q_t
struct DeltaRule {
    int64_t batch, heads, n, width, value_width;
    double scale;
    Tensor query, key, value, out;
    Tensor beta;  // a row for each token, one column
    // All that follows is contiguous and in the dtype of the sums.
    const void* before;  // (B, H, width, value_width)
    void* after;
    int64_t threads;
};

struct DeltaGradients {
    DeltaRule call;
    Tensor grad_out, query, key, value, beta;
    const void* grad_after;
    void* grad_before;
    void* states;  // (B, H, chunks, width, value_width): room for the state before each chunk
    void* errors;  // (B, H, N, value_width): room for v_t - S_{t-1}^T k_t
};

}  // namespace regard
