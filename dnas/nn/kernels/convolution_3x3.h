// BN-ReLU-Conv(3×3), forward and backward, over maps that are copied, some images and channels at a time, to where they
// have a margin of zeros.
//
//   row 0            0 0 0 0 0
//   row 1            0 a b c d        Images of height H and width W lie one above the other; a row is W + 1 floats, the
//   row 2            0 e f g h        zero before a row also ends the row above it, and one row of zeros parts two
//   row 3            0 0 0 0 0        images. So each tap of the kernel is one shift of a flat row of pixels, and what
//   row 4            0 i j k l        the convolution makes of the zeros is not read.
//   ...
#pragma once

#include <algorithm>

#include "batch_norm.h"
#include "convolution_1x1.h"
#include "products.h"
#include "threads.h"
#include "weights.h"

struct Margin {
  Index images, height, width;
  Index row;    // floats of one
  Index group;  // images in a task
  Index tasks;

  Margin(const Team& team, Index images_, Index height_, Index width_)
      : images(images_), height(height_), width(width_), row(width_ + 1) {
    const Index enough = std::max<Index>(1, 1024 / ((height + 1) * row));
    group = std::min(enough, (images + team.threads - 1) / team.threads);
    tasks = (images + group - 1) / group;
  }

  Index pixels() const { return height * width; }
  Index images_of(Index task) const { return std::min(group, images - task * group); }
  // The positions that a convolution makes: from the first pixel's to behind the last one's.
  Index positions(Index in_group) const { return (in_group * (height + 1) - 1) * row; }
  // Floats of a channel: rows of zeros at both ends, and room for a micro-kernel to look beyond.
  Index size() const { return rounded_up(rounded_up(positions(group), PANEL) + 2 * row + 2 + PANEL, LANES); }
  Index made() const { return rounded_up(positions(group), PANEL); }
  Index centre() const { return row + 1; }  // where position 0's own pixel lies

  // use(position, pixel) for each row of each image of a task: where it begins among the positions made, and in the
  // channel.
  template <class Use>
  void rows(Index task, const Use& use) const {
    const Index count = images_of(task);
    for (Index i = 0; i < count; i++)
      for (Index h = 0; h < height; h++) use((i * (height + 1) + h) * row, ((task * group + i) * height + h) * width);
  }
};

// Copies a task's images of one channel to `to`, zeros around them: value(pixel, left) are the next LANES floats.
template <class Value>
INLINE void fill(const Margin& margin, Index task, float* to, const Value& value) {
  const Index width = margin.width, row = margin.row, count = margin.images_of(task);
  std::memset(to, 0, (margin.centre()) * sizeof(float));
  float* at = to + margin.centre();
  Index pixel = task * margin.group * margin.pixels();
  for (Index i = 0; i < count; i++) {
    for (Index h = 0; h < margin.height; h++, at += row, pixel += width) {
      // What is written behind the row is overwritten by the zeros and the rows that follow.
      for (Index w = 0; w < width; w += LANES) store(at + w, value(pixel + w, width - w));
      at[width] = 0;
    }
    for (Index w = 0; w < row; w += LANES) store(at + w, Vector{});
    at += row;
  }
  std::memset(at, 0, (to + margin.size() - at) * sizeof(float));
}

INLINE void fill_activation(
    const Margin& margin, Index task, const float* x, float scale, float shift, float* to) {
  const Vector a = all(scale), b = all(shift);
  fill(margin, task, to, [&](Index pixel, Index) { return relu(load(x + pixel) * a + b); });
}

