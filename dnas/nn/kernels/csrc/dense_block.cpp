// A dense block and the consumer after it, in one call per direction. The algorithm and the names follow
// dnas/nn/kernels/reference.py. dnas/nn/kernels/cpu.py fills the structures below and calls the functions at the end.
//
// Reading order: vectors.h (the machine), abreast.h, batch_norm.h, weights.h, products.h (the micro-kernels), winograd.h,
// convolution_1x1.h, convolution_3x3.h, ends.h, and this file.

#include <memory>
#include <vector>

#include "abreast.h"
#include "batch_norm.h"
#include "convolution_1x1.h"
#include "convolution_3x3.h"
#include "ends.h"
#include "memory.h"
#include "threads.h"
#include "weights.h"

extern "C" {

struct NormTensors {
  const float *gamma, *beta;
  float *dgamma, *dbeta;   // null except in the backward pass
  float *mean, *variance;  // running statistics; null in the backward pass, and if the caller updates them
  std::int64_t* count;     // steps included in the running statistics; null in evaluation as well
};

// A layer, or the last consumer, which uses only the first three members.
struct Consumer {
  Index channels;      // number of channels that it reads
  const Index* reads;  // numbers of these channels in the block
  NormTensors norm1;
  Index width;  // width of the bottleneck; 0 without one, when the 3×3 convolution is the first
  Weight weight1;
  const std::uint8_t* mask1;  // dropout mask [maps][pixels], or null
  NormTensors norm2;
  Weight weight2;
  const std::uint8_t* mask2;
  Index out;  // output channels
};

struct Block {
  Index images, height, width;
  Index x_channels;
  Index layers;
  Index end;
  Images x_layout;  // layout of x and dx
  Index threads;
  double eps;
  double mask_scale;
  double momentum;  // momentum of the running statistics
  const Consumer* consumers;  // [layers + 1]
  const float* x;
  float* maps;           // [channels of all layers][pitch]
  float* bottlenecks;    // [widths of all layers][pitch]; null if not kept
  double *mean, *variance;  // [channels of the block, then of the bottlenecks]
  float* out;             // [channels][images][...]
  const float* gradient;  // gradient of out
  float* dx;
};
}

namespace {

// The weights and affine maps of a layer in the form that the kernels use.
struct Prepared {
  Affine affine1, affine2;
  Packed weight1, weight2;          // for the forward pass
  Packed transposed1, transposed2;  // for the backward pass
};

// Packs a convolution's weight. For the forward pass, rows are output maps. For the backward pass, rows are input maps, and
// the taps of 3×3 kernels are reversed.
void pack_forward(const Weight& w, Index out, Index in, bool is_1x1, Packed& packed) {
  if (is_1x1)
    packed.pack(out, in, [&](Index o, Index i) { return w.at(o, i, 0); });
  else
    pack_3x3(out, in, [&](Index o, Index i, Index tap) { return w.at(o, i, tap); }, packed);
}

void pack_backward(const Weight& w, Index out, Index in, bool is_1x1, Packed& packed) {
  if (is_1x1)
    packed.pack(in, out, [&](Index i, Index o) { return w.at(o, i, 0); });
  else
    pack_3x3(in, out, [&](Index i, Index o, Index tap) { return w.at(o, i, 8 - tap); }, packed);
}

// Sizes, threads and helper functions for one call.
class Work {
 public:
  // positions: Size of a task of a 3×3 convolution, see Tiles.
  Work(const Block& block, int threads, Index positions = 512)
      : b(block), pixels(b.images * b.height * b.width), pitch(pitch_of(pixels)),
        abreast(has_masks() ? 1 : abreast_of(b.images, b.width)), team(threads, pixels, pixels * weights_of_a_layer()),
        tiles(team, b.images, b.height, b.width, abreast, positions) {
    starts.push_back(b.x_channels);
    inner.push_back(0);
    for (Index l = 0; l < b.layers; l++) {
      starts.push_back(starts.back() + b.consumers[l].out);
      inner.push_back(inner.back() + b.consumers[l].width);
    }
    for (auto& start : inner) start += channels();
  }

