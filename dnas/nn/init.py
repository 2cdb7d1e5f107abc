"""Weight initialisation shared by all families."""

from torch import nn


def initialise(net: nn.Module) -> None:
    """Initialise a network in place.

    Convolutions follow He et al. 2015, equation 10 (fan in). Norms have γ = 1 and β = 0, and the classifier a zero
    bias.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
