"""One figure of a study, for `dnas plot` and for notebooks."""

from contextlib import nullcontext
from pathlib import Path

from matplotlib.figure import Figure

from dnas.errors import InputError, unknown
from dnas.figures import Format, formatted
from dnas.figures.style import STYLES
from dnas.report import figures
from dnas.study.folder import find_study


def plot(figure: str, study: str | Path, style: str | Format | None = None) -> Figure:
    """Draw a figure of a search or an ablation. Notebooks show it, and `dnas.figures.save` writes it to a file.

    Args:
        figure: Name of the figure, as in `dnas plot --help`.
        study: Name of a study in ./studies, or path of its folder.
        style: Size and text: page, paper, slides, or a `dnas.figures.Format`. By default that of
            `dnas.figures.formatted`, else page.

    Returns:
        A matplotlib `Figure`.

    Raises:
        InputError: If there is no such figure, or the study lacks the data for it.
    """
    name = figure.replace("-", "_")
    if isinstance(style, str):
        if style not in STYLES:
            raise unknown("style of figures", style, STYLES)
        style = STYLES[style]
    is_ablation = "ablation" in find_study(study).config()
    with formatted(style) if style is not None else nullcontext():
        if name in figures.PICTURES:
            if is_ablation:
                raise InputError(f"{study} is an ablation, and the figure {figure} is of searches.")
            return figures.picture_of(name, study).figure
        from dnas.report import ablation  # imports torch

        if name not in ablation.PICTURES:
            raise unknown("figure", figure, [key.replace("_", "-") for key in (*figures.PICTURES, *ablation.PICTURES)])
        return ablation.picture_of(name, study).figure
