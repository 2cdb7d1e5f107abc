// BN-ReLU-Conv(1×1), forward and backward. Maps are [channel][pitch], with the pixels of all images in one row.
#pragma once

#include <algorithm>

#include "batch_norm.h"
#include "products.h"
#include "threads.h"
#include "weights.h"

constexpr Index CACHE_FLOATS = 64 * 1024;  // size of a tile, for a second-level cache of at least 512 KB

// Packs z[p / PANEL][c][p % PANEL] = max(scale·x + shift, 0) for channels [from, from + count) and `pixels` from x[c] + p.
inline void pack_panels(
    const float* const* x, const Affine& affine, Index from, Index count, Index p, Index pixels, float* z) {
  const Index panels = (pixels + PANEL - 1) / PANEL;
  for (Index c = 0; c < count; c++) {
    const float* row = x[from + c] + p;
    const Vector scale = all(affine.scale[from + c]), shift = all(affine.shift[from + c]);
    float* to = z + c * PANEL;
    for (Index panel = 0; panel < panels; panel++, row += PANEL, to += count * PANEL) {
      store(to, relu(load(row) * scale + shift));
      store(to + LANES, relu(load(row + LANES) * scale + shift));
    }
  }
}

INLINE void drop(float* x, const std::uint8_t* kept, float scale, Index n) {
  for (Index i = 0; i < n; i++) x[i] *= kept[i] ? scale : 0.0f;
}

// Computes y[o][p] = Σ_c W[o][c]·z[c][p], times the dropout mask [o][pixels] and its scale if there is a mask. Adds to the
// moments of each y[o] unless `moments` is null.
inline void convolve_1x1(
    const Team& team, Index pixels, const float* const* x, Index channels, const Affine& affine, const Packed& weight,
    Index out, float* y, Index pitch, const std::uint8_t* mask, float mask_scale, Moments* moments) {
  std::vector<Moments> of_part(moments ? team.parts * out : 0);
  const Index chunks = (channels + 255) / 256, most_channels = (channels + chunks - 1) / chunks;
  const Index tile = std::clamp<Index>(CACHE_FLOATS / most_channels / PANEL * PANEL, 4 * PANEL, 1024);
  team.split(pixels, PANEL, [&](int part, Index begin, Index end) {
    static thread_local Floats scratch;
    float* z = scratch.grow(most_channels * tile);
    alignas(64) float made[MOST_ROWS * PANEL];
    for (Index p = begin; p < end; p += tile) {
      const Index n = std::min(tile, end - p);
      for (Index from = 0; from < channels; from += most_channels) {
        const Index count = std::min(most_channels, channels - from);
        pack_panels(x, affine, from, count, p, n, z);
        const bool again = from + count < channels;
        const Ahead next{x + (again ? std::min(from + count, channels - count) : 0), again ? p : p + tile};
        for (const Rows& g : weight.groups)
          for (Index q = 0; q < n; q += PANEL) {
            const float *rows = weight.of(g) + from * g.padded, *panel = z + q * count;
            if (g.first == 0)
              multiply_rows<true>(g.padded, rows, panel, count, made, {next.rows, next.at + q});
            else
              multiply_rows<false>(g.padded, rows, panel, count, made);
            for (Index r = 0; r < g.count; r++) {
              float* to = y + (g.first + r) * pitch + p + q;
              const float* sums = made + r * PANEL;
              if (from == 0) {
                store(to, load(sums));
                store(to + LANES, load(sums + LANES));
              } else {
                store(to, load(to) + load(sums));
                store(to + LANES, load(to + LANES) + load(sums + LANES));
              }
            }
          }
      }
      for (Index o = 0; o < out; o++) {
        if (mask) drop(y + o * pitch + p, mask + o * pixels + p, mask_scale, n);
        if (moments) of_part[part * out + o].add(moments_of(y + o * pitch + p, n));
      }
    }
  });
  if (moments)
    for (Index o = 0; o < out; o++)
      for (int part = 0; part < team.parts; part++) moments[o].add(of_part[part * out + o]);
}

