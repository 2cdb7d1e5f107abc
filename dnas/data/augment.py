"""Augmentation of whole batches: tensor operations on whatever device the batch lies on."""

import torch
from torch import Tensor
from torch.nn import functional


def padding(image_size: int) -> int:
    """Zero pixels put around an image before a window is cut out: the paper's 4 for 32 pixels, and in proportion."""
    return max(1, image_size // 8)


def shift(images: Tensor, pad: int, offsets: Tensor) -> Tensor:
    """Windows as large as the image out of `images` [N, C, H, W] padded with `pad` zeros.

    `offsets` [N, 2] holds the top and left corner of each image's window, 0 to 2·pad.
    """
    height, width = images.shape[2:]
    windows = functional.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    every = torch.arange(len(images), device=images.device)
    return windows[every, :, offsets[:, 0], offsets[:, 1]]


def mirror(images: Tensor, flips: Tensor) -> Tensor:
    """`images` [N, C, H, W], those with a true value in `flips` [N] mirrored left to right."""
    return torch.where(flips[:, None, None, None], images.flip(3), images)
