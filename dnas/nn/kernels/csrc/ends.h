// Start and end of a block: copies between the layouts of torch and of the kernels, and the last consumer.
#pragma once

#include <algorithm>

#include "abreast.h"
#include "batch_norm.h"
#include "memory.h"
#include "threads.h"

// Strides of images, channels and pixels of a torch tensor [N, C, H, W] in a dense layout.
struct Images {
  Index of_image, of_channel, of_pixel;

  Index at(Index image, Index channel) const { return image * of_image + channel * of_channel; }
  // True if the images of a channel are contiguous, as between blocks of dnas.
  bool are_in_a_row(Index pixels) const { return of_pixel == 1 && of_image == pixels; }
};

constexpr Index LINE = 16;  // floats: channels that are copied together, because they are adjacent in channels-last layout

// Number of images to process together, so that the overhead of small images is low.
inline Index images_per_step(Index pixels, Index abreast) {
  return rounded_up(std::max<Index>(1, 1024 / pixels), abreast);
}

// Copies to[c][n·pixels + p] = from[n][c][p], interleaving `abreast` images, with zeros behind the last pixel. Adds to the
// moments of each channel.
inline void copy_in(
    const Team& team, const float* from, const Images& images, Index count, Index channels, Index pixels,
    Index abreast, float* to, Index pitch, Moments* moments) {
  const Index together = images_per_step(pixels, abreast);
  const bool are_in_a_row = abreast == 1 && images.are_in_a_row(pixels);
  team.split(channels, LINE, [&](int, Index begin, Index end) {
    for (Index first = 0; first < count; first += together) {
      const Index last = std::min(first + together, count);
      if (are_in_a_row)
        for (Index c = begin; c < end; c++)
          std::memcpy(
              to + c * pitch + first * pixels, from + images.at(first, c), (last - first) * pixels * sizeof(float));
      for (Index n = first; n < last && !are_in_a_row; n += abreast)
        for (Index c = begin; c < end; c++) {
          const float* source = from + images.at(n, c);
          float* row = to + c * pitch + n * pixels;
          if (abreast > 1)
            put_abreast(source, images.of_image, images.of_pixel, pixels, abreast, row);
          else if (images.of_pixel == 1)
            std::memcpy(row, source, pixels * sizeof(float));
          else
            for (Index p = 0; p < pixels; p++) row[p] = source[p * images.of_pixel];
        }
      if (moments)
        for (Index c = begin; c < end; c++)
          moments[c].add(moments_of(to + c * pitch + first * pixels, (last - first) * pixels));
    }
    for (Index c = begin; c < end; c++)
      std::memset(to + c * pitch + count * pixels, 0, (pitch - count * pixels) * sizeof(float));
  });
}

// Writes to[n][c][p] = dx, computed from G of each channel, see Totals.
inline void copy_out_gradient(
    const Team& team, const float* gradient, const float* x, Index pitch, const Backward& norm, Index count,
    Index channels, Index pixels, Index abreast, float* to, const Images& images) {
  const auto copy = [&](Index c, Index first, Index n, Index step, float* target) {
    const float *g = gradient + c * pitch + first, *u = x + c * pitch + first;
    const float a = norm.of_gradient[c], b = norm.of_map[c], d = norm.constant[c];
    for (Index p = 0; p < n; p++) target[p * step] = g[p] * a + (u[p] * b + d);
  };
  team.split(channels, LINE, [&](int, Index begin, Index end) {
    static thread_local Floats scratch;
    if (abreast > 1) {
      float* dx = scratch.grow(abreast * pixels);
      for (Index n = 0; n < count; n += abreast)
        for (Index c = begin; c < end; c++) {
          copy(c, n * pixels, abreast * pixels, 1, dx);
          put_apart(dx, images.of_image, images.of_pixel, pixels, abreast, to + images.at(n, c));
        }
    } else if (images.are_in_a_row(pixels))
      for (Index c = begin; c < end; c++) copy(c, 0, count * pixels, 1, to + images.at(0, c));
    else
      for (Index n = 0; n < count; n++)
        for (Index c = begin; c < end; c++) copy(c, n * pixels, pixels, images.of_pixel, to + images.at(n, c));
  });
}

