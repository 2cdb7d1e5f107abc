// BN-ReLU-Conv(3×3), forward and backward, by Winograd's arithmetic along the columns.
//
// Images of height H and width W are divided into tiles of four rows. A task consists of some tiles. The output of a tile
// depends on six rows of input, including the rows above and below, which are zeros outside the image. The six terms of
// Winograd's algorithm are rows of W + 1 floats. The zero before a row also ends the preceding row:
//
//   term 0    0 a b c d      tile 0 of an image of width 4     Each of the three taps along a row is therefore a shift
//             0 e f g h      tile 1                            of one flat row of positions. Outputs at the positions of
//             0              end of the last tile              zeros are not read.
//   term 1    0 ...
//
// Narrow images are interleaved pixel by pixel. They form one image that is wider by their number, in which neighbouring
// taps, and the zeros between rows, are that many floats apart.
#pragma once

#include <algorithm>

#include "abreast.h"
#include "batch_norm.h"
#include "convolution_1x1.h"
#include "products.h"
#include "threads.h"
#include "weights.h"
#include "winograd.h"

struct Tiles {
  Index images, height, width;  // interleaved images count as one wide image
  Index apart;      // floats from a pixel to its neighbour, the number of interleaved images
  Index row;        // floats per row
  Index per_image;  // tiles per image
  Index together;   // tiles per task
  Index tasks;

  // positions: Upper limit for the size of a task, so that its data remain in the cache of a core.
  Tiles(const Team& team, Index images_, Index height_, Index width_, Index abreast, Index positions)
      : images(images_ / abreast), height(height_), width(width_ * abreast), apart(abreast), row(width + abreast),
        per_image((height_ + TILE - 1) / TILE) {
    const Index limit = std::max<Index>(1, std::min(positions / row, (count() + team.parts - 1) / team.parts));
    together = limit;
    for (Index fewer = limit; 2 * fewer > limit; fewer--)
      if (panels(fewer) < panels(together)) together = fewer;
    tasks = (count() + together - 1) / together;
  }

  Index count() const { return images * per_image; }
  Index pixels() const { return height * width; }
  Index tiles_of(Index task) const { return std::min(together, count() - task * together); }
  // Number of output positions of a task, from the first pixel to behind the last one.
  Index positions(Index task) const { return tiles_of(task) * row; }
  Index made() const { return rounded_up(together * row, PANEL); }
  // Floats of one term of a channel, with zeros in front and room for reads of a micro-kernel beyond the end.
  Index size() const { return made() + PANEL; }
  // First pixel of a task. The pixels of tasks are consecutive.
  Index pixel_of(Index task) const { return pixel_of_tile(std::min(task * together, count())); }

  // Calls use(position, pixel, rows, number) for each tile of a task: its first position and pixel, its number of rows
  // inside the image, and its number in the image.
  template <class Use>
  INLINE_MEMBER void each(Index task, const Use& use) const {
    const Index positions = this->positions(task);
    Index number = task * together % per_image, pixel = pixel_of(task);
    for (Index position = 0; position < positions; position += row) {
      const Index rows = std::min<Index>(TILE, height - number * TILE);
      use(position, pixel, static_cast<int>(rows), number);
      pixel += rows * width;
      number = number + 1 == per_image ? 0 : number + 1;
    }
  }

 private:
  Index pixel_of_tile(Index tile) const { return (tile / per_image * height + tile % per_image * TILE) * width; }

  // Number of panels that the micro-kernels process with `tiles` tiles per task.
  Index panels(Index tiles) const {
    const auto of = [&](Index n) { return (n * row + PANEL - 1) / PANEL; };
    return count() / tiles * of(tiles) + of(count() % tiles);
  }
};

// Calls use(d, at) for vectors of columns of each tile of a task. d are the six rows of one channel, and `at` is their
// position in a row of size(). value(pixel, left, V{}) returns the floats from `pixel` on as a V, of which `left` belong to
// the row.
template <class V, class Value, class Use>
INLINE void read_tiles_as(const Tiles& tiles, Index task, const Value& value, const Use& use) {
  constexpr Index STEP = sizeof(V) / sizeof(float);
  const Index width = tiles.width;
  tiles.each(task, [&](Index position, Index pixel, int rows, Index number) {
    const int first = number == 0, last = rows + (number + 1 < tiles.per_image);
    for (Index w = 0; w < width; w += STEP) {
      V d[TERMS];
      UNROLL for (int i = 0; i < TERMS; i++)
        d[i] = i < first || i > last ? V{} : value(pixel + (i - 1) * width + w, width - w, V{});
      use(d, position + w + tiles.apart);
    }
  });
}

