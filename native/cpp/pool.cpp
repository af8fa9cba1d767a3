#include "pool.h"

#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace regard {
namespace {

class Pool {
public:
    void run(int threads, Work work, void* context) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (threads <= 1 || !mine.owns_lock()) return work(context, 0);
        {
            std::lock_guard<std::mutex> guard(state_);
            while (started_ < threads - 1 && start()) {
            }
            work_ = work;
            context_ = context;
            wanted_ = threads - 1 < started_ ? threads - 1 : started_;
            running_ = wanted_;
            ++round_;
        }
        wake_.notify_all();
        work(context, 0);
        std::unique_lock<std::mutex> guard(state_);
        done_.wait(guard, [this] { return running_ == 0; });
    }

private:
    bool start() {  // false where the system gives no more threads: those there are do the work
        try {
            std::thread(&Pool::serve, this, started_ + 1, round_).detach();
        } catch (...) {
            return false;
        }
        ++started_;
        return true;
    }

    void serve(int worker, unsigned long seen) {
        std::unique_lock<std::mutex> guard(state_);
        for (;;) {
            wake_.wait(guard, [&] { return round_ != seen; });
            seen = round_;
            if (worker > wanted_) continue;
            Work work = work_;
            void* context = context_;
            guard.unlock();
            work(context, worker);
            guard.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex busy_;   // held by the caller whose work the workers do
    std::mutex state_;  // guards all that follows
    std::condition_variable wake_, done_;
    Work work_ = nullptr;
    void* context_ = nullptr;
    unsigned long round_ = 0;
    int started_ = 0, wanted_ = 0, running_ = 0;
};

// Pools are never destroyed: their workers may outlive everything else. A forked child has none of its parent's
// threads, and its copy of the locks may be held by one of them, so it gets a pool of its own.
Pool* current = nullptr;

void renew() { current = new Pool; }

Pool& pool() {
    static const bool once = [] {
        renew();
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork(nullptr, nullptr, renew);
#endif
        return true;
    }();
    (void)once;
    return *current;
}

}  // namespace

void run(int threads, Work work, void* context) { pool().run(threads, work, context); }

}  // namespace regard
