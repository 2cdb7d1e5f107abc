// Vectors of floats in the compiler's vector extension, so that one source supports AVX-512, AVX2, NEON and plain SSE.
#pragma once

#if defined(__SSE__)
#include <immintrin.h>
#endif

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

// Rows of accumulators of a micro-kernel, two vectors each. All of them must fit into the 32 or 16 vector registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MOST_ROWS = 12;
constexpr int DOT_ROWS = 6, DOT_COLUMNS = 4;
#else
constexpr int MOST_ROWS = 6;
constexpr int DOT_ROWS = 4, DOT_COLUMNS = 3;
#endif

constexpr int PANEL = 2 * LANES;  // pixels that a micro-kernel processes together

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// Makes the compiler keep v in a register instead of reloading it for each product.
#if defined(__AVX512F__)
#define KEEP(v) asm("" : "+v"(v))
#elif defined(__x86_64__)
#define KEEP(v) asm("" : "+x"(v))
#else
#define KEEP(v)
#endif

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

// The first n > 0 lanes, followed by zeros: load_first reads them from memory, keep_first takes them from v. n may exceed
// LANES.
#if defined(__AVX512F__)
INLINE __mmask16 first(Index n) { return n >= LANES ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }
INLINE Vector load_first(const float* p, Index n) { return (Vector)_mm512_maskz_loadu_ps(first(n), p); }
INLINE Vector keep_first(Vector v, Index n) { return (Vector)_mm512_maskz_mov_ps(first(n), (__m512)v); }
#elif defined(__AVX2__)
INLINE __m256i first(Index n) {
  alignas(32) static const int lanes[] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes + LANES - (n < LANES ? n : LANES)));
}
INLINE Vector load_first(const float* p, Index n) { return (Vector)_mm256_maskload_ps(p, first(n)); }
INLINE Vector keep_first(Vector v, Index n) { return (Vector)_mm256_and_ps((__m256)v, (__m256)first(n)); }
#else
INLINE Vector load_first(const float* p, Index n) {
  if (n >= LANES) return load(p);
  float lanes[LANES] = {};
  for (Index i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}
INLINE Vector keep_first(Vector v, Index n) {
  float lanes[LANES];
  store(lanes, v);
  return load_first(lanes, n);
}
#endif

// max(v, 0), and NaN for NaN, so that divergence remains visible.
INLINE Vector relu(Vector v) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps(_mm512_setzero_ps(), (__m512)v);  // returns the second operand if the two are unordered
#elif defined(__AVX2__)
  return (Vector)_mm256_max_ps(_mm256_setzero_ps(), (__m256)v);
#else
  const Vector zero = {};
  return zero > v ? zero : v;
#endif
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

// The four horizontal sums of four vectors.
INLINE Quad sums(Vector a, Vector b, Vector c, Vector d) {
#if defined(__AVX512F__)
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));  // a02 b02 a13 b13 in each quarter
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 low = _mm512_shuffle_ps(ab, cd, 0x44), high = _mm512_shuffle_ps(ab, cd, 0xee);
  return folded((Vector)_mm512_add_ps(low, high));
#elif defined(__AVX2__)
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const __m256 low = _mm256_shuffle_ps(ab, cd, 0x44), high = _mm256_shuffle_ps(ab, cd, 0xee);
  return folded((Vector)_mm256_add_ps(low, high));
#else
  return Quad{sum(a), sum(b), sum(c), sum(d)};
#endif
}

typedef float Eight __attribute__((vector_size(32)));

// Calls use(i, V{}) for n floats from i = 0 on, where V is the longest fitting type of Vector, Eight, Quad and float. Masks
// would be simpler, but a masked store delays loads of adjacent memory about twentyfold.
template <class Use>
INLINE void along(Index n, const Use& use) {
  Index i = 0;
  for (; i + LANES <= n; i += LANES) use(i, Vector{});
#if defined(__AVX512F__)
  if (i + 8 <= n) use(i, Eight{}), i += 8;
#endif
  for (; i + 4 <= n; i += 4) use(i, Quad{});
  for (; i < n; i++) use(i, float{});
}

template <class V>
INLINE V load_as(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
INLINE void store_as(float* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

template <class V>
INLINE V all_as(float s) {
  return s - V{};
}

// max(v, 0) for vectors of any length, and NaN for NaN.
template <class V>
INLINE V relu_as(V v) {
  if constexpr (sizeof(V) == sizeof(Vector)) {
    return relu(v);
  } else {
    const V zero = {};
    return zero > v ? zero : v;
  }
}

// v where z > 0, else 0.
template <class V>
INLINE V where_positive(V z, V v) {
  const V zero = {};
  return z > zero ? v : zero;
}

// The sum of vectors of any length.
struct Accumulator {
  Vector whole = {};
  Eight eight = {};
  Quad quad = {};
  float one = 0;

  template <class V>
  INLINE_MEMBER void add(V v) {
    if constexpr (sizeof(V) == sizeof(Vector))
      whole += v;
    else if constexpr (sizeof(V) == sizeof(Eight))
      eight += v;
    else if constexpr (sizeof(V) == sizeof(Quad))
      quad += v;
    else
      one += v;
  }

  float total() const {
    Quad halves[2];
    std::memcpy(halves, &eight, sizeof eight);
    const Quad rest = (halves[0] + halves[1]) + quad;
    return sum(whole) + ((rest[0] + rest[2]) + (rest[1] + rest[3]) + one);
  }
};

INLINE Index rounded_up(Index value, Index step) { return (value + step - 1) / step * step; }
