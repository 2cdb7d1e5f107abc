// Where a block begins and ends: copies between torch's layouts and ours, and what the last consumer does.
#pragma once

#include <algorithm>

#include "batch_norm.h"
#include "memory.h"
#include "threads.h"

// Images [N, C, H, W] of torch: where channel c of image n begins, and how far apart its pixels are.
struct Images {
  Index of_image, of_channel, of_pixel;

  static Images layout(bool channels_last, Index channels, Index pixels) {
    if (channels_last) return {channels * pixels, 1, channels};
    return {channels * pixels, pixels, 1};
  }
  Index at(Index image, Index channel) const { return image * of_image + channel * of_channel; }
};

constexpr Index LINE = 16;  // floats: channels that are done together, as they lie side by side where they come last

// to[c][n·pixels + p] = from[n][c][p], zeros behind the last; moments of each channel.
inline void copy_in(
    const Team& team, const float* from, const Images& images, Index count, Index channels, Index pixels, float* to,
    Index pitch, Moments* moments) {
  team.split(channels, LINE, [&](int, Index begin, Index end) {
    for (Index n = 0; n < count; n++)
      for (Index c = begin; c < end; c++) {
        const float* source = from + images.at(n, c);
        float* row = to + c * pitch + n * pixels;
        for (Index p = 0; p < pixels; p++) row[p] = source[p * images.of_pixel];
        if (moments) moments[c].add(moments_of(row, pixels));
      }
    for (Index c = begin; c < end; c++)
      std::memset(to + c * pitch + count * pixels, 0, (pitch - count * pixels) * sizeof(float));
  });
}

// to[n][c][p] = dx, of each channel's G: see Totals.
inline void copy_out_gradient(
    const Team& team, const float* gradient, const float* x, Index pitch, const Backward& norm, Index count,
    Index channels, Index pixels, float* to, const Images& images) {
  team.split(channels, LINE, [&](int, Index begin, Index end) {
    for (Index n = 0; n < count; n++)
      for (Index c = begin; c < end; c++) {
        const float *g = gradient + c * pitch + n * pixels, *u = x + c * pitch + n * pixels;
        const float a = norm.of_gradient[c], b = norm.of_map[c], d = norm.constant[c];
        float* target = to + images.at(n, c);
        for (Index p = 0; p < pixels; p++) target[p * images.of_pixel] = g[p] * a + (u[p] * b + d);
      }
  });
}

enum End : Index { POOL = 0, MEAN = 1, RELU = 2 };

struct Ending {
  End end;
  Index images, height, width;

  Index pixels() const { return height * width; }
  Index made() const { return end == POOL ? (height / 2) * (width / 2) : end == MEAN ? 1 : pixels(); }
};

// max(x·scale + shift, 0); NaN stays.
INLINE float activation(float x, float scale, float shift) {
  const float v = x * scale + shift;
  return v < 0 ? 0.0f : v;
}

// What the last consumer makes of one image's channel x: `made` floats.
inline void end_forward(const Ending& e, const float* x, float scale, float shift, float* z, float* made) {
  const Index pixels = e.pixels();
  for (Index p = 0; p < pixels; p++) z[p] = activation(x[p], scale, shift);
  if (e.end == RELU) {
    std::memcpy(made, z, pixels * sizeof(float));
  } else if (e.end == MEAN) {
    double total = 0;
    for (Index p = 0; p < pixels; p++) total += z[p];
    made[0] = static_cast<float>(total / static_cast<double>(pixels));
  } else {
    for (Index h = 0; h < e.height / 2; h++)
      for (Index w = 0; w < e.width / 2; w++) {
        const float* from = z + 2 * h * e.width + 2 * w;
        *made++ = 0.25f * ((from[0] + from[1]) + (from[e.width] + from[e.width + 1]));
      }
  }
}

// dz of one image's channel, from the gradient `from` of what was made of it.
inline void end_backward(const Ending& e, const float* from, float* dz) {
  const Index pixels = e.pixels();
  if (e.end == RELU) {
    std::memcpy(dz, from, pixels * sizeof(float));
  } else if (e.end == MEAN) {
    const float share = from[0] / static_cast<float>(pixels);
    for (Index p = 0; p < pixels; p++) dz[p] = share;
  } else {
    for (Index h = 0; h < e.height; h++, dz += e.width) {
      std::memset(dz, 0, e.width * sizeof(float));
      if (h < e.height / 2 * 2)
        for (Index w = 0; w < e.width / 2 * 2; w++) dz[w] = 0.25f * from[h / 2 * (e.width / 2) + w / 2];
    }
  }
}

// out[n][c][...] of the channels x[c], in `images`' layout.
inline void end_block(
    const Team& team, const Ending& e, const float* const* x, Index channels, const Affine& affine, float* out,
    const Images& images) {
  const Index made = e.made();
  team.split(e.images, 1, [&](int, Index begin, Index end) {
    static thread_local Floats scratch;
    float* z = scratch.grow(e.pixels() + made);
    float* row = z + e.pixels();
    for (Index n = begin; n < end; n++)
      for (Index c = 0; c < channels; c++) {
        end_forward(e, x[c] + n * e.pixels(), affine.scale[c], affine.shift[c], z, row);
        float* target = out + images.at(n, c);
        for (Index p = 0; p < made; p++) target[p * images.of_pixel] = row[p];
      }
  });
}

// Begins the gradients: G[c] = γ·dz where z > 0. gives Σ dz and Σ dz·(x − mean).
inline Sums end_block_backward(
    const Team& team, const Ending& e, const float* gradient, const Images& images, const float* const* x,
    float* const* gradients, Index channels, const Affine& affine, const float* gamma, const float* mean) {
  const Index made = e.made(), pixels = e.pixels();
  Sums sums(channels);
  team.split(channels, LINE, [&](int, Index begin, Index end) {
    static thread_local Floats scratch;
    float* dz = scratch.grow(pixels + LANES + made);
    float* row = dz + pixels + LANES;
    for (Index n = 0; n < e.images; n++)
      for (Index c = begin; c < end; c++) {
        const float* source = gradient + images.at(n, c);
        for (Index p = 0; p < made; p++) row[p] = source[p * images.of_pixel];
        end_backward(e, row, dz);
        const float* u = x[c] + n * pixels;
        float* g = gradients[c] + n * pixels;
        const Vector scale = all(affine.scale[c]), shift = all(affine.shift[c]);
        const Vector centre = all(mean[c]), factor = all(gamma[c]);
        Vector sum_dz = {}, sum_products = {};
        for (Index p = 0; p < pixels; p += LANES) {
          const Index left = pixels - p;
          const Vector value = load(u + p);
          const Vector d = keep_first(where_positive(value * scale + shift, load(dz + p)), left);
          sum_dz += d;
          sum_products += d * (keep_first(value, left) - centre);
          store_first(g + p, factor * d, left);
        }
        sums.dz[c] += sum(sum_dz);
        sums.products[c] += sum(sum_products);
      }
  });
  return sums;
}
