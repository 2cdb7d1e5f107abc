"""Names of networks: presets from the tables of the papers, and a grammar for all others.

    densenet-bc:L=100,k=12,theta=0.5        densenet-bc:layers=6-12-24-16,k=32,stem=imagenet,size=224,classes=1000
    resnet:L=110,drop=0.5                   resnet-b:units=3-4-6-3,width=64,stem=imagenet,size=224,classes=1000

`densenet` has no bottleneck and θ = 1, `densenet-b` a bottleneck of 4, `densenet-c` θ = 0.5, and `densenet-bc` both.
`resnet` is a pre-activation ResNet of basic units, `resnet-b` one of bottleneck units with expansion 4.

The names of a plugin's family state the fields of its spec: `vgg:convs=1-2-2,width=16,size=8`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dnas.arch.densenet import DenseNetSpec
from dnas.arch.families import FAMILIES
from dnas.arch.resnet import ResNetSpec
from dnas.arch.spec import Spec
from dnas.arch.validation import field_types
from dnas.errors import InputError, did_you_mean, unknown


def _imagenet(block_layers: tuple[int, ...], growth_rate: int = 32) -> DenseNetSpec:
    return DenseNetSpec(block_layers, growth_rate=growth_rate, stem="imagenet", image_size=224, classes=1000)


def _plain(depth: int, growth_rate: int) -> DenseNetSpec:
    return DenseNetSpec.of_depth(depth, growth_rate=growth_rate, bottleneck=0, compression=1.0)


def _bc(depth: int, growth_rate: int) -> DenseNetSpec:
    return DenseNetSpec.of_depth(depth, growth_rate=growth_rate)


def _wide(depth: int, factor: int) -> ResNetSpec:
    """Build a network of Zagoruyko and Komodakis 2016, whose depth counts two convolutions of shortcuts."""
    return ResNetSpec.of_depth(depth - 2, width=16 * factor, stem_channels=16)


# Table 2 (32×32 images, 10 classes), Table 1 (224×224 images, 1000 classes) and torchvision's densenet161. Then the
# ResNets of Table 2, of which those with stochastic depth are pre-activation networks as well.
PRESETS: dict[str, Callable[[], Spec]] = {
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
    "resnet_110": lambda: ResNetSpec.of_depth(110),
    "resnet_164": lambda: ResNetSpec.of_depth(164, bottleneck=4),
    "resnet_1001": lambda: ResNetSpec.of_depth(1001, bottleneck=4),
    "resnet_1202": lambda: ResNetSpec.of_depth(1202),
    "resnet_110_sd": lambda: ResNetSpec.of_depth(110, stochastic_depth=0.5),
    "resnet_1202_sd": lambda: ResNetSpec.of_depth(1202, stochastic_depth=0.5),
    "wide_resnet_16_8": lambda: _wide(16, 8),
    "wide_resnet_28_10": lambda: _wide(28, 10),
}


def _list(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("-"))


def _count_or_layers(text: str) -> int | tuple[int, ...]:
    """Parse `5` as a number of layers, and `at3-7` as the numbers of two layers."""
    return _list(text.removeprefix("at")) if text.startswith("at") else int(text)


def _ints(text: str) -> int | tuple[int, ...]:
    numbers = _list(text)
    return numbers if len(numbers) > 1 else numbers[0]


@dataclass(frozen=True)
class _Key:
    """A key of a name: the field of the spec that it sets, the parser of its value, and an example value."""

    field: str
    read: Callable[[str], Any]
    example: str


@dataclass(frozen=True)
class _Grammar:
    """Grammar of the names of one family. A key may also be written as the name of its field.

    kinds: Fields that the word before the colon sets.
    example: Rest of a name with a depth, and of one with the layers of each block.
    """

    family: str
    kinds: Mapping[str, Mapping[str, Any]]
    keys: Mapping[str, _Key]
    example: str

    @property
    def spellings(self) -> dict[str, str]:
        spellings = {spelling: key for key, entry in self.keys.items() for spelling in (key, entry.field)}
        return spellings | ({"θ": "theta"} if "theta" in self.keys else {})

    def read_pairs(self, name: str, text: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for pair in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (part.strip() for part in pair.partition("="))
            if key not in self.spellings:
                raise InputError(
                    f"{name!r}: there is no key {key!r}; there are {', '.join(self.keys)}."
                    f"{did_you_mean(key, self.spellings)}"
                )
            entry = self.keys[self.spellings[key]]
            if entry.field in values:
                raise InputError(f"{name!r} has {key} twice; once is enough.")
            try:
                if not equals or not value:
                    raise ValueError
                values[entry.field] = entry.read(value)
            except ValueError:
                raise InputError(
                    f"{name!r}: {key} must be a value such as {entry.example}, but got {value!r}."
                ) from None
        return values


_SHARED_KEYS = {
    "stem": _Key("stem", str, "imagenet"),
    "stem_channels": _Key("stem_channels", int, "24"),
    "channels": _Key("in_channels", int, "1"),
    "size": _Key("image_size", int, "224"),
    "classes": _Key("classes", int, "100"),
}
_DENSENET = _Grammar(
    "densenet",
    kinds={
        "densenet": {"bottleneck": 0, "compression": 1.0},
        "densenet-b": {"bottleneck": 4, "compression": 1.0},
        "densenet-c": {"bottleneck": 0, "compression": 0.5},
        "densenet-bc": {"bottleneck": 4, "compression": 0.5},
    },
    keys={
        "L": _Key("depth", int, "100"),
        "layers": _Key("block_layers", _list, "6-12-24-16"),
        "k": _Key("growth_rate", _ints, "12 or 8-16-32"),
        "wider": _Key("wider_layers", _count_or_layers, "5 or at3-7-12"),
        "theta": _Key("compression", float, "0.5"),
        "b": _Key("bottleneck", int, "4"),
        "blocks": _Key("blocks", int, "3"),
        "dropout": _Key("dropout", float, "0.2"),
        "connect": _Key("connectivity", str, "window:4"),
        **_SHARED_KEYS,
    },
    example="L=40,k=12 or {}:layers=6-6-6,k=12",
)
_RESNET = _Grammar(
    "resnet",
    kinds={"resnet": {"bottleneck": 0}, "resnet-b": {"bottleneck": 4}},
    keys={
        "L": _Key("depth", int, "110"),
        "units": _Key("stage_units", _list, "3-4-6-3"),
        "width": _Key("width", _ints, "16 or 16-32-64"),
        "b": _Key("bottleneck", int, "4"),
        "stages": _Key("stages", int, "3"),
        "drop": _Key("stochastic_depth", float, "0.5"),
        **_SHARED_KEYS,
    },
    example="L=20,width=16 or {}:units=3-3-3,width=16",
)
_KINDS = {kind: grammar for grammar in (_DENSENET, _RESNET) for kind in grammar.kinds}
_GRAMMARS = {grammar.family: grammar for grammar in (_DENSENET, _RESNET)}
FAMILIES.reserve([*_KINDS, *PRESETS])


def _grammar_of(family: str) -> _Grammar:
    """Return the grammar of a family. A plugin's keys are the fields of its spec."""
    if family not in _GRAMMARS:
        spec = FAMILIES[family].spec
        aliases = {key.field: name for name, key in _SHARED_KEYS.items()}
        keys = {aliases.get(name, name): _key_of(name, types) for name, types in field_types(spec).items()}
        if FAMILIES[family].has_depth:
            keys |= {"L": _Key("depth", int, "20"), FAMILIES[family].count: _Key(FAMILIES[family].count, int, "3")}
        _GRAMMARS[family] = _Grammar(family, {family: {}}, keys, f"{FAMILIES[family].layers}=2-2-2")
    return _GRAMMARS[family]