// Selects the shortest vector type that holds a row, else the longest.
template <class Value, class Use>
INLINE void read_tiles(const Tiles& tiles, Index task, const Value& value, const Use& use) {
  if (tiles.width <= 4)
    read_tiles_as<Quad>(tiles, task, value, use);
  else if (tiles.width <= 8)
    read_tiles_as<Eight>(tiles, task, value, use);
  else
    read_tiles_as<Vector>(tiles, task, value, use);
}

// Writes the zeros around the tiles of a task in one term of a channel. Values written behind a row are overwritten.
INLINE void write_margins(const Tiles& tiles, Index task, float* to) {
  const Index positions = tiles.positions(task);
  with_abreast(tiles.apart, [&](auto apart) {
    for (Index p = 0; p < positions; p += tiles.row) std::memset(to + p, 0, apart * sizeof(float));
  });
  std::memset(to + positions, 0, (tiles.size() - positions) * sizeof(float));
}

// Computes Bᵀ z of one channel, six rows of size().
INLINE void fill_activation(const Tiles& tiles, Index task, const float* x, float scale, float shift, float* to) {
  const Index size = tiles.size();
  read_tiles(
      tiles, task,
      [&](Index pixel, Index, auto kind) {
        using V = decltype(kind);
        return relu_as<V>(load_as<V>(x + pixel) * all_as<V>(scale) + all_as<V>(shift));
      },
      [&](const auto* d, Index at) {
        of_inputs(d, [&](int term, auto v) { store_as(to + term * size + at, v); });
      });
  for (int term = 0; term < TERMS; term++) write_margins(tiles, task, to + term * size);
}

// Packs a weight at(row, channel, tap) in the order of the micro-kernels: [term][channel][tap][row] of each group of rows.
template <class At>
void pack_3x3(Index rows, Index channels, const At& at, Packed& packed) {
  packed.reserve(rows, TERMS * channels * 3);
  for (const Rows& g : packed.groups)
    for (Index c = 0; c < channels; c++)
      for (Index kw = 0; kw < 3; kw++)
        for (Index r = 0; r < g.padded; r++) {
          const auto tap = [&](Index kh) { return r < g.count ? at(g.first + r, c, kh * 3 + kw) : 0.0f; };
          float* to = packed.values.data() + g.offset + (c * 3 + kw) * g.padded + r;
          of_taps(tap(0), tap(1), tap(2), [&](int term, float v) { to[term * channels * 3 * g.padded] = v; });
        }
}

// Writes Aᵀ m of one map, from six rows of made(), to the pixels of a task.
INLINE void write_outputs(const Tiles& tiles, Index task, const float* products, float* y) {
  const Index made = tiles.made();
  tiles.each(task, [&](Index position, Index pixel, int rows, Index) {
    along(tiles.width, [&](Index w, auto kind) {
      using V = decltype(kind);
      V m[TERMS];
      UNROLL for (int term = 0; term < TERMS; term++) m[term] = load_as<V>(products + term * made + position + w);
      UNROLL for (int row = 0; row < TILE; row++)
        if (row < rows) store_as<V>(y + pixel + row * tiles.width + w, to_output(row, m));
    });
  });
}

constexpr Index CHUNK_FLOATS = 128 * 1024;  // size of the terms of a chunk of channels, for a cache of 1 MB

