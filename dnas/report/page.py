"""Writer of all pages: render a template, save figures with their numbers, replace files atomically."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from dnas import formatting
from dnas.figures import style
from dnas.figures.files import Recording
from dnas.io import FORMATS, write_atomic
from dnas.report.svg import inline_svg

TEMPLATES = Path(__file__).parent / "templates"
MAX_EMBEDDED_BYTES = 200_000  # larger PDF and CSV files are linked, not embedded in the page
MIME_TYPES = {
    ".pdf": "application/pdf",
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".tex": "application/x-tex",
}


@dataclass(frozen=True)
class Picture:
    """A figure with its numbers and caption. The numbers are None if other tables contain them."""

    figure: Figure
    numbers: pd.DataFrame | None
    caption: str


@dataclass(frozen=True)
class Drawn:
    """A figure on a page.

    Attributes:
        name: Stem of its files.
        title: The finding, shown above the drawing. The files do not contain it.
        svg: The SVG element.
        caption: Text below the figure.
        formats: Formats of its files.
        links: Data URL of its PDF and CSV if there are such files, by suffix. The file name if the file is large.
    """

    name: str
    title: str
    svg: Markup
    caption: str
    formats: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)


def write_figure(picture: Picture, name: str, out: Path, formats: Sequence[str] = ()) -> Drawn:
    """Write a picture as name.svg and .csv into `out`, and return it for a page.

    Args:
        picture: The picture.
        name: Stem of the files.
        out: Their folder.
        formats: Further formats to write. Files of other formats that are there are updated, never left out of date.
    """
    out.mkdir(parents=True, exist_ok=True)
    recording = Recording(picture.figure)
    made = [kind for kind in FORMATS if kind in ("svg", *formats) or (out / f"{name}.{kind}").exists()]
    for kind in made:
        write_atomic(out / f"{name}.{kind}", recording.written(kind))
    if picture.numbers is not None:
        write_table(picture.numbers, out / f"{name}.csv")
    svg = (out / f"{name}.svg").read_text(encoding="utf-8")
    title = style.title(picture.figure)
    label = f"{title}. {picture.caption}"
    hover = getattr(picture.figure, "hover", {})
    links = {"pdf": link(out / f"{name}.pdf")} if "pdf" in made else {}
    if picture.numbers is not None:
        links["csv"] = link(out / f"{name}.csv")
    return Drawn(name, title, inline_svg(svg, name, label, hover), picture.caption, made, links)


def write_table(frame: pd.DataFrame, path: Path) -> None:
    write_atomic(path, frame.to_csv(index=False))


def link(path: Path) -> str:
    """Return a file as a data URL, so that a page sent by mail includes it. For a large file, return its name."""
    content = path.read_bytes()
    if len(content) > MAX_EMBEDDED_BYTES:
        return path.name
    return f"data:{MIME_TYPES[path.suffix]};base64,{base64.b64encode(content).decode()}"


def write_page(out: Path, template: str, values: Mapping[str, Any], folder: Path = TEMPLATES) -> Path:
    """Render a template into `out`/index.html.

    Args:
        out: Folder of the page.
        template: Name of the template. It may extend and import those of `dnas/report/templates`.
        values: Variables of the template. `colours` and `refresh` have defaults.
        folder: Folder of the template.

    Returns:
        The path of index.html.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": formatting.percent,
        "count": formatting.count,
        "duration": formatting.duration,
    }
    text = environment.get_template(template).render({"colours": style.COLOURS, "refresh": None} | dict(values))
    write_atomic(out / "index.html", text)
    return out / "index.html"
