"""How large each layer's weights are, epoch by epoch."""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnas.arch import DenseNetSpec, Layer, ResNetSpec, Spec
from dnas.errors import InputError


@dataclass(frozen=True)
class NormHistory:
    """What a training wrote down: names [P] of the parameters, their sizes numel [P], and l2 [E + 1, P], row 0 before
    the first step; pairs [Q] of (source, consumer) layers and reuse [E + 1, Q], as `dnas.nn.norms.Norms`."""

    names: tuple[str, ...]
    numel: np.ndarray
    l2: np.ndarray
    pairs: tuple[tuple[str, str], ...]
    reuse: np.ndarray


@dataclass(frozen=True)
class WeightNorms:
    """rms [R, E + 1]: root-mean-square weight of layer `layers[r]` (in depth order) after epoch `epochs[e]`; epoch 0 is
    the untrained network."""

    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    rms: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """rms over its untrained value [R, E + 1]; not a number where that was zero."""
        untrained = self.rms[:, :1]
        return np.divide(self.rms, untrained, out=np.full_like(self.rms, np.nan), where=untrained > 0)


# A layer's convolutions (or the classifier's matrix); what norms learn is left out.
_WEIGHT = re.compile(
    r"(?:features\.)?(?:(?P<stem>conv0)|denseblock(?P<block>\d+)\.denselayer(?P<index>\d+)\.conv\d"
    r"|transition(?P<after>\d+)\.conv|stage(?P<stage>\d+)\.unit(?P<unit>\d+)\.(?:conv\d|shortcut)"
    r"|(?P<last>classifier))\.weight"
)


def weight_norms(history: NormHistory) -> WeightNorms:
    """‖W‖₂/√n of each layer, over the n weights of its convolutions together: a dense layer with a bottleneck is one
    row, as it is one layer in the paper's figures, and so is a residual unit with its shortcut's."""
    rows: dict[tuple[int, float], tuple[str, list[int]]] = {}
    for column, name in enumerate(history.names):
        match = _WEIGHT.fullmatch(name)
        if match is None:
            continue
        if match["stem"]:
            place, layer = (0, 0.0), "stem"
        elif match["block"]:
            place, layer = (
                (int(match["block"]), float(match["index"])),
                f"denseblock{match['block']}.denselayer{match['index']}",
            )
        elif match["after"]:
            place, layer = (int(match["after"]), np.inf), f"transition{match['after']}"
        elif match["stage"]:
            place, layer = (int(match["stage"]), float(match["unit"])), f"stage{match['stage']}.unit{match['unit']}"
        else:
            place, layer = (10**9, 0.0), "classifier"
        rows.setdefault(place, (layer, []))[1].append(column)
    if not rows:
        raise InputError(
            "weight norms need a DenseNet's or a ResNet's parameters, but none of the names is one of their weights."
        )
    ordered = [rows[place] for place in sorted(rows)]
    rms = [np.sqrt((history.l2[:, columns] ** 2).sum(axis=1) / history.numel[columns].sum()) for _, columns in ordered]
    return WeightNorms(tuple(layer for layer, _ in ordered), tuple(range(len(history.l2))), np.stack(rms))


