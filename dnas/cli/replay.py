"""`dnas replay`: repeat a study's decisions, or the training of one trial, and compare the results."""

import argparse
from typing import TYPE_CHECKING

from dnas.cli.output import print_json, printer
from dnas.cli.parser import add_json, add_study, whole_number
from dnas.errors import InputError

if TYPE_CHECKING:
    from dnas.study.folder import StudyFolder

SUMMARY = "repeat every decision of a study and compare"
EXAMPLES = """  dnas replay digits_bc
  dnas replay digits_bc --trial 3"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--trial", type=whole_number(0), metavar="N", help="retrain trial N and compare its learning curve instead"
    )
    training.add_argument(
        "--device", metavar="NAME", help="with --trial: device to train on (default: the trial's device)"
    )
    add_json(parser.add_argument_group("output"))


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 if everything is equal, otherwise 1."""
    from dnas.study.folder import find_study

    if args.device is not None and args.trial is None:
        raise InputError("--device needs --trial: only the training of a trial uses a device.")
    folder = find_study(args.study)
    if args.trial is not None:
        return _retrain(folder, args.trial, args.device, args.json)
    return _decide(folder, args.json)


def _decide(folder: "StudyFolder", as_json: bool) -> int:
    from dnas.formatting import several
    from dnas.strategy.replay import replay

    result = replay(folder)
    if as_json:
        print_json(
            {
                "study": folder.name,
                "proposals": result.proposals,
                "decisions": result.decisions,
                "differences": result.differences,
            }
        )
        return int(bool(result.differences))
    for line in result.differences:
        print(line)
    repeated = f"{several(result.proposals, 'proposal')} and {several(result.decisions, 'decision')} repeated"
    print(f"{repeated}: {several(len(result.differences), 'difference') if result.differences else 'no difference'}")
    return int(bool(result.differences))


def _retrain(folder: "StudyFolder", trial: int, device: str | None, as_json: bool) -> int:
    from dnas.formatting import percent, several
    from dnas.strategy.replay import retrain_trial

    show = printer(quiet=as_json)
    retrained = retrain_trial(
        folder,
        trial,
        device,
        lambda epoch: show(f"epoch  {epoch.epoch}  {percent(epoch.val_error)} validation error"),
    )
    differs = retrained.first is not None or retrained.same_weights is False
    if as_json:
        print_json(
            {
                "study": folder.name,
                "trial": trial,
                "epochs": retrained.epochs,
                "first_difference": retrained.first,
                "recorded": retrained.recorded or None,
                "repeated": retrained.recomputed or None,
                "same_weights": retrained.same_weights,
            }
        )
    elif retrained.first is not None:
        print(
            f"trial {trial} differs from epoch {retrained.first}:\n  recorded  {retrained.recorded}\n"
            f"  repeated  {retrained.recomputed}"
        )
    elif retrained.same_weights is False:
        print(f"trial {trial}: {several(retrained.epochs, 'epoch')} are equal, but the weights differ")
    else:
        weights = "; its weights too" if retrained.same_weights else ""
        print(f"trial {trial}: {several(retrained.epochs, 'epoch')} are equal{weights}")
    return int(differs)
