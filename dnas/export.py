"""Load trained networks, and export them to files for other programs."""

import dataclasses
import io
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnas.arch import format_name
from dnas.data import Dataset
from dnas.errors import InputError
from dnas.io import write_atomic
from dnas.study.folder import StudyFolder, find_study
from dnas.training.checkpoint import Run, load_run


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
        data = data.with_classes(tuple(facts["class_names"]))
        return dataclasses.replace(data, mean=tuple(facts["mean"]), std=tuple(facts["std"]))


def checkpoint_of(source: str | Path, trial: int | None = None) -> Path:
    """Return the path of the checkpoint that `source` names.

    Args:
        source: A checkpoint file, the folder of a run, or the name or folder of a study.
        trial: Trial of the study (default: the best).

    Raises:
        InputError: There is no such checkpoint, or `trial` was given for a file.
    """
    path = Path(source)
    if path.is_file():
        if trial is not None:
            raise InputError(f"--trial requires a study, but {path} is a file.")
        return path
    if (path / "checkpoint.pt").is_file():
        return path / "checkpoint.pt"
    if path.suffix == ".pt":
        raise InputError(f"no checkpoint at {path}.")
    folder = find_study(source)
    return _trial_checkpoint(folder, trial)


def _trial_checkpoint(folder: StudyFolder, trial: int | None) -> Path:
    if trial is None:
        best = folder.best()
        if not best:
            raise InputError(f"study {folder.name} has no complete trial yet; choose one with --trial.")
        trial = best[0].number
    path = folder.trial_folder(trial) / "checkpoint.pt"
    if not path.is_file():
        numbers = [record.number for record in folder.records()]
        if trial not in numbers:
            last = f"its trials are 0 to {numbers[-1]}" if numbers else "it has none"
            raise InputError(f"study {folder.name} has no trial {trial}; {last}.")
        raise InputError(f"trial {trial} of study {folder.name} has no checkpoint, because it has finished no epoch.")
    return path


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


def write_network(trained: Trained, path: Path) -> None:
    """Write the weights as .safetensors, or the network as .onnx with a dynamic batch size. Both include metadata."""
    description = {
        "dnas.network": format_name(trained.run.spec),
        "dnas.spec": json.dumps(trained.run.spec.to_dict()),
        "dnas.data": json.dumps(trained.run.data),
    }
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        weights = {name: tensor.contiguous() for name, tensor in trained.run.net.state_dict().items()}
        write_atomic(path, save(weights, metadata=description))
    elif path.suffix == ".onnx":
        write_atomic(path, _onnx(trained, description))
    else:
        raise InputError(f"the file must end with .safetensors or .onnx, but got {path.name!r}.")


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
