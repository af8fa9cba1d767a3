// Gradients of one chunk of queries, or of keys and values, in attention by features.
#pragma once

#include "linear.h"

namespace regard::REGARD_ISA {

template <class T>
struct GradientRoom {
    LinearRoom<T> forward;
    T *grad_state, *slope, *slopes, *slope_turned, *value_turned, *value_slope, *pair_slopes, *grad_rows, *share;

    static int64_t bytes(const FeatureGradients& grad) {
        GradientRoom room;
        return room.place(nullptr, grad.call);
    }

    int64_t place(char* start, const FeatureAttention& call) {
        LinearSizes<T> size(call);
        Taker<T> take = {start, forward.place(start, call)};
        grad_state = take(call.features * size.state_step);
        slope = take(size.features);
        slopes = take(CHUNK * size.value_width);
        slope_turned = take((call.value_width + 1) * CHUNK);
        value_turned = take((call.value_width + 1) * CHUNK);
        value_slope = take(CHUNK * size.value_width);
        pair_slopes = take(CHUNK * CHUNK);
        grad_rows = take(CHUNK * CHUNK);
        share = take(CHUNK);
        return take.offset;
    }
};

// The gradient of a chunk's [sum_j w_ij v_j, sum_j w_ij]: rows in room.slopes, and all of it in room.slope_turned,
// whose last row belongs to the sums of weights; the first walk keeps that, so that the second reads no outputs.
template <class T>
static inline void read_slopes(const FeatureGradients& grad, const LinearHead<T>& head, const Chunk& chunk, bool again,
                               GradientRoom<T>& room) {
    constexpr int W = LANES<T>;
    int64_t width = head.call.value_width, step = head.size.value_width;
    const T* totals = static_cast<const T*>(head.call.total) + head.number * head.call.n + chunk.first;
    T* kept = static_cast<T*>(grad.totals) + head.number * head.call.n + chunk.first;
    Rows<T> out = {};
    if (!again) out = chunk_rows(matrix(head.call.out, head.b, head.h), chunk, width, room.forward.out);
    Rows<T> given = chunk_rows(matrix(grad.grad_out, head.b, head.h), chunk, width, room.slopes);
    T* last = room.slope_turned + width * CHUNK;
    for (int64_t t = 0; t < CHUNK; t++) last[t] = 0;
    for (int64_t t = 0; t < chunk.count; t++) {
        Vector<T> total = {};
        T share = 1 / totals[t];
        for (int64_t x = 0; x < step; x += W) {
            Vector<T> slope = load(given.data + t * given.step + x) * share;
            if (!again) total -= slope * load(out.data + t * out.step + x);
            store(room.slopes + t * step + x, slope);
        }
        if (!again) kept[t] = sum<T>(total);
        last[t] = kept[t];
    }
    turn<T>({room.slopes, step}, chunk.count, width, T(1), room.slope_turned);
}

// rows (count x CHUNK) *= factor, number by number of each row
template <class T>
static inline void scale_lanes(T* rows, int64_t count, const T* factor) {
    for (int64_t r = 0; r < count; r++)
        for (int64_t t = 0; t < CHUNK; t += LANES<T>)
            store(rows + r * CHUNK + t, load(rows + r * CHUNK + t) * load(factor + t));
}

// slope (features x CHUNK) += features pairs, where row r of the pairs reaches from lane r on, or up to lane r.
template <class T, PairRows ROWS_ARE>
static inline void add_pairs(const LinearHead<T>& head, int64_t count, const T* features, const T* pairs, T* slope) {
    constexpr int64_t HALF = CHUNK / 2;
    constexpr int VECTORS_OF_HALF = int(HALF / LANES<T>);
    int64_t m = head.call.features, more = count - least(count, HALF);
    int vectors = int((more + LANES<T> - 1) / LANES<T>);
    if (ROWS_ARE == KEY_ROWS) {  // the first half of the queries sees the first half of the keys
        product<T, BY_ROW, true>(m, VECTORS_OF_HALF, {features, CHUNK}, pairs, CHUNK, slope, CHUNK, count - more);
        product<T, BY_ROW, true>(m, vectors, {features, CHUNK}, pairs + HALF, CHUNK, slope + HALF, CHUNK, count);
    } else {  // the second half of the keys is seen by the second half of the queries
        product<T, BY_ROW, true>(m, VECTORS_OF_HALF, {features, CHUNK}, pairs, CHUNK, slope, CHUNK, count);
        product<T, BY_ROW, true>(m, vectors, {features + HALF, CHUNK}, pairs + HALF * CHUNK + HALF, CHUNK, slope + HALF,
                                 CHUNK, more);
    }
}

// What of a token's gradient comes from the features, written where it belongs.
template <class T>
static inline void put_slope(const FeatureGradients& grad, const LinearHead<T>& head, const Chunk& chunk, Rows<T> x,
                             const T* value, bool is_key, GradientRoom<T>& room) {
    T* sums = static_cast<T*>(grad.projection);
    if (sums) sums += head.number * head.call.rows * projection_step<T>(head.call.width);
    Matrix to = matrix(is_key ? grad.key : grad.query, head.b, head.h);
    features_backward(head.call, head.projection, x, chunk, value, room.slope, is_key, sums, to, room.grad_rows,
                      room.forward.out);
}

// The gradient of a chunk of queries that find the sums in room.state, and causal the keys of the chunk `own`.
template <class T>
static inline void query_gradient(const LinearHead<T>& head, const Chunk& chunk, const Chunk& own, Rows<T> value,
                                  T past, GradientRoom<T>& all) {
    constexpr int W = LANES<T>;
    LinearRoom<T>& room = all.forward;
    const FeatureAttention& call = head.call;
    int vectors = int((chunk.count + W - 1) / W);
    if (call.causal) {
        if (has_exponent(call.kind)) running_top(own.count, room.exponent, past, room.top, all.share);
        for (int64_t k = 0; k < own.count; k++)
            memcpy(all.pair_slopes + k * CHUNK, all.slope_turned + call.value_width * CHUNK, CHUNK * sizeof(T));
        for (int64_t k = 0; k < own.count; k += ROWS) {
            int64_t from = k / W * W;
            strip<T, BY_ROW, true>(int(least(ROWS, own.count - k)), vectors - int(from / W),
                                   {value.data + k * value.step, value.step}, all.slope_turned + from, CHUNK,
                                   all.pair_slopes + k * CHUNK + from, CHUNK, call.value_width);
        }
        weigh_pairs<T, KEY_ROWS>(head, own.count, room.exponent, room.top, all.pair_slopes);
        if (has_exponent(call.kind)) scale_lanes(all.slope_turned, call.value_width + 1, all.share);
    }
    product<T, BY_ROW, false>(call.features, vectors, {room.state, head.size.state_step}, all.slope_turned, CHUNK,
                              all.slope, CHUNK, call.value_width + 1);
    if (call.causal) add_pairs<T, KEY_ROWS>(head, own.count, room.key, all.pair_slopes, all.slope);
}

// The gradient of a chunk of keys and values whose sums have the gradient room.grad_state, relative to e^`after`.
// Causal, the queries that stand beside them are in the room, with their features and slopes.
template <class T>
static inline void key_gradient(const FeatureGradients& grad, const LinearHead<T>& head, const Chunk& chunk,
                                Rows<T> value, bool causal, T before, T after, GradientRoom<T>& all) {
    constexpr int W = LANES<T>;
    LinearRoom<T>& room = all.forward;
    const FeatureAttention& call = head.call;
    int64_t count = chunk.count, step = head.size.value_width, m = call.features;
    int vectors = int((count + W - 1) / W);
    turn(value, count, call.value_width, T(1), all.value_turned);
    for (int64_t t = 0; t < CHUNK; t++) all.value_turned[call.value_width * CHUNK + t] = 1;
    if (causal) {
        if (has_exponent(call.kind)) running_top(count, room.exponent, before, room.top, all.share);
        for (int64_t q = 0; q < count; q += ROWS) {
            int few = int(least(ROWS, count - q)), reach = (int(q) + few + W - 1) / W;
            strip<T, BY_INNER, false>(few, reach, {all.slope_turned + q, CHUNK}, all.value_turned, CHUNK,
                                      all.pair_slopes + q * CHUNK, CHUNK, call.value_width + 1);
            strip<T, BY_INNER, false>(few, reach, {room.query + q, CHUNK}, room.key, CHUNK, room.pairs + q * CHUNK,
                                      CHUNK, m);
        }
        weigh_pairs<T, QUERY_ROWS>(head, count, room.exponent, room.top, all.pair_slopes);
        weigh_pairs<T, QUERY_ROWS>(head, count, room.exponent, room.top, room.pairs);
    }
    key_weights(head, chunk, room.exponent, after, room.weight);
    product<T, BY_INNER, false>(count, int(step / W), {room.key, CHUNK}, all.grad_state, head.size.state_step,
                                all.value_slope, step, m);
    if (has_exponent(call.kind)) {
        scale_lanes(all.value_turned, call.value_width + 1, room.weight);
        for (int64_t k = 0; k < count; k++)
            for (int64_t x = 0; x < step; x += W)
                store(all.value_slope + k * step + x, load(all.value_slope + k * step + x) * room.weight[k]);
    }
    product<T, BY_ROW, false>(m, vectors, {all.grad_state, head.size.state_step}, all.value_turned, CHUNK, all.slope,
                              CHUNK, call.value_width + 1);
    if (causal) {
        add_pairs<T, QUERY_ROWS>(head, count, room.query, all.pair_slopes, all.slope);
        for (int64_t k = 0; k < count; k += ROWS)
            strip<T, BY_INNER, true>(int(least(ROWS, count - k)), int(step / W), {room.pairs + k * CHUNK + k, CHUNK},
                                     all.slopes + k * step, step, all.value_slope + k * step, step, count - k);
    }
    Matrix to = matrix(grad.value, head.b, head.h);
    for (int64_t k = 0; k < count; k++) write_row(to, chunk.first + k, call.value_width, all.value_slope + k * step);
}

// room.grad_state += features of queries x their slopes, in which causal the sums weigh room.share.
template <class T>
static inline void add_slopes(const LinearHead<T>& head, int64_t count, GradientRoom<T>& all) {
    int64_t step = head.size.value_width;
    T* last = all.slope_turned + head.call.value_width * CHUNK;
    if (head.call.causal && has_exponent(head.call.kind)) {
        for (int64_t q = 0; q < count; q++)
            for (int64_t x = 0; x < step; x += LANES<T>)
                store(all.slopes + q * step + x, load(all.slopes + q * step + x) * all.share[q]);
        scale_lanes(last, 1, all.share);
    }
    add_outer(head, all.forward.query, count, {all.slopes, step}, last, all.grad_state);
}

}  // namespace regard::REGARD_ISA