// Computes y[o] = Σ_i W[o][i] * z[i], a convolution with zero padding of 1. y[o] points to each map. See convolve_1x1 for
// mask and moments.
inline void convolve_3x3(
    const Team& team, const Tiles& tiles, const float* const* x, Index channels, const Affine& affine,
    const Packed& weight, Index out, float* const* y, const std::uint8_t* mask, float mask_scale, Moments* moments) {
  const Index all_pixels = tiles.images * tiles.pixels(), size = tiles.size(), made = tiles.made();
  const Index chunks = std::max<Index>(1, channels * TERMS * size / CHUNK_FLOATS);
  const Index chunk = (channels + chunks - 1) / chunks;
  std::vector<Moments> of_part(moments ? team.parts * out : 0);
  team.split(tiles.tasks, 1, [&](int part, Index begin, Index end) {
    static thread_local Floats scratch;
    float* z = scratch.grow((chunk * size + weight.rows() * made) * TERMS);
    float* products = z + chunk * TERMS * size;
    for (Index task = begin; task < end; task++) {
      for (Index from = 0; from < channels; from += chunk) {
        const Index count = std::min(chunk, channels - from);
        for (Index i = 0; i < count; i++)
          fill_activation(
              tiles, task, x[from + i], affine.scale[from + i], affine.shift[from + i], z + i * TERMS * size);
        const bool again = from + count < channels;
        const Ahead next{
            x + (again ? std::min(from + count, channels - count) : 0), tiles.pixel_of(again ? task : task + 1)};
        for (const Rows& g : weight.groups)
          for (Index q = 0; q < tiles.positions(task); q += PANEL)
            for (int term = 0; term < TERMS; term++) {
              const float* rows = weight.of(g) + (term * channels + from) * 3 * g.padded;
              const float* of_term = z + term * size + q;
              float* to = products + (g.row * TERMS + term) * made + q;
              if (g.first == 0 && term < TILE)
                multiply_rows_taps<true>(
                    g.padded, rows, of_term, count, TERMS * size, tiles.apart, to, TERMS * made, from > 0,
                    {next.rows, next.at + term * made + q});
              else
                multiply_rows_taps<false>(
                    g.padded, rows, of_term, count, TERMS * size, tiles.apart, to, TERMS * made, from > 0);
            }
      }
      const Index first = tiles.pixel_of(task), n = tiles.pixel_of(task + 1) - first;
      for (const Rows& g : weight.groups)
        for (Index r = 0; r < g.count; r++) {
          const Index o = g.first + r;
          write_outputs(tiles, task, products + (g.row + r) * TERMS * made, y[o]);
          if (mask) drop(y[o] + first, mask + o * all_pixels + first, mask_scale, n);
          if (moments) of_part[part * out + o].add(moments_of(y[o] + first, n));
        }
    }
  });
  if (moments)
    for (Index o = 0; o < out; o++)
      for (int part = 0; part < team.parts; part++) moments[o].add(of_part[part * out + o]);
}

// Computes Bᵀ dy and A dy of the output [o][pitch] of a 3×3 convolution, six rows of size() each.
INLINE void fill_gradient(
    const Tiles& tiles, Index task, const Gradient& from, Index o, Index pitch, float* as_input, float* as_output) {
  const float *g = from.of_y + o * pitch, *y = from.y + o * pitch;
  const float a = from.norm->of_gradient[o], b = from.norm->of_map[o], c = from.norm->constant[o];
  const std::uint8_t* kept = from.mask ? from.mask + o * tiles.images * tiles.pixels() : nullptr;
  const Index size = tiles.size();
  read_tiles(
      tiles, task,
      [&](Index pixel, Index left, auto kind) {
        using V = decltype(kind);
        V v = load_as<V>(g + pixel) * all_as<V>(a) + (load_as<V>(y + pixel) * all_as<V>(b) + all_as<V>(c));
        if (kept) {
          constexpr Index lanes = sizeof(V) / sizeof(float);
          float values[lanes];
          store_as(values, v);
          drop(values, kept + pixel, from.mask_scale, std::min(left, lanes));
          v = load_as<V>(values);
        }
        return v;
      },
      [&](const auto* d, Index at) {
        of_inputs(d, [&](int term, auto v) { store_as(as_input + term * size + at, v); });
        of_outputs(d + 1, [&](int term, auto v) { store_as(as_output + term * size + at, v); });
      });
  for (int term = 0; term < TERMS; term++) {
    write_margins(tiles, task, as_input + term * size);
    write_margins(tiles, task, as_output + term * size);
  }
}

// For one channel: computes dz = Aᵀ m where z > 0, and adds γ·dz to G with `onto`, else sets G to it.
INLINE void spread_rows(
    const Tiles& tiles, Index task, const float* products, const float* x, float scale, float shift, float mean,
    float gamma, bool onto, float* gradient, double& of_dz, double& of_products) {
  Accumulator sum_dz, sum_products;
  const Index made = tiles.made();
  tiles.each(task, [&](Index position, Index pixel, int rows, Index) {
    along(tiles.width, [&](Index w, auto kind) {
      using V = decltype(kind);
      V m[TERMS];
      UNROLL for (int term = 0; term < TERMS; term++) m[term] = load_as<V>(products + term * made + position + w);
      UNROLL for (int row = 0; row < TILE; row++) {
        if (row >= rows) continue;
        const Index at = pixel + row * tiles.width + w;
        const V value = load_as<V>(x + at);
        const V d = where_positive<V>(value * all_as<V>(scale) + all_as<V>(shift), to_output(row, m));
        sum_dz.add(d);
        sum_products.add(d * (value - all_as<V>(mean)));
        const V given = all_as<V>(gamma) * d;
        store_as<V>(gradient + at, onto ? load_as<V>(gradient + at) + given : given);
      }
    });
  });
  of_dz += sum_dz.total();
  of_products += sum_products.total();
}

