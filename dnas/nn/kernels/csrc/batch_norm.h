// Batch norm: statistics of channels, the affine map that a consumer applies, and the backward pass.
#pragma once

#include <cmath>
#include <vector>

#include "vectors.h"

// Count, mean and sum of squared deviations of values. Two sets are merged as in Chan, Golub and LeVeque (1979).
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void add(const Moments& other) {
    if (other.count == 0) return;
    const double both = count + other.count, apart = other.mean - mean;
    mean += apart * other.count / both;
    squares += other.squares + apart * apart * count * other.count / both;
    count = both;
  }
};

// The moments of n > 0 consecutive values, in two passes: the mean, then the deviations from it.
inline Moments moments_of(const float* x, Index n) {
  const Index whole = n / LANES * LANES;
  Vector sums[2] = {}, squares[2] = {};
  Index i = 0;
  for (; i + PANEL <= n; i += PANEL) {
    sums[0] += load(x + i);
    sums[1] += load(x + i + LANES);
  }
  for (; i < whole; i += LANES) sums[0] += load(x + i);
  if (i < n) sums[1] += load_first(x + i, n - i);
  const float mean = sum(sums[0] + sums[1]) / static_cast<float>(n);
  const Vector centre = all(mean);
  for (i = 0; i + PANEL <= n; i += PANEL) {
    const Vector d0 = load(x + i) - centre, d1 = load(x + i + LANES) - centre;
    squares[0] += d0 * d0;
    squares[1] += d1 * d1;
  }
  for (; i < n; i += LANES) {
    const Vector d = keep_first(load_first(x + i, n - i) - centre, n - i);
    squares[0] += d * d;
  }
  return {static_cast<double>(n), mean, sum(squares[0] + squares[1])};
}

// The map z = max(scale·x + shift, 0) that a consumer applies to each channel that it reads.
struct Affine {
  std::vector<float> scale, shift;

  // scale = γ/σ, shift = β − mean·γ/σ, σ = √(var + ε); the statistics of channel c are mean[at(c)] and var[at(c)].
  template <class Number, class At>
  Affine(Index channels, const float* gamma, const float* beta, const Number* mean, const Number* var, double eps, At at)
      : scale(channels), shift(channels) {
    for (Index c = 0; c < channels; c++) {
      const double a = gamma[c] / std::sqrt(static_cast<double>(var[at(c)]) + eps);
      scale[c] = static_cast<float>(a);
      shift[c] = static_cast<float>(beta[c] - mean[at(c)] * a);
    }
  }
  Affine() = default;
};

// Sums over the consumers of each channel: Σ γ·dβ and Σ γ·(Σ dz·(x − mean)). After all consumers, the gradient of a map is
//   dx = of_gradient·G + of_map·x + constant,
// with G = Σ γ·dz over the consumers. It follows from dx = (G − Σγdβ/M − (x − mean)·Σγ(Σ dz·(x − mean))/(M·σ²))/σ.
struct Totals {
  std::vector<double> of_beta, of_gamma;

  explicit Totals(Index channels) : of_beta(channels), of_gamma(channels) {}

  void add(Index channel, float gamma, double dbeta, double products) {
    of_beta[channel] += gamma * dbeta;
    of_gamma[channel] += gamma * products;
  }
};

struct Backward {
  std::vector<float> of_gradient, of_map, constant;

  // Coefficients of `count` channels from `first` on, with M values per channel.
  Backward(const Totals& totals, const double* mean, const double* var, double eps, Index first, Index count, double M)
      : of_gradient(count), of_map(count), constant(count) {
    for (Index i = 0; i < count; i++) {
      const Index c = first + i;
      const double scale = 1 / std::sqrt(var[c] + eps);
      const double slope = -totals.of_gamma[c] * scale * scale * scale / M;
      of_gradient[i] = static_cast<float>(scale);
      of_map[i] = static_cast<float>(slope);
      constant[i] = static_cast<float>(-scale * totals.of_beta[c] / M - slope * mean[c]);
    }
  }
};

// Σ dz and Σ dz·(x − mean) of each channel that a consumer reads.
struct Sums {
  std::vector<double> dz, products;

  explicit Sums(Index channels) : dz(channels), products(channels) {}

  void add(const Sums& other) {
    for (std::size_t c = 0; c < dz.size(); c++) dz[c] += other.dz[c], products[c] += other.products[c];
  }
};
