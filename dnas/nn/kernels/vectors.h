// Vectors of floats in the compiler's own extension, so that one source serves AVX-512, AVX2, NEON and plain SSE.
#pragma once

#include <cstdint>
#include <cstring>

using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

// Accumulators of a micro-kernel: rows of two vectors. They must all fit into registers, of which there are 32 or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MOST_ROWS = 12;
constexpr int DOT_ROWS = 6, DOT_COLUMNS = 4;
#else
constexpr int MOST_ROWS = 6;
constexpr int DOT_ROWS = 4, DOT_COLUMNS = 3;
#endif

constexpr int PANEL = 2 * LANES;  // pixels that a micro-kernel works on at once

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE Vector load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

INLINE void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

INLINE Vector all(float s) {
#if defined(__AVX512F__)
  return Vector{s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s};
#elif defined(__AVX__)
  return Vector{s, s, s, s, s, s, s, s};
#else
  return Vector{s, s, s, s};
#endif
}

// The first n lanes, 0 < n; the others are zero.
INLINE Vector load_first(const float* p, Index n) {
  if (n >= LANES) return load(p);
  float lanes[LANES] = {};
  for (Index i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}

INLINE Vector keep_first(Vector v, Index n) {
  if (n >= LANES) return v;
  float lanes[LANES];
  store(lanes, v);
  for (Index i = n; i < LANES; i++) lanes[i] = 0;
  return load(lanes);
}

INLINE void store_first(float* p, Vector v, Index n) {
  if (n >= LANES) return store(p, v);
  float lanes[LANES];
  store(lanes, v);
  for (Index i = 0; i < n; i++) p[i] = lanes[i];
}

// max(v, 0), and NaN where v is: a training that diverges must show it.
INLINE Vector relu(Vector v) {
  const Vector zero = {};
  return zero > v ? zero : v;
}

// v where z > 0, else 0.
INLINE Vector where_positive(Vector z, Vector v) {
  const Vector zero = {};
  return z > zero ? v : zero;
}

typedef float Quad __attribute__((vector_size(16)));

INLINE Quad folded(Vector v) {
  Quad parts[LANES / 4];
  std::memcpy(parts, &v, sizeof v);
  Quad sum = parts[0];
  UNROLL for (int i = 1; i < LANES / 4; i++) sum += parts[i];
  return sum;
}

INLINE float sum(Vector v) {
  const Quad q = folded(v);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

INLINE Index rounded_up(Index value, Index step) { return (value + step - 1) / step * step; }
