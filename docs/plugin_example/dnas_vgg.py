"""A family of networks like VGG: stages of 3×3 convolutions, and a 2×2 max pool between stages."""

from dataclasses import dataclass

from dnas.arch import Family, Layer, Source, Spec, Terms


@dataclass(frozen=True)
class VGGSpec(Spec):
    """convs: Convolutions of each stage. width: Channels of the first stage, which each later stage doubles."""

    family = "vgg"
    convs: tuple[int, ...]
    width: int = 16

    def layers(self):
        last = Source("input", self.in_channels)
        for stage, convs in enumerate(self.convs):
            channels, size = self.width << stage, self.image_size >> stage
            for i in range(1, convs + 1):
                yield Layer(f"stage{stage + 1}.conv{i}", "conv", stage + 1, i, (last,), channels, size)
                last = Source(f"stage{stage + 1}.conv{i}", channels)
        yield Layer("classifier", "classifier", len(self.convs), 0, (last,), self.classes, size)


def layer_terms(spec, layer):
    weights, pixels, out = layer.in_channels * layer.out_channels, layer.size**2, layer.out_channels
    if layer.kind == "classifier":  # keeps the pooled maps, the log-probabilities, the label and the loss's weight
        return Terms(weights + out, weights, kept=layer.in_channels + out, once=1, kept_bytes=8)
    kept = 2 * out + (layer.index == 1) * layer.in_channels  # norm, ReLU, and before a stage the image or pooled maps
    indices = 8 * (layer.index == 1 < layer.block) * layer.in_channels * pixels
    return Terms(9 * weights + 2 * out, 9 * weights * pixels, kept * pixels, once=2 * out, kept_bytes=indices)


def build(spec):
    from torch import nn  # here, so that names and costs are fast

    net = nn.Sequential()
    for layer in spec.layers():
        channels, out = layer.in_channels, layer.out_channels
        if layer.kind == "classifier":
            return net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, out)])
        net.extend([nn.MaxPool2d(2)] if layer.index == 1 < layer.block else [])
        net.extend([nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)])


FAMILY = Family(VGGSpec, layers="convs", width="width", layer_terms=layer_terms, build=build)
