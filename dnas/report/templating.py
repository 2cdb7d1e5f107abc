"""The templates of the pages, with the filters that all of them use."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from dnas import formatting as words
from dnas.analysis.metrics import METRICS
from dnas.report.data import value

TEMPLATES = Path(__file__).parent / "templates"


def template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "params": METRICS["params"].format,
        "macs": METRICS["macs"].format,
        "count": words.count,
        "duration": words.duration,
        "value": value,
    }
    return environment.get_template(name)