// y[o] = Σ_i W[o][i] * z[i], a convolution with a margin of one zero; y[o] points at each map. Mask and moments as in
// convolve_1x1.
inline void convolve_3x3(
    const Team& team, const Margin& margin, const float* const* x, Index channels, const Affine& affine,
    const Packed& weight, Index out, float* const* y, const std::uint8_t* mask, float mask_scale, Moments* moments) {
  const Index all_pixels = margin.images * margin.pixels(), size = margin.size(), made = margin.made();
  const Index chunks = std::max<Index>(1, channels * size / CACHE_FLOATS), chunk = (channels + chunks - 1) / chunks;
  std::vector<Moments> of_part(moments ? team.parts * out : 0);
  team.split(margin.tasks, 1, [&](int part, Index begin, Index end) {
    static thread_local Floats scratch;
    float* z = scratch.grow(chunk * size + out * made + LANES);
    float* sums = z + chunk * size;
    alignas(64) float tile[MOST_ROWS * PANEL];
    for (Index task = begin; task < end; task++) {
      for (Index from = 0; from < channels; from += chunk) {
        const Index count = std::min(chunk, channels - from);
        for (Index i = 0; i < count; i++)
          fill_activation(margin, task, x[from + i], affine.scale[from + i], affine.shift[from + i], z + i * size);
        const bool again = from + count < channels;
        const Ahead next{
            x + (again ? std::min(from + count, channels - count) : 0),
            (again ? task : task + 1) * margin.group * margin.pixels()};
        for (const Rows& g : weight.groups)
          for (Index q = 0; q < margin.positions(margin.images_of(task)); q += PANEL) {
            const float* rows = weight.of(g) + from * 9 * g.padded;
            if (g.first == 0)
              multiply_rows_3x3<true>(g.padded, rows, z + q, count, size, margin.row, tile, {next.rows, next.at + q});
            else
              multiply_rows_3x3<false>(g.padded, rows, z + q, count, size, margin.row, tile);
            for (Index r = 0; r < g.count; r++)
              UNROLL for (int half = 0; half < PANEL; half += LANES) {
                float* to = sums + (g.first + r) * made + q + half;
                const Vector v = load(tile + r * PANEL + half);
                store(to, from == 0 ? v : load(to) + v);
              }
          }
      }
      const Index first = task * margin.group * margin.pixels(), n = margin.images_of(task) * margin.pixels();
      for (Index o = 0; o < out; o++) {
        margin.rows(task, [&](Index position, Index pixel) {
          const float* row = sums + o * made + position;
          along(margin.width, [&](Index w, auto kind) {
            using V = decltype(kind);
            store_as<V>(y[o] + pixel + w, load_as<V>(row + w));
          });
        });
        if (mask) drop(y[o] + first, mask + o * all_pixels + first, mask_scale, n);
        if (moments) of_part[part * out + o].add(moments_of(y[o] + first, n));
      }
    }
  });
  if (moments)
    for (Index o = 0; o < out; o++)
      for (int part = 0; part < team.parts; part++) moments[o].add(of_part[part * out + o]);
}

// The gradient of what a 3×3 convolution made, [o][pitch], copied to where it has a margin.
INLINE void fill_gradient(const Margin& margin, Index task, const Gradient& from, Index o, Index pitch, float* to) {
  const float *g = from.of_y + o * pitch, *y = from.y + o * pitch;
  const Vector a = all(from.norm->of_gradient[o]), b = all(from.norm->of_map[o]), c = all(from.norm->constant[o]);
  const std::uint8_t* kept = from.mask ? from.mask + o * margin.images * margin.pixels() : nullptr;
  fill(margin, task, to, [&](Index pixel, Index left) {
    Vector v = load(g + pixel) * a + (load(y + pixel) * b + c);
    if (kept) {
      float lanes[LANES];
      store(lanes, v);
      drop(lanes, kept + pixel, from.mask_scale, std::min<Index>(left, LANES));
      v = load(lanes);
    }
    return v;
  });
}

// Of one channel: dz where z > 0, times γ, is added to G (or is G, where nothing was there before).
INLINE void spread_rows(
    const Margin& margin, Index task, const float* dz, const float* z, const float* x, float mean, float gamma,
    bool onto, float* gradient, double& of_dz, double& of_products) {
  Accumulator sum_dz, sum_products;
  margin.rows(task, [&](Index position, Index pixel) {
    const float *row = dz + position, *activation = z + position + margin.centre(), *from = x + pixel;
    float* to = gradient + pixel;
    along(margin.width, [&](Index w, auto kind) {
      using V = decltype(kind);
      const V d = where_positive(load_as<V>(activation + w), load_as<V>(row + w));
      sum_dz.add(d);
      sum_products.add(d * (load_as<V>(from + w) - all_as<V>(mean)));
      const V given = all_as<V>(gamma) * d;
      store_as<V>(to + w, onto ? load_as<V>(to + w) + given : given);
    });
  });
  of_dz += sum_dz.total();
  of_products += sum_products.total();
}