// See convolve_1x1_backward. With `onto`, gradients are added to. dW is [out][channels][9].
inline Sums convolve_3x3_backward(
    const Team& team, const Tiles& tiles, const Gradient& from, Index out, Index pitch, const float* const* x,
    float* const* gradients, bool onto, Index channels, const Affine& affine, const float* gamma, const float* mean,
    const Packed& weight, const Weight& to) {
  const Index size = tiles.size(), made = tiles.made(), of_channel = TERMS * size;
  // Number of maps whose dW is computed together, chosen so that few rows are padding.
  const Index rows = DOT_ROWS == 4 || rounded_up(out, 4) < rounded_up(out, 6) ? 4 : 6;
  const Index dy_rows = rounded_up(out, rows);
  std::vector<Sums> of_part(team.parts, Sums(channels));
  Floats weight_gradients;
  // (A dy) ⊙ (Bᵀ z) as accumulated by `dots`: [channels][term][maps][tap].
  const Index of_term = dy_rows * 3, of_all = channels * TERMS * of_term;
  float* dw = weight_gradients.zeros(team.parts * of_all);
  team.split(tiles.tasks, 1, [&](int part, Index begin, Index end) {
    static thread_local Floats scratch;
    float* as_input = scratch.grow((dy_rows + out + MOST_ROWS) * of_channel + MOST_ROWS * TERMS * made + LANES);
    float* as_output = as_input + out * of_channel + LANES - tiles.apart;  // aligns its first pixels, which are read most often
    float* z = as_output + dy_rows * of_channel + tiles.apart;
    float* products = z + MOST_ROWS * of_channel;
    std::memset(as_output + out * of_channel, 0, (dy_rows - out) * of_channel * sizeof(float));
    float* part_dw = dw + part * of_all;
    for (Index task = begin; task < end; task++) {
      const Index positions = tiles.positions(task);
      for (Index o = 0; o < out; o++)
        fill_gradient(tiles, task, from, o, pitch, as_input + o * of_channel, as_output + o * of_channel);
      for (const Rows& g : weight.groups) {
        for (Index r = 0; r < g.count; r++)
          fill_activation(
              tiles, task, x[g.first + r], affine.scale[g.first + r], affine.shift[g.first + r], z + r * of_channel);
        const bool last = &g == &weight.groups.back();
        const Rows& next = last ? weight.groups.front() : (&g)[1];
        const Index next_pixel = tiles.pixel_of(last ? task + 1 : task);
        for (Index q = 0; q < positions; q += PANEL)
          for (int term = 0; term < TERMS; term++) {
            if (term < TILE)
              for (Index r = next.first; r < next.first + next.count; r++) {
                Ahead{x, next_pixel + term * made + q}.fetch(r);
                Ahead{gradients, next_pixel + term * made + q}.fetch(r);
              }
            multiply_rows_taps<false>(
                g.padded, weight.of(g) + term * out * 3 * g.padded, as_input + term * size + q, out, of_channel,
                tiles.apart, products + term * made + q, TERMS * made, false);
          }
        for (Index r = 0; r < g.count; r++) {
          const Index c = g.first + r;
          spread_rows(
              tiles, task, products + r * TERMS * made, x[c], affine.scale[c], affine.shift[c], mean[c], gamma[c], onto,
              gradients[c], of_part[part].dz[c], of_part[part].products[c]);
        }
        for (Index o = 0; o < dy_rows; o += rows)
          for (Index r = 0; r < g.count; r++)
            for (int term = 0; term < TERMS; term++) {
              const Strip centres{as_output + o * of_channel + term * size + tiles.apart, of_channel, 0};
              const Strip shifted{z + r * of_channel + term * size, tiles.apart, 0};
              float* product = part_dw + ((g.first + r) * TERMS + term) * of_term + o * 3;
              if (rows == 4)
                dots<4, 3>(centres, shifted, 1, positions, product);
              else
                dots<6, 3>(centres, shifted, 1, positions, product);
            }
      }
    }
  });
  for (int part = 1; part < team.parts; part++) of_part[0].add(of_part[part]);
  for (Index o = 0; o < out; o++)
    for (Index c = 0; c < channels; c++)
      for (Index kw = 0; kw < 3; kw++) {
        float u[TERMS] = {}, taps[3];
        for (int part = 0; part < team.parts; part++)
          for (int term = 0; term < TERMS; term++)
            u[term] += dw[part * of_all + (c * TERMS + term) * of_term + o * 3 + kw];
        to_taps(u, taps);
        for (Index kh = 0; kh < 3; kh++) to.gradient[o * to.of_out + c * to.of_in + (kh * 3 + kw) * to.of_tap] = taps[kh];
      }
  return of_part[0];
}
