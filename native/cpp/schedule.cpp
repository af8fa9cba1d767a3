#include "schedule.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace regard {
namespace {

constexpr int64_t SHARING = 4;  // query heads of a group that are worked off together, so that a tile is read once
constexpr int64_t PIECES = 8;   // of a backward pass for each worker: the last ones to finish are then not long alone
constexpr int64_t HEAVY = 4;    // rows with this many times the average number of tiles are begun first

// Memory of a worker, aligned for vectors, kept until the worker is gone.
char* room(int64_t bytes) {
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<void, Free> kept;
    thread_local int64_t size = 0;
    if (bytes > size) {
        kept.reset();
        size = (bytes + 4095) / 4096 * 4096;
        kept.reset(std::aligned_alloc(4096, size));
        if (!kept) {
            size = 0;
            throw std::bad_alloc();
        }
    }
    return static_cast<char*>(kept.get());
}

// Calls `piece(number)` for 0 <= number < count, `step` neighbours at a time by whoever is free.
template <class Piece>
void share(int64_t threads, int64_t count, int64_t step, Piece piece) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    auto work = [&](int) {
        try {
            for (int64_t start; (start = next.fetch_add(step)) < count;)
                for (int64_t number = start; number < std::min(start + step, count); number++) piece(number);
        } catch (const std::bad_alloc&) {  // nothing may leave a worker's thread, nor this one while others work
            failed = true;
        }
    };
    run(int(std::min(threads, (count + step - 1) / step)), work);
    if (failed) throw std::bad_alloc();
}

// The stages of one item follow each other, whoever does them: they add to the same sums. Who waits here waits for a
// stage that another worker has begun already, since stages are handed out in order.
class Turn {
public:
    Turn(std::atomic<int64_t>& done, int64_t stage) : done_(done) {
        while (done_.load(std::memory_order_acquire) != stage) std::this_thread::yield();
    }
    ~Turn() { done_.fetch_add(1, std::memory_order_release); }  // also if the stage has failed

private:
    std::atomic<int64_t>& done_;
};

// Query heads that share a key head and a plane, so that one worker does them together.
struct Bunch {
    int64_t first, heads, index;
};

std::vector<Bunch> bunches(const Attention& call, const Part& part) {
    int64_t rep = call.heads / call.groups;
    std::vector<Bunch> found;
    for (int64_t index = 0; index < part.heads; index++) {
        int64_t h = part.head[index];
        bool joins = !found.empty() && !part.by_head && found.back().heads < SHARING &&
                     h == found.back().first + found.back().heads && h / rep == found.back().first / rep;
        if (joins)
            found.back().heads++;
        else
            found.push_back({h, 1, index});
    }
    return found;
}

void forward_part(const Attention& call, const Part& part, bool join, const Kernels& kernels) {
    struct Item {
        int64_t b, bunch, plane, row;
    };
    std::vector<Bunch> heads = bunches(call, part);
    int64_t count = int64_t(heads.size());
    auto item_of = [&](int64_t number) {
        int64_t row = number % part.rows, bunch = number / part.rows % count, b = number / part.rows / count;
        int64_t plane = (part.planes_batch > 1 ? b : 0) * (part.by_head ? part.heads : 1);
        return Item{b, bunch, plane + (part.by_head ? heads[bunch].index : 0), row};
    };
    int64_t planes = part.planes_batch * (part.by_head ? part.heads : 1);
    int64_t tiles = part.row_pointer[planes * part.rows], limit = HEAVY * (tiles / std::max<int64_t>(1, planes * part.rows) + 1);
    auto heavy = [&](const Item& item) {
        const int64_t* at = part.row_pointer + item.plane * part.rows + item.row;
        return at[1] - at[0] > limit;
    };
    int64_t all = call.batch * count * part.rows;
    std::vector<int64_t> first;
    if (call.threads > 1)
        for (int64_t number = 0; number < all; number++)
            if (heavy(item_of(number))) first.push_back(number);
    int64_t bytes = kernels.forward_bytes(call, SHARING);
    auto piece = [&](int64_t number) {
        Item item = item_of(number);
        const Bunch& bunch = heads[item.bunch];
        kernels.forward_row(call, part, join, item.b, bunch.first, bunch.heads, item.plane, item.row, room(bytes));
    };
    share(call.threads, int64_t(first.size()), 1, [&](int64_t number) { piece(first[number]); });
    bool light_only = !first.empty();
    // neighbours share their keys, which are then in the cache
    int64_t step = std::clamp<int64_t>(all / (8 * std::max<int64_t>(1, call.threads)), 1, 16);
    share(call.threads, all, step, [&](int64_t number) {
        if (!(light_only && heavy(item_of(number)))) piece(number);
    });
}