// The gradient dy of y through y's batch norm and dropout. pack_gradient stores it in panels [p / PANEL][o][p % PANEL], with
// zeros behind the last pixel and the last row.
struct Gradient {
  const float *of_y, *y;  // [o][pitch]: G and the maps
  const Backward* norm;
  const std::uint8_t* mask;
  float mask_scale;
};

inline void pack_gradient(
    const Gradient& from, Index out, Index padded, Index pitch, Index pixels, Index p, Index n, float* dy) {
  for (Index o = 0; o < padded; o++) {
    float* to = dy + o * PANEL;
    if (o >= out) {
      for (Index q = 0; q < n; q += PANEL, to += padded * PANEL) std::memset(to, 0, PANEL * sizeof(float));
      continue;
    }
    const float *g = from.of_y + o * pitch + p, *y = from.y + o * pitch + p;
    const Vector a = all(from.norm->of_gradient[o]), b = all(from.norm->of_map[o]), c = all(from.norm->constant[o]);
    for (Index q = 0; q < n; q += PANEL, to += padded * PANEL)
      UNROLL for (int half = 0; half < PANEL; half += LANES) {
        const Index left = n - q - half;
        const Vector v = load(g + q + half) * a + (load(y + q + half) * b + c);
        if (left > 0)
          store(to + half, keep_first(v, left));
        else
          store(to + half, Vector{});
        if (from.mask && left > 0)
          drop(to + half, from.mask + o * pixels + p + q + half, from.mask_scale, std::min<Index>(left, LANES));
      }
  }
}

// For a group of channels and one panel: masks dz = Σ_o W[o][c]·dy[o] where z = 0, adds γ·dz to G[c], and stores z for dW.
INLINE void spread_panel(
    const Rows& g, Index p, const float* const* x, float* const* gradients, const Affine& affine, const float* gamma,
    const float* mean, const float* dz, float* z, Vector (*sums)[2]) {
  for (Index r = 0; r < g.count; r++) {
    const Index c = g.first + r;
    const float* row = x[c] + p;
    float* gradient = gradients[c] + p;
    const Vector scale = all(affine.scale[c]), shift = all(affine.shift[c]), centre = all(mean[c]);
    const Vector factor = all(gamma[c]);
    UNROLL for (int half = 0; half < PANEL; half += LANES) {
      const Vector value = load(row + half), activation = relu(value * scale + shift);
      const Vector d = where_positive(activation, load(dz + r * PANEL + half));
      store(z + r * PANEL + half, activation);
      store(gradient + half, load(gradient + half) + factor * d);
      sums[r][0] += d;
      sums[r][1] += d * (value - centre);
    }
  }
}

// dW[o][c] = Σ_p dy[o][p]·z[c][p], stored in the blocks of DOT_ROWS × DOT_COLUMNS numbers that `dots` computes:
// [groups][MOST_ROWS / DOT_COLUMNS][rows of blocks][DOT_ROWS][DOT_COLUMNS].
struct Blocks {
  static constexpr Index ONE = DOT_ROWS * DOT_COLUMNS, OF_GROUP = MOST_ROWS / DOT_COLUMNS;
  Index rows, groups;

  Index size() const { return groups * OF_GROUP * rows * ONE; }
  Index at(Index o, Index group, Index r) const {
    return ((group * OF_GROUP + r / DOT_COLUMNS) * rows + o / DOT_ROWS) * ONE + o % DOT_ROWS * DOT_COLUMNS +
           r % DOT_COLUMNS;
  }
};

