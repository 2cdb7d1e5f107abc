"""Provenance of a result: library versions, machine and commit."""

import platform
import subprocess
from functools import cache
from pathlib import Path

from dnas import __version__


@cache
def versions() -> dict[str, str]:
    """Return the versions that results may depend on."""
    from importlib import metadata  # slow, and commands that only check their arguments do not need it

    installed = {name: metadata.version(name) for name in ("torch", "torchvision", "optuna", "numpy")}
    return installed | {
        "dnas": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.platform(),
    }


@cache
def git_commit() -> str | None:
    """Return the commit of dnas, with a `+` if files were changed; None outside a checkout."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():
        return None
    try:
        run = ["git", "-C", str(package)]
        head = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5).stdout
        dirty = subprocess.run(
            [*run, "diff", "--quiet", "HEAD"], check=False, timeout=5, capture_output=True
        ).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+" if dirty else "")
