// Interleaved storage of narrow images.
#pragma once

#include <type_traits>

#include "vectors.h"

// Narrow images are interleaved as [images / abreast][pixels][abreast]. The number of interleaved images is the power of
// two for which a row fills a vector.
inline Index abreast_of(Index images, Index width) {
  Index abreast = LANES;
  while (abreast > 1 && (abreast * width > LANES || images % abreast)) abreast /= 2;
  return abreast;
}

// Calls use(constant) with `abreast` as a compile-time constant.
template <class Use>
INLINE void with_abreast(Index abreast, const Use& use) {
  switch (abreast) {
    case 1: return use(std::integral_constant<int, 1>());
    case 2: return use(std::integral_constant<int, 2>());
    case 4: return use(std::integral_constant<int, 4>());
    case 8: return use(std::integral_constant<int, 8>());
    default: return use(std::integral_constant<int, 16>());
  }
}

// Interleaves A images: to[p·A + a] = from[a·of_image + p·of_pixel] for all pixels p.
INLINE void put_abreast(const float* from, Index of_image, Index of_pixel, Index pixels, Index abreast, float* to) {
  with_abreast(abreast, [&](auto count) {
    constexpr int A = decltype(count)::value;
    for (Index p = 0; p < pixels; p++, from += of_pixel, to += A)
      UNROLL for (int a = 0; a < A; a++) to[a] = from[a * of_image];
  });
}

// Separates A interleaved images: to[a·of_image + p·of_pixel] = from[p·A + a].
INLINE void put_apart(const float* from, Index of_image, Index of_pixel, Index pixels, Index abreast, float* to) {
  with_abreast(abreast, [&](auto count) {
    constexpr int A = decltype(count)::value;
    for (Index p = 0; p < pixels; p++, from += A, to += of_pixel)
      UNROLL for (int a = 0; a < A; a++) to[a * of_image] = from[a];
  });
}
