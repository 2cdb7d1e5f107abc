"""The command line. Each command imports what it needs, so that `--help` answers at once."""

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dnas import __version__
from dnas.errors import InputError, did_you_mean

EPILOGS = {
    "search": """examples:
  dnas search --space digits_bc --trials 20
  dnas search --space cifar_bc --trials 200 --dry-run
  dnas search --space cifar_bc --dataset folder:~/cifar10 --trials 2 --epochs 1 --subset 2000
  dnas search --space digits_bc --trials 40 --objective val_error,params --workers 2 --study digits_front
  dnas search --space digits_bc --trials 20 --retrain-best 2
  dnas search --space digits_bc --trials 20 --study on_ray --executor ray --cpus-per-trial 1""",
    "worker": """examples:
  export DNAS_STORAGE=postgresql://me:secret@db.example/dnas    # so that the password is on no command line
  dnas worker digits --space digits_bc --trials 30 --shared /mnt/dnas    # the first host begins the study
  dnas worker digits                                            # any other host, at any time
  dnas worker digits --storage postgresql://me@db.example/dnas --workers 4""",
    "pull": """examples:
  dnas pull digits --storage postgresql://me@db.example/dnas
  dnas pull digits && dnas report digits                        # with $DNAS_STORAGE""",
    "train": """examples:
  dnas train densenet-bc:L=16,k=8 --dataset digits --epochs 10
  dnas train densenet_40_12 --dataset cifar10 --recipe paper
  dnas train densenet_bc_190_40 --dataset cifar10 --recipe paper --gpus 4
  torchrun --nproc-per-node 4 -m dnas train densenet_bc_190_40 --dataset cifar10 --recipe paper
  dnas train densenet121:classes=10 --dataset folder:~/imagenette --batch-size 32""",
    "eval": """examples:
  dnas eval studies/runs/digits-densenet-bc-L-16-k-8-s0
  dnas eval digits_bc --trial 17 --part val""",
    "cost": """examples:
  dnas cost densenet_bc_100_12
  dnas cost densenet121 --layers
  dnas cost resnet:L=110,drop=0.5
  dnas cost densenet-bc:L=100,k=12,theta=0.5 --json""",
    "spaces": """examples:
  dnas spaces
  dnas spaces show cifar_bc""",
    "status": """examples:
  dnas status digits_bc
  dnas status studies/digits_bc""",
    "replay": """examples:
  dnas replay digits_bc
  dnas replay digits_bc --trial 3""",
    "extend": """examples:
  dnas extend digits_bc --space wider.toml
  dnas extend digits_bc --max-params 100_000""",
    "doctor": """examples:
  dnas doctor digits_bc --dry-run
  dnas doctor digits_bc""",
    "reproduce": """examples:
  dnas reproduce fig4-left                                      # minutes on a laptop: digits
  dnas reproduce fig4-left --budget short --dry-run
  dnas reproduce table2 --budget paper --seeds 3 --executor ray --ray-address auto""",
    "ablate": """examples:
  dnas ablate digits_bottleneck_compression                     # minutes on a laptop
  dnas ablate bottleneck_compression --dry-run                  # the plan, and whether it can conclude anything
  dnas ablate bottleneck_compression --seeds 12                 # more seeds later: only those are trained
  dnas ablate my_study.toml --seeds auto --max-seeds 30         # seeds where they are needed""",
    "report": """examples:
  dnas report digits_bc
  dnas report digits_bc --out ~/page
  dnas report digits_bc --watch              # renewed while a search runs
  dnas report digits_bc digits_front         # compares studies of one data set""",
    "plot": """examples:
  dnas plot weight-norms digits_bc -o norms.svg
  dnas plot weight-norms studies/digits_bc/trials/3/checkpoint.pt -o norms.png
  dnas plot importance digits_bc -o importance.svg
  dnas plot weight-norms digits_bc --all --kind gamma -o scales.pdf
  dnas plot reuse digits_bc -o reuse.svg
  dnas plot reuse run-s0 run-s1 run-s2 --norm block -o reuse.svg
  dnas plot causal digits_bc -o causal.svg
  dnas plot gradients digits_bc --trial 3 -o gradients.svg""",
    "importance": """examples:
  dnas importance digits_bc
  dnas importance digits_bc --epoch 3 --out importance.csv     # trials stopped early count too
  dnas importance digits_bc --by spec --out importance.svg""",
    "path": """examples:
  dnas path digits_bc
  dnas path digits_bc --from 3 --out path.svg
  dnas path digits_bc --train --seeds 5""",
    "verify": """examples:
  dnas verify digits_bc
  dnas verify run-s0/checkpoint.pt run-s1/checkpoint.pt run-s2/checkpoint.pt --json""",
    "export": """examples:
  dnas export digits_bc -o best.safetensors
  dnas export digits_bc --trial 17 -o network.onnx""",
}


