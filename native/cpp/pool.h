// Worker threads: started when first needed, asleep between calls, never joined.
#pragma once

namespace regard {

// A piece of work that any number of workers may enter; it shares itself out, for example by an atomic counter.
using Work = void (*)(void* context, int worker);

// Runs `work` on up to `threads` workers, the caller being worker 0, and returns when all have come back.
// While another Python thread has the workers, the caller does everything itself.
void run(int threads, Work work, void* context);

// The same for anything that is called with the worker's number.
template <class Function>
void run(int threads, Function& function) {
    run(threads, [](void* context, int worker) { (*static_cast<Function*>(context))(worker); }, &function);
}

}  // namespace regard
