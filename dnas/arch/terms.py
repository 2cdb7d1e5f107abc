"""Terms of a cost that do not depend on the batch size. `dnas.arch.cost` states the conventions."""

from typing import NamedTuple

FLOAT_BYTES = 4
INDEX_BYTES = 8  # size of a max pool's index and of a label


class Terms(NamedTuple):
    """Cost terms: `kept` floats are kept per image, and `once` floats per batch."""

    params: int
    macs: int
    kept: int
    once: int = 0
    kept_bytes: int = 0  # kept per image in other types than float32

    def times(self, n: int) -> "Terms":
        return Terms(*(n * term for term in self))

    def activation_bytes(self, batch: int) -> int:
        return FLOAT_BYTES * (self.kept * batch + self.once) + self.kept_bytes * batch


def small_stem(in_channels: int, width: int, image_size: int) -> Terms:
    """Return the terms of a 3×3 convolution, which keeps the image."""
    weights = 9 * in_channels * width
    return Terms(weights, weights * image_size**2, kept=in_channels * image_size**2)


def classifier(channels: int, size: int, classes: int) -> Terms:
    """Return the terms of BN-ReLU, global average pooling, a linear layer, and the loss."""
    # kept: input of the norm, output of the ReLU, pooled vector, log-probabilities, labels; once: weight of the loss.
    weights = channels * classes
    return Terms(
        2 * channels + weights + classes,
        weights,
        kept=2 * channels * size**2 + channels + classes,
        once=2 * channels + 1,
        kept_bytes=INDEX_BYTES,
    )
