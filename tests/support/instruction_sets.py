"""Train narrow networks in this process: `python -m tests.support.instruction_sets WHAT ...`.

WHAT is `narrow`, or the names of shipped spaces. A fault in native code ends the process by a signal.
"""

import random
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from dnas.arch import DenseNetSpec, ResNetSpec, Spec, cost
from dnas.nn import build, use_kernels
from dnas.space.parse import load_space
from dnas.space.space import Space

STEPS = 5
DRAWS = 100


def narrow_specs() -> Iterator[Spec]:
    """Yield networks of both families of 1 to 6 channels, with every kind of shortcut and transition."""
    for width in range(1, 7):
        for bottleneck in (0, 1, 4):
            for size in (8, 9):
                yield ResNetSpec((1, 2, 1), width=width, bottleneck=bottleneck, image_size=size, classes=3)
            yield DenseNetSpec((2, 1), width, bottleneck=bottleneck, stem_channels=width, image_size=8, classes=3)
    yield ResNetSpec((2, 1), width=(3, 3), stem="imagenet", image_size=33, classes=3)


def smallest(space: Space) -> Spec:
    """Return the cheapest of a hundred random networks of the space, for the images of its data set."""
    rng = random.Random(0)
    specs = (space.feasible(space.random_point(rng)) for _ in range(DRAWS))
    return min((spec for spec in specs if spec is not None), key=lambda spec: cost(spec).macs)


def train(spec: Spec, batch: int = 5) -> None:
    """Run training steps and an evaluation on noise, as `dnas.training.fit.fit` lays out memory."""
    torch.manual_seed(0)
    for kernels in ("plain", "cpu") if spec.family == "densenet" else ("plain",):
        net = build(spec).to(memory_format=torch.channels_last)
        use_kernels(net, kernels)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        for _ in range(STEPS):
            x = torch.randn(batch, spec.in_channels, spec.image_size, spec.image_size)
            y = torch.randint(spec.classes, (batch,))
            optimizer.zero_grad()
            F.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y).backward()
            optimizer.step()
        net.eval()
        assert net(x).isfinite().all()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        for spec in narrow_specs() if name == "narrow" else [smallest(load_space(name))]:
            train(spec)