def _key_of(field: str, types: set[object]) -> _Key:
    """Return the key of a plugin's field with values of these types."""
    if tuple[int, ...] in types:
        return _Key(field, _ints, "16 or 16-32") if int in types else _Key(field, _list, "2-2-2")
    if int in types:
        return _Key(field, int, "16")
    return _Key(field, float, "0.5") if float in types else _Key(field, str, "text")


def stated_fields(name: str) -> set[str]:
    """Return the fields that a name states explicitly, not those that its preset or kind implies."""
    head, _, tail = name.strip().partition(":")
    grammar = _grammar_of(PRESETS[head]().family if head in PRESETS else _family_of_kind(head))
    keys = [pair.partition("=")[0].strip() for pair in tail.split(",")]
    return {grammar.keys[grammar.spellings[key]].field for key in keys if key in grammar.spellings}


def _family_of_kind(kind: str) -> str:
    return _KINDS[kind].family if kind in _KINDS else kind


def parse_name(name: str) -> Spec:
    """Return the network with this name. An `InputError` for an unknown name lists similar names.

    A preset can be modified: `densenet121:classes=10,size=64`.
    """
    head, colon, tail = name.strip().partition(":")
    if head in PRESETS:
        base = PRESETS[head]()
        return _varied(name, base, _GRAMMARS[base.family].read_pairs(name, tail)) if colon else base
    if head not in _KINDS and head not in FAMILIES:
        raise unknown("network", head, {*_KINDS, *PRESETS, *FAMILIES})
    grammar = _grammar_of(_family_of_kind(head))
    family = FAMILIES[grammar.family]
    values = dict(grammar.kinds[head]) | grammar.read_pairs(name, tail)
    if family.layers in values and ("depth" in values or family.count in values):
        given = "units of each stage" if grammar is _RESNET else "layers of each block"
        raise InputError(f"{name!r} has both a depth and the {given}; use only one of them.")
    if family.has_depth and family.layers not in values and "depth" not in values:
        raise InputError(f"{name!r} needs a depth or its {family.count}: {head}:{grammar.example.format(head)}.")
    return family.make(values)