  Index channels() const { return starts.back(); }
  const Consumer& last() const { return b.consumers[b.layers]; }
  bool has_masks() const { return b.consumers[0].mask1 != nullptr; }  // masked images are not interleaved
  Ending ending() const { return {static_cast<End>(b.end), b.images, b.height, b.width, abreast}; }
  float* maps_of(float* maps, Index layer) const { return maps + (starts[layer] - b.x_channels) * pitch; }
  float* bottleneck_of(float* bottlenecks, Index layer) const {
    return bottlenecks + (inner[layer] - channels()) * pitch;
  }

  // Pointers to each channel of the block: those of x, then those of the maps.
  template <class Float>
  std::vector<Float*> rows(Float* x, Float* maps) const {
    std::vector<Float*> pointers;
    for (Index c = 0; c < b.x_channels; c++) pointers.push_back(x + c * pitch);
    for (Index c = 0; c < channels() - b.x_channels; c++) pointers.push_back(maps + c * pitch);
    return pointers;
  }

  template <class Value>
  static std::vector<Value> selected(const std::vector<Value>& values, const Consumer& consumer) {
    std::vector<Value> result(consumer.channels);
    for (Index c = 0; c < consumer.channels; c++) result[c] = values[consumer.reads[c]];
    return result;
  }

  static std::vector<const float*> read_only(const std::vector<float*>& rows) { return {rows.begin(), rows.end()}; }

  // Affine maps with the statistics of the batch.
  Affine affine1(const Consumer& c) const {
    return {c.channels, c.norm1.gamma, c.norm1.beta, b.mean, b.variance, b.eps, [&](Index i) { return c.reads[i]; }};
  }
  Affine affine2(const Consumer& c, Index layer) const {
    return {c.width, c.norm2.gamma, c.norm2.beta, b.mean, b.variance, b.eps, [&](Index i) { return inner[layer] + i; }};
  }
  static Affine running(const NormTensors& n, Index channels, double eps) {
    return {channels, n.gamma, n.beta, n.mean, n.variance, eps, [](Index i) { return i; }};
  }

  // Moves each norm's running mean and variance towards the mean and unbiased variance of the batch by `momentum`.
  void update_running() const {
    const double M = static_cast<double>(pixels), unbiased = M / (M - 1);
    const auto update = [&](const NormTensors& n, Index count, const auto& at) {
      if (n.mean == nullptr) return;
      ++*n.count;
      const float share = static_cast<float>(b.momentum);
      for (Index i = 0; i < count; i++) {
        n.mean[i] += share * (static_cast<float>(b.mean[at(i)]) - n.mean[i]);
        n.variance[i] += share * (static_cast<float>(b.variance[at(i)] * unbiased) - n.variance[i]);
      }
    };
    for (Index l = 0; l <= b.layers; l++) {
      const Consumer& c = b.consumers[l];
      update(c.norm1, c.channels, [&](Index i) { return c.reads[i]; });
      if (l < b.layers && c.width) update(c.norm2, c.width, [&](Index i) { return inner[l] + i; });
    }
  }

  // Packs the weights. The backward pass needs those of the forward pass only for recomputed bottlenecks.
  void prepare(std::vector<Prepared>& layers, bool backward) const {
    team.split(b.layers, 1, [&](int, Index begin, Index end) {
      for (Index l = begin; l < end; l++) {
        const Consumer& c = b.consumers[l];
        Prepared& p = layers[l];
        const Index made = c.width ? c.width : c.out;
        if (!backward || (c.width && !b.bottlenecks)) pack_forward(c.weight1, made, c.channels, c.width, p.weight1);
        if (!backward && c.width) pack_forward(c.weight2, c.out, c.width, false, p.weight2);
        if (backward) pack_backward(c.weight1, made, c.channels, c.width, p.transposed1);
        if (backward && c.width) pack_backward(c.weight2, c.out, c.width, false, p.transposed2);
      }
    });
  }

