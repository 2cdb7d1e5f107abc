// Runs several kinds of blocks through the kernels, with memory of exact size, and prints all outputs. For tools that
// check memory accesses, and for emulated processors.
#include <cstdio>
#include <deque>
#include <random>

#include "dense_block.cpp"

namespace {

struct Case {
  Index images, height, width, x_channels, layers, growth, bottleneck, end, threads;
  bool channels_last, dropout, keeps_bottlenecks;
};

const Case CASES[] = {
    {3, 8, 8, 5, 3, 4, 0, 0, 1, true, false, true},    // 2×2 averages
    {2, 7, 5, 3, 2, 13, 9, 1, 2, false, false, true},  // means; odd sizes
    {5, 1, 1, 4, 1, 2, 3, 2, 2, true, true, true},     // no operation at the end; single pixels; dropout
    {2, 18, 33, 6, 2, 12, 48, 0, 2, true, true, false},  // recomputed bottlenecks
    {9, 2, 3, 1, 2, 1, 0, 1, 3, false, true, true},
    {6, 8, 8, 5, 2, 4, 0, 0, 1, true, false, true},   // interleaved images
    {24, 3, 2, 4, 1, 3, 2, 0, 2, false, false, true},
    {16, 1, 1, 3, 1, 2, 0, 1, 1, true, false, true},
};

class Random {
 public:
  std::vector<float> floats(Index count, float low, float high) {
    std::vector<float> made(count);
    for (auto& value : made) value = low + (high - low) * static_cast<float>(engine_() % 65536) / 65536;
    return made;
  }
  std::vector<std::uint8_t> mask(Index count) {
    std::vector<std::uint8_t> made(count);
    for (auto& value : made) value = engine_() % 4 != 0;
    return made;
  }

 private:
  std::mt19937 engine_{7};
};

// Memory that lives as long as the program, because structures point to it.
template <class Value>
Value* kept(std::vector<Value> values) {
  static std::deque<std::vector<Value>> all;
  return all.emplace_back(std::move(values)).data();
}

void print(const char* name, const float* values, Index count) {
  std::printf("%s", name);
  for (Index i = 0; i < count; i++) std::printf(" %.6g", values[i]);
  std::printf("\n");
}

struct Norm {
  NormTensors tensors;
  Index channels;
};

Norm make_norm(Random& random, Index channels) {
  return {{kept(random.floats(channels, 0.5, 1.5)), kept(random.floats(channels, -0.3, 0.3)),
           kept(std::vector<float>(channels)), kept(std::vector<float>(channels)),
           kept(random.floats(channels, -0.2, 0.2)), kept(random.floats(channels, 0.5, 2)),
           kept(std::vector<std::int64_t>(1))},
          channels};
}

Weight make_weight(Random& random, Index out, Index in, Index taps) {
  const Index count = out * in * taps;
  return {kept(random.floats(count, -0.3, 0.3)), kept(std::vector<float>(count)), in * taps, taps, 1};
}

void run(const Case& c, Random& random) {
  const Index pixels = c.height * c.width, values = c.images * pixels, pitch = dnas_pitch(values);
  std::vector<Consumer> consumers(c.layers + 1);
  std::vector<Norm> norms;
  Index channels = c.x_channels;
  for (Index l = 0; l <= c.layers; l++) {
    Consumer& consumer = consumers[l];
    std::vector<Index> reads(channels);
    for (Index i = 0; i < channels; i++) reads[i] = i;
    norms.push_back(make_norm(random, channels));
    consumer.channels = channels, consumer.reads = kept(reads), consumer.norm1 = norms.back().tensors;
    if (l == c.layers) break;
    consumer.width = c.bottleneck, consumer.out = c.growth;
    const Index made = c.bottleneck ? c.bottleneck : c.growth;
    consumer.weight1 = make_weight(random, made, channels, c.bottleneck ? 1 : 9);
    consumer.mask1 = c.dropout ? kept(random.mask(made * values)) : nullptr;
    if (c.bottleneck) {
      norms.push_back(make_norm(random, c.bottleneck));
      consumer.norm2 = norms.back().tensors;
      consumer.weight2 = make_weight(random, c.growth, c.bottleneck, 9);
      consumer.mask2 = c.dropout ? kept(random.mask(c.growth * values)) : nullptr;
    }
    channels += c.growth;
  }
  const Index all = channels + c.layers * c.bottleneck, size = c.x_channels * values;
  const Index of_out = channels * (c.end == 0 ? c.images * (c.height / 2) * (c.width / 2) : c.end == 1 ? c.images : values);
  Block b{};
  b.images = c.images, b.height = c.height, b.width = c.width, b.x_channels = c.x_channels, b.layers = c.layers;
  b.end = c.end, b.threads = c.threads, b.eps = 1e-5, b.mask_scale = c.dropout ? 4.0 / 3 : 1;
  b.momentum = 0.1;
  b.x_layout = c.channels_last ? Images{c.x_channels * pixels, 1, c.x_channels} : Images{c.x_channels * pixels, pixels, 1};
  b.consumers = consumers.data(), b.x = kept(random.floats(size, -1, 1));
  Floats maps((channels - c.x_channels) * pitch), bottlenecks(c.layers * c.bottleneck * pitch + 1);
  b.maps = maps.data(), b.bottlenecks = c.bottleneck && c.keeps_bottlenecks ? bottlenecks.data() : nullptr;
  b.mean = kept(std::vector<double>(all)), b.variance = kept(std::vector<double>(all));
  b.out = kept(std::vector<float>(of_out)), b.dx = kept(std::vector<float>(size));
  b.gradient = kept(random.floats(of_out, -1, 1));
  dnas_infer(&b);
  print("infer", b.out, of_out);
  dnas_forward(&b);
  print("forward", b.out, of_out);
  dnas_backward(&b);
  print("dx", b.dx, size);
  for (const Norm& norm : norms) {
    print("mean", norm.tensors.mean, norm.channels);
    print("variance", norm.tensors.variance, norm.channels);
    print("dgamma", norm.tensors.dgamma, norm.channels);
    print("dbeta", norm.tensors.dbeta, norm.channels);
  }
  for (Index l = 0; l < c.layers; l++) {
    const Consumer& consumer = consumers[l];
    const Index made = c.bottleneck ? c.bottleneck : c.growth;
    print("dweight1", consumer.weight1.gradient, made * consumer.channels * (c.bottleneck ? 1 : 9));
    if (c.bottleneck) print("dweight2", consumer.weight2.gradient, c.growth * c.bottleneck * 9);
  }
}

}  // namespace

int main() {
  Random random;
  for (const Case& c : CASES) run(c, random);
}