// Adds the products of the channels of a group with all rows of dy.
INLINE void add_weight_gradient(
    const Blocks& blocks, Index group, int padded, Index panels, const float* dy, const float* z, float* dw) {
  const Index dy_rows = blocks.rows * DOT_ROWS;
  for (Index c = 0; c < padded; c += DOT_COLUMNS)
    for (Index o = 0; o < dy_rows; o += DOT_ROWS)
      dots<DOT_ROWS, DOT_COLUMNS>(
          {dy + o * PANEL, PANEL, dy_rows * PANEL}, {z + c * PANEL, PANEL, MOST_ROWS * PANEL}, panels, PANEL,
          dw + blocks.at(o, group, c));
}

// Backward pass from dy: adds γ·dz to the gradient of each channel, writes dW [out][channels], and returns Σ dz and
// Σ dz·(x − mean).
inline Sums convolve_1x1_backward(
    const Team& team, Index pixels, const Gradient& from, Index out, Index pitch, const float* const* x,
    float* const* gradients, Index channels, const Affine& affine, const float* gamma, const float* mean,
    const Packed& weight, const Weight& to) {
  const Index dy_rows = rounded_up(out, DOT_ROWS);
  const Index tile = std::clamp<Index>(CACHE_FLOATS / dy_rows / PANEL * PANEL, 4 * PANEL, 1024);
  std::vector<Sums> of_part(team.parts, Sums(channels));
  Floats weight_gradients;
  const Blocks blocks{dy_rows / DOT_ROWS, static_cast<Index>(weight.groups.size())};
  float* dw = weight_gradients.zeros(team.parts * blocks.size());
  team.split(pixels, PANEL, [&](int part, Index begin, Index end) {
    static thread_local Floats scratch;
    float* dy = scratch.grow((dy_rows + MOST_ROWS) * tile);
    float* z = dy + dy_rows * tile;
    std::memset(z, 0, MOST_ROWS * tile * sizeof(float));
    alignas(64) float dz[MOST_ROWS * PANEL];
    std::vector<const float*> next(out);  // rows to prefetch: maps and gradients of the next group
    for (Index p = begin; p < end; p += tile) {
      const Index n = std::min(tile, end - p), panels = (n + PANEL - 1) / PANEL;
      pack_gradient(from, out, dy_rows, pitch, pixels, p, n, dy);
      for (Index group = 0; group < blocks.groups; group++) {
        const bool last = group + 1 == blocks.groups;
        const Rows &g = weight.groups[group], &then = weight.groups[last ? 0 : group + 1];
        for (Index o = 0; o < out; o++) {
          const Index c = then.first + o / 2 % then.count;
          next[o] = o % 2 ? gradients[c] : x[c];
        }
        const Index next_p = last ? p + tile : p;
        Vector sums[MOST_ROWS][2] = {};
        for (Index q = 0; q < panels; q++) {
          multiply_rows<true>(
              g.padded, weight.of(g), dy + q * dy_rows * PANEL, out, dz, {next.data(), next_p + q * PANEL});
          spread_panel(
              g, p + q * PANEL, x, gradients, affine, gamma, mean, dz, z + q * MOST_ROWS * PANEL, sums);
        }
        for (Index r = 0; r < g.count; r++) {
          of_part[part].dz[g.first + r] += sum(sums[r][0]);
          of_part[part].products[g.first + r] += sum(sums[r][1]);
        }
        add_weight_gradient(blocks, group, g.padded, panels, dy, z, dw + part * blocks.size());
      }
    }
  });
  for (int part = 1; part < team.parts; part++) of_part[0].add(of_part[part]);
  for (Index group = 0; group < blocks.groups; group++) {
    const Rows& g = weight.groups[group];
    for (Index o = 0; o < out; o++)
      for (Index r = 0; r < g.count; r++) {
        float total = 0;
        for (int part = 0; part < team.parts; part++) total += dw[part * blocks.size() + blocks.at(o, group, r)];
        to.gradient[o * to.of_out + (g.first + r) * to.of_in] = total;
      }
  }
  return of_part[0];
}