// Where each slice of the columns begins, so that all have about as many tiles.
std::vector<int64_t> slices(const Part& part, int64_t slots) {
    int64_t planes = part.planes_batch * (part.by_head ? part.heads : 1), total = part.column_pointer[planes * part.columns];
    std::vector<int64_t> starts = {0};
    int64_t seen = 0;
    for (int64_t column = 0; column < part.columns; column++) {
        if (seen * slots >= total * int64_t(starts.size()) && int64_t(starts.size()) < slots && column) starts.push_back(column);
        for (int64_t plane = 0; plane < planes; plane++) {
            const int64_t* at = part.column_pointer + plane * part.columns + column;
            seen += at[1] - at[0];
        }
    }
    while (int64_t(starts.size()) <= slots) starts.push_back(part.columns);
    return starts;
}

// Those for inputs of this dtype where no units are made for it.
const Kernels& plain_kernels(Dtype dtype) { return kernels(dtype == FLOAT64 ? 8 : 4); }

// Each head of each sequence to whoever is free.
template <class Call, class Whole>
void share_heads(const Call& call, const Whole& whole, int64_t (*bytes)(const Whole&),
                 void (*head)(const Whole&, int64_t, char*)) {
    int64_t size = bytes(whole);
    share(call.threads, call.batch * call.heads, 1, [&](int64_t number) { head(whole, number, room(size)); });
}

}  // namespace

void forward(const Attention& call) {
    const Kernels& found = attention_kernels(call.query.dtype);
    for (int64_t p = 0; p < call.parts; p++) forward_part(call, call.part[p], p > 0, found);
}

void backward(const AttentionGradients& grad) {
    const Attention& call = grad.call;
    const Kernels& found = attention_kernels(call.query.dtype);
    int64_t bytes = found.backward_bytes(call);
    share(call.threads, call.batch * call.heads, 1, [&](int64_t number) {
        found.backward_start(grad, number / call.heads, number % call.heads, room(bytes));
    });
    int64_t units = call.batch * call.groups, items = grad.together ? grad.slots : grad.slots * units;
    int64_t stages = call.threads > 1 ? (PIECES * call.threads + items - 1) / items : 1;
    for (int64_t p = 0; p < call.parts; p++) {
        const Part& part = call.part[p];
        AttentionGradients mine = grad;
        mine.accumulate |= p > 0;  // the first part writes what the others add to
        std::vector<int64_t> start = slices(part, grad.slots * stages);
        auto columns = [&](int64_t slot, int64_t stage, int64_t unit) {
            const int64_t* from = &start[slot * stages + stage];
            for (int64_t column = from[0]; column < from[1]; column++)
                found.backward_column(mine, part, slot, unit / call.groups, unit % call.groups, column, room(bytes));
        };
        std::vector<std::atomic<int64_t>> done(items);
        share(call.threads, items * stages, 1, [&](int64_t number) {
            int64_t item = number % items, stage = number / items;
            Turn turn(done[item], stage);
            if (!grad.together) return columns(item % grad.slots, stage, item / grad.slots);
            for (int64_t unit = 0; unit < units; unit++) columns(item, stage, unit);
        });
    }
    if (grad.slots > 1)
        share(call.threads, call.batch * call.heads, 1,
              [&](int64_t number) { found.backward_sum(grad, number / call.heads, number % call.heads); });
}

void linear_forward(const FeatureAttention& call) {
    const Kernels& found = plain_kernels(call.query.dtype);
    share_heads(call, call, found.linear_forward_bytes, found.linear_forward);
}

void linear_backward(const FeatureGradients& grad) {
    const Kernels& found = plain_kernels(grad.call.query.dtype);
    share_heads(grad.call, grad, found.linear_backward_bytes, found.linear_backward);
}

void delta_forward(const DeltaRule& call) {
    const Kernels& found = plain_kernels(call.query.dtype);
    share_heads(call, call, found.delta_forward_bytes, found.delta_forward);
}

void delta_backward(const DeltaGradients& grad) {
    const Kernels& found = plain_kernels(grad.call.query.dtype);
    share_heads(grad.call, grad, found.delta_backward_bytes, found.delta_backward);
}

}  // namespace regard
