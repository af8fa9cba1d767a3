// The backward pass of attention by features (src/regard/ops/feature_gradients.py): features are made again, none are
// kept. Causal, the queries are walked forwards, beside the sums that they met, and the keys backwards, beside the
// gradient of the sums that follow them.
#pragma once

#include "linear_gradients.h"

namespace regard::REGARD_ISA {

// All queries in a row: causal beside the sums before each chunk, whose exponents are kept; else beside those of all
// keys, whose gradient is complete at the end. -> the exponent at the end.
template <class T>
static T all_queries(const FeatureGradients& grad, const LinearHead<T>& head, T past, T* exponents,
                     GradientRoom<T>& all) {
    const FeatureAttention& call = head.call;
    LinearRoom<T>& room = all.forward;
    for (int64_t first = 0; first < call.n; first += CHUNK) {
        exponents[first / CHUNK] = past;
        Chunk chunk = head.queries(first), own = call.causal ? head.keys(head.seen() + first, call.m) : chunk;
        read_slopes(grad, head, chunk, false, all);
        Rows<T> value = {};
        if (call.causal) value = read_keys(head, own, room);
        // the room of the tokens is the queries' from here on, and that of the exponents stays the keys'
        Rows<T> x = chunk_rows(matrix(call.query, head.b, head.h), chunk, call.width, room.tokens);
        make_features(call, head.projection, x, chunk, room.turned, room.query, all.share);
        query_gradient(head, chunk, own, value, past, all);
        put_slope(grad, head, chunk, x, room.query, false, all);
        if (call.causal)
            past = add_keys(head, own, value, past, room);
        else
            add_slopes(head, chunk.count, all);
    }
    return past;
}

// The keys from `first` to `end`, the last chunk first. Causal, queries stand beside them.
template <class T>
static void some_keys(const FeatureGradients& grad, const LinearHead<T>& head, int64_t first, int64_t end, bool causal,
                      const T* exponents, T after, GradientRoom<T>& all) {
    const FeatureAttention& call = head.call;
    LinearRoom<T>& room = all.forward;
    for (int64_t number = (end - first + CHUNK - 1) / CHUNK - 1; number >= 0; number--) {
        Chunk chunk = head.keys(first + number * CHUNK, end), beside = head.queries(causal ? number * CHUNK : 0);
        T before = causal ? exponents[number] : after;
        if (causal) {
            read_slopes(grad, head, beside, true, all);
            Rows<T> x = chunk_rows(matrix(call.query, head.b, head.h), beside, call.width, room.tokens);
            make_features(call, head.projection, x, beside, room.turned, room.query, room.exponent);
        }
        Rows<T> value = read_keys(head, chunk, room);
        key_gradient(grad, head, chunk, value, causal, before, after, all);
        // as read_keys left them
        Rows<T> x = chunk_rows(matrix(call.key, head.b, head.h), chunk, call.width, room.tokens);
        put_slope(grad, head, chunk, x, room.key, true, all);
        if (causal) {
            rescale(head, all.grad_state, before, after);
            add_slopes(head, beside.count, all);
            after = before;
        }
    }
}

template <class T>
static void linear_backward(const FeatureGradients& grad, int64_t number, char* memory) {
    const FeatureAttention& call = grad.call;
    Flushing flushing;
    LinearHead<T> head(call, number);
    GradientRoom<T> all;
    all.place(memory, call);
    LinearRoom<T>& room = all.forward;
    T* exponents = static_cast<T*>(grad.exponents) + number * ((call.n + CHUNK - 1) / CHUNK);
    T start = static_cast<const T*>(call.exponent_before)[number];
    T seen = static_cast<const T*>(call.exponent_after)[number];
    read_state(call, number, grad.grad_after, all.grad_state);
    if (call.causal) {
        read_state(call, number, call.before, room.state);
        T end = seen;
        seen = start;
        for (int64_t first = 0; first < head.seen(); first += CHUNK) {
            Chunk chunk = head.keys(first, head.seen());
            Rows<T> value = read_keys(head, chunk, room);
            seen = add_keys(head, chunk, value, seen, room);
        }
        all_queries(grad, head, seen, exponents, all);
        some_keys(grad, head, head.seen(), call.m, true, exponents, end, all);
    } else {
        read_state(call, number, call.after, room.state);
        all_queries(grad, head, seen, exponents, all);
    }
    some_keys(grad, head, 0, head.seen(), false, exponents, seen, all);
    rescale(head, all.grad_state, start, seen);
    write_state(call, number, all.grad_state, grad.grad_before);
}

}  // namespace regard::REGARD_ISA
