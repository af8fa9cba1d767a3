// Attention by features, one head at a time, in chunks of tokens (src/regard/ops/feature_sums.py). Causal, the pairs
// within a chunk are formed, a row for each key or for each query.
#pragma once

#include "ahead.h"
#include "linear_sums.h"

namespace regard::REGARD_ISA {

// The largest exponent of a key up to each, in `top`, and what the sums with the exponent `past` weigh beside it.
template <class T>
static inline void running_top(int64_t count, const T* exponent, T past, T* top, T* share) {
    constexpr int W = LANES<T>;
    T now = past;
    for (int64_t t = 0; t < CHUNK; t++) top[t] = now = t < count ? larger(exponent[t], now) : now;
    for (int64_t t = 0; t < CHUNK; t += W) store(share + t, powers_of_e(past - load(top + t)));
}

enum PairRows { KEY_ROWS, QUERY_ROWS };

// Products of queries and keys become weights: later keys are hidden, and key k weighs e^(exponent_k - top_q).
template <class T, PairRows ROWS_ARE>
static inline void weigh_pairs(const LinearHead<T>& head, int64_t count, const T* exponent, const T* top, T* pairs) {
    constexpr int W = LANES<T>;
    bool weighed = has_exponent(head.call.kind);
    for (int64_t r = 0; r < count; r++) {
        uint64_t seen = ROWS_ARE == KEY_ROWS ? ~uint64_t(0) << r : ~uint64_t(0) >> (63 - r);
        for (int64_t f = 0; f < CHUNK; f += W) {
            bool any = ROWS_ARE == KEY_ROWS ? f + W > r : f <= r;
            Vector<T> pair = {};
            if (any) pair = load(pairs + r * CHUNK + f);
            if (any && weighed) {
                Vector<T> fast = load((ROWS_ARE == KEY_ROWS ? top : exponent) + f);
                pair *= powers_of_e(ROWS_ARE == KEY_ROWS ? exponent[r] - fast : fast - top[r]);
            }
            store(pairs + r * CHUNK + f, choose<T>(seen >> f, pair, Vector<T>{}));
        }
    }
}

// Products of the features of queries and keys, a row for each key, for the queries that see it.
template <class T>
static inline void key_pairs(const LinearHead<T>& head, int64_t count, const LinearRoom<T>& room, Ahead& ahead) {
    constexpr int W = LANES<T>;
    for (int64_t k = 0; k < count; k += ROWS) {
        ahead.step();
        int64_t from = k / W * W;
        strip<T, BY_INNER, false>(int(least(ROWS, count - k)), int((count - from + W - 1) / W), {room.key + k, CHUNK},
                                  room.query + from, CHUNK, room.pairs + k * CHUNK + from, CHUNK, head.call.features);
    }
}

// What the queries of a chunk find in the sums, and causal among each other's keys: -> room.out and room.total.
template <class T>
static inline void find(const LinearHead<T>& head, int64_t count, bool causal, Rows<T> value, T past, Ahead& ahead,
                        LinearRoom<T>& room) {
    constexpr int W = LANES<T>;
    int64_t m = head.call.features, width = head.size.value_width, step = head.size.state_step;
    int vectors = int((count + W - 1) / W);
    for (int64_t q = 0; q < count; q += ROWS) {
        ahead.step();
        int few = int(least(ROWS, count - q));
        strip<T, BY_INNER, false>(few, int(width / W), {room.query + q, CHUNK}, room.state, step, room.out + q * width,
                                  width, m);
    }
    strip<T, BY_INNER, false>(1, vectors, {room.state + head.call.value_width, step}, room.query, CHUNK, room.total,
                              CHUNK, m);
    if (!causal) return;
    if (has_exponent(head.call.kind)) {
        running_top(count, room.exponent, past, room.top, room.weight);
        for (int64_t t = 0; t < CHUNK; t += W) store(room.total + t, load(room.total + t) * load(room.weight + t));
        for (int64_t q = 0; q < count; q++)
            for (int64_t x = 0; x < width; x += W)
                store(room.out + q * width + x, load(room.out + q * width + x) * room.weight[q]);
    }
    key_pairs(head, count, room, ahead);
    weigh_pairs<T, KEY_ROWS>(head, count, room.exponent, room.top, room.pairs);
    for (int v = 0; v < vectors; v++) {
        Vector<T> total = load(room.total + v * W);
        for (int64_t k = 0; k < least(count, (v + 1) * W); k++) total += load(room.pairs + k * CHUNK + v * W);
        store(room.total + v * W, total);
    }
    for (int64_t q = 0; q < count; q += ROWS) {
        ahead.step();
        int few = int(least(ROWS, count - q));
        strip<T, BY_INNER, true>(few, int(width / W), {room.pairs + q, CHUNK}, value.data, value.step,
                                 room.out + q * width, width, q + few);
    }
}

// Begins to fetch the chunk of queries from `first` on, the keys beside them and where their outputs go.
template <class T>
static inline void fetch(const LinearHead<T>& head, int64_t first, Ahead& ahead) {
    const FeatureAttention& call = head.call;
    if (first >= call.n) return;
    int64_t count = head.queries(first).count;
    Places rows = {count, first, nullptr}, keys = {count, head.seen() + first, nullptr};
    ahead.add(matrix(call.query, head.b, head.h), rows, call.width);
    ahead.add(matrix(call.out, head.b, head.h), rows, call.value_width);
    if (call.causal) ahead.add(matrix(call.key, head.b, head.h), keys, call.width);
    if (call.causal) ahead.add(matrix(call.value, head.b, head.h), keys, call.value_width);
    ahead.begin((call.causal ? 3 : 1) * CHUNK / ROWS);
}

template <class T>
static void linear_forward(const FeatureAttention& call, int64_t number, char* memory) {
    Flushing flushing;
    LinearHead<T> head(call, number);
    LinearRoom<T> room;
    room.place(memory, call);
    read_state(call, number, call.before, room.state);
    T past = static_cast<const T*>(call.exponent_before)[number];
    for (int64_t first = 0; first < head.seen(); first += CHUNK) {
        Chunk chunk = head.keys(first, head.seen());
        Rows<T> value = read_keys(head, chunk, room);
        past = add_keys(head, chunk, value, past, room);
    }
    T* totals = static_cast<T*>(call.total) + number * call.n;
    Matrix out = matrix(call.out, head.b, head.h);
    for (int64_t first = 0; first < call.n; first += CHUNK) {
        Chunk chunk = head.queries(first);
        Rows<T> x = chunk_rows(matrix(call.query, head.b, head.h), chunk, call.width, room.tokens), value = {};
        make_features(call, head.projection, x, chunk, room.turned, room.query, room.exponent);
        Chunk own = call.causal ? head.keys(head.seen() + first, call.m) : chunk;
        if (call.causal) value = read_keys(head, own, room);
        Ahead ahead;
        fetch(head, first + CHUNK, ahead);
        find(head, chunk.count, call.causal, value, past, ahead, room);
        for (int64_t t = 0; t < chunk.count; t++) {
            T total = room.total[t] + T(call.eps);
            totals[first + t] = total = total == 0 ? T(1) : total;
            T *row = room.out + t * head.size.value_width, share = 1 / total;
            for (int64_t i = 0; i < head.size.value_width; i += LANES<T>) store(row + i, load(row + i) * share);
            write_row(out, first + t, call.value_width, row);
        }
        if (call.causal) past = add_keys(head, own, value, past, room);
    }
    write_state(call, number, room.state, call.after);
    static_cast<T*>(call.exponent_after)[number] = past;
}

}  // namespace regard::REGARD_ISA