// As convolve_1x1_backward. onto: the gradients hold something already; dW [out][channels][9].
inline Sums convolve_3x3_backward(
    const Team& team, const Margin& margin, const Gradient& from, Index out, Index pitch, const float* const* x,
    float* const* gradients, bool onto, Index channels, const Affine& affine, const float* gamma, const float* mean,
    const Packed& weight, const Weight& to) {
  const Index size = margin.size(), made = margin.made();
  // dW is made of so many maps' gradients at once: few are left over.
  const Index rows = DOT_ROWS == 4 || rounded_up(out, 4) < rounded_up(out, 6) ? 4 : 6;
  const Index dy_rows = rounded_up(out, rows);
  std::vector<Sums> of_part(team.parts, Sums(channels));
  Floats weight_gradients;
  // dW as `dots` makes it: [channels][kh][rows of blocks][rows][kw].
  const Index of_kernel_row = dy_rows * 3, of_channel = 3 * of_kernel_row, of_all = channels * of_channel;
  float* dw = weight_gradients.zeros(team.parts * of_all);
  team.split(margin.tasks, 1, [&](int part, Index begin, Index end) {
    static thread_local Floats scratch;
    // The centre of a gradient is aligned: it is read most.
    const Index shift = (LANES - margin.centre() % LANES) % LANES;
    float* dy = scratch.grow(dy_rows * size + MOST_ROWS * (size + made) + 2 * LANES) + shift;
    float* z = dy - shift + dy_rows * size + LANES;
    float* dz = z + MOST_ROWS * size;
    std::memset(dy + out * size, 0, (dy_rows - out) * size * sizeof(float));
    float* own = dw + part * of_all;
    alignas(64) float tile[MOST_ROWS * PANEL];
    for (Index task = begin; task < end; task++) {
      const Index positions = margin.positions(margin.images_of(task)), whole = rounded_up(positions, LANES);
      for (Index o = 0; o < out; o++) fill_gradient(margin, task, from, o, pitch, dy + o * size);
      for (const Rows& g : weight.groups) {
        for (Index r = 0; r < g.count; r++)
          fill_activation(
              margin, task, x[g.first + r], affine.scale[g.first + r], affine.shift[g.first + r], z + r * size);
        const bool last = &g == &weight.groups.back();
        const Rows& next = last ? weight.groups.front() : (&g)[1];
        const Index next_pixel = (last ? task + 1 : task) * margin.group * margin.pixels();
        for (Index q = 0; q < positions; q += PANEL) {
          for (Index r = next.first; r < next.first + next.count; r++) {
            Ahead{x, next_pixel + q}.fetch(r);
            Ahead{gradients, next_pixel + q}.fetch(r);
          }
          multiply_rows_3x3<false>(g.padded, weight.of(g), dy + q, out, size, margin.row, tile);
          for (Index r = 0; r < g.count; r++) {
            store(dz + r * made + q, load(tile + r * PANEL));
            store(dz + r * made + q + LANES, load(tile + r * PANEL + LANES));
          }
        }
        for (Index r = 0; r < g.count; r++) {
          const Index c = g.first + r;
          spread_rows(
              margin, task, dz + r * made, z + r * size, x[c], mean[c], gamma[c], onto, gradients[c],
              of_part[part].dz[c], of_part[part].products[c]);
        }
        for (Index o = 0; o < dy_rows; o += rows)
          for (Index r = 0; r < g.count; r++)
            for (Index kh = 0; kh < 3; kh++) {
              const Strip centres{dy + o * size + margin.centre(), size, 0}, shifted{z + r * size + kh * margin.row, 1, 0};
              float* found = own + (g.first + r) * of_channel + kh * of_kernel_row + o * 3;
              if (rows == 4)
                dots<4, 3>(centres, shifted, 1, whole, found);
              else
                dots<6, 3>(centres, shifted, 1, whole, found);
            }
      }
    }
  });
  for (int part = 1; part < team.parts; part++) of_part[0].add(of_part[part]);
  for (Index o = 0; o < out; o++)
    for (Index c = 0; c < channels; c++)
      for (Index tap = 0; tap < 9; tap++) {
        float total = 0;
        for (int part = 0; part < team.parts; part++)
          total += dw[part * of_all + c * of_channel + tap / 3 * of_kernel_row + o * 3 + tap % 3];
        to.gradient[o * to.of_out + c * to.of_in + tap * to.of_tap] = total;
      }
  return of_part[0];
}
