// Winograd's arithmetic F(4, 3) along a column: four outputs of a convolution with three taps, computed from six inputs
// with six products instead of twelve. (S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin and S. Gray,
// CVPR 2016.)
//
//   y = Aᵀ [(G g) ⊙ (Bᵀ d)],    backward: dg = Gᵀ [(A dy) ⊙ (Bᵀ d)],
//
// based on polynomials at the points 0, ±p, ±r and ∞. With p = 3/4 and r = 3/2 all factors are exact. The errors are the
// smallest of the tested points, three times those of the twelve products (with 1 and 2, four times).
#pragma once

#include "vectors.h"

constexpr int TERMS = 6, TILE = 4;  // rows of products, and rows of outputs
constexpr float P1 = 3.0f / 4, R1 = 3.0f / 2, P2 = P1 * P1, R2 = R1 * R1, P3 = P1 * P2, R3 = R1 * R2;

// Calls use(term, value) for each term of G g.
template <class Use>
INLINE void of_taps(float g0, float g1, float g2, const Use& use) {
  const float of_p = 1 / (2 * P2 * (P2 - R2)), of_r = 1 / (2 * R2 * (R2 - P2));
  use(0, g0 / (P2 * R2));
  use(1, of_p * (g0 + P2 * g2 + P1 * g1));
  use(2, of_p * (g0 + P2 * g2 - P1 * g1));
  use(3, of_r * (g0 + R2 * g2 + R1 * g1));
  use(4, of_r * (g0 + R2 * g2 - R1 * g1));
  use(5, g2);
}

// g = Gᵀ u.
INLINE void to_taps(const float* u, float* g) {
  const float of_p = 1 / (2 * P2 * (P2 - R2)), of_r = 1 / (2 * R2 * (R2 - P2));
  const float even_p = of_p * (u[1] + u[2]), odd_p = of_p * (u[1] - u[2]);
  const float even_r = of_r * (u[3] + u[4]), odd_r = of_r * (u[3] - u[4]);
  g[0] = u[0] / (P2 * R2) + even_p + even_r;
  g[1] = P1 * odd_p + R1 * odd_r;
  g[2] = P2 * even_p + R2 * even_r + u[5];
}

// Calls use(term, value) for each term of Bᵀ d.
template <class V, class Use>
INLINE void of_inputs(const V* d, const Use& use) {
  const V even_p = d[4] - R2 * d[2], odd_p = P1 * (d[3] - R2 * d[1]);
  const V even_r = d[4] - P2 * d[2], odd_r = R1 * (d[3] - P2 * d[1]);
  use(0, P2 * R2 * d[0] - (P2 + R2) * d[2] + d[4]);
  use(1, even_p + odd_p);
  use(2, even_p - odd_p);
  use(3, even_r + odd_r);
  use(4, even_r - odd_r);
  use(5, P2 * R2 * d[1] - (P2 + R2) * d[3] + d[5]);
}

// Calls use(term, value) for each term of A dy.
template <class V, class Use>
INLINE void of_outputs(const V* dy, const Use& use) {
  const V even_p = dy[0] + P2 * dy[2], odd_p = P1 * dy[1] + P3 * dy[3];
  const V even_r = dy[0] + R2 * dy[2], odd_r = R1 * dy[1] + R3 * dy[3];
  use(0, dy[0]);
  use(1, even_p + odd_p);
  use(2, even_p - odd_p);
  use(3, even_r + odd_r);
  use(4, even_r - odd_r);
  use(5, dy[3]);
}

// Row `row` of Aᵀ m.
template <class V>
INLINE V to_output(int row, const V* m) {
  switch (row) {
    case 0: return m[0] + (m[1] + m[2]) + (m[3] + m[4]);
    case 1: return P1 * (m[1] - m[2]) + R1 * (m[3] - m[4]);
    case 2: return P2 * (m[1] + m[2]) + R2 * (m[3] + m[4]);
    default: return P3 * (m[1] - m[2]) + R3 * (m[3] - m[4]) + m[5];
  }
}
