"""Quicker imports of drawing libraries, for a command that draws and ends."""

import gc
import sys


def import_quickly() -> None:
    """Import matplotlib and seaborn without parts that take half of the time, for this process.

    matplotlib writes docstrings that list the properties of its artists. seaborn imports scipy, which is optional, and
    which no figure of dnas needs. In a notebook, users may need both.
    """
    gc.set_threshold(50_000, 20, 20)  # the defaults take a tenth of the time, for objects that stay
    import matplotlib.artist

    matplotlib.artist.kwdoc = lambda artist: ""
    if "scipy" in sys.modules:
        return
    sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        import seaborn  # noqa: F401
    finally:
        del sys.modules["scipy"]
