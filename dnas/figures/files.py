"""Files of figures: SVG, PNG and PDF, at any scale."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_mixed import MixedModeRenderer
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D, Bbox, Transform, TransformedPath
from PIL import Image

from dnas.figures.memo import remembered
from dnas.figures.settings import lay_out, styled
from dnas.io import check_format, write_atomic

POINTS = 72  # per inch
DPI = 144  # of PNG files, and of parts of SVG and PDF files that are not vectors
FONTS = "'DejaVu Sans', Verdana, sans-serif"  # Verdana, of Windows and macOS, has the widths of DejaVu Sans


def save(figure: Figure, path: Path | str, dpi: float = DPI) -> Path:
    """Write `figure` in the format of the suffix of `path`: .svg, .png or .pdf.

    Equal figures are written as equal bytes.

    Args:
        figure: The figure.
        path: The file.
        dpi: Pixels per inch of a PNG file, and of heatmaps in other files.
    """
    path, kind = Path(path), check_format(path)
    content = written(figure, kind, dpi)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


def written(figure: Figure, kind: str, dpi: float = DPI) -> bytes:
    """Return the content of a figure's file of format `kind`."""
    return Recording(figure, dpi).written(kind)


class Recording:
    """A figure drawn once, as SVG, from which PNG and PDF files follow.

    Most of the time of a file is the work of matplotlib's artists, not of its renderers. Each call of a renderer is
    recorded, and repeated by the other renderers at the scale of the figure.
    """

    def __init__(self, figure: Figure, dpi: float = DPI) -> None:
        self.dpi, self.scale = dpi, float(getattr(figure, "scale", 1.0))
        self.width, self.height = map(float, figure.get_size_inches())  # as drawn
        self.raster_dpi = dpi * self.scale
        with styled():  # texts are as wide as in the drawing
            lay_out(figure)
        engine, screen_dpi = figure.get_layout_engine(), figure.dpi
        figure.set_layout_engine(None)  # the layout is final
        figure.dpi = POINTS
        try:
            with styled(), remembered():
                self._svg = self._draw(figure)
        finally:
            figure.dpi = screen_dpi
            figure.set_layout_engine(engine)

    def _draw(self, figure: Figure) -> str:
        """Draw the figure as SVG and record all calls."""
        file = StringIO()
        size = POINTS * self.width, POINTS * self.height
        # Without dates and versions, a file changes only with the content of its figure.
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        svg = RendererSVG(*size, file, image_dpi=self.raster_dpi, metadata=metadata)
        recorder = _Recorder(MixedModeRenderer(figure, self.width, self.height, self.raster_dpi, svg))
        figure.draw(cast(RendererBase, recorder))
        svg.finalize()
        self._calls = recorder.calls
        return file.getvalue()

    def written(self, kind: str) -> bytes:
        """Return the content of the file of format `kind`."""
        with styled():
            return {"svg": self._as_svg, "png": self._as_png, "pdf": self._as_pdf}[kind]()

    def _as_svg(self) -> bytes:
        text = self._svg.replace("'DejaVu Sans', sans-serif", FONTS)
        if self.scale != 1:
            size = f'width="{POINTS * self.width * self.scale:g}pt" height="{POINTS * self.height * self.scale:g}pt"'
            text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', size, text, count=1)
        return text.encode()

    def _as_png(self) -> bytes:
        renderer = RendererAgg(self.width * self.raster_dpi, self.height * self.raster_dpi, self.dpi)
        for call in self._calls:
            factor = 1.0 if call.raster else self.raster_dpi / POINTS
            call.repeat(renderer, factor, self.scale)
        file = BytesIO()
        image = Image.fromarray(np.asarray(renderer.buffer_rgba())).convert("RGB")  # the background is white
        image.save(file, "png", dpi=(self.dpi, self.dpi), compress_level=2)  # in half the time of 6, 8% larger
        return file.getvalue()

    def _as_pdf(self) -> bytes:
        from matplotlib.backends.backend_pdf import PdfFile, RendererPdf  # imports fontTools

        content = BytesIO()
        file = PdfFile(content, metadata=dict.fromkeys(("CreationDate", "Creator", "Producer")))
        width, height = self.width * self.scale, self.height * self.scale
        file.newPage(width, height)
        renderer = RendererPdf(file, self.dpi, height, width)
        for raster, calls in groupby(self._calls, lambda call: call.raster):
            if raster:
                self._add_image(renderer, list(calls))
                continue
            for call in calls:
                call.repeat(renderer, self.scale, self.scale, None if renderer.flipy() else POINTS * self.height)
        renderer.finalize()
        with _fonts_without_layout():
            file.finalize()
        file.close()
        return content.getvalue()

    def _add_image(self, renderer: RendererBase, calls: "list[_Call]") -> None:
        """Draw calls that are not vectors as one image."""
        agg = RendererAgg(self.width * self.raster_dpi, self.height * self.raster_dpi, self.dpi)
        for call in calls:
            call.repeat(agg, 1.0, self.scale)
        pixels = np.asarray(agg.buffer_rgba())
        rows, columns = (np.flatnonzero(pixels[..., 3].any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return
        part = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        below = len(pixels) - 1 - rows[-1]
        factor = POINTS / self.dpi
        renderer.draw_image(renderer.new_gc(), columns[0] * factor, below * factor, part[::-1])


class _Recorder:
    """Renderer that passes each call on to another renderer, and records those that draw."""

    def __init__(self, renderer: MixedModeRenderer) -> None:
        self.renderer = renderer
        self.calls: list[_Call] = []
        self.raster = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.renderer, name)
        if not name.startswith("draw_"):
            return method

        def recorded(gc: GraphicsContextBase, *arguments: Any, **options: Any) -> None:
            self.calls.append(_Call(name, _snapshot(gc), tuple(map(_frozen, arguments)), options, self.raster))
            method(gc, *arguments, **options)

        return recorded

    def start_rasterizing(self) -> None:
        self.raster = True
        self.renderer.start_rasterizing()

    def stop_rasterizing(self) -> None:
        self.raster = False
        self.renderer.stop_rasterizing()


# Places of the transforms among the arguments of each call, after the graphics context.
_TRANSFORMS = {"draw_path": (1,), "draw_markers": (1, 3), "draw_path_collection": (0, 4), "draw_quad_mesh": (0, 5)}
_LINE_WIDTHS, _LINE_STYLES = 7, 8  # of draw_path_collection


@dataclass(frozen=True)
class _Call:
    """A recorded call of a renderer. Lengths are in points, or in pixels of the raster."""

    name: str
    gc: GraphicsContextBase
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    raster: bool

    def repeat(self, renderer: RendererBase, factor: float, points: float, height: float | None = None) -> None:
        """Repeat the call on another renderer.

        Args:
            renderer: The other renderer.
            factor: Factor of all positions.
            points: Factor of sizes in points: of text, and of the widths of lines.
            height: Height of the figure, if the other renderer measures the positions of text from below.
        """
        gc, arguments = renderer.new_gc(), list(self.arguments)
        gc.copy_properties(self.gc)
        scale = Affine2D().scale(factor)
        if (rectangle := gc.get_clip_rectangle()) is not None:
            gc.set_clip_rectangle(Bbox(factor * rectangle.get_points()))
        path, transform = cast(Any, gc.get_clip_path())
        if path is not None:
            gc.set_clip_path(TransformedPath(path, transform + scale))
        _scale_lines(gc, points)
        for place in _TRANSFORMS.get(self.name, ()):
            arguments[place] = arguments[place] + scale
        if self.name == "draw_path_collection":
            arguments[_LINE_WIDTHS] = [points * width for width in arguments[_LINE_WIDTHS]]
            arguments[_LINE_STYLES] = [_scaled_dashes(style, points) for style in arguments[_LINE_STYLES]]
        elif self.name == "draw_text":
            x, y, _, font = arguments[:4]
            font = font.copy()
            font.set_size(points * font.get_size_in_points())
            arguments[:2] = factor * x, factor * (y if height is None else height - y)
            arguments[3] = font
        getattr(renderer, self.name)(gc, *arguments, **self.options)
        gc.restore()


def _frozen(value: Any) -> Any:
    return value.frozen() if isinstance(value, Transform) else value


def _snapshot(gc: GraphicsContextBase) -> GraphicsContextBase:
    """Return a copy of a graphics context that later changes of the figure do not reach."""
    copied = copy(gc)
    if (rectangle := gc.get_clip_rectangle()) is not None:
        copied.set_clip_rectangle(Bbox(rectangle.get_points().copy()))
    path, transform = cast(Any, gc.get_clip_path())
    if path is not None:
        copied.set_clip_path(TransformedPath(path, transform.frozen()))
    return copied


def _scale_lines(gc: GraphicsContextBase, factor: float) -> None:
    gc.set_linewidth(factor * gc.get_linewidth())
    gc.set_dashes(*_scaled_dashes(gc.get_dashes(), factor))


def _scaled_dashes(dashes: tuple[float, Any], factor: float) -> tuple[float, Any]:
    offset, lengths = dashes
    return (offset or 0) * factor, None if lengths is None else [factor * length for length in lengths]


@contextmanager
def _fonts_without_layout() -> Iterator[None]:
    """Context in which fontTools drops the tables of a font that place its glyphs, since a PDF file places each glyph.

    Reducing these tables to the characters of a figure took most of the time of a PDF file.
    """
    from fontTools import subset

    defaults = subset.Options._drop_tables_default
    subset.Options._drop_tables_default = [*defaults, "GSUB", "GPOS", "GDEF", "MATH", "FFTM"]
    try:
        yield
    finally:
        subset.Options._drop_tables_default = defaults
