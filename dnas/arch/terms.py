"""The terms of a cost, before the batch size is known; see `dnas.arch.cost` for what is counted."""

from typing import NamedTuple

FLOAT_BYTES = 4
INDEX_BYTES = 8  # of a max pool's indices, and of a label


class Terms(NamedTuple):
    """`kept` are floats kept for each image, `once` for the whole batch."""

    params: int
    macs: int
    kept: int
    once: int = 0
    kept_bytes: int = 0  # of each image, not float32

    def times(self, n: int) -> "Terms":
        return Terms(*(n * term for term in self))

    def activation_bytes(self, batch: int) -> int:
        return FLOAT_BYTES * (self.kept * batch + self.once) + self.kept_bytes * batch


def small_stem(in_channels: int, width: int, image_size: int) -> Terms:
    """A 3×3 convolution, which keeps the image."""
    weights = 9 * in_channels * width
    return Terms(weights, weights * image_size**2, kept=in_channels * image_size**2)


def classifier(channels: int, size: int, classes: int) -> Terms:
    """BN-ReLU, global average pooling, a linear layer, and the loss."""
    # kept: the norm's input, the ReLU's output, the pooled vector, the log-probabilities; labels; the loss's weight.
    weights = channels * classes
    return Terms(
        2 * channels + weights + classes,
        weights,
        kept=2 * channels * size**2 + channels + classes,
        once=2 * channels + 1,
        kept_bytes=INDEX_BYTES,
    )
