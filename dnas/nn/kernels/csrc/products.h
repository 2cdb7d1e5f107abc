// The micro-kernels, which contain all code whose cycles matter.
#pragma once

#include "vectors.h"

// The panels that are read next, at rows[0] + at, rows[1] + at and so on. A micro-kernel prefetches one panel per column,
// so that none of them causes a wait. Prefetching beyond the last row is harmless.
struct Ahead {
  const float* const* rows;
  Index at;

  INLINE_MEMBER void fetch(Index row) const {
    UNROLL for (int i = 0; i < PANEL; i += 16) __builtin_prefetch(rows[row] + at + i, 0, 2);
  }
};

// A 1×1 convolution: out[r][p] = Σ_k w[k][r] · z[k][p] for R rows and one panel of pixels. With FETCH, `ahead` has one
// row per column.
template <int R, bool FETCH>
__attribute__((noinline)) void multiply(const float* w, const float* z, Index columns, float* out, Ahead ahead) {
  Vector low[R], high[R];
  UNROLL for (int r = 0; r < R; r++) low[r] = high[r] = Vector{};
  for (Index k = 0; k < columns; k++, w += R, z += PANEL) {
    if constexpr (FETCH) ahead.fetch(k);
    const Vector z0 = load(z), z1 = load(z + LANES);
    UNROLL for (int r = 0; r < R; r++) {
      Vector factor = all(w[r]);
      KEEP(factor);
      low[r] += factor * z0;
      high[r] += factor * z1;
    }
  }
  UNROLL for (int r = 0; r < R; r++) {
    store(out + r * PANEL, low[r]);
    store(out + r * PANEL + LANES, high[r]);
  }
}

// Three taps along a row: out[r][p] = Σ_{i, tap} w[i][tap][r] · z[i][p + tap·apart]. Channels of z are `size` floats apart,
// and rows of out `pitch`. `onto` adds to out. With FETCH, `ahead` has one row per channel.
template <int R, bool FETCH>
__attribute__((noinline)) void multiply_taps(
    const float* w, const float* z, Index channels, Index size, Index apart, float* out, Index pitch, bool onto,
    Ahead ahead) {
  Vector low[R], high[R];
  UNROLL for (int r = 0; r < R; r++) {
    low[r] = onto ? load(out + r * pitch) : Vector{};
    high[r] = onto ? load(out + r * pitch + LANES) : Vector{};
  }
  for (Index i = 0; i < channels; i++, z += size) {
    if constexpr (FETCH) ahead.fetch(i);
    UNROLL for (int tap = 0; tap < 3; tap++) {
      const Vector z0 = load(z + tap * apart), z1 = load(z + tap * apart + LANES);
      UNROLL for (int r = 0; r < R; r++) {
        Vector factor = all(w[r]);
        KEEP(factor);
        low[r] += factor * z0;
        high[r] += factor * z1;
      }
      w += R;
    }
  }
  UNROLL for (int r = 0; r < R; r++) {
    store(out + r * pitch, low[r]);
    store(out + r * pitch + LANES, high[r]);
  }
}

template <bool FETCH>
INLINE void multiply_rows(int rows, const float* w, const float* z, Index columns, float* out, Ahead ahead = {}) {
  switch (rows) {
    case 2: return multiply<2, FETCH>(w, z, columns, out, ahead);
    case 4: return multiply<4, FETCH>(w, z, columns, out, ahead);
    case 6: return multiply<6, FETCH>(w, z, columns, out, ahead);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 8: return multiply<8, FETCH>(w, z, columns, out, ahead);
    case 10: return multiply<10, FETCH>(w, z, columns, out, ahead);
    default: return multiply<12, FETCH>(w, z, columns, out, ahead);
#endif
  }
}

template <bool FETCH>
INLINE void multiply_rows_taps(
    int rows, const float* w, const float* z, Index channels, Index size, Index apart, float* out, Index pitch,
    bool onto, Ahead ahead = {}) {
  switch (rows) {
    case 2: return multiply_taps<2, FETCH>(w, z, channels, size, apart, out, pitch, onto, ahead);
    case 4: return multiply_taps<4, FETCH>(w, z, channels, size, apart, out, pitch, onto, ahead);
    case 6: return multiply_taps<6, FETCH>(w, z, channels, size, apart, out, pitch, onto, ahead);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 8: return multiply_taps<8, FETCH>(w, z, channels, size, apart, out, pitch, onto, ahead);
    case 10: return multiply_taps<10, FETCH>(w, z, channels, size, apart, out, pitch, onto, ahead);
    default: return multiply_taps<12, FETCH>(w, z, channels, size, apart, out, pitch, onto, ahead);
#endif
  }
}

// The rows of a factor: row r starts at `at + r·row`, and its next run of floats is `step` further.
struct Strip {
  const float* at;
  Index row, step;
};

// out[r·C + c] += Σ_p a[r][p] · b[c][p] over `runs` runs of `length` floats.
template <int R, int C>
__attribute__((noinline)) void dots(Strip a, Strip b, Index runs, Index length, float* out) {
  Vector products[R * C];
  UNROLL for (int i = 0; i < R * C; i++) products[i] = Vector{};
  for (Index run = 0; run < runs; run++) {
    for (Index p = 0; p < length; p += LANES) {
      const float *pa = a.at + run * a.step + p, *pb = b.at + run * b.step + p;
      Vector of_b[C];
      UNROLL for (int c = 0; c < C; c++) of_b[c] = load(pb + c * b.row);
      UNROLL for (int r = 0; r < R; r++) {
        Vector of_a = load(pa + r * a.row);
        KEEP(of_a);
        UNROLL for (int c = 0; c < C; c++) products[r * C + c] += of_a * of_b[c];
      }
    }
  }
  constexpr int FOURS = R * C / 4 * 4;
  UNROLL for (int i = 0; i < FOURS; i += 4) {
    Quad four;
    std::memcpy(&four, out + i, sizeof four);
    four += sums(products[i], products[i + 1], products[i + 2], products[i + 3]);
    std::memcpy(out + i, &four, sizeof four);
  }
  UNROLL for (int i = FOURS; i < R * C; i++) out[i] += sum(products[i]);
}
