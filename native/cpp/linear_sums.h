// The sums over the keys so far, one head at a time: they stay in the cache, a row
// [sum_j phi_f(k_j) v_j, sum_j phi_f(k_j)] for each feature f, relative to e^exponent.
#pragma once

#include "features.h"

namespace regard::REGARD_ISA {

// Shapes of the arrays of a call, in numbers.
template <class T>
struct LinearSizes {
    int64_t width, value_width, state_step, features;
    explicit LinearSizes(const FeatureAttention& call)
        : width(whole<T>(call.width)),
          value_width(whole<T>(call.value_width)),
          state_step(whole<T>(call.value_width + 1)),
          features(call.features * CHUNK) {}
};

template <class T>
struct LinearRoom {
    T *state, *query, *key, *turned, *tokens, *value, *weighed, *pairs, *out;
    T *exponent, *top, *total, *weight;

    static int64_t bytes(const FeatureAttention& call) {
        LinearRoom room;
        return room.place(nullptr, call);
    }

    int64_t place(char* start, const FeatureAttention& call) {
        LinearSizes<T> size(call);
        Taker<T> take = {start, 0};
        state = take(call.features * size.state_step);
        query = take(size.features);
        key = take(size.features);
        turned = take(call.width * CHUNK);
        tokens = take(CHUNK * size.width);
        value = take(CHUNK * size.value_width);
        weighed = take(CHUNK * size.value_width);
        pairs = take(CHUNK * CHUNK);
        out = take(CHUNK * most(size.width, size.value_width));
        exponent = take(CHUNK);
        top = take(CHUNK);
        total = take(CHUNK);
        weight = take(CHUNK);
        return take.offset;
    }
};

// One head of one sequence.
template <class T>
struct LinearHead {
    const FeatureAttention& call;
    int64_t b, h, number;
    const T* projection;
    LinearSizes<T> size;
    LinearHead(const FeatureAttention& call, int64_t number)
        : call(call),
          b(number / call.heads),
          h(number % call.heads),
          number(number),
          projection(static_cast<const T*>(call.projection) + h * call.projection_head),
          size(call) {}

    // How many keys all queries see.
    int64_t seen() const { return call.causal ? call.m - call.n : call.m; }

    Chunk queries(int64_t first) const {
        int64_t count = least(CHUNK, call.n - first);
        return {first, count, ones(count)};
    }

    Chunk keys(int64_t first, int64_t end) const {
        int64_t count = least(CHUNK, end - first);
        uint64_t kept = ones(count);
        if (call.key_mask)
            for (int64_t t = 0; t < count; t++)
                if (!call.key_mask[b * call.m + first + t]) kept &= ~(uint64_t(1) << t);
        return {first, count, kept};
    }
};

template <class T>
static inline T natural_power(T x) { return powers_of_e(splat(x))[0]; }

// Copies a state (features, value_width + 1) from or to memory; in the room its rows are whole vectors.
template <class T>
static inline void read_state(const FeatureAttention& call, int64_t number, const void* from, T* state) {
    int64_t width = call.value_width + 1, step = whole<T>(width);
    const T* row = static_cast<const T*>(from) + number * call.features * width;
    for (int64_t f = 0; f < call.features; f++) {
        memcpy(state + f * step, row + f * width, width * sizeof(T));
        for (int64_t x = width; x < step; x++) state[f * step + x] = 0;
    }
}

template <class T>
static inline void write_state(const FeatureAttention& call, int64_t number, const T* state, void* to) {
    int64_t width = call.value_width + 1, step = whole<T>(width);
    T* row = static_cast<T*>(to) + number * call.features * width;
    for (int64_t f = 0; f < call.features; f++) memcpy(row + f * width, state + f * step, width * sizeof(T));
}

// state *= e^(from - to)
template <class T>
static inline void rescale(const LinearHead<T>& head, T* state, T from, T to) {
    if (from == to) return;
    T share = natural_power(from - to);
    for (int64_t x = 0; x < head.call.features * head.size.state_step; x += LANES<T>)
        store(state + x, load(state + x) * share);
}

// state += features [rows, weight]: rows of values, or of slopes, and what the last column adds up.
template <class T>
static inline void add_outer(const LinearHead<T>& head, const T* features, int64_t count, Rows<T> rows, const T* weight,
                             T* state) {
    constexpr int W = LANES<T>;
    int64_t step = head.size.state_step, last = head.call.value_width;
    product<T, BY_ROW, true>(head.call.features, int(head.size.value_width / W), {features, CHUNK}, rows.data,
                             rows.step, state, step, count);
    for (int64_t f = 0; f < head.call.features; f++) {
        Vector<T> total = {};
        for (int64_t t = 0; t < count; t += W) total += load(features + f * CHUNK + t) * load(weight + t);
        state[f * step + last] += sum<T>(total);
    }
}

// What each key of a chunk weighs relative to `top`; tokens that do not exist weigh nothing.
template <class T>
static inline void key_weights(const LinearHead<T>& head, const Chunk& chunk, const T* exponent, T top, T* weight) {
    constexpr int W = LANES<T>;
    for (int64_t t = 0; t < CHUNK; t += W) {
        Vector<T> each = splat(T(1));
        if (has_exponent(head.call.kind)) each = powers_of_e(load(exponent + t) - top);
        store(weight + t, choose<T>(chunk.kept >> t, each, Vector<T>{}));
    }
}

template <class T>
static inline T largest(const LinearHead<T>& head, const Chunk& chunk, const T* exponent, T top) {
    if (has_exponent(head.call.kind))
        for (int64_t t = 0; t < chunk.count; t++) top = larger(exponent[t], top);
    return top;
}

// Takes the keys of a chunk into the sums; -> their exponent.
template <class T>
static inline T add_keys(const LinearHead<T>& head, const Chunk& chunk, Rows<T> value, T past, LinearRoom<T>& room) {
    T top = largest(head, chunk, room.exponent, past);
    rescale(head, room.state, past, top);
    key_weights(head, chunk, room.exponent, top, room.weight);
    if (has_exponent(head.call.kind)) {
        int64_t step = head.size.value_width;
        for (int64_t t = 0; t < chunk.count; t++)
            for (int64_t x = 0; x < step; x += LANES<T>)
                store(room.weighed + t * step + x, load(value.data + t * value.step + x) * room.weight[t]);
        value = {room.weighed, step};
    }
    add_outer(head, room.key, chunk.count, value, room.weight, room.state);
    return top;
}

// Features and values of some keys.
template <class T>
static inline Rows<T> read_keys(const LinearHead<T>& head, const Chunk& chunk, LinearRoom<T>& room) {
    const FeatureAttention& call = head.call;
    Rows<T> x = chunk_rows(matrix(call.key, head.b, head.h), chunk, call.width, room.tokens);
    make_features(call, head.projection, x, chunk, room.turned, room.key, room.exponent);
    return chunk_rows(matrix(call.value, head.b, head.h), chunk, call.value_width, room.value);
}

}  // namespace regard::REGARD_ISA