enum End : Index { POOL = 0, MEAN = 1, RELU = 2 };

struct Ending {
  End end;
  Index images, height, width, abreast;

  Index pixels() const { return height * width; }
  Index made() const { return end == POOL ? (height / 2) * (width / 2) : end == MEAN ? 1 : pixels(); }
};

// Computes z[p] = max(scale·x + shift, 0) for n values, and up to LANES − 1 more.
inline void activate(const float* x, float scale, float shift, Index n, float* z) {
  const Vector a = all(scale), b = all(shift);
  for (Index p = 0; p < n; p += LANES) store(z + p, relu(load(x + p) * a + b));
}

// Applies the last consumer to one channel z of some images. Input and output are interleaved, except the output of MEAN.
inline void end_forward(const Ending& e, const float* z, float* rows, float* made) {
  const Index abreast = e.abreast;
  if (e.end == RELU) {
    std::memcpy(made, z, abreast * e.pixels() * sizeof(float));
  } else if (e.end == MEAN) {
    for (Index n = 0; n < e.images; n += abreast, z += abreast * e.pixels()) {
      if (abreast == 1) {
        Accumulator total;
        along(e.pixels(), [&](Index p, auto kind) { total.add(load_as<decltype(kind)>(z + p)); });
        made[n] = total.total() / static_cast<float>(e.pixels());
        continue;
      }
      with_abreast(abreast, [&](auto count) {
        constexpr int A = decltype(count)::value;
        float totals[A] = {};
        for (Index p = 0; p < e.pixels(); p++)
          UNROLL for (int a = 0; a < A; a++) totals[a] += z[p * A + a];
        UNROLL for (int a = 0; a < A; a++) made[n + a] = totals[a] / static_cast<float>(e.pixels());
      });
    }
  } else {
    const Index width = e.width / 2, row = e.width * abreast;
    for (Index h = 0; h < e.height / 2; h++, z += 2 * row, made += width * abreast) {
      for (Index w = 0; w < 2 * width * abreast; w++) rows[w] = z[w] + z[w + row];
      if (abreast == 1)
        for (Index w = 0; w < width; w++) made[w] = 0.25f * (rows[2 * w] + rows[2 * w + 1]);
      else
        with_abreast(abreast, [&](auto count) {
          constexpr int A = decltype(count)::value;
          for (Index w = 0; w < width; w++)
            UNROLL for (int a = 0; a < A; a++) made[w * A + a] = 0.25f * (rows[2 * w * A + a] + rows[(2 * w + 1) * A + a]);
        });
    }
  }
}

// Computes dz from the gradient `from` of the output of end_forward.
inline void end_backward(const Ending& e, const float* from, float* dz) {
  const Index abreast = e.abreast;
  if (e.end == RELU) {
    std::memcpy(dz, from, abreast * e.pixels() * sizeof(float));
  } else if (e.end == MEAN) {
    for (Index n = 0; n < e.images; n += abreast)
      for (Index p = 0; p < e.pixels(); p++, dz += abreast)
        for (Index a = 0; a < abreast; a++) dz[a] = from[n + a] / static_cast<float>(e.pixels());
  } else {
    const Index width = e.width / 2, height = e.height / 2, row = e.width * abreast;
    if (e.width % 2 || e.height % 2) std::memset(dz, 0, e.height * row * sizeof(float));
    for (Index h = 0; h < height; h++, dz += 2 * row, from += width * abreast) {
      if (abreast == 1) {
        for (Index w = 0; w < width; w++) dz[2 * w] = dz[2 * w + 1] = 0.25f * from[w];
        std::memcpy(dz + row, dz, 2 * width * sizeof(float));
        continue;
      }
      with_abreast(abreast, [&](auto count) {
        constexpr int A = decltype(count)::value;
        for (Index w = 0; w < width; w++) {
          float quarter[A];
          UNROLL for (int a = 0; a < A; a++) quarter[a] = 0.25f * from[w * A + a];
          for (float* to : {dz + 2 * w * A, dz + (2 * w + 1) * A, dz + row + 2 * w * A, dz + row + (2 * w + 1) * A})
            std::memcpy(to, quarter, sizeof quarter);
        }
      });
    }
  }
}

