"""Augmentation of whole batches: tensor operations on the device of the batch."""

import torch
from torch import Tensor
from torch.nn import functional


def padding(image_size: int) -> int:
    """Return the zero pixels added on each side before cropping: the paper's 4 for 32 pixels, scaled in proportion."""
    return max(1, image_size // 8)


def shift(images: Tensor, pad: int, offsets: Tensor) -> Tensor:
    """Crop a window of the original size from each image of `images` [N, C, H, W], padded with `pad` zeros per side.

    `offsets` [N, 2] holds the top and left corner of each window, from 0 to 2·pad.
    """
    height, width = images.shape[2:]
    windows = functional.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    image_numbers = torch.arange(len(images), device=images.device)
    return windows[image_numbers, :, offsets[:, 0], offsets[:, 1]]


def mirror(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror the images of `images` [N, C, H, W] whose value in `flips` [N] is true from left to right."""
    return torch.where(flips[:, None, None, None], images.flip(3), images)
