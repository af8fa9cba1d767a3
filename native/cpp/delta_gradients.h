// The backward pass of the delta rule: a walk forwards that keeps the state before each chunk and the errors F, then
// one backwards. In the letters of delta.h, with G = scale dO and S' the gradient of the state after the chunk,
//
//     dD = tril(Q K^T)^T G + K S',    R = dD + tril(K K^T, -1)^T Y,    Y = -beta R    (from the last row up)
//     dbeta = -R . F,    dV = -Y,    dP = tril(G D^T),    Z = N + N^T with N = tril(Y D^T, -1)
//     dQ = G S^T + dP K,    dK = Y S^T + D S'^T + dP^T Q + Z K,    S' += Q^T G + K^T Y
//
// where Y is minus the gradient of V. Gradients of keys and queries are made turned round.
#pragma once

#include "delta.h"

namespace regard::REGARD_ISA {

template <class T>
struct DeltaGradientRoom {
    DeltaRoom<T> forward;
    T *grad_state, *grad_out, *grad_out_turned, *residual, *back, *back_turned, *write_turned;
    T *inner, *turned, *slope, *rows;

    static int64_t bytes(const DeltaGradients& grad) {
        DeltaGradientRoom room;
        return room.place(nullptr, grad.call);
    }

    int64_t place(char* start, const DeltaRule& call) {
        int64_t value_width = whole<T>(call.value_width);
        Taker<T> take = {start, forward.place(start, call)};
        grad_state = take(call.width * value_width);
        grad_out = take(CHUNK * value_width);
        grad_out_turned = take(call.value_width * CHUNK);
        residual = take(CHUNK * value_width);
        back = take(CHUNK * value_width);
        back_turned = take(call.value_width * CHUNK);
        write_turned = take(call.value_width * CHUNK);
        inner = take(CHUNK * CHUNK);
        turned = take(CHUNK * CHUNK);
        slope = take(call.width * CHUNK);
        rows = take(CHUNK * whole<T>(call.width));
        return take.offset;
    }
};

// rows[r] += sum_{c > r} links[c][r] write[c], with write[r] = -beta[r] rows[r], from the last row up.
template <class T>
static inline void solve_up(int64_t count, const T* links, const T* beta, int64_t step, T* rows, T* write) {
    constexpr int W = LANES<T>;
    for (int64_t first = (count - 1) / ROWS * ROWS; first >= 0; first -= ROWS) {
        int few = int(least(ROWS, count - first));
        int64_t next = first + few;
        strip<T, BY_INNER, true>(few, int(step / W), {links + next * CHUNK + first, CHUNK}, write + next * step, step,
                                 rows + first * step, step, count - next);
        for (int64_t r = next - 1; r >= first; r--)
            for (int64_t x = 0; x < step; x += W) {
                Vector<T> own = load(rows + r * step + x);
                for (int64_t c = r + 1; c < next; c++) own += load(write + c * step + x) * links[c * CHUNK + r];
                store(rows + r * step + x, own);
                store(write + r * step + x, own * -beta[r]);
            }
    }
}

// The walk forwards: keeps the state before each chunk and the errors of all tokens.
template <class T>
static void keep_states(const DeltaGradients& grad, const DeltaHead<T>& head, DeltaRoom<T>& room) {
    const DeltaRule& call = head.call;
    widen_rows(call.before, head.number, call.width, call.value_width, room.state);
    T* errors = static_cast<T*>(grad.errors) + head.number * call.n * call.value_width;
    for (int64_t index = 0; index < head.chunks(); index++) {
        Chunk chunk = head.chunk(index);
        int64_t place = head.number * head.chunks() + index;
        narrow_rows(room.state, place, call.width, call.value_width, grad.states);
        Rows<T> key = find_errors(head, chunk, room);
        narrow_rows(room.found, 0, chunk.count, call.value_width, errors + chunk.first * call.value_width);
        add_writes(head, chunk.count, key, room);
    }
}

// What find_errors made of a chunk, from what keep_states kept of it.
template <class T>
static Rows<T> read_chunk(const DeltaGradients& grad, const DeltaHead<T>& head, const Chunk& chunk,
                          DeltaRoom<T>& room) {
    const DeltaRule& call = head.call;
    const T* errors = static_cast<const T*>(grad.errors) + (head.number * call.n + chunk.first) * call.value_width;
    int64_t place = head.number * head.chunks() + chunk.first / CHUNK;
    widen_rows(grad.states, place, call.width, call.value_width, room.state);
    widen_rows(errors, 0, chunk.count, call.value_width, room.found);
    Matrix beta = matrix(call.beta, head.b, head.h);
    for (int64_t t = 0; t < chunk.count; t++) {
        room.beta[t] = read<T>(beta, (chunk.first + t) * beta.row);
        for (int64_t x = 0; x < head.step; x += LANES<T>)
            store(room.write + t * head.step + x, load(room.found + t * head.step + x) * -room.beta[t]);
    }
    Rows<T> key = head.rows(call.key, chunk, call.width, room.key);
    turn(key, chunk.count, call.width, T(1), room.key_turned);
    lower_pairs(chunk.count, key, room.key_turned, call.width, true, room.links);
    return key;
}

// R and Y of a chunk, in all.residual and all.back, from G in all.grad_out; the gradients of values and beta follow.
template <class T>
static void chunk_errors(const DeltaGradients& grad, const DeltaHead<T>& head, const Chunk& chunk, Rows<T> query,
                         Rows<T> key, DeltaGradientRoom<T>& all) {
    constexpr int W = LANES<T>;
    DeltaRoom<T>& room = all.forward;
    int64_t count = chunk.count, step = head.step;
    lower_pairs(count, query, room.key_turned, head.call.width, false, room.pairs);
    product<T, BY_ROW, false>(count, int(step / W), {key.data, key.step}, all.grad_state, step, all.residual, step,
                              head.call.width);
    for (int64_t k = 0; k < count; k += ROWS)
        strip<T, BY_INNER, true>(int(least(ROWS, count - k)), int(step / W), {room.pairs + k * CHUNK + k, CHUNK},
                                 all.grad_out + k * step, step, all.residual + k * step, step, count - k);
    solve_up(count, room.links, room.beta, step, all.residual, all.back);
    Matrix value = matrix(grad.value, head.b, head.h), beta = matrix(grad.beta, head.b, head.h);
    for (int64_t t = 0; t < count; t++) {
        Vector<T> total = {};
        for (int64_t x = 0; x < step; x += W) {
            total -= load(all.residual + t * step + x) * load(room.found + t * step + x);
            store(room.out + t * step + x, -load(all.back + t * step + x));
        }
        T slope = sum<T>(total);
        write_row(beta, chunk.first + t, 1, &slope);
        write_row(value, chunk.first + t, head.call.value_width, room.out + t * step);
    }
}

// all.slope (width x CHUNK) += rows^T pairs, rows of tokens
template <class T>
static inline void add_tokens(const DeltaHead<T>& head, int64_t count, Rows<T> rows, const T* pairs, T* slope) {
    int vectors = int((count + LANES<T> - 1) / LANES<T>);
    product<T, BY_INNER, true>(head.call.width, vectors, {rows.data, rows.step}, pairs, CHUNK, slope, CHUNK, count);
}

// all.slope (+)= state rows^T, rows of values turned round
template <class T, bool ADD>
static inline void through_state(const DeltaHead<T>& head, int64_t count, const T* state, const T* rows_turned,
                                 T* slope) {
    int vectors = int((count + LANES<T> - 1) / LANES<T>);
    product<T, BY_ROW, ADD>(head.call.width, vectors, {state, head.step}, rows_turned, CHUNK, slope, CHUNK,
                            head.call.value_width);
}

// Writes a gradient that was made turned round.
template <class T>
static inline void put_turned(const DeltaHead<T>& head, const Chunk& chunk, const Tensor& to,
                              DeltaGradientRoom<T>& all) {
    Rows<T> rows = turn_back(all.slope, chunk.count, head.call.width, all.turned, all.rows);
    for (int64_t t = 0; t < chunk.count; t++)
        write_row(matrix(to, head.b, head.h), chunk.first + t, head.call.width, rows.data + t * rows.step);
}

// The gradients of the queries and keys of a chunk.
template <class T>
static void chunk_tokens(const DeltaGradients& grad, const DeltaHead<T>& head, const Chunk& chunk, Rows<T> query,
                         Rows<T> key, DeltaGradientRoom<T>& all) {
    DeltaRoom<T>& room = all.forward;
    int64_t count = chunk.count, step = head.step, width = head.call.value_width;
    turn<T>({all.grad_out, step}, count, width, T(1), all.grad_out_turned);
    turn<T>({all.back, step}, count, width, T(1), all.back_turned);
    turn<T>({room.write, step}, count, width, T(1), all.write_turned);
    lower_pairs<T>(count, {all.grad_out, step}, all.write_turned, width, false, all.inner);  // dP

    turn<T>({all.inner, CHUNK}, count, CHUNK, T(1), all.turned);
    through_state<T, false>(head, count, room.state, all.grad_out_turned, all.slope);
    add_tokens(head, count, key, all.turned, all.slope);
    put_turned(head, chunk, grad.query, all);

    through_state<T, false>(head, count, room.state, all.back_turned, all.slope);
    through_state<T, true>(head, count, all.grad_state, all.write_turned, all.slope);
    add_tokens(head, count, query, all.inner, all.slope);
    lower_pairs<T>(count, {all.back, step}, all.write_turned, width, true, all.inner);  // N
    turn<T>({all.inner, CHUNK}, count, CHUNK, T(1), all.turned);
    for (int64_t x = 0; x < count * CHUNK; x += LANES<T>)
        store(all.inner + x, load(all.inner + x) + load(all.turned + x));
    add_tokens(head, count, key, all.inner, all.slope);
    put_turned(head, chunk, grad.key, all);
}

template <class T>
static void delta_backward(const DeltaGradients& grad, int64_t number, char* memory) {
    constexpr int W = LANES<T>;
    const DeltaRule& call = grad.call;
    DeltaHead<T> head(call, number);
    DeltaGradientRoom<T> all;
    all.place(memory, call);
    keep_states(grad, head, all.forward);
    widen_rows(grad.grad_after, number, call.width, call.value_width, all.grad_state);
    for (int64_t index = head.chunks() - 1; index >= 0; index--) {
        Chunk chunk = head.chunk(index);
        Rows<T> key = read_chunk(grad, head, chunk, all.forward);
        Rows<T> query = head.rows(call.query, chunk, call.width, all.forward.query);
        Rows<T> given = head.rows(grad.grad_out, chunk, call.value_width, all.grad_out);
        for (int64_t t = 0; t < chunk.count; t++)
            for (int64_t x = 0; x < head.step; x += W)
                store(all.grad_out + t * head.step + x, load(given.data + t * given.step + x) * T(call.scale));
        chunk_errors(grad, head, chunk, query, key, all);
        chunk_tokens(grad, head, chunk, query, key, all);
        int vectors = int(head.step / W);
        product<T, BY_INNER, true>(call.width, vectors, {query.data, query.step}, all.grad_out, head.step,
                                   all.grad_state, head.step, chunk.count);
        product<T, BY_INNER, true>(call.width, vectors, {key.data, key.step}, all.back, head.step,
                                   all.grad_state, head.step, chunk.count);
    }
    narrow_rows(all.grad_state, number, call.width, call.value_width, grad.grad_before);
}

}  // namespace regard::REGARD_ISA