inline Index images_of_step(const Ending& e) {
  return e.end == POOL && e.height % 2 ? e.abreast : std::min(e.images, images_per_step(e.pixels(), e.abreast));
}

// Some of the images in the form that end_forward expects. Images of even height are treated as one tall image, because no
// window of 2×2 pixels spans two images.
inline Ending part_of(const Ending& e, Index images) {
  if (e.end == MEAN) return {MEAN, images, e.height, e.width, e.abreast};
  return {e.end, e.abreast, images / e.abreast * e.height, e.width, e.abreast};
}

// Writes out[c][n][...] of the channels x[c]; out has `all_images` images.
inline void end_block(
    const Team& team, const Ending& e, const float* const* x, Index channels, const Affine& affine, Index all_images,
    float* out) {
  const Index made = e.made(), together = images_of_step(e);
  const bool apart = e.abreast > 1 && made > 1;
  team.split(channels, 1, [&](int, Index begin, Index end) {
    static thread_local Floats scratch;
    float* z = scratch.grow(together * (e.pixels() + made) + LANES + e.width * e.abreast);
    float* rows = z + together * e.pixels() + LANES;
    float* abreast = rows + e.width * e.abreast;
    for (Index c = begin; c < end; c++)
      for (Index n = 0; n < e.images; n += together) {
        const Index count = std::min(together, e.images - n);
        float* to = out + (c * all_images + n) * made;
        activate(x[c] + n * e.pixels(), affine.scale[c], affine.shift[c], count * e.pixels(), z);
        end_forward(part_of(e, count), z, rows, apart ? abreast : to);
        for (Index i = 0; apart && i < count; i += e.abreast)
          put_apart(abreast + i * made, made, 1, made, e.abreast, to + i * made);
      }
  });
}

// Initialises the gradients: G[c] = γ·dz where z > 0. Returns Σ dz and Σ dz·(x − mean). gradient is [c][n][...].
inline Sums end_block_backward(
    const Team& team, const Ending& e, const float* gradient, const float* const* x, float* const* gradients,
    Index channels, const Affine& affine, const float* gamma, const float* mean) {
  const Index made = e.made(), together = images_of_step(e);
  const bool apart = e.abreast > 1 && made > 1;
  Sums sums(channels);
  team.split(channels, 1, [&](int, Index begin, Index end) {
    static thread_local Floats scratch;
    float* dz = scratch.grow(together * (e.pixels() + made) + LANES);
    float* abreast = dz + together * e.pixels() + LANES;
    for (Index c = begin; c < end; c++) {
      const float scale = affine.scale[c], shift = affine.shift[c];
      for (Index n = 0; n < e.images; n += together) {
        const Index count = std::min(together, e.images - n);
        const float* of_made = gradient + (c * e.images + n) * made;
        for (Index i = 0; apart && i < count; i += e.abreast)
          put_abreast(of_made + i * made, made, 1, made, e.abreast, abreast + i * made);
        end_backward(part_of(e, count), apart ? abreast : of_made, dz);
        const float* u = x[c] + n * e.pixels();
        float* g = gradients[c] + n * e.pixels();
        Accumulator sum_dz, sum_products;
        along(count * e.pixels(), [&](Index p, auto kind) {
          using V = decltype(kind);
          const V value = load_as<V>(u + p);
          const V d = where_positive(value * all_as<V>(scale) + all_as<V>(shift), load_as<V>(dz + p));
          sum_dz.add(d);
          sum_products.add(d * (value - all_as<V>(mean[c])));
          store_as<V>(g + p, all_as<V>(gamma[c]) * d);
        });
        sums.dz[c] += sum_dz.total();
        sums.products[c] += sum_products.total();
      }
    }
  });
  return sums;
}
