// A team of threads: work(part) for every part. What a part is never depends on who is faster, so that the same number
// of threads gives the same bits.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "vectors.h"

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#else
#define RELAX() std::this_thread::yield()
#endif

class Pool {
 public:
  // work(0) runs here, the others in workers. A second caller meanwhile does all the parts of its work by itself.
  // Throws std::bad_alloc, when all have ended, where a part found no memory.
  void run(int parts, const std::function<void(int)>& work) {
    std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
    if (!alone.owns_lock()) {
      for (int part = 0; part < parts; part++) work(part);
      return;
    }
    no_memory_ = false;
    while (static_cast<int>(workers_.size()) < parts - 1) add_worker();
    {
      std::lock_guard<std::mutex> hold(mutex_);
      work_ = &work;
      parts_ = parts;
      left_.store(parts - 1);
      round_.fetch_add(1);
    }
    wake_.notify_all();
    attempt(0);
    for (int i = 0; left_.load(std::memory_order_acquire) > 0; i++) {
      if (i < SPINS)
        RELAX();
      else
        std::this_thread::yield();  // a worker may be waiting for this very core
    }
    if (no_memory_) throw std::bad_alloc();
  }

 private:
  static constexpr int SPINS = 4000;  // some tens of microseconds: the next piece of work is mostly about to come

  void attempt(int part) {
    try {
      (*work_)(part);
    } catch (const std::bad_alloc&) {
      no_memory_ = true;
    }
  }

  void add_worker() {
    const int part = static_cast<int>(workers_.size()) + 1;
    const Index seen = round_.load();
    workers_.emplace_back([this, part, seen] { serve(part, seen); });
  }

  void serve(int part, Index seen) {
    while (true) {
      for (int i = 0; i < SPINS && round_.load(std::memory_order_acquire) == seen; i++) RELAX();
      {
        std::unique_lock<std::mutex> hold(mutex_);
        wake_.wait(hold, [&] { return round_.load() != seen; });
        seen = round_.load();
        if (part >= parts_) continue;
      }
      attempt(part);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* work_ = nullptr;
  int parts_ = 0;
  std::atomic<bool> no_memory_{false};
  std::atomic<Index> round_{0};
  std::atomic<int> left_{0};
};

// The process's pool, which ends with it. A forked child has none of its parent's threads: it begins anew, and leaves the old one alone.
inline Pool*& pool_of_process() {
  static Pool* pool = nullptr;
  return pool;
}

inline Pool& pool() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { pool_of_process() = nullptr; }); });
  static std::mutex making;  // held for so short that no fork is expected to meet it
  std::lock_guard<std::mutex> hold(making);
  if (pool_of_process() == nullptr) pool_of_process() = new Pool;
  return *pool_of_process();
}

// So many threads, and the parts that work is cut into: more than threads where there is enough of it, so that a thread
// that the machine holds up is given fewer. Sums are kept by part, and added in their order.
struct Team {
  int threads, parts;

  // Fewer threads than asked for where each would have too little to do: `products`, of a layer, to be shared out.
  Team(int asked, Index pixels, Index products)
      : threads(static_cast<int>(std::clamp<Index>(products / WORTH_WAKING, 1, asked))),
        parts(threads == 1 ? 1 : threads * static_cast<int>(std::clamp<Index>(pixels / threads / ENOUGH, 1, 4))) {}

  // work(part) for each.
  template <class Work>
  void run(const Work& work) const {
    std::atomic<int> next{0};
    const auto some = [&](int) {
      for (int part; (part = next.fetch_add(1)) < parts;) work(part);
    };
    if (threads == 1)
      some(0);
    else
      pool().run(threads, some);
  }

  // work(part, from, to) for a share of [0, count) each; shares begin at multiples of step.
  template <class Work>
  void split(Index count, Index step, const Work& work) const {
    const Index steps = (count + step - 1) / step;
    run([&](int part) {
      const Index from = steps * part / parts * step, to = steps * (part + 1) / parts * step;
      if (from < count && from < to) work(part, from, to < count ? to : count);
    });
  }

 private:
  static constexpr Index ENOUGH = 2048;  // pixels of a part
  static constexpr Index WORTH_WAKING = 1 << 19;  // products: some ten microseconds
};
