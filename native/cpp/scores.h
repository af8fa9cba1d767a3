// What happens to the scores of a tile between the product and the softmax: terms, attn_mask, dropout.
//
// Scores lie in rows of TILE; the side that runs along a row is the fast one, queries in forward, keys in backward.
#pragma once

#include "tile.h"

namespace regard::REGARD_ISA {

enum Fast { QUERIES, KEYS };

// One tile of one head of one sequence.
struct Spot {
    int64_t b, h;
    Places query, key;
};

static inline int64_t code(const int64_t* codes, const Places& places, int64_t i) {
    return codes ? codes[places[i]] : places[i];
}

template <class T>
static inline const T* mask_at(const Attention& call, const Spot& spot) {
    const Tensor& mask = call.attn_mask;
    int64_t row = call.attn_mask_row ? call.attn_mask_row[spot.b] : 0;
    return reinterpret_cast<const T*>(mask.data) + row * mask.batch + spot.h * mask.head;
}

// cap tanh(x / cap) and its slope.
template <class T>
static inline void soft_cap(T cap, T* x, T* slope, int count) {
    for (int f = 0; f < count; f += LANES<T>) {
        Vector<T> y = load(x + f) / cap, size = y < T(0) ? -y : y;
        Vector<T> large = T(1) - T(2) / (exponential<T>(size * T(2)) + T(1));
        large = size > T(20) ? splat(T(1)) : large;
        large = y < T(0) ? -large : large;
        Vector<T> square = y * y;
        // near 0 the difference above cancels: the series to the ninth power
        Vector<T> small = y * (T(1) + square * (T(-1.0 / 3) + square * (T(2.0 / 15) + square * (T(-17.0 / 315) + square * T(62.0 / 2835)))));
        Vector<T> tanh = size < T(sizeof(T) == 4 ? 0.15 : 0.01) ? small : large;
        store(x + f, tanh * cap);
        if (slope) store(slope + f, load(slope + f) * (T(1) - tanh * tanh));
    }
}

// Terms and attn_mask on one row of scores, lanes `from` to `to`, whole vectors. `slope` gets the slope of the caps.
template <class T, Fast FAST>
static inline void change_row(const Attention& call, const Spot& spot, int64_t s, int from, int to, T* x, T* slope) {
    const Places& slow = FAST == QUERIES ? spot.key : spot.query;
    const Places& fast = FAST == QUERIES ? spot.query : spot.key;
    if (slope)
        for (int f = from; f < to; f++) slope[f] = 1;
    int last = int(least(to, fast.count));
    for (int64_t t = 0; t < call.terms; t++) {
        const Term& term = call.term[t];
        if (term.cap) {
            soft_cap(T(term.cap), x + from, slope ? slope + from : nullptr, to - from);
            continue;
        }
        const Difference& bias = term.bias;
        const int64_t* slow_code = FAST == QUERIES ? bias.key_code : bias.query_code;
        const int64_t* fast_code = FAST == QUERIES ? bias.query_code : bias.key_code;
        const T* values = static_cast<const T*>(bias.values) + spot.h * bias.head + bias.shift - code(slow_code, slow, s);
        if (!fast_code && !fast.rows) {
            values += fast.first;
            for (int f = from; f < last; f++) x[f] += values[f];
        } else {
            for (int f = from; f < last; f++) x[f] += values[code(fast_code, fast, f)];
        }
    }
    if (!call.attn_mask.data) return;
    int64_t slow_step = FAST == QUERIES ? call.attn_mask.column : call.attn_mask.row;
    int64_t fast_step = FAST == QUERIES ? call.attn_mask.row : call.attn_mask.column;
    if (call.attn_mask_bool) {
        const uint8_t* keeps = mask_at<uint8_t>(call, spot) + slow[s] * slow_step;
        for (int f = from; f < last; f++)
            if (!keeps[fast[f] * fast_step]) x[f] = -INFINITE<T>;
    } else {
        const T* values = mask_at<T>(call, spot) + slow[s] * slow_step;
        if (!fast.rows && fast_step == 1) {
            for (int f = from; f < last; f++) x[f] += values[fast.first + f];
        } else {
            for (int f = from; f < last; f++) x[f] += values[fast[f] * fast_step];
        }
    }
}

// --- dropout ---------------------------------------------------------------------------------------------------------

// Two rounds of a multiply-and-shift mixer (lowbias32, found by hash-prospector): every bit depends on every bit.
static inline uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x21f0aaadu;
    x = (x ^ x >> 15) * 0xd35a2d97u;
    return x ^ x >> 15;
}

// The stream of one query: a number of its own for each seed, sequence, head and row.
static inline uint32_t stream(uint64_t seed, int64_t b, int64_t h, int64_t row) {
    uint32_t x = mix(uint32_t(seed) ^ 0x9e3779b9u);
    x = mix(x ^ uint32_t(seed >> 32));
    x = mix(x + uint32_t(b));
    x = mix(x + uint32_t(h));
    x = mix(x ^ uint32_t(row));
    return mix(x + uint32_t(uint64_t(row) >> 32));
}

// The same for the whole tile of queries.
static inline void streams(const Attention& call, const Spot& spot, uint32_t* found) {
    for (int64_t q = 0; q < spot.query.count; q++) found[q] = stream(call.seed, spot.b, spot.h, spot.query[q]);
    for (int64_t q = spot.query.count; q < TILE; q++) found[q] = 0;
}

static inline uint32_t drawn(uint32_t stream, int64_t key) {
    uint32_t low = uint32_t(key), high = uint32_t(uint64_t(key) >> 32);
    return mix(stream ^ (low * 0x9e3779b9u + high));
}

// What dropout multiplies the weights with, 0 or 1 / (1 - p), for one row of scores.
template <class T, Fast FAST>
static inline void keep_row(const Attention& call, const Spot& spot, const uint32_t* streams, int64_t s, T* factor) {
    const uint32_t limit = uint32_t(call.dropout * 4294967296.0);
    const T kept = T(1 / (1 - call.dropout));
    if (FAST == QUERIES) {
        int64_t key = spot.key[s];
        for (int f = 0; f < TILE; f++) factor[f] = drawn(streams[f], key) < limit ? T(0) : kept;
    } else if (!spot.key.rows) {
        for (int f = 0; f < TILE; f++) factor[f] = drawn(streams[s], spot.key.first + f) < limit ? T(0) : kept;
    } else {
        for (int f = 0; f < spot.key.count; f++) factor[f] = drawn(streams[s], spot.key[f]) < limit ? T(0) : kept;
        for (int f = int(spot.key.count); f < TILE; f++) factor[f] = 0;
    }
}

// Bits of the rows of a tile that the key mask keeps.
static inline uint64_t kept_keys(const Attention& call, int64_t b, const Places& key) {
    if (!call.key_mask) return ~uint64_t(0);
    const uint8_t* mask = call.key_mask + (call.key_mask_row ? call.key_mask_row[b] : 0) * call.m;
    uint64_t bits = 0;
    for (int64_t i = 0; i < key.count; i++) bits |= uint64_t(mask[key[i]] != 0) << i;
    return bits;
}

}  // namespace regard::REGARD_ISA
