"""Load trained networks, and export them to files for other programs."""

import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dnas.arch import format_name
from dnas.data import Dataset
from dnas.data.images import read_image
from dnas.data.pixels import as_evaluated
from dnas.errors import InputError, os_reason
from dnas.io import NETWORK_FORMATS, check_format, write_atomic
from dnas.nn import build
from dnas.study.folder import StudyFolder, checkpoint_of
from dnas.training.checkpoint import Run, load_run

CHECKED_IMAGES = 2  # of noise, with which an exported network is compared with the trained one
TOLERANCE = 1e-3  # largest difference of logits, relative to the largest logit if it is over 1
SHOWN_CLASSES = 10  # classes that are listed by name


@dataclass(frozen=True)
class Trained:
    """A trained network with its checkpoint and its data root."""

    run: Run
    path: Path
    data_root: str | None = None

    def data_arguments(self, dataset: str | None = None, data_root: Path | None = None) -> dict[str, Any]:
        """Return arguments of `load_dataset` for the same data and split, or for another data set of this size."""
        facts = self.run.data
        root = data_root or (Path(self.data_root) if self.data_root else None)
        return {
            "name": dataset or facts["name"],
            "data_root": root,
            "image_size": facts["image_size"],
            "subset": facts["subset"] if dataset is None else None,
            "split_seed": facts["split_seed"],
            "augmentation": facts["augmentation"] if dataset is None else "auto",
            "levels": tuple(facts["levels"]) if facts.get("levels") else None,
        }

    def prepared(self, data: Dataset, same: bool) -> Dataset:
        """Return `data` as the network expects it: normalised as in training, with its classes matched by name.

        Raises `InputError` if `data` does not fit the network, or if the `same` data have changed since training.
        """
        spec, facts = self.run.spec, self.run.data
        if data.channels != spec.in_channels:
            raise InputError(
                f"{self.path} is a network for {spec.in_channels} channels, but {data.title} has {data.channels}."
            )
        if same and data.fingerprint != facts["fingerprint"]:
            raise InputError(
                f"{data.title} has changed since {self.path} was trained; pass --dataset to use it anyway."
            )
        if data.multilabel != facts.get("multilabel", False):
            kinds = ("one class", "several labels")
            raise InputError(
                f"{self.path} is a network for {kinds[not data.multilabel]} per image, but {data.title} has"
                f" {kinds[data.multilabel]}."
            )
        data = data.with_classes(tuple(facts["class_names"]))
        return dataclasses.replace(data, mean=tuple(facts["mean"]), std=tuple(facts["std"]))


def load_trained(source: str | Path, trial: int | None = None) -> Trained:
    """Load the trained network that `source` names; see `checkpoint_of`."""
    path = checkpoint_of(source, trial)
    root = None
    study = path.parent.parent.parent
    if (study / "study.toml").is_file():
        root = StudyFolder(study).config()["data"].get("root") or None
    return Trained(load_run(path), path, root)


def load_network(source: str | Path, trial: int | None = None) -> nn.Module:
    """Load the trained network of a study's `trial` (default: the best one) or of a checkpoint, in evaluation mode.

    The network maps images [N, C, H, W], with pixels in [0, 1] normalised by the mean and std in the record of the
    trial, to logits [N, classes].
    """
    return load_trained(source, trial).run.net


