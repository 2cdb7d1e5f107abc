"""Figures of a search by name, each with its numbers and caption."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from dnas import figures
from dnas import formatting as words
from dnas.analysis import NormHistory, cost_by_part, read_norms
from dnas.analysis.ablation_path import find_path, path_frame
from dnas.analysis.metrics import METRICS
from dnas.analysis.progress import best_so_far, distribution, fidelity, timeline
from dnas.analysis.reuse import feature_reuse
from dnas.analysis.weight_norms import gradient_norms, weight_norms
from dnas.arch import DenseNetSpec, layer_costs
from dnas.errors import InputError
from dnas.figures.style import styled
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
        caption += "The line is the Pareto front: no other network is better in both."
    else:
        caption += f"Ringed networks are on the Pareto front of {listed(s.axes)}; the figure shows two of these."
    if points is not None:
        caption += " Published points are test errors after training on all images with the paper's schedule."
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
        f"The {METRICS[s.objectives[0]].label} after epoch {s.arms.epoch} of every trial that reached it, by"
        " trial and as the cumulative distribution of each arm. The arm whose curve is further right is better.",
    )


def _best_so_far(s: Study) -> Picture:
    progress = best_so_far(s.records, s.objectives[0])
    return Picture(
        figures.plot_best_so_far(progress, s.objectives[0]),
        progress,
        "Lowest value of the complete trials so far, against the trials, training time and multiply-adds of each arm"
        " (3 times those of a forward pass, per image and epoch). At equal x both arms have used the same budget.",
    )


def _distribution(s: Study) -> Picture:
    errors = distribution([value for r in s.of("complete") if (value := r.measured(s.objectives[0])) is not None])
    numbers = pd.DataFrame({"value": errors.error, "share": errors.share, "low": errors.low, "high": errors.high})
    return Picture(
        figures.plot_distribution({s.folder.name: errors}, objective=s.objectives[0]),
        numbers,
        "Fraction of complete trials at or below an error, with a pointwise 95% bootstrap band over trials. It"
        " describes the networks that the search trained to the end, not the whole space.",
    )


def _fidelity(s: Study) -> Picture:
    rhos = fidelity(s.curves)
    return Picture(
        figures.plot_fidelity(rhos),
        rhos,
        "Spearman's rank correlation between the validation errors after an epoch and after the last one, over complete"
        " trials, with its 95% interval (Bonett and Wright 2000). If poor trials were stopped early, the remaining ones"
        " are similar, and the correlation is lower than over the whole space.",
    )


def _timeline(s: Study) -> Picture:
    intervals = timeline(s.records, s.events)
    return Picture(
        figures.plot_timeline(intervals),
        intervals,
        "Each bar is an interval in which a trial was trained, from the log of the study, to the second.",
    )


def _done(s: Study) -> tuple[list[TrialRecord], pd.DataFrame, list[float]]:
    """Return the complete trials with a finite value, their choices, and the values."""
    name = s.objectives[0]
    done = [r for r in s.of("complete") if r.params and (v := r.measured(name)) is not None and np.isfinite(v)]
    return done, pd.DataFrame([r.params for r in done]), [float(r.measured(name) or 0.0) for r in done]


def _importance(s: Study) -> Picture:
    return Picture(
        figures.plot_importance(s.importance),
        s.importance,
        "Difference between the distribution of a choice among the best tenth of the complete trials (at least 4) and"
        " among all, as a share of the total (PED-ANOVA, Watanabe et al. 2023), with 95% bootstrap intervals. Blue bars"
        " exceed the importance with shuffled errors. A sampler prefers values that it expects to be good, so the"
        " result describes the search, not the space.",
    )


def _fanova(s: Study) -> Picture:
    best = s.evidence.fanova(best=True, bootstraps=BOOTSTRAPS, rounds=ROUNDS)
    numbers = pd.concat([s.fanova.effects.assign(of="all"), best.effects.assign(of="best tenth")], ignore_index=True)
    return Picture(
        figures.plot_fanova(s.fanova, best),
        numbers,
        "Share of the variance of the error over the whole space due to each choice, and to each pair beyond its two"
        f" choices: functional ANOVA of a random forest on {words.several(s.fanova.trials, 'complete trial')}"
        " (Hutter et al. 2014), with 95% bootstrap intervals over trials. Right: errors clipped above the best tenth,"
        " since poor regions account for most of the total variance. Blue bars exceed the share under chance, with the"
        " values of a choice shuffled among trials, or the errors of a pair rebuilt without interactions. R² measures"
        " out-of-bag predictions; where it is low, the shares are unreliable. Trials stopped early are left out.",
    )


def _interactions(s: Study) -> Picture:
    return Picture(
        figures.plot_interactions(s.fanova, s.objectives[0]),
        s.fanova.effects,
        "The same shares as a matrix: single choices on the diagonal, interactions of two choices elsewhere. Right:"
        " predicted error for each pair of values of the strongest interaction, averaged over all values of the other"
        " choices, including networks that a limit excludes.",
    )


def _path(s: Study) -> Picture:
    best, space = _best(s), s.evidence.space
    if not space.first:
        raise InputError(f"space {space.name} names no first network; pass one to `dnas path --from`.")
    path = find_path(s.evidence, space.first[0], best.params, BOOTSTRAPS)
    return Picture(
        figures.plot_path(path, s.objectives[0]),
        path_frame(path),
        "From the first network of the space to the best one, changing one choice at a time: the one with the largest"
        " predicted decrease of the error (Fawcett and Hoos 2016; with a surrogate: Biedenkapp et al. 2017). The errors"
        f" are predictions (out-of-bag R² {path.r2:.2f}) with 95% bootstrap intervals over trials. The measured error"
        f" of the best network is optimistically biased. `dnas path {s.folder.name} --train` trains the steps.",
    )


def _choices(s: Study) -> tuple[pd.DataFrame, list[str]]:
    """Return one row per complete trial (choices, objective and number), and the names of the choices."""
    done, params, values = _done(s)
    return params.assign(**{s.objectives[0]: values}, number=[r.number for r in done]), list(params)


def _slices(s: Study) -> Picture:
    frame, choices = _choices(s)
    return Picture(
        figures.plot_slices(frame, choices, s.objectives[0]),
        frame,
        "Every complete trial by each of its choices, with the median at each value of at least 3 trials. The other"
        " choices differ between marks, so a slope does not prove a causal effect; an ablation can.",
    )


def _parallel(s: Study) -> Picture:
    frame, choices = _choices(s)
    return Picture(
        figures.plot_parallel(frame, choices, s.objectives[0]),
        frame,
        "Each line is a complete trial, from its choices to its error. It is darker where the error is lower, and"
        " thicker for the best tenth.",
    )


def _learning_curves(s: Study) -> Picture:
    best = _best(s)
    return Picture(
        figures.plot_learning_curves(s.curves, best.number),
        s.curves,
        "Validation error of every trial after each epoch. The training error is the mean over the steps of an epoch,"
        " on augmented images and with dropout if used, so it can exceed the validation error.",
    )


def _layer_costs(s: Study) -> Picture:
    spec = _best_with_spec(s).network_spec
    return Picture(
        figures.plot_layer_costs(spec),
        pd.DataFrame([{name: getattr(c, name) for name in c.__dataclass_fields__} for c in layer_costs(spec)]),
        "Params and multiply-adds per image of each layer.",
    )


def _diagram(s: Study) -> Picture:
    spec = _best_with_spec(s).network_spec
    return Picture(
        figures.plot_diagram(spec),
        cost_by_part(spec),
        "One bar per layer, in order of execution. Height: input channels"
        f"{'; dark: feature maps that the layer adds' * isinstance(spec, DenseNetSpec)}.",
    )


def _weight_norms(s: Study) -> Picture:
    norms = weight_norms(read_norms(s.folder.trial_folder(_best(s).number)))
    return Picture(
        figures.plot_weight_norms(norms),
        pd.DataFrame(norms.values.T, columns=list(norms.layers)).rename_axis("epoch").reset_index(),
        "Root-mean-square weight of each layer's convolutions relative to its initial value. The colour scale covers"
        " the convolutions; no normalisation follows the classifier, so it can exceed the scale.",
    )


def histories(s: Study) -> list[NormHistory]:
    """Return the norms of the best network and of its final runs, which train the same network from other seeds."""
    best = _best_with_spec(s)
    if not isinstance(best.network_spec, DenseNetSpec):
        raise InputError("feature reuse is defined for DenseNets only.")
    folders = [s.folder.trial_folder(best.number)]
    folders += [path for path, r in s.folder.retrained() if r.number == best.number and r.state == "complete"]
    return [read_norms(folder) for folder in folders]


def _reuse(s: Study) -> Picture:
    reuse = feature_reuse(histories(s))
    return Picture(
        figures.plot_reuse(reuse),
        reuse.frame(),
        "Figure 5 of the paper for this network: the weight that each layer puts on each earlier one. A weight does not"
        " prove use; `dnas plot causal` cuts each connection and measures the loss.",
    )


def _gradients(s: Study) -> Picture:
    norms = gradient_norms(read_norms(s.folder.trial_folder(_best(s).number)))
    return Picture(
        figures.plot_gradients(norms),
        pd.DataFrame(norms.values.T, columns=list(norms.layers)).rename_axis("epoch").reset_index().iloc[1:],
        "Root-mean-square gradient of the loss with respect to each layer's weights, at the end of each epoch. It shows"
        " whether early layers are supervised as directly as late ones (the paper's implicit deep supervision).",
    )


def _best(s: Study) -> TrialRecord:
    if s.best is None:
        raise InputError(f"study {s.folder.name} has no complete trial yet.")
    return s.best


def _best_with_spec(s: Study) -> TrialRecord:
    if not _best(s).spec:
        raise InputError("the spec of the best network was not recorded.")
    return _best(s)


# In the order of the page. A picture raises `InputError` with the reason if the study lacks data for it.
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


def picture_of(name: str, study: str | Path) -> Picture:
    """Draw the picture `name` of a search."""
    return PICTURES[name](read_for_report(study, None))


def draw_all(s: Study, show: Callable[[str], None] = lambda text: None) -> None:
    """Draw all figures for which the study has data. `show` receives the name of each."""
    with styled():
        for number, (name, make) in enumerate(PICTURES.items(), 1):
            show(f"drawing figure {number} of {len(PICTURES)}: {name.replace('_', ' ')}")
            _draw(s, s.main_figure if name == "error" else name, make)


def _draw(s: Study, name: str, make: Callable[[Study], Picture]) -> None:
    """Write one figure and add it to the page, unless the study lacks the data for it."""
    try:
        picture = make(s)
    except InputError:
        return
    s.drawn[name] = write_figure(picture, name, s.out, s.formats)
