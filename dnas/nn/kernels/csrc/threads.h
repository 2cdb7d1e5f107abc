// A team of threads that runs work(part) for every part. The parts do not depend on the speed of threads, so that an equal
// number of threads produces equal bits.
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
  // Runs work(0) in the calling thread and the other parts in workers. A concurrent second caller runs all its parts by
  // itself. Throws std::bad_alloc after all parts have ended if one of them ran out of memory.
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
        std::this_thread::yield();  // a worker may be waiting for this core
    }
    if (no_memory_) throw std::bad_alloc();
  }

 private:
  static constexpr int SPINS = 4000;  // some tens of microseconds: the next work usually follows soon

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

// The pool of the process, which lives as long as the process. A forked child has no threads of its parent, so it creates
// its own pool and abandons the old one.
inline Pool*& pool_of_process() {
  static Pool* pool = nullptr;
  return pool;
}

inline Pool& pool() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { pool_of_process() = nullptr; }); });
  static std::mutex making;  // held so briefly that a fork is not expected meanwhile
  std::lock_guard<std::mutex> hold(making);
  if (pool_of_process() == nullptr) pool_of_process() = new Pool;
  return *pool_of_process();
}

// The number of threads, and the number of parts that work is divided into. Large work has more parts than threads, so
// that a delayed thread runs fewer of them. Sums are stored per part and added in order.
struct Team {
  int threads, parts;

  // Uses fewer threads than requested if each would have too little work. `products` are the multiply-adds of a layer.
  Team(int requested, Index pixels, Index products)
      : threads(static_cast<int>(std::clamp<Index>(products / THREAD_PRODUCTS, 1, requested))),
        parts(threads == 1 ? 1 : threads * static_cast<int>(std::clamp<Index>(pixels / threads / PART_PIXELS, 1, 4))) {}

  // Runs work(part) for each part.
  template <class Work>
  void run(const Work& work) const {
    std::atomic<int> next{0};
    const auto take_parts = [&](int) {
      for (int part; (part = next.fetch_add(1)) < parts;) work(part);
    };
    if (threads == 1)
      take_parts(0);
    else
      pool().run(threads, take_parts);
  }

  // Runs work(part, from, to) for shares of [0, count) that start at multiples of `step`.
  template <class Work>
  void split(Index count, Index step, const Work& work) const {
    const Index steps = (count + step - 1) / step;
    run([&](int part) {
      const Index from = steps * part / parts * step, to = steps * (part + 1) / parts * step;
      if (from < count && from < to) work(part, from, to < count ? to : count);
    });
  }

 private:
  static constexpr Index PART_PIXELS = 2048;
  static constexpr Index THREAD_PRODUCTS = 1 << 19;  // per thread: about ten microseconds
};