def predict(
    trained: Trained, files: Iterable[Path], device: str = "cpu"
) -> Iterator[tuple[Path, dict[str, float] | str]]:
    """Classify image files, which are read and normalised as in training.

    Yields:
        Each file with the probability of each class by name, or with one line on why it cannot be read.
    """
    spec, facts = trained.run.spec, trained.run.data
    net = trained.run.net.to(device).eval()
    levels = tuple(facts["levels"]) if facts.get("levels") else None
    mean, std = (torch.tensor(facts[name], device=device)[:, None, None] for name in ("mean", "std"))
    for file in files:
        try:
            image = read_image(file, spec.in_channels, levels)
        except Exception as error:  # Pillow raises many types for damaged files
            reason = os_reason(error) if isinstance(error, OSError) else str(error) or type(error).__name__
            yield file, f"cannot read the image {file} ({reason.splitlines()[0]})."
            continue
        pixels = torch.from_numpy(np.array(as_evaluated(image, spec.image_size))).to(device)
        with torch.no_grad():
            logits = net(pixels[None].float().div_(255).sub_(mean).div_(std))
        scores = logits[0].float()
        probabilities = scores.sigmoid() if facts.get("multilabel") else scores.softmax(0)
        yield file, dict(zip(facts["class_names"], probabilities.tolist(), strict=True))


def write_network(trained: Trained, path: Path) -> str:
    """Write the weights as .safetensors, or the network as .onnx with a dynamic batch size. Both include metadata.

    Returns:
        One sentence on the check of the written network against the trained one.

    Raises:
        InputError: The ending is another one, or the logits of the two networks differ.
    """
    kind = check_format(path, NETWORK_FORMATS)
    description = {
        "dnas.network": format_name(trained.run.spec),
        "dnas.spec": json.dumps(trained.run.spec.to_dict()),
        "dnas.data": json.dumps(trained.run.data),
    }
    spec = trained.run.spec
    images = torch.randn(
        (CHECKED_IMAGES, spec.in_channels, spec.image_size, spec.image_size), generator=torch.Generator().manual_seed(0)
    )
    if kind == "safetensors":
        from safetensors.torch import load, save

        weights = {name: tensor.contiguous() for name, tensor in trained.run.net.state_dict().items()}
        content, program = save(weights, metadata=description), "torch"
        copy = build(spec).eval()
        copy.load_state_dict(load(content))
        with torch.no_grad():
            logits = copy(images)
    else:
        content = _onnx(trained, description)
        logits, program = _run_onnx(content, images)
    with torch.no_grad():
        expected = trained.run.net.eval()(images)
    difference, largest = float((logits - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(1.0, largest):
        raise InputError(
            f"{path} was not written: its logits differ by {difference:.2g} from those of the trained network. This is"
            " a defect of dnas or of a library; please report it."
        )
    write_atomic(path, content)
    return f"the logits of {CHECKED_IMAGES} images in {program} differ by at most {difference:.1e} from the network's"


def describe_interface(trained: Trained) -> dict[str, str]:
    """Return sentences on the input and the output of an exported network, by name."""
    spec, facts = trained.run.spec, trained.run.data
    mean, std = (", ".join(f"{value:.4f}" for value in facts[name]) for name in ("mean", "std"))
    names = facts["class_names"]
    shown = ", ".join(names[:SHOWN_CLASSES]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN_CLASSES else "")
    return {
        "input": f"float32 [N, {spec.in_channels}, {spec.image_size}, {spec.image_size}], {facts['size_rule']}",
        "pixels": f"from 0 to 1, then minus the mean ({mean}), divided by the std ({std})",
        "output": f"logits, float32 [N, {spec.classes}], of the classes {shown}",
    }


def _run_onnx(content: bytes, images: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Return the logits of an ONNX network, and the program that computed them: ONNX Runtime if it is installed."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        (logits,) = ReferenceEvaluator(content).run(None, {"images": images.numpy()})
        return torch.from_numpy(logits), "onnx's reference implementation"
    (logits,) = onnxruntime.InferenceSession(content).run(None, {"images": images.numpy()})
    return torch.from_numpy(logits), "ONNX Runtime"


def _onnx(trained: Trained, description: dict[str, str]) -> bytes:
    spec = trained.run.spec
    images = torch.zeros(2, spec.in_channels, spec.image_size, spec.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            trained.run.net.eval(),
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in description.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    buffer = io.BytesIO(model.SerializeToString())
    return buffer.getvalue()
