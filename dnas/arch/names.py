"""Names of networks: the presets of the paper's tables, and a grammar for any other.

    densenet-bc:L=100,k=12,theta=0.5        densenet-bc:layers=6-12-24-16,k=32,stem=imagenet,size=224,classes=1000

`densenet` has no bottleneck and θ = 1; `densenet-b` a bottleneck of 4; `densenet-c` θ = 0.5; `densenet-bc` both.
"""

from collections.abc import Callable
from typing import Any

from dnas.arch.densenet import DenseNetSpec
from dnas.errors import InputError, did_you_mean, unknown


def _imagenet(block_layers: tuple[int, ...], growth_rate: int = 32) -> DenseNetSpec:
    return DenseNetSpec(block_layers, growth_rate=growth_rate, stem="imagenet", image_size=224, classes=1000)


def _plain(depth: int, growth_rate: int) -> DenseNetSpec:
    return DenseNetSpec.of_depth(depth, growth_rate=growth_rate, bottleneck=0, compression=1.0)


def _bc(depth: int, growth_rate: int) -> DenseNetSpec:
    return DenseNetSpec.of_depth(depth, growth_rate=growth_rate)


# Table 2 (32×32 images, 10 classes), then Table 1 (224×224, 1000 classes); densenet161 is torchvision's.
PRESETS: dict[str, Callable[[], DenseNetSpec]] = {
    "densenet_40_12": lambda: _plain(40, 12),
    "densenet_100_12": lambda: _plain(100, 12),
    "densenet_100_24": lambda: _plain(100, 24),
    "densenet_bc_40_12": lambda: _bc(40, 12),
    "densenet_bc_100_12": lambda: _bc(100, 12),
    "densenet_bc_250_24": lambda: _bc(250, 24),
    "densenet_bc_190_40": lambda: _bc(190, 40),
    "densenet121": lambda: _imagenet((6, 12, 24, 16)),
    "densenet169": lambda: _imagenet((6, 12, 32, 32)),
    "densenet201": lambda: _imagenet((6, 12, 48, 32)),
    "densenet264": lambda: _imagenet((6, 12, 64, 48)),
    "densenet161": lambda: _imagenet((6, 12, 36, 24), growth_rate=48),
}

_KINDS: dict[str, dict[str, Any]] = {
    "densenet": {"bottleneck": 0, "compression": 1.0},
    "densenet-b": {"bottleneck": 4, "compression": 1.0},
    "densenet-c": {"bottleneck": 0, "compression": 0.5},
    "densenet-bc": {"bottleneck": 4, "compression": 0.5},
}


def _ints(text: str) -> int | tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split("-"))
    return numbers if len(numbers) > 1 else numbers[0]


# key in a name: (field of the spec, how its text is read); longer spellings are the fields' own names.
_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "L": ("depth", int),
    "layers": ("block_layers", lambda text: tuple(int(part) for part in text.split("-"))),
    "k": ("growth_rate", _ints),
    "theta": ("compression", float),
    "b": ("bottleneck", int),
    "blocks": ("blocks", int),
    "stem": ("stem", str),
    "stem_channels": ("stem_channels", int),
    "dropout": ("dropout", float),
    "connect": ("connectivity", str),
    "channels": ("in_channels", int),
    "size": ("image_size", int),
    "classes": ("classes", int),
}
_SPELLINGS = {spelling: key for key, (name, _) in _KEYS.items() for spelling in (key, name)} | {"θ": "theta"}


def stated_fields(name: str) -> set[str]:
    """The fields that a name states itself, apart from those that its preset or kind brings."""
    pairs = [pair.partition("=")[0].strip() for pair in name.partition(":")[2].split(",")]
    return {_KEYS[_SPELLINGS[key]][0] for key in pairs if key in _SPELLINGS}


def parse_name(name: str) -> DenseNetSpec:
    """The network that `name` stands for; `InputError` with the nearest names where there is none.

    A preset can be varied too: `densenet121:classes=10,size=64`.
    """
    head, colon, tail = name.strip().partition(":")
    if head in PRESETS:
        base = PRESETS[head]()
        if not colon:
            return base
        return _varied(name, base, _read_pairs(name, tail))
    if head not in _KINDS:
        raise unknown("network", head, [*_KINDS, *PRESETS])
    values = _KINDS[head] | _read_pairs(name, tail)
    if "block_layers" in values and ("depth" in values or "blocks" in values):
        raise InputError(f"{name!r} gives both a depth and the layers of each block; give one of them.")
    if "block_layers" in values:
        return DenseNetSpec(**values)
    if "depth" not in values:
        raise InputError(f"{name!r} needs a depth or its blocks: {head}:L=40,k=12 or {head}:layers=6-6-6,k=12.")
    return DenseNetSpec.of_depth(values.pop("depth"), **values)


def _varied(name: str, base: DenseNetSpec, values: dict[str, Any]) -> DenseNetSpec:
    if "depth" in values or "blocks" in values:
        raise InputError(f"{name!r}: a preset has its depth; write it as densenet-bc:L=...,k=... instead.")
    kept = {f: getattr(base, f) for f in base.__dataclass_fields__ if f != "family"}
    return DenseNetSpec(**(kept | values))


def _read_pairs(name: str, text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if key not in _SPELLINGS:
            raise InputError(
                f"{name!r}: there is no key {key!r}; there are {', '.join(_KEYS)}.{did_you_mean(key, _SPELLINGS)}"
            )
        field, read = _KEYS[_SPELLINGS[key]]
        if field in values:
            raise InputError(f"{name!r} gives {key} twice.")
        try:
            if not equals or not value:
                raise ValueError
            values[field] = read(value)
        except ValueError:
            raise InputError(
                f"{name!r}: {key} must be a value such as {_EXAMPLES[field]}, but got {value!r}."
            ) from None
    return values


_EXAMPLES = {
    "depth": "100",
    "block_layers": "6-12-24-16",
    "growth_rate": "12 or 8-16-32",
    "compression": "0.5",
    "bottleneck": "4",
    "blocks": "3",
    "stem": "imagenet",
    "stem_channels": "24",
    "dropout": "0.2",
    "connectivity": "window:4",
    "in_channels": "1",
    "image_size": "224",
    "classes": "100",
}


def format_name(spec: DenseNetSpec) -> str:
    """The shortest name in the grammar for `spec`: `parse_name(format_name(spec)) == spec`."""
    kind, values = "densenet", _KINDS["densenet"]
    if spec.bottleneck:
        kind = "densenet-bc" if spec.compression < 1 else "densenet-b"
    elif spec.compression < 1:
        kind = "densenet-c"
    values = _KINDS[kind]
    equal = len(set(spec.block_layers)) == 1
    parts = [f"L={spec.depth}"] if equal else ["layers=" + "-".join(map(str, spec.block_layers))]
    if equal and spec.blocks != 3:
        parts.append(f"blocks={spec.blocks}")
    parts.append(
        "k=" + "-".join(map(str, spec.growth_rates if isinstance(spec.growth_rate, tuple) else [spec.growth_rate]))
    )
    if spec.compression != values["compression"]:
        parts.append(f"theta={spec.compression!r}")
    if spec.bottleneck != values["bottleneck"]:
        parts.append(f"b={spec.bottleneck}")
    defaults = {f.name: f.default for f in DenseNetSpec.__dataclass_fields__.values()}
    for key in ("stem", "stem_channels", "dropout", "connect", "channels", "size", "classes"):
        field = _KEYS[key][0]
        if getattr(spec, field) != defaults[field]:
            parts.append(f"{key}={getattr(spec, field)}")
    return f"{kind}:{','.join(parts)}"