# What `dnas plot` draws of a whole study; the report has them all.
STUDY_FIGURES = {
    "error": "error against a cost, with the Pareto front",
    "best-so-far": "the lowest error by trials, time and multiply-adds",
    "control-arm": "the sampler against random proposals",
    "distribution": "the share of trials at or below each error",
    "fidelity": "how well each epoch ranks networks as the last one does",
    "timeline": "when each trial was trained",
    "importance": "which choices mattered for being among the best",
    "fanova": "how much of the error's variance each choice makes, over all and for the best tenth",
    "interactions": "how much each pair of choices makes together",
    "path": "from the first network to the best, a choice at a time, as a forest predicts it",
    "slices": "the error by each choice",
    "parallel": "parallel coordinates of the choices",
    "learning-curves": "every trial's curve",
    "diagram": "the best network, layer by layer",
    "layer-costs": "params and macs of the best network's layers",
}
# And of an ablation.
ABLATION_FIGURES = {
    "forest": "an ablation's differences from the base, with intervals",
    "slopes": "an ablation's errors, a line a seed",
    "effects": "main effects and interactions of a factorial ablation",
    "interaction": "the mean error at each two factors' levels",
    "variants": "an ablation's errors against params and macs",
    "curves": "an ablation's learning curves, by variant",
}
FRONT_LINES = 5  # that a search prints at its end


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (try `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def _whole(least: int) -> Any:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"a whole number of at least {least} is needed, but got {text!r}"
            ) from None
        if value < least:
            raise argparse.ArgumentTypeError(f"a whole number of at least {least} is needed, but got {value}")
        return value

    return read


def _positive(text: str) -> float:
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a positive number is needed, but got {text!r}")
    return int(value) if value == int(value) else value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a share from 0 to below 1 is needed, but got {text!r}")
    return value


def _share_or_more(text: str) -> float:
    return 0.0 if text.strip("0.") == "" and text else _positive(text)


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dnas",
        description="Neural-architecture search and ablation for densely connected convolutional networks.",
        epilog="`dnas COMMAND --help` says more, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"dnas {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=EPILOGS[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _add_search(command("search", "search a space for the best networks"))
    _add_worker(command("worker", "train for a study that several hosts share, in a PostgreSQL database"))
    add = command("pull", "rebuild a shared study's folder on this host").add_argument
    add("study", metavar="STUDY", help="the study's name")
    _add_storage(add)
    _add_train(command("train", "train one network to the end"))
    _add_eval(command("eval", "measure a trained network's error"))
    add = command("cost", "price a network: params, macs, activation bytes").add_argument
    add("name", metavar="NAME", help="a preset such as densenet121 or resnet_164, or densenet-bc:L=100,k=12,theta=0.5")
    add("--layers", action="store_true", help="a row a layer")
    add("--batch", type=_whole(1), default=64, metavar="N", help="images in the training step (default 64)")
    add("--json", action="store_true", help="for programs")
    spaces = command("spaces", "list the search spaces, or show one")
    spaces.add_argument("action", nargs="?", choices=["show"], help="show the space NAME")
    spaces.add_argument("name", nargs="?", metavar="NAME")
    add = command("status", "show where a study stands").add_argument
    add("study", metavar="STUDY", help="a study's name, or its folder")
    add = command("replay", "decide everything again that a study decided, and compare").add_argument
    add("study", metavar="STUDY", help="a study's name, or its folder")
    add("--trial", type=_whole(0), metavar="N", help="train this one again, and compare its curve")
    add("--device", metavar="NAME", help="of that training (default: where it was trained)")
    add = command("extend", "give a study a wider space; its trials stay valid").add_argument
    add("study", metavar="STUDY", help="a study's name, or its folder")
    add("--space", metavar="NAME", help="the wider space: a name, or a file that ends with .toml (default: the same)")
    add("--max-params", type=_positive, metavar="N", help="a higher limit")
    add("--max-macs", type=_positive, metavar="N", help="a higher limit")
    add = command("doctor", "find and mend what is damaged in a study").add_argument
    add("study", metavar="STUDY", help="a study's name, or its folder")
    add("--dry-run", action="store_true", help="only look")
    add = command("report", "write a study's report, or compare studies").add_argument
    add(
        "study",
        metavar="STUDY",
        nargs="+",
        help="a search's or an ablation's name, or its folder; of several searches, a comparison",
    )
    add("--out", type=Path, metavar="FOLDER", help="where to write (default reports/STUDY)")
    add("--watch", action="store_true", help="write it again while the study runs")
    _add_importance(command("importance", "how much each choice and each pair matters in a search, with intervals"))
    _add_path(command("path", "the path from the default to the best network, a choice at a time"))
    _add_reproduce(command("reproduce", "make a table or figure of the paper again, beside the published one"))
    _add_ablate(command("ablate", "compare variants of a network, in pairs, and say what may be concluded"))
    plot = command("plot", "draw one figure")
    figures = plot.add_subparsers(dest="figure", metavar="FIGURE", required=True, parser_class=_Parser)
    _add_figures(figures)
    for name, summary in (STUDY_FIGURES | ABLATION_FIGURES).items():
        add = figures.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".").add_argument
        add("source", metavar="STUDY", help="a study's name, or its folder")
        add("-o", "--out", type=Path, required=True, metavar="FILE", help="ends with .svg, .png or .pdf")
    verify = command("verify", "measure the paper's four observations on feature reuse, with intervals and verdicts")
    _add_network_sources(verify)
    verify.add_argument("--json", action="store_true", help="print JSON")
    export = command("export", "write a trained network as safetensors or ONNX")
    _add_network_source(export)
    export.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="ends with .safetensors or .onnx")
    return parser


def _add_figures(figures: Any) -> None:
    def figure(name: str, summary: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = figures.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=EPILOGS["plot"],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        out = "ends with .svg, .png or .pdf"
        parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help=out)
        return parser

    norm = {"metavar": "KIND", "default": "column", "help": "of the weights: column (default), block or none"}
    reuse = figure("reuse", "heatmap of how strongly each layer draws on each earlier one (the paper's Figure 5)")
    _add_network_sources(reuse)
    reuse.add_argument("--norm", **norm)  # type: ignore[arg-type]
    reuse.add_argument("--epoch", type=_whole(0), metavar="N", help="0: untrained (default: the last)")
    causal = figure("causal", "heatmap of the error gained where a layer no longer gets the channels of another")
    _add_network_source(causal)
    causal.add_argument("--norm", **norm)  # type: ignore[arg-type]
    causal.add_argument("--images", type=_whole(1), metavar="N", help="so many of the validation part (default: all)")
    causal.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:0 (default: cuda if there)")
    causal.add_argument("--data-root", type=Path, metavar="FOLDER", help="where data sets lie (default as trained)")
    _add_network_source(figure("gradients", "heatmap of each layer's RMS gradient over the epochs"))
    norms = figure("weight-norms", "heatmap of each layer's weight norm over the epochs")
    _add_network_source(norms)
    norms.add_argument("--kind", default="rms", metavar="KIND", help="rms (default), l1, or gamma: batch-norm scales")
    norms.add_argument("--all", action="store_true", help="every trial of a study, side by side")


def _add_network_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="STUDY_OR_CHECKPOINT",
        help="a study's name or folder, or a checkpoint file; several: seeds of one network",
    )
    parser.add_argument("--trial", type=_whole(0), metavar="N", help="of a study (default: its best)")


def _add_network_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="STUDY_OR_CHECKPOINT", help="a study's name or folder, or a checkpoint file")
    parser.add_argument("--trial", type=_whole(0), metavar="N", help="of a study (default: its best)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data-root", type=Path, metavar="FOLDER", help="where data sets lie (default $DNAS_DATA, ~/.cache/dnas/data)")
    add("--subset", type=_whole(1), metavar="N", help="a stratified part of N training images")
    add("--split-seed", type=_whole(0), default=0, metavar="N", help="seed of the validation split (default 0)")
    add("--image-size", type=_whole(1), metavar="PIXELS", help="side of the images (default: the data set's own)")
    add(
        "--augment",
        default="auto",
        metavar="KIND",
        help="auto (the data set's own), none, crop, crop+flip or resized-crop+flip",
    )


def _add_training(parser: argparse.ArgumentParser, recipe: str | None) -> None:
    add = parser.add_argument
    add("--recipe", default=recipe, metavar="NAME", help="paper or fast" + (f" (default {recipe})" if recipe else ""))
    add("--epochs", type=_whole(1), metavar="N", help="(default: the recipe's)")
    add("--batch-size", type=_whole(2), metavar="N", help="(default: the recipe's)")
    add("--learning-rate", type=_positive, metavar="X", help="(default: the recipe's)")
    add("--seed", type=_whole(0), metavar="N", help="(default 0)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:0 (default: cuda where there is one)")
    add("--threads", type=_whole(1), metavar="N", help="CPU threads of a training (default: the cores, shared out)")
    add("--compile", action="store_true", help="torch.compile the network: slow to begin, faster on a GPU")
    add("--cuda-graph", action="store_true", help="run each training step as one CUDA graph (not yet run on a GPU)")
    _add_kernels(add)


def _add_kernels(add: Any) -> None:
    add(
        "--kernels",
        metavar="NAME",
        help="what runs the dense blocks: plain (PyTorch's modules), ref, cpu (C++), triton (CUDA), or auto, which"
        " measures (default: the study's, else auto)",
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--study", metavar="NAME", help="the study's name (default: the space's); studies/NAME.toml gives its defaults")
    _add_study(parser)
    _add_executor(add)
    add("--dry-run", action="store_true", help="print the plan: networks, cost, time, disk")


def _add_executor(add: Any) -> None:
    add("--executor", default="local", metavar="NAME", help="local (default: processes of this machine) or ray")
    add(
        "--ray-address", metavar="HOST:PORT", help="a Ray cluster, or auto: the one here (default: one is started here)"
    )
    add(
        "--gpus-per-trial",
        type=_share_or_more,
        metavar="X",
        help="on Ray; 0.5: two trials share a GPU (default 1, or 0)",
    )
    add("--cpus-per-trial", type=_positive, metavar="X", help="on Ray (default: --threads)")
    add("--shared", metavar="URL", help="on Ray: a folder that all nodes see, or s3://...; for checkpoints")


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", metavar="TARGET", help="table1, table2, fig3, fig4-left, fig4-middle, fig4-right or fig5")
    add("--budget", default="smoke", metavar="NAME", help="smoke (default: digits, minutes), short (one GPU) or paper")
    add("--seeds", type=_whole(1), metavar="N", help="of each network (default: the budget's)")
    _add_list(parser)
    add("--out", type=Path, metavar="FOLDER", help="where to write (default reports/reproduce/TARGET-BUDGET)")


def _add_ablate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="an ablation of studies/, or a file that ends with .toml")
    add("--study", metavar="NAME", help="the study's name (default: the file's)")
    add("--seeds", metavar="N", help="of each variant, or auto: as many as a comparison needs (default: the file's)")
    add("--max-seeds", type=_whole(2), metavar="N", help="with --seeds auto: no comparison gets more (default 20)")
    add("--budget", type=_positive, metavar="SECONDS", help="with --seeds auto: of training, all runs together")
    add("--final", action="store_true", help="train on the validation part too, and measure on the test set")
    add("--epochs", type=_whole(1), metavar="N", help="(default: the file's)")
    add("--dataset", metavar="NAME", help="in place of the file's: digits, cifar10, ..., folder:PATH")
    add("--subset", type=_whole(1), metavar="N", help="a stratified part of N training images")
    _add_list(parser)


def _add_list(parser: argparse.ArgumentParser) -> None:
    """How a list of runs is carried out and shown."""
    add = parser.add_argument
    add("--workers", type=_whole(1), metavar="N", help="trainings at once")
    add("--threads", type=_whole(1), metavar="N", help="CPU threads of a training (default: the cores, shared out)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:0 (default: cuda where there is one)")
    add("--timeout", type=_positive, metavar="SECONDS", help="the longest that one training may take (default: no end)")
    add("--data-root", type=Path, metavar="FOLDER", help="where data sets lie (default $DNAS_DATA, ~/.cache/dnas/data)")
    _add_kernels(add)
    _add_executor(add)
    add("--dry-run", action="store_true", help="print the plan: networks, cost, time, disk")
    add("-q", "--quiet", action="store_true", help="only the result")
    add("-v", "--verbose", action="store_true", help="a line an epoch")


def _add_importance(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("study", metavar="STUDY", help="a search's name, or its folder")
    add("--by", default="choices", metavar="KIND", help="choices (default), or spec: depth, params, macs, fields")
    add("--epoch", type=_whole(1), metavar="N", help="compare after epoch N, also what was stopped later")
    add("--pairs", type=_whole(0), default=6, metavar="N", help="pairs of choices in the table (default 6)")
    add("--bootstraps", type=_whole(20), default=100, metavar="N", help="resamples of the trials (default 100)")
    add("--out", type=Path, metavar="FILE", help="all effects as .csv, or the figure as .svg, .png or .pdf")
    add("--json", action="store_true", help="for programs")


def _add_path(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("study", metavar="STUDY", help="a search's name, or its folder")
    add("--from", dest="source", metavar="NETWORK", help="a trial's number or a network (default: the space's first)")
    add("--train", action="store_true", help="train the networks of the path, in the study STUDY_path")
    add("--seeds", type=_whole(1), metavar="N", help="with --train: of each network (default 3)")
    _add_list(parser)
    add("--out", type=Path, metavar="FILE", help="the steps as .csv, or the figure as .svg, .png or .pdf")
    add("--json", action="store_true", help="for programs")


def _add_worker(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("study", metavar="STUDY", help="the study's name; studies/STUDY.toml gives the defaults of a new one")
    _add_storage(add)
    _add_study(parser)
    parser.set_defaults(executor="local")


def _add_storage(add: Any) -> None:
    add("--storage", metavar="URL", help="postgresql://USER@HOST/DATABASE (default: $DNAS_STORAGE)")
    add("--shared", metavar="URL", help="a folder that all hosts see, or s3://... (default: as the study was begun)")


def _add_study(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--space", metavar="NAME", help="a search space: see `dnas spaces`")
    add("--trials", type=_whole(1), metavar="N", help="networks that the study shall have begun to train")
    add("--dataset", metavar="NAME", help="in place of the space's: digits, cifar10, ..., folder:PATH")
    add(
        "--objective",
        metavar="NAMES",
        help="minimised: val_error (default) or val_loss, of the last epoch; with a comma also params, macs,"
        " activation_bytes or latency",
    )
    add("--sampler", metavar="NAME", help="gp (default), tpe, nsga2, random or grid")
    add(
        "--control",
        type=_share,
        metavar="SHARE",
        help="of random proposals, which the report compares with (default 0)",
    )
    add(
        "--stopping",
        metavar="NAME",
        help="asha (default) or hyperband: bad trials are paused, and promoted when they deserve it; median; or none",
    )
    add("--max-params", type=_positive, metavar="N", help="a limit in place of the space's")
    add("--max-macs", type=_positive, metavar="N", help="a limit in place of the space's")
    add("--workers", type=_whole(1), metavar="N", help="trials at once (default 1 on a small machine)")
    add("--timeout", type=_positive, metavar="SECONDS", help="the longest that one training may take (default: no end)")
    add(
        "--mirror",
        metavar="URL",
        help="optuna storage that mirrors the study, for dashboards (default: its study.db; none: no mirror)",
    )
    add(
        "--retrain-best", type=_whole(1), default=0, metavar="K", help="then train the best K again; opens the test set"
    )
    add("--retrain-seeds", type=_whole(1), default=1, metavar="N", help="fresh seeds for each of them (default 1)")
    _add_training(parser, None)
    _add_data(parser)
    add("-q", "--quiet", action="store_true", help="only the result")
    add("-v", "--verbose", action="store_true", help="a line an epoch")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a network: see `dnas cost --help`")
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="digits, cifar10, cifar100, svhn, imagenet, folder:PATH"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the run's folder (default: under studies/runs/)")
    parser.add_argument(
        "--gpus",
        type=_whole(1),
        metavar="N",
        help="train on N GPUs of this host, each with its slice of every batch (with --device cpu: N processes): the"
        " same result, to rounding; or start this command with torchrun, on several hosts too",
    )
    _add_training(parser, "fast")
    parser.set_defaults(seed=0)
    _add_data(parser)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    _add_network_source(parser)
    add = parser.add_argument
    add("--part", default="val", choices=["train", "val", "test"], help="(default val); `test` opens the test set")
    add("--dataset", metavar="NAME", help="in place of the one that it was trained on")
    add("--data-root", type=Path, metavar="FOLDER")
    add("--device", default="auto", metavar="NAME")
    add("--json", action="store_true", help="for programs")


# --- commands -----------------------------------------------------------------------------------------------------


def _cost(args: argparse.Namespace) -> int:
    from dnas.arch import cost, layer_costs, parse_name

    spec = parse_name(args.name)
    whole, layers = cost(spec, args.batch), layer_costs(spec, args.batch)
    if args.json:
        import json
        from dataclasses import asdict

        print(json.dumps({"network": args.name, **asdict(whole), "layers": [asdict(layer) for layer in layers]}))
        return 0
    from dnas.formatting import count, size

    side, channels = spec.image_size, spec.in_channels
    print(f"{args.name}   {spec.title}, depth {spec.depth}, {side}×{side}×{channels} images, {spec.classes} classes")
    print(f"params            {whole.params:>16,}   {count(whole.params)}")
    print(f"macs              {whole.macs:>16,}   {count(whole.macs)} for one image")
    kept = size(whole.activation_bytes)
    print(f"activation bytes  {whole.activation_bytes:>16,}   {kept} for a training step of {args.batch}")
    if args.layers:
        head = f"\n{'layer':28s} {'in':>6s} {'out':>6s} {'pixels':>9s} {'params':>12s}"
        print(f"{head} {'macs':>14s} {'activation bytes':>18s}")
        for layer in layers:
            print(
                f"{layer.name:28s} {layer.in_channels:6d} {layer.out_channels:6d} {f'{layer.size}×{layer.size}':>9s}"
                f" {layer.params:12,d} {layer.macs:14,d} {layer.activation_bytes:18,d}"
            )
    return 0


def _spaces(args: argparse.Namespace) -> int:
    from dnas.space.parse import load_space, space_files

    if args.action is None:
        files = space_files()
        width = max(map(len, files), default=0)
        for name, path in sorted(files.items()):
            with path.open(encoding="utf-8") as file:
                print(f"{name:{width}s}   {file.readline().lstrip('# ').strip()}")
        return 0
    if args.name is None:
        raise InputError("`dnas spaces show` needs a space's name: see `dnas spaces`.")
    space = load_space(args.name)
    print(_space_text(space))
    return 0


def _space_text(space: Any) -> str:
    from dnas.formatting import count, size

    survey, points = space.survey(), space.size()
    lines = [f"{space.name}   {space.title}", ""]
    width = max(len(choice.name) for choice in space.choices)
    lines += [f"  {choice.name:{width}s}   {choice.describe()}" for choice in space.choices]
    own = {key: value for key, value in space.fixed.items() if key not in ("in_channels", "image_size", "classes")}
    lines.append("")
    lines.append(f"fixed     {', '.join(f'{key} = {value}' for key, value in own.items()) or 'nothing'}")
    recipe = space.recipe
    lines.append(
        f"data      {space.dataset}; recipe {recipe.name}, {recipe.epochs} epochs of batch {recipe.batch_size}"
    )
    lines.append(f"size      {f'{points:,} networks' if points is not None else 'endless'}")
    seen = "of all" if survey.whole else f"of its corners and a sample, {len(survey.costs):,} in all"
    for name, say in (("params", count), ("macs", count), ("activation_bytes", size)):
        low, high = survey.range(name)
        limit = space.limits.stated().get(name)
        lines.append(
            f"{name.replace('_', ' '):17s} {say(low)} to {say(high)}"
            + (f"   limit {say(limit)}" if limit is not None else "")
        )
    within = survey.feasible if survey.whole else None
    lines.append(
        f"({seen}"
        + (f"; {within:,} are inside the limits)" if within is not None else "; the limits are kept by every proposal)")
    )
    if survey.impossible:
        lines.append(f"{survey.impossible} of those looked at do not exist, such as: {survey.example}")
    return "\n".join(lines)


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "dataset": args.dataset,
        "recipe": args.recipe,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
    }


def _data_arguments(args: argparse.Namespace, dataset: str, stem: str) -> dict[str, Any]:
    return {
        "name": dataset,
        "data_root": args.data_root,
        "image_size": args.image_size,
        "stem": stem,
        "subset": args.subset,
        "split_seed": args.split_seed,
        "augmentation": args.augment,
    }


def _search(args: argparse.Namespace) -> int:
    from dnas.study.folder import StudyFolder, check_study_name

    apply_definition_of(args)
    folder = StudyFolder(Path("studies") / check_study_name(args.study or Path(args.space or "").stem or "none"))
    options = _search_options(args, folder, folder.config() if folder.exists else {})
    if args.dry_run:
        from dnas.batch.estimate import plan

        print(plan(options))
        return 0
    executor = None
    if args.executor == "ray":
        from dnas.cli.listed import on_ray

        side = args.image_size or options.space.fixed.get("image_size", 32)
        executor, changes = on_ray(args, options.study, side)
        options = dataclasses.replace(options, run=dataclasses.replace(options.run, **changes))
    else:
        from dnas.training.forkserver import start_forkserver

        start_forkserver()
    from dnas.cli.display import make_display
    from dnas.search.run import search

    display = make_display(args.quiet, args.verbose)
    if not args.quiet:
        print(_opening(options, executor))
    try:
        with display:
            outcome = search(options, display, executor)
    except KeyboardInterrupt:
        print(
            f"\nstopped; every finished epoch is saved in studies/{options.study}."
            f" The same command goes on from there:\n  {options.command}"
        )
        return 130
    print(_closing(options.study, outcome, options.trials))
    return 1 if outcome.stopped_by else 0


def apply_definition_of(args: argparse.Namespace) -> None:
    """Fills in what the study's definition says, and checks what can be checked without reading anything more."""
    from dnas.cli.listed import check_executor
    from dnas.data.catalog import data_info
    from dnas.study.definition import apply_definition

    apply_definition(args)
    if args.trials is None:
        raise InputError(f"`dnas {args.command}` needs --trials N, the networks to train.")
    if args.dataset is not None:
        data_info(args.dataset)
    if args.command == "search":
        check_executor(args)


def _search_options(args: argparse.Namespace, folder: Any, begun: dict[str, Any]) -> Any:
    """The `SearchConfig` of a command. begun: study.toml of the study, {} of a new one; what the command leaves open is
    as there."""
    from dnas.search.proposals import DEFAULT_SAMPLER, check_sampler
    from dnas.search.stopping import check_stopping
    from dnas.space.objectives import read_objectives
    from dnas.space.parse import load_space
    from dnas.study.config import RunConfig, SearchConfig, space_of
    from dnas.training.defaults import default_threads, default_workers

    limits = {key: value for key, value in (("params", args.max_params), ("macs", args.max_macs)) if value is not None}
    overrides = _overrides(args)
    if begun:
        overrides["epochs"] = args.epochs or begun["recipe"]["epochs"]  # they may have been raised
        limits = limits or begun["limits"]
    if args.space is not None:
        space = load_space(args.space, limits=limits, **overrides)
    elif begun:
        space = space_of(begun | {"limits": begun["limits"] | limits})
        space = dataclasses.replace(space, recipe=dataclasses.replace(space.recipe, epochs=overrides["epochs"]))
    else:
        raise InputError(f"`dnas {args.command}` needs --space NAME: see `dnas spaces`.")
    objectives = read_objectives(args.objective or begun.get("objective", "val_error"))
    sampler = args.sampler or begun.get("sampler", DEFAULT_SAMPLER)
    stopping = args.stopping or begun.get("stopping", "asha")
    check_sampler(sampler, objectives)
    check_stopping(stopping, len(objectives) > 1)
    workers = args.workers or default_workers()
    side = args.image_size or space.fixed.get("image_size", 32)
    return SearchConfig(
        space=space,
        study=folder.name,
        trials=args.trials,
        run=RunConfig(
            data=_data_arguments(args, space.dataset, str(space.fixed.get("stem", "small"))),
            workers=workers,
            threads=args.threads or default_threads(workers, side),
            device=args.device,
            timeout=args.timeout,
            compile_net=args.compile,
            cuda_graph=args.cuda_graph,
            kernels=args.kernels,
        ),
        seed=begun.get("seed", 0) if args.seed is None else args.seed,
        objectives=objectives,
        sampler=sampler,
        control=begun.get("control", 0.0) if args.control is None else float(args.control),
        stopping=stopping,
        mirror=args.mirror,
        retrain=args.retrain_best,
        retrain_seeds=args.retrain_seeds,
        command=_command_line(args),
    )


def _worker(args: argparse.Namespace) -> int:
    import signal

    from dnas.cli.display import make_display
    from dnas.cluster import queries
    from dnas.cluster.study import StoredStudy, create_study, load_data, options_of, read_config, shared_of
    from dnas.cluster.worker import COMPLETE, Worker
    from dnas.executors.local import LocalExecutor
    from dnas.executors.shared_storage import SharedStorage
    from dnas.formatting import several
    from dnas.training.defaults import default_workers
    from dnas.training.devices import list_devices
    from dnas.training.forkserver import start_forkserver

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as schedulers end a job: its work is given back
    display = make_display(args.quiet, args.verbose)
    with _open_database(args, display.note) as database:
        devices = list_devices(args.device)
        own = _worker_options(args, database)
        if queries.read_study(database) is None:
            if args.shared is None:
                raise InputError("a new study needs --shared, a folder that all hosts see, or a URL such as s3://...")
            shared = SharedStorage(args.shared)
            shared.check()
            create_study(database, shared, own, devices[0].partition(":")[0], display.note)
        config = read_config(database)
        start_forkserver()
        options = options_of(config, own)
        folder = StoredStudy(Path("studies", args.study), database, shared_of(config, args.shared), display.note)
        data = load_data(config, options, display.note)
        slots = args.workers or default_workers()
        if not args.quiet:
            print(_opening(dataclasses.replace(options, run=dataclasses.replace(options.run, workers=slots)), None))
        worker = Worker(folder, options, data, display, LocalExecutor(slots, devices), slots)
        try:
            done = worker.run()
        except KeyboardInterrupt:
            print(
                f"\nstopped; every finished epoch is in {folder.shared}, and other workers go on with the study."
                f" The same command joins it again:\n  {_command_line(args)}"
            )
            return 130
    if worker.outcome is not None:
        print(_closing(args.study, worker.outcome, options.trials))
    else:
        ended = "is done" if done == COMPLETE else f"was stopped: {done}"
        print(
            f"study {args.study} {ended}; {several(worker.trained, 'training')} here\nnext      dnas pull {args.study}"
        )
    return 0 if done == COMPLETE else 1


def _worker_options(args: argparse.Namespace, database: Any) -> Any:
    """What this host's command says. All of it counts for a new study; of one that is there it must agree with how that
    was begun, and more trials or epochs let one that is done go on."""
    import tomllib
    from types import SimpleNamespace

    import tomli_w

    from dnas.cluster import queries
    from dnas.cluster.worker import COMPLETE
    from dnas.study.config import check_same
    from dnas.study.definition import apply_definition

    found = queries.read_study(database)
    if found is None:
        apply_definition(args)
        if args.space is None:
            raise queries.missing_study(database)
        apply_definition_of(args)
        return _search_options(args, SimpleNamespace(name=args.study), {})
    config, done = tomllib.loads(found[1]), found[2]
    for name in ("subset", "image_size"):
        if (given := getattr(args, name)) not in (None, config["data"].get(name)):
            raise InputError(f"study {args.study} was begun with {name} {config['data'].get(name)}, but got {given}.")
    args.trials = max(args.trials or 0, config["trials"])
    options = _search_options(args, SimpleNamespace(name=args.study), config)
    check_same(SimpleNamespace(name=args.study, config=lambda: config), options)  # type: ignore[arg-type]
    more = {"trials": options.trials, "recipe": config["recipe"] | {"epochs": options.space.recipe.epochs}}
    if config | more != config and done is None:
        raise InputError(
            f"study {args.study} is running with {config['trials']} trials of {config['recipe']['epochs']} epochs;"
            " raise them when it is done."
        )
    if done is not None and (config | more != config or done != COMPLETE):
        queries.reopen_study(database, tomli_w.dumps(config | more, multiline_strings=True))
    return options


def _pull(args: argparse.Namespace) -> int:
    from dnas.cluster.study import StoredStudy, read_config, shared_of
    from dnas.formatting import several

    with _open_database(args, lambda text: print(text, file=sys.stderr)) as database:
        config = read_config(database)
        folder = StoredStudy(Path("studies", args.study), database, shared_of(config, args.shared), database.note)
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.lock():
            folder.pull()
    print(f"{several(len(folder.records()), 'trial')} in studies/{args.study}\nnext      dnas report {args.study}")
    return 0


def _open_database(args: argparse.Namespace, note: Any) -> Any:
    """The database of `--storage` or $DNAS_STORAGE, for a `with`; `--shared` becomes absolute."""
    from contextlib import closing

    from dnas.cluster.database import Database
    from dnas.study.folder import check_study_name

    check_study_name(args.study)
    url = args.storage or os.environ.get("DNAS_STORAGE")
    if not url:
        raise InputError("which database? Give --storage postgresql://USER@HOST/DATABASE, or set $DNAS_STORAGE.")
    if args.shared is not None and "://" not in args.shared:
        args.shared = os.path.normpath(Path(args.shared).expanduser().absolute())
    return closing(Database(url, args.study, note))


def _command_line(args: argparse.Namespace) -> str:
    """The command as it was given, without passwords."""
    import shlex

    from dnas.formatting import redact

    words = sys.argv[1:]
    if getattr(args, "storage", None):
        from dnas.cluster.address import Address

        words = [word.replace(args.storage, str(Address(args.storage))) for word in words]
    return redact(shlex.join(["dnas", *words]))


def _opening(options: Any, executor: Any) -> str:
    from dnas.data.catalog import data_info
    from dnas.formatting import count, several
    from dnas.search.stopping import Ladder

    space, recipe = options.space, options.space.recipe
    size, survey = space.size(), space.survey()
    low, high = survey.range("params")
    limits = ", ".join(f"{name} ≤ {count(value)}" for name, value in space.limits.stated().items()) or "none"
    every = Ladder(options.stopping, recipe.epochs, several=len(options.objectives) > 1).rungs
    stops = "·".join(str(rung) for rung in (*every, recipe.epochs)) if len(every) < 6 else f"{every[0]} to {every[-1]}"
    stopping = f"{options.stopping} after {stops} epochs" if every else "none"
    at_once = options.run.workers if executor is None else min(options.run.workers, executor.workers)
    names = {"gp": "Gaussian process", "tpe": "TPE", "nsga2": "NSGA-II"}
    control = f", {100 * options.control:.0f}% random control" if options.control else ""
    return "\n".join(
        (
            f"{space.name}   {space.title}",
            f"space    {f'{size:,} networks' if size is not None else 'endless'}, {count(low)} to {count(high)} params",
            f"limits   {limits}",
            f"data     {data_info(space.dataset).title}"
            + (f", {options.run.data['subset']:,} images of it" if options.run.data["subset"] else ""),
            f"train    recipe {recipe.name}, {several(recipe.epochs, 'epoch')} of batch {recipe.batch_size};"
            f" early stopping {stopping}",
            f"search   {', '.join(options.objectives)} by {names.get(options.sampler, options.sampler)}, seed"
            f" {options.seed}{control}; {options.trials} trials, {at_once} at once"
            f" ({options.run.threads} thread{'s' * (options.run.threads > 1)} each); studies/{options.study}/",
            "",
        )
    )


def _closing(study: str, outcome: Any, wanted: int) -> str:
    from dnas.analysis.efficiency import pareto_front
    from dnas.analysis.metrics import METRICS
    from dnas.cli.display import state_counts
    from dnas.formatting import count, percent, several
    from dnas.study.config import objectives_of
    from dnas.study.folder import StudyFolder, read_study

    folder = StudyFolder(Path("studies") / study)
    lines = [""]
    if outcome.stopped_by:
        lines.append(f"stopped: {outcome.stopped_by}")
    elif outcome.exhausted and outcome.trials < wanted:
        lines.append(f"the space holds no further network inside its limits: all {outcome.trials} were tried.")
    best = folder.best()
    if best:
        record = best[0]
        lines.append(
            f"best      #{record.number}  {percent(record.val_error)} validation error"
            f"  {count(record.cost['params'])} params  {count(record.cost['macs'])} macs  {record.network}"
        )
        costs = objectives_of(folder.config())[1:] or ("params",)
        first = next(iter(record.objectives))
        front = pareto_front(read_study(folder.path), (*costs, first)).trials.to_dict("records")
        lines += [
            f"{'front' if i == 0 else '':9s} {METRICS[first].in_terminal(row[first]):>8s} at "
            + ", ".join(
                f"{METRICS[name].in_terminal(row[name])} {name if name != 'latency' else ''}".rstrip() for name in costs
            )
            + f"  #{row['number']}  {row['network']}"
            for i, row in enumerate(front[:FRONT_LINES])
        ]
        if len(front) > FRONT_LINES:
            lines.append(f"{'':9s} and {len(front) - FRONT_LINES} more, in the report")
    errors: dict[int, list[float]] = {}
    for _, final in folder.retrained():
        if final.test_error is not None:
            errors.setdefault(final.number, []).append(final.test_error)
    for number, measured in errors.items():
        spread = f" ({percent(min(measured))} to {percent(max(measured))})" if len(measured) > 1 else ""
        mean = percent(sum(measured) / len(measured))
        lines.append(f"test      #{number}  {mean} test error, {several(len(measured), 'seed')}{spread}")
    lines.append("trials    " + state_counts(folder.records()))
    lines.append(f"stored    studies/{study}/")
    lines.append(f"next      dnas report {study}")
    return "\n".join(lines)


def _train(args: argparse.Namespace) -> int:
    from dnas.training.single import train_one

    return train_one(args)


def _eval(args: argparse.Namespace) -> int:
    import json

    from dnas.data import load_dataset
    from dnas.export import load_trained
    from dnas.formatting import percent
    from dnas.training.devices import check_device
    from dnas.training.evaluate import evaluate

    device = check_device(args.device)
    trained = load_trained(args.source, args.trial)
    data = load_dataset(**trained.data_arguments(args.dataset, args.data_root), device=device)
    trained.check_data(data, same=args.dataset is None)
    data = trained.normalised(data)
    loss, error = evaluate(trained.run.net.to(device), data, args.part, device)
    images = {"train": data.train_size, "val": data.val_size, "test": data.test_size}[args.part]
    result = {"part": args.part, "images": images, "error": error, "loss": loss, "dataset": data.name}
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{percent(error)} error, loss {loss:.4f} on the {args.part} part of {data.title} ({images:,} images)")
    return 0


def _status(args: argparse.Namespace) -> int:
    from rich.console import Console

    from dnas.cli.display import LiveTable, state_lines
    from dnas.study.folder import find_study

    folder = find_study(args.study)
    config, records = folder.config(), folder.records()
    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = LiveTable(console)
    table.opened(records, config["trials"])
    console.print(f"{folder.name}   {config['space']['title']}", highlight=False)
    seeds = sorted({run["seed"][0] for run in config.get("runs", [])}) or [config["seed"]]
    console.print(
        f"{config['objective']} on {config['data']['title']}, recipe {config['recipe']['name']}"
        f" {config['recipe']['epochs']} epochs,"
        f" seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {config['command']}\n",
        highlight=False,
    )
    console.print(table.table(len(records)) if records else "no trial yet")
    console.print(f"\n{table.progress.footer()}", highlight=False)
    for line in state_lines(records):
        console.print(line, highlight=False)
    for path, record in folder.retrained():
        error = f"{100 * record.test_error:.2f}% test error" if record.test_error is not None else record.state
        console.print(f"retrained {path.name}: {error}", highlight=False)
    return 0


def _replay(args: argparse.Namespace) -> int:
    from dnas.formatting import percent, several
    from dnas.search.replay import replay, train_again
    from dnas.study.folder import find_study

    folder = find_study(args.study)
    if args.trial is not None:
        again = train_again(
            folder,
            args.trial,
            args.device,
            lambda epoch: print(f"epoch  {epoch.epoch}  {percent(epoch.val_error)} validation error", flush=True),
        )
        if again.first is not None:
            print(f"trial {args.trial} differs from epoch {again.first} on:\n  then  {again.then}\n  now   {again.now}")
        elif again.same_weights is False:
            print(f"trial {args.trial}: {several(again.epochs, 'epoch')} are equal, but the weights differ")
        else:
            weights = "; its weights too" if again.same_weights else ""
            print(f"trial {args.trial}: {several(again.epochs, 'epoch')} are equal{weights}")
        return int(again.first is not None or again.same_weights is False)
    found = replay(folder)
    for line in found.differences:
        print(line)
    what = f"{several(found.proposals, 'proposal')} and {several(found.decisions, 'decision')} made again"
    print(f"{what}: {several(len(found.differences), 'difference') if found.differences else 'all as they were'}")
    return int(bool(found.differences))


def _extend(args: argparse.Namespace) -> int:
    from dnas.search.extend import extend
    from dnas.space.parse import load_space
    from dnas.study.config import space_of
    from dnas.study.folder import find_study

    folder = find_study(args.study)
    config = folder.config()
    if args.space is None and args.max_params is None and args.max_macs is None:
        raise InputError("`dnas extend` needs what is to be wider: --space, --max-params or --max-macs.")
    limits = {key: value for key, value in (("params", args.max_params), ("macs", args.max_macs)) if value is not None}
    if args.space is None:
        wider, limits = space_of(config), config["limits"] | limits
    else:
        wider = load_space(args.space, limits=limits, dataset=config["data"]["source"])
        limits = wider.limits.stated()
    changes = extend(folder, wider, limits)
    print("\n".join(changes) if changes else f"study {folder.name} has that space already; nothing changed")
    if changes:
        given = " ".join(f"--max-{key} {value}" for key, value in limits.items() if key in ("params", "macs"))
        name = args.space or config["space"]["name"]
        print(f"next  dnas search --study {folder.name} --space {name} {given} --trials N")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from dnas.search.doctor import main_doctor

    return main_doctor(args)


def _report(args: argparse.Namespace) -> int:
    from dnas.report import watch_report, write_comparison, write_report

    if len(args.study) > 1:
        if args.watch:
            raise InputError("--watch goes with one study, but got several.")
        print(f"the comparison lies at {write_comparison(args.study, args.out)}")
    elif args.watch:
        watch_report(args.study[0], args.out, lambda text: print(text, flush=True))
    else:
        print(f"the report lies at {write_report(args.study[0], args.out)}")
    return 0


def _importance(args: argparse.Namespace) -> int:
    from dnas.analysis.evidence import main_importance

    return main_importance(args)


def _path(args: argparse.Namespace) -> int:
    from dnas.ablation.path import main_path

    return main_path(args)


def _reproduce(args: argparse.Namespace) -> int:
    from dnas.reproduce.command import main_reproduce

    return main_reproduce(args)


def _ablate(args: argparse.Namespace) -> int:
    from dnas.ablation.command import main_ablate

    return main_ablate(args)


def _plot(args: argparse.Namespace) -> int:
    from dnas.cli.plots import run_plot

    if args.figure in ABLATION_FIGURES:
        from dnas.report.ablation import draw_one as draw_of_ablation

        print(f"{draw_of_ablation(args.figure, args.source, args.out)}\nwritten to {args.out}")
        return 0
    if args.figure in STUDY_FIGURES:
        from dnas.report.figures import draw_one

        print(f"{draw_one(args.figure, args.source, args.out)}\nwritten to {args.out}")
        return 0
    return run_plot(args)


def _verify(args: argparse.Namespace) -> int:
    from dnas.cli.plots import run_verify

    return run_verify(args)


def _export(args: argparse.Namespace) -> int:
    from dnas.export import load_trained, write_network

    trained = load_trained(args.source, args.trial)
    write_network(trained, args.out)
    print(f"written to {args.out}")
    return 0


COMMANDS = {
    "ablate": _ablate,
    "cost": _cost,
    "doctor": _doctor,
    "eval": _eval,
    "export": _export,
    "extend": _extend,
    "importance": _importance,
    "path": _path,
    "plot": _plot,
    "pull": _pull,
    "replay": _replay,
    "report": _report,
    "reproduce": _reproduce,
    "search": _search,
    "spaces": _spaces,
    "status": _status,
    "train": _train,
    "verify": _verify,
    "worker": _worker,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. 0: done; 1: done in part, or the work failed; 2: bad input; 130: interrupted."""
    # Before torch is imported. Threads that spin while they wait gain a little on quiet cores, and on busy ones make a
    # step slower than a single thread would (benchmarks/results/threads.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = did_you_mean(arguments[0], COMMANDS)
        print(f"dnas: no command {arguments[0]!r}; there are {', '.join(sorted(COMMANDS))}.{near}", file=sys.stderr)
        return 2
    args = make_parser().parse_args(arguments)
    try:
        return COMMANDS[args.command](args)
    except InputError as error:
        if args.debug:
            raise
        print(f"dnas: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def entry_point() -> int:
    """Run one command as a program. Once it is over, Ctrl-C no longer interrupts Python's own shutdown."""
    try:
        return main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    raise SystemExit(entry_point())
