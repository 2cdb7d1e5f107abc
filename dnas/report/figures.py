"""The figures of a study, by name: each with the numbers behind it and what a reader is told with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from dnas import figures
from dnas import formatting as words
from dnas.analysis import NormHistory, cost_by_part, read_norms, weight_norms
from dnas.analysis.ablation_path import find_path, path_frame
from dnas.analysis.importance import importance
from dnas.analysis.metrics import METRICS
from dnas.analysis.progress import best_so_far, distribution, fidelity, timeline
from dnas.analysis.reuse import feature_reuse
from dnas.analysis.weight_norms import gradient_norms
from dnas.arch import DenseNetSpec, layer_costs
from dnas.errors import InputError
from dnas.report.data import BOOTSTRAPS, ROUNDS, Study, listed, read_for_report
from dnas.report.page import Picture, write_figure
from dnas.study.record import TrialRecord


def _error(s: Study) -> Picture:
    shown = s.of("complete", "stopped", "paused")
    if not any(record.val_error is not None for record in shown):
        raise InputError("no trial has an error yet.")
    number = s.best.number if s.best else None
    points = s.published if len(s.published) else None
    caption = "Each mark is one network, trained once. "
    if len(s.axes) == 2:
        caption += "The front joins the networks that no other one beats in both."
    else:
        caption += f"The ringed ones are on the front of {listed(s.axes)}, which the picture shows two of."
    if points is not None:
        caption += " Published points are test errors after training on all images, at the paper's epochs."
    columns = dict.fromkeys(["number", "state", "arm", "network", *s.axes])
    numbers = s.frame[[column for column in columns if column in s.frame]]
    numbers = numbers.assign(front=numbers["number"].isin(s.front.numbers))
    return Picture(figures.plot_error_against_cost(s.frame, s.front, points, s.floor, number, s.axes), numbers, caption)


def _control(s: Study) -> Picture:
    rows = [
        {"arm": arm, "number": number, "value": value}
        for arm, values in (("sampler", s.arms.sampler), ("control", s.arms.control))
        for number, value in values.items()
    ]
    return Picture(
        figures.plot_control(s.arms),
        pd.DataFrame(rows, columns=["arm", "number", "value"]),
        f"The {METRICS[s.objectives[0]].label} after epoch {s.arms.epoch} of every trial that got there: by trial, and"
        " as the share of either arm at or below a value. A curve further to the right is the better arm.",
    )


def _best_so_far(s: Study) -> Picture:
    found = best_so_far(s.records, s.objectives[0])
    return Picture(
        figures.plot_best_so_far(found, s.objectives[0]),
        found,
        "The lowest of the complete trials so far, each arm by its own trials, training time and multiply-adds (3 times"
        " those of a forward pass, each image and epoch), so that at equal x both had the same budget.",
    )


def _distribution(s: Study) -> Picture:
    found = distribution([value for r in s.of("complete") if (value := getattr(r, s.objectives[0])) is not None])
    numbers = pd.DataFrame({"value": found.error, "share": found.share, "low": found.low, "high": found.high})
    return Picture(
        figures.plot_distribution({s.folder.name: found}, objective=s.objectives[0]),
        numbers,
        "The share of complete trials at or below an error, with a pointwise 95% band by bootstrap over trials. It is"
        " of the networks that the search took to their end, not of the whole space.",
    )


def _fidelity(s: Study) -> Picture:
    found = fidelity(s.curves)
    return Picture(
        figures.plot_fidelity(found),
        found,
        "Spearman's rank correlation of the complete trials' validation errors after an epoch with those after the"
        " last, with its 95% interval (Bonett and Wright 2000). Where bad trials were stopped early those left are"
        " alike, and it looks lower than it is over the whole space.",
    )


def _timeline(s: Study) -> Picture:
    found = timeline(s.records, s.events)
    return Picture(
        figures.plot_timeline(found),
        found,
        "A bar for each stretch in which a trial was trained, as the study's log has it, to the second.",
    )


def _done(s: Study) -> tuple[list[TrialRecord], pd.DataFrame, list[float]]:
    """The complete trials with a finite value, their choices, and the values."""
    name = s.objectives[0]
    done = [r for r in s.of("complete") if r.params and (v := getattr(r, name)) is not None and np.isfinite(v)]
    return done, pd.DataFrame([r.params for r in done]), [float(getattr(r, name)) for r in done]


def _importance(s: Study) -> Picture:
    found = importance(s.evidence.params, s.evidence.errors.tolist())
    return Picture(
        figures.plot_importance(found),
        found,
        "How much more often the values of a choice occur among the best tenth of the complete trials (at least 4) than"
        " among all, as a share of the total (PED-ANOVA, Watanabe et al. 2023), with 95% intervals by bootstrap. Blue:"
        " above what shuffled errors give. A sampler tries what it takes for good more often, so this is of the search,"
        " not of the space.",
    )


def _fanova(s: Study) -> Picture:
    best = s.evidence.fanova(best=True, bootstraps=BOOTSTRAPS, rounds=ROUNDS)
    numbers = pd.concat([s.fanova.effects.assign(of="all"), best.effects.assign(of="best tenth")], ignore_index=True)
    return Picture(
        figures.plot_fanova(s.fanova, best),
        numbers,
        "How much of the error's variance over the whole space each choice makes, and each pair beyond its two choices:"
        f" functional ANOVA of a random forest on {words.several(s.fanova.trials, 'complete trial')} (Hutter et al."
        " 2014), with 95% intervals by bootstrap over trials. Right: of the errors clipped above the best tenth, since"
        " bad regions make most of the variance of all. Blue: above what chance gives, a choice's values shuffled among"
        " the trials, or a pair's errors rebuilt without interactions. R²: how well the forest predicts trials that it"
        " was not given (out of bag); where it is low, the shares say little. Trials stopped early are left out.",
    )


def _interactions(s: Study) -> Picture:
    return Picture(
        figures.plot_interactions(s.fanova, s.objectives[0]),
        s.fanova.effects,
        "The same shares over all as a matrix: on the diagonal the choices by themselves, elsewhere what two make"
        " together beyond both. Right: the error that the forest predicts at each pair of values of the strongest"
        " interaction, over all values of the other choices, also where a limit forbids the network.",
    )


def _path(s: Study) -> Picture:
    best, space = _best(s), s.evidence.space
    if not space.first:
        raise InputError(f"space {space.name} names no first network; `dnas path --from` says where to begin.")
    path = find_path(s.evidence, space.first[0], best.params, BOOTSTRAPS)
    return Picture(
        figures.plot_path(path, s.objectives[0]),
        path_frame(path),
        "From the space's first network to the best, a choice at a time, at each step the one that the forest predicts"
        " to lower the error most (Fawcett and Hoos 2016, with a model in place of runs: Biedenkapp et al. 2017)."
        f" Predicted, not trained (R² {path.r2:.2f} out of bag); intervals by bootstrap over trials. The best network's"
        f" measured error is lucky, as it was chosen by it. `dnas path {s.folder.name} --train` measures the steps.",
    )


def _choices(s: Study) -> tuple[pd.DataFrame, list[str]]:
    """A row a complete trial: its choices, the objective and number; and the names of the choices."""
    done, params, values = _done(s)
    return params.assign(**{s.objectives[0]: values}, number=[r.number for r in done]), list(params)


def _slices(s: Study) -> Picture:
    frame, choices = _choices(s)
    return Picture(
        figures.plot_slices(frame, choices, s.objectives[0]),
        frame,
        "Every complete trial by each of its choices, and the median at each value. The other choices differ from mark"
        " to mark, so a slope is no proof of a cause; an ablation is.",
    )


def _parallel(s: Study) -> Picture:
    frame, choices = _choices(s)
    return Picture(
        figures.plot_parallel(frame, choices, s.objectives[0]),
        frame,
        "A line a complete trial, through its choices to its error; the best tenth in colour.",
    )


def _learning_curves(s: Study) -> Picture:
    best = _best(s)
    return Picture(
        figures.plot_learning_curves(s.curves, best.number),
        s.curves,
        "Validation error after each epoch, of every trial. The training error is a mean over the epoch's steps, on"
        " augmented images and with dropout where there is some, so it can lie above the validation error.",
    )


def _layer_costs(s: Study) -> Picture:
    spec = _best_with_spec(s).network_spec
    return Picture(
        figures.plot_layer_costs(spec),
        pd.DataFrame([{name: getattr(c, name) for name in c.__dataclass_fields__} for c in layer_costs(spec)]),
        "Params and multiply-adds (for one image) of each layer.",
    )


def _diagram(s: Study) -> Picture:
    spec = _best_with_spec(s).network_spec
    return Picture(
        figures.plot_diagram(spec),
        cost_by_part(spec),
        "A bar a layer, in the order of execution, as high as the channels that it reads; dark: the maps that it adds.",
    )


def _weight_norms(s: Study) -> Picture:
    norms = weight_norms(read_norms(s.folder.trial_folder(_best(s).number)))
    return Picture(
        figures.plot_weight_norms(norms),
        pd.DataFrame(norms.values.T, columns=list(norms.layers)).rename_axis("epoch").reset_index(),
        "Root-mean-square weight of each layer's convolutions, over its value before the first step. The scale is that"
        " of the convolutions: no norm follows the classifier, so it can lie beyond the scale's ends.",
    )


def histories(s: Study) -> list[NormHistory]:
    """Of the best network and of its final trainings, which are the same network from other seeds."""
    best = _best_with_spec(s)
    if not isinstance(best.network_spec, DenseNetSpec):
        raise InputError("feature reuse is of DenseNets.")
    folders = [s.folder.trial_folder(best.number)]
    folders += [path for path, r in s.folder.retrained() if r.number == best.number and r.state == "complete"]
    return [read_norms(folder) for folder in folders]


def _reuse(s: Study) -> Picture:
    found = feature_reuse(histories(s))
    return Picture(
        figures.plot_reuse(found),
        found.frame(),
        "Figure 5 of the paper for this network. How strongly each layer draws on each earlier one: a weight is no"
        " proof of use; `dnas plot causal` cuts each connection and measures what is lost.",
    )


def _gradients(s: Study) -> Picture:
    norms = gradient_norms(read_norms(s.folder.trial_folder(_best(s).number)))
    return Picture(
        figures.plot_gradients(norms),
        pd.DataFrame(norms.values.T, columns=list(norms.layers)).rename_axis("epoch").reset_index().iloc[1:],
        "Root-mean-square gradient of the loss by each layer's weights, at the end of each epoch: whether the early"
        " layers are taught as directly as the late ones (the paper's implicit deep supervision).",
    )


def _best(s: Study) -> TrialRecord:
    if s.best is None:
        raise InputError(f"study {s.folder.name} has no complete trial yet.")
    return s.best


def _best_with_spec(s: Study) -> TrialRecord:
    if not _best(s).spec:
        raise InputError("the best network's spec was not written down.")
    return _best(s)


# In the order of the page. What a study doesn't hold raises `InputError`, with the reason.
PICTURES: dict[str, Callable[[Study], Picture]] = {
    "error": _error,
    "control_arm": _control,
    "best_so_far": _best_so_far,
    "fidelity": _fidelity,
    "timeline": _timeline,
    "importance": _importance,
    "fanova": _fanova,
    "interactions": _interactions,
    "path": _path,
    "slices": _slices,
    "parallel": _parallel,
    "distribution": _distribution,
    "diagram": _diagram,
    "learning_curves": _learning_curves,
    "layer_costs": _layer_costs,
    "reuse": _reuse,
    "weight_norms": _weight_norms,
    "gradients": _gradients,
}


def draw_one(name: str, study: str | Path, out: Path) -> str:
    """Draws the picture `name` of a study into the file `out`; its title. Names are written with `-` or `_`."""
    figures.check_format(out)
    picture = PICTURES[name.replace("-", "_")](read_for_report(study, None))
    figures.save(picture.figure, out)
    return figures.title(picture.figure)


def draw_all(s: Study) -> None:
    for name, make in PICTURES.items():
        _draw(s, s.main_figure if name == "error" else name, make)


def _draw(s: Study, name: str, make: Callable[[Study], Picture]) -> None:
    """Draws one figure into its files and onto the page; what the study doesn't hold is left out."""
    try:
        picture = make(s)
    except InputError:
        return
    s.drawn[name] = write_figure(picture, name, s.out)