def read_norms(path: Path | str) -> NormHistory:
    """The norms of a training: `path` is its folder (norms.npz, else checkpoint.pt), or one of those two files."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("norms.npz", "checkpoint.pt") if (path / name).is_file()]
        if not found:
            raise InputError(f"no norms in {path}: there is neither norms.npz nor checkpoint.pt.")
        path = found[0]
    if path.suffix == ".npz":
        return _from_npz(path)
    from dnas.train import read_checkpoint  # torch: only where a checkpoint must be read

    content = read_checkpoint(path)
    norms = content["norms"]
    sizes = {name: tensor.numel() for name, tensor in content["weights"].items()}
    return _history(norms | {key: norms[key].numpy() for key in ("l2", "reuse")}, sizes, path)


def _from_npz(path: Path) -> NormHistory:
    if not path.is_file():
        raise InputError(f"no norms at {path}.")
    try:
        with np.load(path, allow_pickle=False) as content:
            plain = {key: content[key] for key in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path} holds no norms, or it is damaged.") from None
    if "numel" in plain and "names" in plain:
        sizes = dict(zip(map(str, plain["names"]), map(int, plain["numel"]), strict=True))
    else:
        sizes = _sizes_beside(path)
    return _history(plain, sizes, path)


def _sizes_beside(path: Path) -> dict[str, int]:
    """From the record in the same folder, whose spec settles every shape."""
    from dnas.study import TrialRecord

    record = path.with_name("record.json")
    if not record.is_file():
        raise InputError(f"{path} doesn't say how large its parameters are, and there is no {record.name} beside it.")
    return weight_sizes(TrialRecord.from_json(record.read_text(encoding="utf-8")).network_spec)


def _history(plain: Mapping[str, Any], sizes: Mapping[str, int], path: Path) -> NormHistory:
    missing = [key for key in ("names", "l2", "pairs", "reuse") if key not in plain]
    if missing:
        raise InputError(f"{path} holds no norms: {', '.join(missing)} missing.")
    names = tuple(map(str, plain["names"]))
    l2 = np.asarray(plain["l2"], dtype=np.float64)
    if l2.ndim != 2 or l2.shape[1] != len(names):
        raise InputError(f"{path} holds no norms: l2 must be [epochs + 1, {len(names)}], but is {list(l2.shape)}.")
    # Of parameters that no spec prices (those of norms), the size is never asked for.
    numel = np.array([sizes.get(name, 0) for name in names], dtype=np.int64)
    unknown = [name for name, size in zip(names, numel, strict=True) if not size and _WEIGHT.fullmatch(name)]
    if unknown:
        raise InputError(f"{path}: the size of {unknown[0]} is not known; are its norms those of another network?")
    pairs = tuple((str(source), str(consumer)) for source, consumer in plain["pairs"])
    return NormHistory(names, numel, l2, pairs, np.asarray(plain["reuse"], dtype=np.float64))


def weight_sizes(spec: Spec) -> dict[str, int]:
    """How many numbers each convolution of `spec` and its classifier's matrix hold, by the parameter's name."""
    sizes = {}
    for layer in spec.layers():
        match layer.kind:
            case "stem":
                kernel = 9 if spec.stem == "small" else 49
                sizes["features.conv0.weight"] = kernel * layer.in_channels * layer.out_channels
            case "dense":
                assert isinstance(spec, DenseNetSpec)
                width = spec.bottleneck * layer.out_channels
                first = layer.in_channels * width if width else 9 * layer.in_channels * layer.out_channels
                sizes[f"features.{layer.name}.conv1.weight"] = first
                if width:
                    sizes[f"features.{layer.name}.conv2.weight"] = 9 * width * layer.out_channels
            case "unit":
                sizes |= _unit_sizes(spec, layer)
            case "transition":
                sizes[f"features.{layer.name}.conv.weight"] = layer.in_channels * layer.out_channels
            case "classifier":
                sizes["classifier.weight"] = layer.in_channels * layer.out_channels
    return sizes


def _unit_sizes(spec: Spec, layer: Layer) -> dict[str, int]:
    assert isinstance(spec, ResNetSpec)
    width, out, name = spec.widths[layer.block - 1], layer.out_channels, f"features.{layer.name}"
    if spec.bottleneck:
        sizes = {"conv1": layer.in_channels * width, "conv2": 9 * width * width, "conv3": width * out}
    else:
        sizes = {"conv1": 9 * layer.in_channels * width, "conv2": 9 * width * out}
    if layer.index == 1 and (layer.block > 1 or layer.in_channels != out):
        sizes["shortcut"] = layer.in_channels * out
    return {f"{name}.{part}.weight": size for part, size in sizes.items()}
