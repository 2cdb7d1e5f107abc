"""`dnas plot`: draw one figure of a study, an ablation or a network."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dnas.cli.parser import (
    DATA_ROOT,
    DEVICE,
    STUDY,
    Parser,
    add_command,
    add_figure_output,
    add_network_source,
    add_network_sources,
    file_path,
    whole_number,
)
from dnas.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMMARY = "draw one figure"
EXAMPLES = """  dnas plot weight-norms digits_bc
  dnas plot weight-norms studies/digits_bc/trials/3/checkpoint.pt -o norms.png
  dnas plot importance digits_bc --style paper -o importance.pdf
  dnas plot error digits_bc --width 6.75 --no-title --dpi 300 -o error.png
  dnas plot weight-norms digits_bc --all --kind gamma -o scales.pdf
  dnas plot reuse digits_bc -o reuse.svg
  dnas plot reuse run-s0 run-s1 run-s2 --norm block -o reuse.svg
  dnas plot causal digits_bc -o causal.svg
  dnas plot gradients digits_bc --trial 3 -o gradients.svg"""

# Figures of a search; its report contains all of them.
STUDY_FIGURES = {
    "error": "error against cost, with the Pareto front",
    "best-so-far": "lowest error by trials, time and multiply-adds",
    "control-arm": "the sampler against random proposals",
    "distribution": "fraction of trials at or below each error",
    "fidelity": "rank correlation of each epoch with the last one",
    "timeline": "when each trial was trained",
    "importance": "which choices distinguish the best networks",
    "fanova": "fraction of the error's variance due to each choice, over all networks and for the best tenth",
    "interactions": "fraction of the error's variance due to each pair of choices",
    "path": "from the first network to the best, one choice at a time, as a forest predicts it",
    "slices": "error by each choice",
    "parallel": "parallel coordinates of the choices",
    "learning-curves": "learning curves of all trials",
    "diagram": "the best network, layer by layer",
    "layer-costs": "params and macs of the best network's layers",
}
ABLATION_FIGURES = {
    "forest": "an ablation's differences from the base, with intervals",
    "slopes": "an ablation's errors, one line per seed",
    "effects": "main effects and interactions of a factorial ablation",
    "factor-means": "mean error at the levels of each two factors",
    "variants": "an ablation's errors against params and macs",
    "variant-curves": "an ablation's learning curves, by variant",
}
NETWORK_FIGURES = {
    "reuse": "heatmap of how strongly each layer uses each earlier one (Figure 5 of the paper)",
    "causal": "heatmap of the error increase when a layer no longer receives another one's channels",
    "gradients": "heatmap of each layer's RMS gradient over the epochs",
    "weight-norms": "heatmap of each layer's weight norm over the epochs",
}
# Names up to version 0.2, which differed from figures of searches by little.
OLD_NAMES = {"interaction": "factor-means", "curves": "variant-curves"}
NORM = "normalisation of the weights: column, block or none (default: column)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE", required=True, parser_class=Parser)
    parsers = {name: add_command(figures, name, summary, EXAMPLES) for name, summary in NETWORK_FIGURES.items()}
    reuse, causal, norms = parsers["reuse"], parsers["causal"], parsers["weight-norms"]
    add_network_sources(reuse)
    reuse.add_argument("--norm", metavar="KIND", default="column", help=NORM)
    reuse.add_argument(
        "--epoch", type=whole_number(0), metavar="N", help="epoch to draw; 0 is the untrained network (default: last)"
    )
    add_network_source(causal)
    causal.add_argument("--norm", metavar="KIND", default="column", help=NORM)
    causal.add_argument(
        "--images", type=whole_number(1), metavar="N", help="number of validation images to use (default: all)"
    )
    causal.add_argument("--device", default="auto", metavar="NAME", help=DEVICE.replace("train", "measure"))
    causal.add_argument("--data-root", type=file_path, metavar="FOLDER", help=DATA_ROOT)
    add_network_source(parsers["gradients"])
    add_network_source(norms)
    norms.add_argument(
        "--kind",
        default="rms",
        metavar="KIND",
        help="norm to draw: rms, l1, or gamma, the scales of the batch norms (default: rms)",
    )
    norms.add_argument("--all", action="store_true", help="draw every trial of a study, side by side")
    for name, summary in (STUDY_FIGURES | ABLATION_FIGURES).items():
        parsers[name] = add_command(figures, name, summary, f"  dnas plot {name} STUDY -o {name}.svg")
        parsers[name].add_argument("source", metavar="STUDY", help=STUDY)
    for old, new in OLD_NAMES.items():
        parsers[old] = figures.add_parser(old)  # without a help text, the list of figures leaves it out
        parsers[old].add_argument("source", metavar="STUDY", help=STUDY)
        parsers[old].set_defaults(figure=new, old=old)
    for figure_parser in parsers.values():
        add_figure_output(figure_parser)


def run(args: argparse.Namespace) -> int:
    figure, sources = str(args.figure), [str(source) for source in getattr(args, "sources", None) or [args.source]]
    out = Path(args.out or f"{Path(sources[0]).stem}-{figure}{'.pdf' if args.style == 'paper' else '.svg'}")
    if old := getattr(args, "old", None):
        print(f"dnas plot {old} is now called {figure}", file=sys.stderr)
    from dnas.io import check_format

    check_format(out)
    _check_sources(args, sources)
    from dnas.figures import STYLES, formatted, save, title

    style = STYLES[args.style]
    format = replace(
        style, width=args.width or style.width, title=style.title if args.title is None else bool(args.title)
    )
    with formatted(format):
        drawn = _draw(args, figure, out)
    save(drawn, out, args.dpi)
    print(title(drawn))
    print(f"written to {out}")
    return 0


def _check_sources(args: argparse.Namespace, sources: list[str]) -> None:
    """Raise `InputError` if a study, a checkpoint or the device is missing. Does not import torch or matplotlib."""
    from dnas.study.folder import checkpoint_of, find_study
    from dnas.training.defaults import check_device_here

    check_device_here(getattr(args, "device", "auto"))
    for source in sources:
        if args.figure not in NETWORK_FIGURES or getattr(args, "all", False):
            find_study(source)
        else:
            checkpoint_of(source, args.trial)


def _draw(args: argparse.Namespace, figure: str, out: Path) -> "Figure":
    from dnas.cli import plot_network as network

    if figure in STUDY_FIGURES or figure in ABLATION_FIGURES:
        from dnas.report.plot import plot

        return plot(figure, args.source)
    if figure == "reuse":
        return network.draw_reuse(args.sources, args.trial, args.norm, args.epoch)
    if figure == "causal":
        table = out.with_suffix(".csv")
        return network.draw_causal(args.source, args.trial, args.norm, args.images, args.device, args.data_root, table)
    if figure == "gradients":
        return network.draw_gradients(args.source, args.trial)
    if not args.all:
        return network.draw_weight_norms(args.source, args.trial, args.kind)
    if args.trial is not None:
        raise InputError("--all draws every trial of a study; leave --trial out.")
    return network.draw_weight_norms_of_all(args.source, args.kind)
