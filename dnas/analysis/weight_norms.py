"""Norms of each layer's weights and gradients by epoch."""

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnas.arch import DenseNetSpec, Layer, ResNetSpec, Spec
from dnas.errors import InputError, unknown
from dnas.study.folder import StudyFolder, checkpoint_of


@dataclass(frozen=True)
class NormHistory:
    """Recorded norms of a run with P parameters, Q connections and E epochs, as in `dnas.training.norms.Norms`.

    Attributes:
        names: Names of the parameters, [P].
        numel: Their sizes, [P].
        l2: L2 norms of the parameters, [E + 1, P]. Row 0 is before the first step.
        pairs: (source, consumer) layers of the connections, [Q].
        reuse: Mean |w| of the connections, [E + 1, Q].
        l1: L1 norms of the parameters, [E + 1, P]. NaN if not measured.
        gradient: Norms of the gradients, [E + 1, P]. NaN if not measured.
    """

    names: tuple[str, ...]
    numel: np.ndarray
    l2: np.ndarray
    pairs: tuple[tuple[str, str], ...]
    reuse: np.ndarray
    l1: np.ndarray | None = None
    gradient: np.ndarray | None = None

    @property
    def epochs(self) -> int:
        return len(self.l2) - 1


@dataclass(frozen=True)
class WeightNorms:
    """Norm of each layer's weights by epoch.

    Attributes:
        layers: Names of the R layers, in order of depth.
        epochs: The epochs. Epoch 0 is the untrained network.
        values: Norm of each layer after each epoch, [R, E + 1].
        kind: Kind of the norm (see `weight_norms`).
    """

    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    values: np.ndarray
    kind: str = "rms"

    @property
    def ratio(self) -> np.ndarray:
        """Values divided by the untrained ones, [R, E + 1]. NaN if the untrained value is zero."""
        untrained = self.values[:, :1]
        return np.divide(self.values, untrained, out=np.full_like(self.values, np.nan), where=untrained > 0)


KINDS = ("rms", "l1", "gamma")  # kinds of weight norms

# A layer's convolutions (or the classifier's matrix), and the scales of its batch norms; `norm5` and `norm` come
# before the classifier.
_WEIGHT = re.compile(
    r"(?:features\.)?(?:(?P<stem>conv0)|(?P<part>denseblock|stage)(?P<block>\d+)\.(?P<layer>denselayer|unit)(?P<index>\d+)"
    r"\.(?:conv\d|shortcut)|transition(?P<after>\d+)\.conv|(?P<last>classifier))\.weight"
)
_SCALE = re.compile(
    r"(?:features\.)?(?:(?P<stem>norm0)|(?P<part>denseblock|stage)(?P<block>\d+)\.(?P<layer>denselayer|unit)(?P<index>\d+)"
    r"\.norm\d|transition(?P<after>\d+)\.norm|(?P<last>norm5?))\.weight"
)


def weight_norms(history: NormHistory, kind: str = "rms") -> WeightNorms:
    """Return the norm of each layer's weights by epoch.

    A dense layer with a bottleneck is one row, as it is one layer in the paper's figures. n is then the number of
    weights of both convolutions.

    Args:
        history: Recorded norms of a run.
        kind: `rms` is ‖W‖₂ / √n. Relative to its untrained value, it is the root mean square of the filters' L2 norms.
            `l1` is ‖W‖₁ / n, the mean absolute weight. Relative to its untrained value, it is the mean of the filters'
            L1 norms. `gamma` is ‖γ‖₂ / √n over the n scales of the layer's batch norms, which is 1 if untrained.

    Raises:
        InputError: If the norms were not measured, or the kind is unknown.
    """
    if kind not in KINDS:
        raise unknown("kind of norm", kind, KINDS)
    if kind == "l1":
        return _by_layer(history, _WEIGHT, history.l1, 1, kind, "Its L1 norms were not measured: dnas 0.1 trained it.")
    return _by_layer(history, _WEIGHT if kind == "rms" else _SCALE, history.l2, 2, kind, "")


def gradient_norms(history: NormHistory) -> WeightNorms:
    """Return the root-mean-square gradient of each layer's n weights by epoch, √(Σ‖g‖² / n).

    It is measured over the last steps of each epoch (`dnas.training.norms.Norms`). The column of epoch 0 is NaN. If
    supervision is implicit, as section 5 of the paper states ("Implicit Deep Supervision"), the gradients of early
    layers are no smaller than those of late layers.
    """
    text = "Its gradients were not measured: no epoch is finished, or dnas 0.1 trained it."
    return _by_layer(history, _WEIGHT, history.gradient, 2, "gradient", text)


