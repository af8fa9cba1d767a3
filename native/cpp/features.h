// Features of a chunk of tokens (src/regard/ops/features.py), turned round: a row for each feature, tokens along the
// lanes. So the largest feature of a token needs no step across lanes, and one array is the left and the right factor
// of every product with the features.
#pragma once

#include "chunk.h"

namespace regard::REGARD_ISA {

constexpr double RELU_OFFSET = 1e-3;

// From row to row of a projection, and of its gradient: the same on every instruction set.
template <class T>
constexpr int64_t projection_step(int64_t width) {
    constexpr int64_t numbers = 64 / sizeof(T);
    return (width + numbers - 1) / numbers * numbers;
}

// e^x, the exponentials of features being a good part of the work. Of doubles by the series of e^r for |r| <= ln 2 / 2,
// all lanes at once, where the C library would go number by number; 0 below e^-708.
static inline Vector<float> powers_of_e(Vector<float> x) { return exponential<float>(x); }

static inline Vector<double> powers_of_e(Vector<double> x) {
    const double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to the nearest integer
    const double ln2 = 6.93147180369123816490e-01, ln2_rest = 1.90821492927058770002e-10;
    Vector<double> shifted = x * LOG2_E + magic, whole = shifted - magic;
    Vector<double> rest = x - whole * ln2 - whole * ln2_rest, sum = splat(1.0);
    for (int term = 13; term > 0; term--) sum = sum * rest * (1.0 / term) + 1.0;
    Integers<double> exponent = ((Integers<double>)shifted << 52) + 0x3ff0000000000000;
    return x < -708.0 ? Vector<double>{} : sum * (Vector<double>)exponent;
}

static inline bool has_exponent(FeatureKind kind) { return kind == SOFTMAX || kind == SYMMETRIC; }

// What the token itself is multiplied by before the projection; 1 without one.
template <class T>
static inline T token_scale(const FeatureAttention& call) {
    return call.kind == ELU ? T(1) : T(1 / __builtin_sqrt(__builtin_sqrt(double(call.width))));
}

// Splits the largest exponent of each token off and takes e^ of the rest.
template <class T>
static inline void split_exponents(const FeatureAttention& call, const T* turned, int v, T* value, T* exponent) {
    constexpr int W = LANES<T>;
    value += v * W;
    turned += v * W;
    Vector<T> top = splat(-INFINITE<T>), norm = {};
    for (int64_t f = 0; f < call.rows; f++) {
        Vector<T> u = load(value + f * CHUNK);
        top = larger(u, top);
        if (call.kind == SYMMETRIC) top = larger(-u, top);
    }
    for (int64_t x = 0; x < call.width; x++) norm += load(turned + x * CHUNK) * load(turned + x * CHUNK);
    store(exponent + v * W, top - norm / T(2) - T(__builtin_log(double(call.features)) / 2));
    for (int64_t f = 0; f < call.rows; f++) {
        Vector<T> u = load(value + f * CHUNK);
        store(value + f * CHUNK, powers_of_e(u - top));
        if (call.kind == SYMMETRIC) store(value + (call.rows + f) * CHUNK, powers_of_e(-u - top));
    }
}

// The features of the tokens whose rows are `x`: `value` e^`exponent`, where the kind has one. Tokens that take no part
// have exponent -infinity, or the value 0 where there are no exponents. `turned` is room for the tokens turned round.
template <class T>
static void make_features(const FeatureAttention& call, const T* projection, Rows<T> x, const Chunk& chunk, T* turned,
                          T* value, T* exponent) {
    constexpr int W = LANES<T>;
    int vectors = int((chunk.count + W - 1) / W);
    if (call.kind == ELU) {
        turn(x, chunk.count, call.width, T(1), value);
        for (int64_t f = 0; f < call.features; f++)
            for (int v = 0; v < vectors; v++) {
                T* at = value + f * CHUNK + v * W;
                Vector<T> u = load(at), none = {};
                store(at, (u > none ? u : none) + powers_of_e(u > none ? none : u));  // keeps a NaN
            }
    } else {
        turn(x, chunk.count, call.width, token_scale<T>(call), turned);
        product<T, BY_ROW, false>(call.rows, vectors, {projection, projection_step<T>(call.width)}, turned, CHUNK,
                                  value, CHUNK, call.width);
        for (int v = 0; v < vectors; v++) {
            if (has_exponent(call.kind)) {
                split_exponents(call, turned, v, value, exponent);
                continue;
            }
            for (int64_t f = 0; f < call.rows; f++) {
                T* at = value + f * CHUNK + v * W;
                Vector<T> u = load(at), none = {};
                store(at, (u < none ? none : u) + T(RELU_OFFSET));
            }
        }
    }
    if (chunk.kept == ~uint64_t(0)) return;
    for (int v = 0; v < vectors; v++) {
        uint64_t kept = chunk.kept >> (v * W);
        if (has_exponent(call.kind))
            store(exponent + v * W, choose<T>(kept, load(exponent + v * W), splat(-INFINITE<T>)));
        else
            for (int64_t f = 0; f < call.features; f++) {
                T* at = value + f * CHUNK + v * W;
                store(at, choose<T>(kept, load(at), Vector<T>{}));
            }
    }
}

// From the gradient of the features' values, `slope`, which is overwritten, to that of the tokens, which is written to
// `to`, and that of the projection, which is added to `sums` where there is one. `weighed`: the exponents were
// multiplied in, so their gradient is the product of the values and their gradients. `room` has CHUNK x CHUNK numbers,
// `rows` a chunk of rows.
template <class T>
static void features_backward(const FeatureAttention& call, const T* projection, Rows<T> x, const Chunk& chunk,
                              const T* value, T* slope, bool weighed, T* sums, const Matrix& to, T* room, T* rows) {
    constexpr int W = LANES<T>;
    int vectors = int((chunk.count + W - 1) / W);
    int64_t step = whole<T>(call.width), row = projection_step<T>(call.width);
    alignas(64) T norm[CHUNK];
    for (int v = 0; v < vectors; v++) {
        Vector<T> total = {};
        for (int64_t f = 0; f < call.features; f++) {
            T* at = slope + f * CHUNK + v * W;
            Vector<T> own = load(value + f * CHUNK + v * W), given = load(at), none = {};
            if (call.kind == ELU)
                given *= own > T(1) ? none + T(1) : own;
            else if (call.kind == RELU)
                given = own > T(RELU_OFFSET) ? given : none;
            else
                given *= own;
            total += given;
            store(at, given);
        }
        store(norm + v * W, total);
        if (call.kind == SYMMETRIC)
            for (int64_t f = 0; f < call.rows; f++) {
                T* at = slope + f * CHUNK + v * W;
                store(at, load(at) - load(at + call.rows * CHUNK));
            }
    }
    Rows<T> found = {rows, step};
    if (call.kind == ELU) {
        found = turn_back(slope, chunk.count, call.width, room, rows);
    } else {
        if (sums)
            product<T, BY_ROW, true>(call.rows, int(step / W), {slope, CHUNK}, x.data, x.step, sums, row, chunk.count);
        product<T, BY_INNER, false>(chunk.count, int(step / W), {slope, CHUNK}, projection, row, rows, step, call.rows);
        T scale = token_scale<T>(call);
        bool normed = weighed && has_exponent(call.kind);
        for (int64_t t = 0; t < chunk.count; t++) {
            T less = normed ? norm[t] * scale : T(0);
            for (int64_t i = 0; i < step; i += W)
                store(rows + t * step + i, (load(rows + t * step + i) - load(x.data + t * x.step + i) * less) * scale);
        }
    }
    for (int64_t t = 0; t < chunk.count; t++) write_row(to, chunk.first + t, call.width, found.data + t * found.step);
}

}  // namespace regard::REGARD_ISA
