"""`dnas verify`: measure the paper's four observations on feature reuse on trained networks."""

import argparse
import math
from typing import TYPE_CHECKING

from dnas.cli.output import print_json
from dnas.cli.parser import add_json, add_network_sources

if TYPE_CHECKING:
    from dnas.analysis.observations import Observation

SUMMARY = "measure the paper's four observations on feature reuse, with intervals and verdicts"
EXAMPLES = """  dnas verify digits_bc
  dnas verify run-s0/checkpoint.pt run-s1/checkpoint.pt run-s2/checkpoint.pt --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network_sources(parser)
    add_json(parser.add_argument_group("output"))


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from dnas.study.folder import checkpoint_of

    for source in args.sources:  # before the slow imports
        checkpoint_of(source, args.trial)
    from dnas.analysis.observations import observe
    from dnas.analysis.weight_norms import read_histories
    from dnas.formatting import several

    histories = read_histories(args.sources, args.trial)
    observations = observe(histories)
    if args.json:
        print_json([asdict(observation) for observation in observations])
        return 0
    epochs = sorted({history.epochs for history in histories})
    print(f"{several(len(histories), 'network')}, after epoch {' and '.join(map(str, epochs))}")
    for observation in observations:
        print(observation_line(observation))
    return 0


def observation_line(observation: "Observation") -> str:
    """Format as `(c) holds   later ...: share 0.929 (95% 0.786 to 1.000; untrained 0.071; the bar is 0.5)`."""
    head = f"({observation.letter}) {observation.verdict:14s} {observation.claim}: "
    if not _is_known(observation.value):
        return head + "this network has nothing to measure it on"
    interval = (
        f"95% {observation.low:.3f} to {observation.high:.3f}"
        if _is_known(observation.low)
        else f"{observation.units} of them are too few for an interval"
    )
    untrained = f"; untrained {observation.untrained:.3f}" if _is_known(observation.untrained) else ""
    return (
        head + f"{observation.measure} {observation.value:.3f} ({interval}{untrained}; the bar is {observation.bar:g})"
    )


def _is_known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)