def _varied(name: str, base: Spec, values: dict[str, Any]) -> Spec:
    family = FAMILIES[base.family]
    if "depth" in values or family.count in values:
        other = "densenet-bc:L=...,k=..." if base.family == "densenet" else "resnet:L=...,width=..."
        raise InputError(f"{name!r}: the depth of a preset cannot be changed; write it as {other} instead.")
    return family.make({name: getattr(base, name) for name in field_types(type(base))} | values)


def format_name(spec: Spec) -> str:
    """Return the shortest name of `spec` in the grammar, for which `parse_name(format_name(spec)) == spec`."""
    if isinstance(spec, DenseNetSpec):
        kind, parts = _format_densenet(spec)
    elif isinstance(spec, ResNetSpec):
        kind, parts = _format_resnet(spec)
    else:
        return f"{spec.family}:{','.join(_format_changed(spec, list(_grammar_of(spec.family).keys)))}"
    last = ("stem", "stem_channels", "dropout", "connect", "drop", "channels", "size", "classes")
    return f"{kind}:{','.join([*_format_depth(spec), *parts, *_format_changed(spec, last)])}"


def _format_changed(spec: Spec, keys: Sequence[str]) -> list[str]:
    """Return `key=value` for each of the keys whose value is not the default."""
    defaults = {f.name: f.default for f in fields(spec)}
    known = _grammar_of(spec.family).keys
    names = {key: known[key].field for key in keys if key in known and known[key].field in defaults}
    values = {key: getattr(spec, name) for key, name in names.items() if getattr(spec, name) != defaults[name]}
    return [f"{key}={_joined(value)}" for key, value in values.items()]


def _format_depth(spec: DenseNetSpec | ResNetSpec) -> list[str]:
    family, grammar = FAMILIES[spec.family], _GRAMMARS[spec.family]
    layers = getattr(spec, family.layers)
    if len(set(layers)) > 1:
        key = next(key for key, entry in grammar.keys.items() if entry.field == family.layers)
        return [f"{key}={_joined(layers)}"]
    return [f"L={spec.depth}", *([f"{family.count}={len(layers)}"] if len(layers) != 3 else [])]


def _format_densenet(spec: DenseNetSpec) -> tuple[str, list[str]]:
    kind = "densenet-bc" if spec.compression < 1 else "densenet-b"
    if not spec.bottleneck:
        kind = "densenet-c" if spec.compression < 1 else "densenet"
    parts = [f"k={_joined(spec.growth_rate)}"]
    if spec.wider_layers:
        prefix = "at" if isinstance(spec.wider_layers, tuple) else ""
        parts.append(f"wider={prefix}{_joined(spec.wider_layers)}")
    if spec.compression != _DENSENET.kinds[kind]["compression"]:
        parts.append(f"theta={spec.compression!r}")
    return kind, [*parts, *_format_bottleneck(spec)]


def _format_resnet(spec: ResNetSpec) -> tuple[str, list[str]]:
    width = [f"width={_joined(spec.width)}"] if spec.width != 16 else []
    return "resnet-b" if spec.bottleneck else "resnet", [*width, *_format_bottleneck(spec)]


def _format_bottleneck(spec: DenseNetSpec | ResNetSpec) -> list[str]:
    return [f"b={spec.bottleneck}"] if spec.bottleneck not in (0, 4) else []  # the kind states 0 or 4


def _joined(value: object) -> str:
    """Return `1-2-2` for a tuple, and any other value as text."""
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