  // Stores mean and variance of channels from `first` on.
  void put(const std::vector<Moments>& moments, Index first) const {
    for (std::size_t i = 0; i < moments.size(); i++) {
      b.mean[first + i] = moments[i].mean;
      b.variance[first + i] = moments[i].squares / moments[i].count;
    }
  }

  // Runs the layers in order. With `training`, the statistics of the batch are computed, stored and used.
  void run_layers(std::vector<Prepared>& layers, float* x, float* maps, float* bottlenecks, bool training) const {
    const std::vector<float*> all = rows(x, maps);
    Floats scratch;
    for (Index l = 0; l < b.layers; l++) {
      const Consumer& c = b.consumers[l];
      Prepared& p = layers[l];
      std::vector<Moments> moments(training ? c.out : 0);
      Moments* measured = training ? moments.data() : nullptr;
      std::vector<const float*> read = read_only(selected(all, c));
      float* const* made = all.data() + starts[l];
      for (Index i = 0; i < c.out; i++) std::memset(made[i] + pixels, 0, (pitch - pixels) * sizeof(float));
      if (training) p.affine1 = affine1(c);
      if (c.width) {
        float* y = bottlenecks ? bottleneck_of(bottlenecks, l) : scratch.grow(c.width * pitch);
        make_bottleneck(c, p, l, read, y, training);
        if (training) p.affine2 = affine2(c, l);
        std::vector<const float*> inside;
        for (Index i = 0; i < c.width; i++) inside.push_back(y + i * pitch);
        convolve_3x3(
            team, tiles, inside.data(), c.width, p.affine2, p.weight2, c.out, made, c.mask2, b.mask_scale, measured);
      } else {
        convolve_3x3(
            team, tiles, read.data(), c.channels, p.affine1, p.weight1, c.out, made, c.mask1, b.mask_scale, measured);
      }
      if (training) put(moments, starts[l]);
    }
  }

  void make_bottleneck(
      const Consumer& c, const Prepared& p, Index layer, const std::vector<const float*>& read, float* y,
      bool measure) const {
    std::vector<Moments> moments(measure ? c.width : 0);
    convolve_1x1(
        team, pixels, read.data(), c.channels, p.affine1, p.weight1, c.width, y, pitch, c.mask1, b.mask_scale,
        measure ? moments.data() : nullptr);
    // Values behind the last pixel are read and multiplied by zeros, so they must be finite.
    for (Index i = 0; i < c.width; i++) std::memset(y + i * pitch + pixels, 0, (pitch - pixels) * sizeof(float));
    if (measure) put(moments, inner[layer]);
  }

  // Average number of multiply-adds per pixel of a layer.
  Index weights_of_a_layer() const {
    Index all = 0;
    for (Index l = 0; l < b.layers; l++) {
      const Consumer& c = b.consumers[l];
      all += c.width ? c.channels * c.width + 9 * c.width * c.out : 9 * c.channels * c.out;
    }
    return all / b.layers;
  }

  const Block& b;
  const Index pixels, pitch, abreast;
  const Team team;
  const Tiles tiles;
  std::vector<Index> starts;  // first channel of each layer's maps, followed by the total number of channels
  std::vector<Index> inner;   // first channel of each bottleneck in mean and variance
};

void forward(const Block& b) {
  const Work work(b, static_cast<int>(b.threads));
  prefer_large_pages(b.maps, (work.channels() - b.x_channels) * work.pitch);
  if (b.bottlenecks) prefer_large_pages(b.bottlenecks, (work.inner.back() - work.channels()) * work.pitch);
  std::vector<Prepared> layers(b.layers);
  work.prepare(layers, false);
  Floats x(b.x_channels * work.pitch);
  std::vector<Moments> moments(b.x_channels);
  copy_in(
      work.team, b.x, b.x_layout, b.images, b.x_channels, b.height * b.width, work.abreast, x.data(), work.pitch,
      moments.data());
  work.put(moments, 0);
  work.run_layers(layers, x.data(), b.maps, b.bottlenecks, true);
  const auto read = Work::read_only(Work::selected(work.rows(x.data(), b.maps), work.last()));
  end_block(
      work.team, work.ending(), read.data(), work.last().channels, work.affine1(work.last()), b.images, b.out);
  work.update_running();
}

// The backward pass, from the last consumer to the first.
class BackwardWork : Work {
 public:
  // Tasks are longer than in the forward pass, so that fewer sums of weight gradients must be merged.
  BackwardWork(const Block& block, int threads) : Work(block, threads, 1024), totals(inner.back()), layers(b.layers) {
    for (Index c = 0; c < inner.back(); c++) mean.push_back(static_cast<float>(b.mean[c]));
  }