def _by_layer(
    history: NormHistory, pattern: re.Pattern[str], norms: np.ndarray | None, power: int, kind: str, missing: str
) -> WeightNorms:
    """Return (Σ norms^power / n)^(1 / power) over the parameters of each layer that match `pattern`."""
    if norms is None or not np.isfinite(norms).any():
        raise InputError(f"there is nothing to draw for this network. {missing or 'No norm is finite.'}")
    rows: dict[tuple[int, float], tuple[str, list[int]]] = {}
    for column, name in enumerate(history.names):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        if match["stem"]:
            place, layer = (0, 0.0), "stem"
        elif match["block"]:
            place = (int(match["block"]), float(match["index"]))
            layer = f"{match['part']}{match['block']}.{match['layer']}{match['index']}"
        elif match["after"]:
            place, layer = (int(match["after"]), np.inf), f"transition{match['after']}"
        else:
            place, layer = (10**9, 0.0), "classifier"
        rows.setdefault(place, (layer, []))[1].append(column)
    if not rows:
        raise InputError(
            "weight norms need the parameters of a DenseNet or a ResNet, but no name is one of their weights."
        )
    ordered = [rows[place] for place in sorted(rows)]
    sizes = [history.numel[columns].sum() for _, columns in ordered]
    if not all(sizes):
        raise InputError("the sizes of this network's batch norms were not recorded; pass its checkpoint.pt.")
    values = [
        ((norms[:, columns] ** power).sum(axis=1) / n) ** (1 / power)
        for (_, columns), n in zip(ordered, sizes, strict=True)
    ]
    return WeightNorms(tuple(layer for layer, _ in ordered), tuple(range(len(history.l2))), np.stack(values), kind)


def read_norms(path: Path | str) -> NormHistory:
    """Read the norms of a run: `path` is its folder (norms.npz, else checkpoint.pt), or one of those two files."""
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in ("norms.npz", "checkpoint.pt") if (path / name).is_file()]
        if not files:
            raise InputError(f"no norms in {path}: there is neither norms.npz nor checkpoint.pt.")
        path = files[0]
    if path.suffix == ".npz":
        return _from_npz(path)
    from dnas.training.checkpoint import read_checkpoint

    content = read_checkpoint(path)
    norms = content["norms"]
    sizes = {name: tensor.numel() for name, tensor in content["weights"].items()}
    arrays = {key: norms[key].numpy() for key in ("l2", "reuse", "l1", "gradient") if key in norms}
    return _history(norms | arrays, sizes, path)


def read_histories(sources: Sequence[str | Path], trial: int | None = None) -> list[NormHistory]:
    """Read the norms of one network from one or several seeds.

    Args:
        sources: Studies or checkpoint files. A study means one of its trials, together with the complete final
            runs of that trial, which train the same network from other seeds.
        trial: Trial of the studies; None is the best.
    """
    return [read_norms(path) for source in sources for path in _checkpoints(source, trial)]


def _checkpoints(source: str | Path, trial: int | None) -> list[Path]:
    first = checkpoint_of(source, trial)
    folder = first.parent.parent.parent
    if Path(source) == first or not (folder / "study.toml").is_file() or first.parent.parent.name != "trials":
        return [first]
    retrained = [
        path / "checkpoint.pt"
        for path, record in StudyFolder(folder).retrained()
        if str(record.number) == first.parent.name and record.state == "complete"
    ]
    return [first, *(path for path in retrained if path.is_file())]


def _from_npz(path: Path) -> NormHistory:
    if not path.is_file():
        raise InputError(f"no norms at {path}.")
    try:
        with np.load(path, allow_pickle=False) as content:
            plain = {key: content[key] for key in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path} contains no norms, or it is damaged.") from None
    if "numel" in plain and "names" in plain:
        sizes = dict(zip(map(str, plain["names"]), map(int, plain["numel"]), strict=True))
    else:
        sizes = _sizes_beside(path)
    return _history(plain, sizes, path)


def _sizes_beside(path: Path) -> dict[str, int]:
    """Return the sizes of the weights by the spec of the record in the same folder."""
    from dnas.study.record import TrialRecord

    record = path.with_name("record.json")
    if not record.is_file():
        raise InputError(f"{path} does not state the sizes of its parameters, and there is no {record.name} beside it.")
    return weight_sizes(TrialRecord.from_json(record.read_text(encoding="utf-8")).network_spec)


def _history(plain: Mapping[str, Any], sizes: Mapping[str, int], path: Path) -> NormHistory:
    missing = [key for key in ("names", "l2", "pairs", "reuse") if key not in plain]
    if missing:
        raise InputError(f"{path} holds no norms: {', '.join(missing)} missing.")
    names = tuple(map(str, plain["names"]))
    l2 = np.asarray(plain["l2"], dtype=np.float64)
    if l2.ndim != 2 or l2.shape[1] != len(names):
        raise InputError(f"{path} holds no norms: l2 must be [epochs + 1, {len(names)}], but is {list(l2.shape)}.")
    # The sizes of batch norms may be unknown: no spec states them.
    numel = np.array([sizes.get(name, 0) for name in names], dtype=np.int64)
    unknown = [name for name, size in zip(names, numel, strict=True) if not size and _WEIGHT.fullmatch(name)]
    if unknown:
        raise InputError(f"{path}: the size of {unknown[0]} is not known; are the norms those of another network?")
    pairs = tuple((str(source), str(consumer)) for source, consumer in plain["pairs"])
    reuse = np.asarray(plain["reuse"], dtype=np.float64)
    later = [np.asarray(plain[key], dtype=np.float64) if key in plain else None for key in ("l1", "gradient")]
    for rows, shape in ((reuse, (len(l2), len(pairs))), *((rows, l2.shape) for rows in later if rows is not None)):
        if rows.shape != shape:
            raise InputError(f"{path} holds no norms: {list(shape)} numbers are needed, but there are {rows.shape}.")
    return NormHistory(names, numel, l2, pairs, reuse, *later)


def weight_sizes(spec: Spec) -> dict[str, int]:
    """Return the number of weights of each convolution and of the classifier's matrix, by parameter name.

    Networks of plugins have no sizes.
    """
    if not isinstance(spec, DenseNetSpec | ResNetSpec):
        return {}
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
