"""Trackers as arguments name them, such as `tensorboard:runs`."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from dnas.errors import InputError, did_you_mean
from dnas.formatting import redact

# tracker -> its argument, and an example of it
ARGUMENTS = {
    "tensorboard": ("FOLDER", "tensorboard:runs"),
    "mlflow": ("URI", "mlflow:http://localhost:5000 or mlflow:sqlite:///mlflow.db"),
    "wandb": ("PROJECT", "wandb:densenets or wandb:my-team/densenets"),
}
FORMS = ", ".join(f"{kind}:{name}" for kind, (name, _) in ARGUMENTS.items())


@dataclass(frozen=True)
class Target:
    """A place that studies are copied to. place: a folder, the URI of a server, or a project."""

    kind: str
    place: str

    @property
    def slug(self) -> str:
        """A name for files."""
        return f"{self.kind}-{hashlib.sha256(self.place.encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        return redact(f"{self.kind}:{self.place}")


def read_targets(texts: Iterable[str] | str | None) -> list[Target]:
    """Return the trackers that arguments name, each once, without importing any.

    Raises:
        InputError: An argument has another form, or the tracker's package is not installed.
    """
    texts = [texts] if isinstance(texts, str) else texts or ()
    targets = list(dict.fromkeys(_read(text) for text in texts))
    missing = sorted({target.kind for target in targets if find_spec(target.kind) is None})
    if missing:
        raise InputError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: pip install"
            f" 'dnas[{','.join(missing)}]'."
        )
    return targets


def _read(text: str) -> Target:
    kind, _, place = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind not in ARGUMENTS:
        raise InputError(f"a tracker is one of {FORMS}, but got {text!r}.{did_you_mean(kind, ARGUMENTS)}")
    name, example = ARGUMENTS[kind]
    if not place.strip() or (kind == "wandb" and not re.fullmatch(r"[^/\\#?%:\s]+(/[^/\\#?%:\s]+)?", place)):
        raise InputError(f"{kind}: needs its {name.lower()}, such as {example}, but got {redact(text)!r}.")
    return Target(kind, place)