  void run() {
    prepare(layers, true);
    Floats x(b.x_channels * pitch), dx(b.x_channels * pitch), dmaps((channels() - b.x_channels) * pitch);
    copy_in(team, b.x, b.x_layout, b.images, b.x_channels, b.height * b.width, abreast, x.data(), pitch, nullptr);
    all = rows(x.data(), b.maps);
    gradients = rows(dx.data(), dmaps.data());
    begin();
    for (Index l = b.layers - 1; l >= 0; l--) {
      const Backward norm(totals, b.mean, b.variance, b.eps, starts[l], b.consumers[l].out, values());
      const Gradient of_maps{maps_of(dmaps.data(), l), maps_of(b.maps, l), &norm, nullptr, 1};
      layers[l].affine1 = affine1(b.consumers[l]);
      if (b.consumers[l].width)
        through_bottleneck(l, of_maps);
      else
        through_3x3(l, of_maps);
    }
    const Backward norm(totals, b.mean, b.variance, b.eps, 0, b.x_channels, values());
    copy_out_gradient(
        team, dx.data(), x.data(), pitch, norm, b.images, b.x_channels, b.height * b.width, abreast, b.dx, b.x_layout);
  }

 private:
  double values() const { return static_cast<double>(pixels); }

  // The last consumer initialises the gradients; those of channels that it does not read are set to zero.
  void begin() {
    const Consumer& c = last();
    std::vector<bool> written(channels());
    for (Index i = 0; i < c.channels; i++) written[c.reads[i]] = true;
    for (Index i = 0; i < channels(); i++)
      if (!written[i]) std::memset(gradients[i], 0, pitch * sizeof(float));
    const auto read = read_only(selected(all, c));
    const auto to = selected(gradients, c);
    const Affine affine = affine1(c);
    const auto centre = selected(mean, c);
    const Sums sums = end_block_backward(
        team, ending(), b.gradient, read.data(), to.data(), c.channels, affine, c.norm1.gamma,
        centre.data());
    finish(c.norm1, c.channels, sums, [&](Index i) { return c.reads[i]; });
  }

  // Writes dγ and dβ of a norm, and adds to the totals of the channels at(0), at(1) and so on.
  template <class At>
  void finish(const NormTensors& norm, Index count, const Sums& sums, const At& at) {
    for (Index i = 0; i < count; i++) {
      norm.dbeta[i] = static_cast<float>(sums.dz[i]);
      norm.dgamma[i] = static_cast<float>(sums.products[i] / std::sqrt(b.variance[at(i)] + b.eps));
      totals.add(at(i), norm.gamma[i], sums.dz[i], sums.products[i]);
    }
  }

  void through_3x3(Index l, Gradient of_maps) {
    const Consumer& c = b.consumers[l];
    of_maps.mask = c.mask1;
    of_maps.mask_scale = static_cast<float>(b.mask_scale);
    const auto read = read_only(selected(all, c));
    const auto to = selected(gradients, c);
    const auto centre = selected(mean, c);
    const Sums sums = convolve_3x3_backward(
        team, tiles, of_maps, c.out, pitch, read.data(), to.data(), true, c.channels, layers[l].affine1,
        c.norm1.gamma, centre.data(), layers[l].transposed1, c.weight1);
    finish(c.norm1, c.channels, sums, [&](Index i) { return c.reads[i]; });
  }

