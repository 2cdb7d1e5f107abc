// Aligned memory that is released automatically.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#include "vectors.h"

// Requests large pages where the system has them. Every new page is filled with zeros at first access, and a step would
// need hundreds of thousands of small pages.
inline void prefer_large_pages(float* from, Index count) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t LARGE = 2 << 20;
  const auto first = (reinterpret_cast<std::uintptr_t>(from) + LARGE - 1) / LARGE * LARGE;
  const auto last = reinterpret_cast<std::uintptr_t>(from + count) / LARGE * LARGE;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)from, (void)count;
#endif
}

class Floats {
 public:
  Floats() = default;
  explicit Floats(Index count) { grow(count); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  ~Floats() { std::free(data_); }

  // Makes room for at least `count` floats. The contents are undefined afterwards if the memory grows.
  float* grow(Index count) {
    if (count > size_) {
      std::free(data_);
      data_ = nullptr;
      const Index bytes = rounded_up(count * static_cast<Index>(sizeof(float)), 64);
      data_ = static_cast<float*>(std::aligned_alloc(64, static_cast<std::size_t>(bytes)));
      if (data_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
      prefer_large_pages(data_, count);
      size_ = count;
    }
    return data_;
  }

  float* zeros(Index count) {
    std::memset(grow(count), 0, static_cast<std::size_t>(count) * sizeof(float));
    return data_;
  }

  float* data() const { return data_; }

 private:
  float* data_ = nullptr;
  Index size_ = 0;
};

// Floats from one channel of a buffer to the next, for channels of `pixels`. There is room for a complete last panel. The
// number of cache lines is odd, so that equal pixels of different channels map to different cache sets.
inline Index pitch_of(Index pixels) {
  const Index lines = (rounded_up(pixels, 64) + 32) / 16;
  return (lines | 1) * 16;
}