  void through_bottleneck(Index l, Gradient of_maps) {
    const Consumer& c = b.consumers[l];
    const auto read = read_only(selected(all, c));
    float* y = b.bottlenecks ? bottleneck_of(b.bottlenecks, l) : recomputed.grow(c.width * pitch);
    if (!b.bottlenecks) make_bottleneck(c, layers[l], l, read, y, false);
    float* dy = inside.grow(c.width * pitch);
    std::vector<const float*> rows_of_y;
    std::vector<float*> rows_of_dy;
    for (Index i = 0; i < c.width; i++) {
      rows_of_y.push_back(y + i * pitch);
      rows_of_dy.push_back(dy + i * pitch);
    }
    of_maps.mask = c.mask2;
    of_maps.mask_scale = static_cast<float>(b.mask_scale);
    Sums sums = convolve_3x3_backward(
        team, tiles, of_maps, c.out, pitch, rows_of_y.data(), rows_of_dy.data(), false, c.width,
        affine2(c, l), c.norm2.gamma, mean.data() + inner[l], layers[l].transposed2, c.weight2);
    finish(c.norm2, c.width, sums, [&](Index i) { return inner[l] + i; });
    const Backward norm(totals, b.mean, b.variance, b.eps, inner[l], c.width, values());
    const Gradient of_y{dy, y, &norm, c.mask1, static_cast<float>(b.mask_scale)};
    const auto to = selected(gradients, c);
    const auto centre = selected(mean, c);
    sums = convolve_1x1_backward(
        team, pixels, of_y, c.width, pitch, read.data(), to.data(), c.channels, layers[l].affine1, c.norm1.gamma,
        centre.data(), layers[l].transposed1, c.weight1);
    finish(c.norm1, c.channels, sums, [&](Index i) { return c.reads[i]; });
  }

  Totals totals;
  std::vector<Prepared> layers;
  std::vector<float> mean;
  std::vector<float*> all, gradients;
  Floats recomputed, inside;
};

// Inference needs no statistics of the batch. Each thread runs some images through all layers, so that they remain in its
// cache. With fewer images than threads, all threads share the work of each layer.
void infer(const Block& b) {
  const Work whole(b, static_cast<int>(b.threads));
  std::vector<Prepared> layers(b.layers);
  whole.prepare(layers, false);
  for (Index l = 0; l < b.layers; l++) {
    const Consumer& c = b.consumers[l];
    layers[l].affine1 = Work::running(c.norm1, c.channels, b.eps);
    if (c.width) layers[l].affine2 = Work::running(c.norm2, c.width, b.eps);
  }
  const Affine affine = Work::running(whole.last().norm1, whole.last().channels, b.eps);
  const auto run = [&](Index first, Index count, int threads) {
    Block part = b;
    part.images = count;
    const Work work(part, threads);
    static thread_local Floats memory;
    float* x = memory.grow(work.channels() * work.pitch);
    float* maps = x + b.x_channels * work.pitch;
    copy_in(
        work.team, b.x + first * b.x_layout.of_image, b.x_layout, count, b.x_channels, b.height * b.width, work.abreast,
        x, work.pitch, nullptr);
    work.run_layers(layers, x, maps, nullptr, false);
    const auto read = Work::read_only(Work::selected(work.rows(x, maps), work.last()));
    end_block(
        work.team, work.ending(), read.data(), work.last().channels, affine, b.images, b.out + first * work.ending().made());
  };
  if (b.images < b.threads) {
    run(0, b.images, static_cast<int>(b.threads));
    return;
  }
  const Index together = std::max<Index>(1, 1024 / (b.height * b.width));
  whole.team.split(b.images, 1, [&](int, Index begin, Index end) {
    for (Index first = begin; first < end; first += together) run(first, std::min(together, end - first), 1);
  });
}

// Returns 0, or 1 if memory is exhausted.
template <class Run>
int guarded(const Run& run) {
  try {
    run();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

extern "C" {
Index dnas_pitch(Index pixels) { return pitch_of(pixels); }
int dnas_forward(const Block* b) { return guarded([&] { forward(*b); }); }
int dnas_backward(const Block* b) {
  return guarded([&] { BackwardWork(*b, static_cast<int>(b->threads)).run(); });
}
int dnas_infer(const Block* b) { return guarded([&] { infer(*b); }); }
}
