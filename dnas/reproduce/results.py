"""Results of a reproduction from its finished runs: findings with verdicts, figures, and their numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from dnas.analysis.efficiency import published, published_imagenet, published_table1, published_table2
from dnas.analysis.intervals import holm, t_half_width
from dnas.analysis.metrics import METRICS
from dnas.analysis.scaling import IsoError, Sized, Verdict, iso_error, sized
from dnas.arch import DenseNetSpec, cost, parse_name
from dnas.batch.planned import read_runs
from dnas.errors import InputError
from dnas.figures import UNTITLED, formatted
from dnas.figures.paper import plot_families, plot_two_costs, plot_two_curves
from dnas.formatting import count, joined, percent, several
from dnas.reproduce.targets import Plan
from dnas.study.folder import StudyFolder

BC = "DenseNet-BC"
SIMILAR = 0.01  # errors that differ by less than one percentage point count as similar
PUBLISHED_RATIO = 3.0  # Figure 4's caption: DenseNet-BC "only requires around 1/3 of the parameters of ResNets"
# From the documentation of torchvision, including classifiers and norms.
TORCHVISION = {"DenseNet-121": 7_978_856, "DenseNet-169": 14_149_480, "DenseNet-201": 20_013_928}
_FAMILY = {"DenseNet": "DenseNet", "DenseNet-BC": "DenseNet-BC", "ResNet (pre-activation)": "ResNet"}


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, the verdict on it, and the numbers that support the verdict."""

    claim: str
    verdict: Verdict
    numbers: str


@dataclass(frozen=True)
class Result:
    """The content of a page.

    Attributes:
        figures: Name -> (figure, caption).
        tables: Name -> (frame for the CSV file, caption).
        shown: Names of the tables that the page shows too.
        notes: Limits of the results.
    """

    findings: tuple[Finding, ...]
    figures: Mapping[str, tuple[Figure, str]] = field(default_factory=dict)
    tables: Mapping[str, tuple[pd.DataFrame, str]] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@formatted(UNTITLED)
def read_result(plan: Plan, folder: StudyFolder | None) -> Result:
    """Return the result of a target from its study; the folder is None for targets without training."""
    if folder is None:
        return _table1()
    frame = read_runs(folder.path)
    planned = {run.key for run in plan.runs}
    done = frame[frame["state"] == "complete"] if len(frame) else frame
    done = done[[key in planned for key in done["key"]]] if len(done) else done
    if not len(done):
        raise InputError(f"no run of {folder.name} is complete, so there is nothing to draw yet.")
    readers: dict[str, Callable[[Plan, StudyFolder, pd.DataFrame], Result]] = {
        "table2": _table2,
        "fig3": _fig3,
        "fig4-left": _fig4_left,
        "fig4-middle": _fig4_middle,
        "fig4-right": _fig4_right,
        "fig5": _fig5,
    }
    result = readers[plan.target.name](plan, folder, done)
    notes = [*_notes(plan, folder, done), *result.notes]
    return Result(result.findings, result.figures, result.tables, result.shown, tuple(notes))


def _notes(plan: Plan, folder: StudyFolder, done: pd.DataFrame) -> list[str]:
    data = folder.config()["data"]
    notes = []
    if plan.info.name == "digits":
        notes.append(
            f"Digits are not CIFAR-10: there are {data['train_size']:,} grey images of 8×8 pixels, the networks have a"
            " hundredth of the paper's size, and training takes a few epochs. This demonstrates the method on an easy"
            " task. It can neither confirm nor refute the paper's claims about CIFAR-10, and its errors and ratios are"
            " not comparable with the paper's."
        )
    elif plan.budget.name == "short":
        notes.append(
            f"Networks are trained for {plan.recipe.epochs} epochs of the recipe {plan.recipe.name} instead of the"
            " paper's 300. Errors are higher than the published ones, and slow learners look worse than they are. The"
            " order of the families can be compared with the paper's, the errors cannot."
        )
    if not plan.final:
        step = 1 / max(1, data["val_size"])
        notes.append(
            f"Errors are measured after the last epoch on {data['val_size']:,} held-out validation images (one image is"
            f" {percent(step)}); the paper's are test errors. All runs share one split, so intervals over seeds do not"
            " include the variation between splits."
        )
    else:
        notes.append(
            "As in the paper, each network was trained on the training and validation data together, and measured on"
            " the test set after its last epoch."
        )
    missing = len(plan.runs) - len(done)
    if missing:
        notes.append(
            f"{several(missing, 'run')} of {len(plan.runs)} did not finish and are not included in these numbers."
        )
    return notes


# --- Figures 3 and 4 ----------------------------------------------------------------------------------------------


def _networks(plan: Plan, folder: StudyFolder, done: pd.DataFrame, by: str = "params") -> list[Sized]:
    data = folder.config()["data"]
    return sized(done, by, plan.error, data["test_size"] if plan.final else data["val_size"])


def _error_label(plan: Plan, folder: StudyFolder) -> str:
    data = folder.config()["data"]
    plus = "+" if plan.info.name == "cifar10" and data["augmentation"] != "none" else ""
    return f"{'test' if plan.final else 'validation'} error on {data['title']}{plus}"


def _readings(networks: Sequence[Sized], against: str, by: str) -> list[IsoError]:
    groups = [group for group in dict.fromkeys(n.group for n in networks) if group != against]
    if against not in {n.group for n in networks} or not groups:
        raise InputError(f"the comparison needs complete runs of {against} and of another family.")
    return [iso_error(networks, group, against, by) for group in groups]


def _points() -> pd.DataFrame:
    """Return the DenseNets and pre-activation ResNets of Table 2 on C10+: group, params, error."""
    points = published("cifar10")
    points = points[points["augmented"]].assign(method=points["method"].str.replace(r" \(k=\d+\)$", "", regex=True))
    points = points[points["method"].isin(list(_FAMILY))]
    return pd.DataFrame(
        {
            "group": points["method"].map(_FAMILY),
            "network": points["method"] + " L=" + points["depth"].astype(str),
            "params": points["params"].astype(float),
            "error": points["test_error"],
            "seed": 0,
        }
    ).reset_index(drop=True)


def _published_reading(points: pd.DataFrame, first: str, second: str) -> str:
    ratio = iso_error(sized(points, "params", "error"), first, second)
    text = ratio.sentence().partition("; one seed each")[0]
    return f"The points published in the paper (Table 2, C10+), analysed in the same way: {text}."


def _family_table(networks: Sequence[Sized], by: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "group": n.group,
                "network": n.network,
                by: int(n.cost),
                "mean_error": n.mean,
                "low": n.low,
                "high": n.high,
                "interval": n.interval,
                "seeds": len(n.errors),
                "errors": " ".join(f"{error:.6f}" for error in n.errors.values()),
            }
            for n in networks
        ]
    )


def _reading_table(readings: Sequence[IsoError], points: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the comparisons as a table, with the published ratio if `points` has both families."""
    groups = set(points["group"]) if points is not None else set()
    networks = sized(points, "params", "error") if points is not None else []
    rows = []
    for r in readings:
        published_ratio = iso_error(networks, r.first, r.second) if {r.first, r.second} <= groups else None
        rows.append(
            {
                "first": r.first,
                "second": r.second,
                "cost": r.cost,
                "times_fewer": r.ratio,
                "from": r.low,
                "to": r.high,
                "published_times_fewer": published_ratio.ratio if published_ratio else None,
                "published_more_than": published_ratio.bound
                if published_ratio and published_ratio.beyond > 0
                else None,
                "p": r.p,
                "shared_error_low": r.range[0] if r.range else None,
                "shared_error_high": r.range[1] if r.range else None,
            }
        )
    return pd.DataFrame(rows)


def _finding(reading: IsoError, p: float | None, family: int) -> Finding:
    """Return the finding of one comparison among `family`; p is adjusted for all of these."""
    verdict = reading.verdict
    numbers = reading.sentence()
    if reading.range is not None:
        numbers += (
            f" (averaged over errors from {percent(reading.range[0])} to {percent(reading.range[1])}, which both reach)"
        )
    if family > 1 and p is not None:
        numbers += f"; p = {p:.3f} after Holm's correction for {family} comparisons"
        if p >= 0.05:
            verdict = "cannot tell"
    return Finding(
        f"at equal error {reading.second} needs fewer {METRICS[reading.cost].label} than {reading.first}",
        verdict,
        numbers,
    )


def _findings(readings: Sequence[IsoError]) -> tuple[Finding, ...]:
    adjusted = holm([r.p for r in readings])
    return tuple(_finding(r, p, len(readings)) for r, p in zip(readings, adjusted, strict=True))


def _headline(findings: Sequence[Finding], reading: IsoError, where: str) -> str:
    """Return the title of a figure, which states the result of the first comparison."""
    cost = METRICS[reading.cost].label
    if findings[0].verdict == "cannot tell":
        return f"{where}: no clear difference in {cost} between {reading.second} and {reading.first}"
    if reading.ratio is None:
        return f"{where}: {reading.first} does not reach the errors of {reading.second}"
    ratio = reading.ratio if reading.ratio >= 1 else 1 / reading.ratio
    word = "fewer" if reading.ratio >= 1 else "more"
    text = f"{where}: {reading.second} needs {ratio:.1f} times {word} {cost} than {reading.first}"
    return text if len(text) < 80 else f"{reading.second} needs {ratio:.1f} times {word} {cost} than {reading.first}"


def _fig4_left(plan: Plan, folder: StudyFolder, done: pd.DataFrame) -> Result:
    networks, points = _networks(plan, folder, done), _points()
    readings = _readings(networks, BC, "params")
    findings = _findings(readings)
    points = points[points["group"] != "ResNet"]
    numbers = _published_reading(points, "DenseNet", BC)
    figure = plot_families(
        networks,
        readings[0],
        finding=_headline(findings, readings[0], folder.config()["data"]["title"]),
        error=_error_label(plan, folder),
        published=points.rename(columns={"params": "cost"}),
        published_error=None if _comparable(plan) else "test error on C10+, Table 2",
    )
    caption = _caption("Figure 4, left", plan) + " " + numbers
    return _families_result(findings, figure, caption, networks, readings, points)


def _fig4_middle(plan: Plan, folder: StudyFolder, done: pd.DataFrame) -> Result:
    networks, points = _networks(plan, folder, done), _points()
    readings = _readings(networks, BC, "params")
    [reading] = readings
    findings = list(_findings(readings))
    findings.append(about_a_third(reading, _comparable(plan)))
    points = points[points["group"] != "DenseNet"]
    figure = plot_families(
        networks,
        reading,
        finding=_headline(findings, reading, folder.config()["data"]["title"]),
        error=_error_label(plan, folder),
        log=True,
        published=points.rename(columns={"params": "cost"}),
        published_error=None if _comparable(plan) else "test error on C10+, Table 2",
    )
    caption = _caption("Figure 4, middle", plan) + " " + _published_reading(points, "ResNet", BC)
    return _families_result(tuple(findings), figure, caption, networks, readings, points)


def about_a_third(reading: IsoError, comparable: bool) -> Finding:
    """Compare the interval with the published ratio of three. On other data the result is inconclusive."""
    claim = "the ratio agrees with the published one, about three"
    if reading.ratio is None or reading.low is None or reading.high is None:
        return Finding(claim, "cannot tell", "there is no ratio with an interval")
    inside = reading.low <= PUBLISHED_RATIO <= reading.high
    numbers = f"3 is {'inside' if inside else 'outside'} the 95% interval {reading.low:.1f} to {reading.high:.1f}"
    includes_one = inside and reading.low <= 1 <= reading.high
    if not comparable:
        return Finding(claim, "cannot tell", f"{numbers}, but these are not the data that it was published for")
    return Finding(claim, "cannot tell" if includes_one else "holds" if inside else "does not hold", numbers)


def _fig3(plan: Plan, folder: StudyFolder, done: pd.DataFrame) -> Result:
    networks = {by: _networks(plan, folder, done, by) for by in ("params", "macs")}
    readings = [reading for by in networks for reading in _readings(networks[by], BC, by)]
    findings = _findings(readings)
    points = published_imagenet()
    figure = plot_two_costs(
        networks,
        {reading.cost: reading for reading in readings},
        finding=_headline(findings, readings[0], folder.config()["data"]["title"]),
        error=_error_label(plan, folder),
        published=points,
        published_error=None if plan.info.name == "imagenet" else "single-crop error on ImageNet, Table 3",
    )
    networks_table = pd.concat([_family_table(networks[by], by) for by in networks], ignore_index=True)
    caption = _caption("Figure 3", plan) + (
        " The paper published no numbers for the ResNets of this figure. The hollow points are the DenseNets of Table"
        " 3, with params and multiply-adds computed by dnas."
    )
    return Result(
        findings,
        {"figure": (figure, caption)},
        {"readings": (_reading_table(readings), _READINGS.partition(":")[0]), "networks": (networks_table, _TABLE)},
        ("readings", "networks"),
    )


_TABLE = "Mean error of each network with its 95% interval"
_READINGS = "Cost ratio of the first to the second family at equal error: here, and for the points of Table 2"


def _families_result(
    findings: tuple[Finding, ...],
    figure: Figure,
    caption: str,
    networks: Sequence[Sized],
    readings: Sequence[IsoError],
    points: pd.DataFrame,
) -> Result:
    return Result(
        findings,
        {"figure": (figure, caption)},
        {
            "readings": (_reading_table(readings, points), _READINGS),
            "networks": (_family_table(networks, "params"), _TABLE),
        },
        ("readings", "networks"),
    )


def _comparable(plan: Plan) -> bool:
    """Return whether the runs use the data of Table 2."""
    return plan.info.name == "cifar10"


def _caption(what: str, plan: Plan) -> str:
    return (
        f"{what} of the paper, from {several(len(plan.runs), 'run')} of recipe {plan.recipe.name},"
        f" {several(plan.recipe.epochs, 'epoch')}. Marks: means over seeds; bars: 95% intervals of the mean, from three"
        " seeds on; lines: monotone fits. The arrow marks an error at which the ratio equals its mean over the range"
        " that both families reach. The interval of the ratio pools the spread of all networks of both families, so it"
        " is narrower than bars from few seeds suggest."
    )


# --- Figure 4, right ----------------------------------------------------------------------------------------------


def _fig4_right(plan: Plan, folder: StudyFolder, done: pd.DataFrame) -> Result:
    rows = []
    for row in done.itertuples():
        curve = folder.curve(folder.trial_folder(int(row.number)))
        label = f"{row.group}, L={parse_name(str(row.network)).depth}, {count(float(row.params))} params"
        rows.append(curve.assign(group=row.group, label=label, seed=row.seed, network=row.network, params=row.params))
    curves = pd.concat(rows, ignore_index=True)
    last = curves[curves["epoch"] == curves["epoch"].max()]
    ends = {name: last.pivot_table(index="seed", columns="group", values=name) for name in ("val_error", "train_loss")}
    for name, table in ends.items():
        if {BC, "ResNet"} - set(table.columns) or not len(table.dropna()):
            raise InputError(f"the comparison of {name} needs a complete pair of runs with one seed.")
    size = {str(row.group): float(row.params) for row in done.itertuples()}
    error = paired(ends["val_error"], BC, "ResNet", 1 / folder.config()["data"]["val_size"])
    loss = paired(ends["train_loss"], BC, "ResNet")
    ratio = size["ResNet"] / size[BC]
    claim = f"DenseNet-BC with {ratio:.0f} times fewer params ends within a point of the ResNet's error, or below"
    findings = (
        Finding(
            claim,
            error.verdict_below(SIMILAR),
            f"difference of its error from the ResNet's: {error.text(100, ' points')}",
        ),
        Finding(
            "the ResNet ends at a lower training loss",
            error_verdict(loss),
            f"difference of DenseNet-BC's training loss from the ResNet's: {loss.text(1, ' nats')}",
        ),
    )
    mean = ends["val_error"].dropna().mean()
    densenet_error, resnet_error = (percent(float(mean[group])) for group in (BC, "ResNet"))
    finding = f"{ratio:.0f} times fewer params: {densenet_error} error against the ResNet's {resnet_error}"
    if findings[0].verdict == "cannot tell":
        finding += ", inconclusive"
    figure = plot_two_curves(curves, finding=finding, error=_error_label(plan, folder))
    caption = (
        f"Figure 4, right, of the paper, from {several(len(plan.runs), 'run')} of"
        f" {several(plan.recipe.epochs, 'epoch')}. Lines: means over seeds; bands: ranges over seeds. These are"
        " validation curves, since the test set is not used; the paper shows test curves. Published (Table 2, C10+,"
        f" after 300 epochs): {_published_ends()}."
    )
    columns = ["group", "network", "params", "seed", "epoch", "train_loss", "train_error", "val_loss", "val_error"]
    final = last[columns].sort_values(["group", "seed"])
    return Result(
        findings,
        {"figure": (figure, caption)},
        {"curves": (curves[columns], "Every epoch of every run"), "ends": (final, "The last epoch of each run")},
        ("ends",),
    )


def _published_ends() -> str:
    points = published("cifar10")
    points = points[points["augmented"]]
    parts = []
    for method, depth in (("ResNet (pre-activation)", 1001), ("DenseNet-BC (k=12)", 100)):
        row = points[(points["method"] == method) & (points["depth"] == depth)].iloc[0]
        parts.append(f"{method}, L={depth}, {count(row['params'])} params {percent(row['test_error'])}")
    return joined(parts)


@dataclass(frozen=True)
class Paired:
    """Mean of the differences over common seeds, with Student's 95% interval (None for fewer than three seeds)."""

    mean: float
    interval: tuple[float, float] | None
    seeds: int

    def verdict_below(self, bar: float) -> Verdict:
        """Return the verdict on the claim that the difference is below `bar`."""
        if self.interval is None or self.interval[0] <= bar <= self.interval[1]:
            return "cannot tell"
        return "holds" if self.interval[1] < bar else "does not hold"

    def text(self, factor: float, unit: str) -> str:
        """Return the difference and its interval as text, multiplied by `factor`."""
        text = f"{factor * self.mean:+.2f}{unit}"
        if self.interval is None:
            return f"{text}, from {several(self.seeds, 'pair')} of runs, too few for an interval"
        low, high = self.interval
        return f"{text} (95% interval {factor * low:+.2f} to {factor * high:+.2f}, {self.seeds} pairs)"


def paired(table: pd.DataFrame, first: str, second: str, step: float = 0.0) -> Paired:
    """Return the mean difference `first` - `second` over the rows that have both.

    Args:
        table: One row per seed.
        first: Column of the minuend.
        second: Column of the subtrahend.
        step: Resolution of the values, such as one image of an error. The standard deviation of the differences is at
            least that of two such roundings, step/√6.
    """
    differences = (table[first] - table[second]).dropna().to_numpy(float)
    mean, pairs = float(differences.mean()), len(differences)
    if pairs < 3:
        return Paired(mean, None, pairs)
    spread = max(float(differences.std(ddof=1)), step / math.sqrt(6))
    half = t_half_width(spread, pairs)
    return Paired(mean, (mean - half, mean + half), pairs)


def error_verdict(loss: Paired) -> Verdict:
    """Return the verdict on the claim that the difference is above 0."""
    if loss.interval is None or loss.interval[0] <= 0 <= loss.interval[1]:
        return "cannot tell"
    return "holds" if loss.interval[0] > 0 else "does not hold"


# --- Figure 5 -----------------------------------------------------------------------------------------------------


def _fig5(plan: Plan, folder: StudyFolder, done: pd.DataFrame) -> Result:
    from dnas.analysis.observations import observe
    from dnas.analysis.reuse import feature_reuse
    from dnas.analysis.weight_norms import read_histories
    from dnas.figures.network import plot_reuse

    histories = read_histories([folder.trial_folder(int(number)) / "checkpoint.pt" for number in done["number"]])
    reuse = feature_reuse(histories)
    findings = tuple(
        Finding(
            observation.claim,
            observation.verdict,
            _observed(
                observation.measure,
                observation.value,
                observation.low,
                observation.high,
                observation.untrained,
                observation.bar,
            ),
        )
        for observation in observe(histories)
    )
    caption = (
        f"Figure 5 of the paper for {done['network'].iloc[0]}, the mean of {several(len(done), 'seed')}. Rows are"
        " sources, columns targets. Frames mark transitions and the classifier; hatched cells do not differ from the"
        " untrained networks."
    )
    return Result(
        findings,
        {"figure": (plot_reuse(reuse), caption)},
        {"reuse": (reuse.frame(), "Every cell of the heatmaps")},
        (),
        ("The paper shows one network and states its observations without numbers. The measures are those of dnas.",),
    )


def _observed(measure: str, value: float, low: float, high: float, untrained: float | None, bar: float) -> str:
    if math.isnan(value):
        return "cannot be measured on this network"
    text = f"{measure} {value:.2f}"
    text += f" (95% interval {low:.2f} to {high:.2f}" if not math.isnan(low) else " (too few for an interval"
    return text + (f"; untrained {untrained:.2f}" if untrained is not None else "") + f"; the bar is {bar:g})"


# --- tables -------------------------------------------------------------------------------------------------------


def _table1() -> Result:
    rows = []
    for row in published_table1().to_dict("records"):
        spec = parse_name(str(row["model"]).lower().replace("-", ""))
        assert isinstance(spec, DenseNetSpec)
        network_cost, blocks = cost(spec), tuple(int(row[f"block_{i}"]) for i in range(1, 5))
        published_depth = int(str(row["model"]).rpartition("-")[2])
        torchvision_params = TORCHVISION.get(str(row["model"]))
        rows.append(
            {
                "model": row["model"],
                "growth_rate": spec.growth_rates[0],
                "growth_rate_published": int(row["growth_rate"]),
                "block_layers": "-".join(map(str, spec.block_layers)),
                "block_layers_published": "-".join(map(str, blocks)),
                "depth": spec.depth,
                "depth_published": published_depth,
                "params": network_cost.params,
                "params_torchvision": torchvision_params,
                "macs": network_cost.macs,
                "equal": spec.block_layers == blocks and set(spec.growth_rates) == {int(row["growth_rate"])},
            }
        )
    frame = pd.DataFrame(rows).astype({"params_torchvision": "Int64"})
    equal = int(frame["equal"].sum())
    known = frame[frame["params_torchvision"].notna()]
    equal_params = int((known["params"] == known["params_torchvision"]).sum())
    findings = (
        Finding(
            "the architectures are the published ones",
            "holds" if equal == len(frame) else "does not hold",
            f"growth rate and layers of each block are equal for {equal} of {len(frame)}; the depth equals the name for"
            f" {int((frame['depth'] == frame['depth_published']).sum())}: counted in the same way, the published blocks"
            " of DenseNet-264 have 265 layers",
        ),
        Finding(
            "their sizes equal those of torchvision's networks",
            "holds" if equal_params == len(known) else "does not hold",
            f"params equal torchvision's exactly for {equal_params} of {len(known)} (it has no DenseNet-264, and Table"
            " 1 states no sizes)",
        ),
    )
    return Result(findings, {}, {"architectures": (frame, "Comparison with Table 1")}, ("architectures",))


def _table2(plan: Plan, folder: StudyFolder, done: pd.DataFrame) -> Result:
    networks = {n.network: n for n in _networks(plan, folder, done)}
    names = {str(row.network): str(row.key).rpartition("/s")[0] for row in done.itertuples()}
    ours = {names[network]: n for network, n in networks.items()}
    rows, sizes = [], []
    above: list[str] = []
    below: list[str] = []
    unclear: list[str] = []
    for row in published_table2().to_dict("records"):
        network_cost, name = cost(parse_name(row["name"])), row["name"]
        is_equal = round(network_cost.params / 1e6, 1) == row["params_millions"]
        sizes.append(is_equal)
        measured = ours.get(name)
        rows.append(
            {
                "network": name,
                "params": network_cost.params,
                "params_published_millions": row["params_millions"],
                "macs": network_cost.macs,
                f"{plan.error}_here": measured.mean if measured else None,
                "low": measured.low if measured else None,
                "high": measured.high if measured else None,
                "seeds": len(measured.errors) if measured else 0,
                "test_error_published": row["error"],
            }
        )
        if measured and plan.final:
            group = below if measured.high < row["error"] else above if measured.low > row["error"] else unclear
            group.append(name)
    equal = sum(sizes)
    findings = [
        Finding(
            "the sizes are the published ones",
            "holds" if equal == len(sizes) else "does not hold",
            f"rounded to 0.1 M, params are equal for {equal} of {len(sizes)} networks",
        )
    ]
    claim = "the errors on C10+ are the published ones, or lower"
    if not plan.final:
        text = "errors after few epochs on validation images are not comparable"
        if plan.info.name == "digits":
            text = "digits are not CIFAR-10"
        trained = joined([f"{name} {percent(n.mean)}" for name, n in ours.items()])
        findings.append(Finding(claim, "cannot tell", f"{text}; here: {trained}"))
    else:
        text = (
            f"the published error is inside the 95% interval of {len(unclear)}, above it for {len(below)} and below it"
        )
        text += f" for {len(above)} of {len(ours)} networks"
        verdict: Verdict = "does not hold" if above else "holds"
        if plan.seeds < 2:
            verdict, text = "cannot tell", f"{text}; one seed cannot show the variation between seeds"
        findings.append(Finding(claim, verdict, text))
    return Result(
        tuple(findings), {}, {"networks": (pd.DataFrame(rows), "Comparison with Table 2, C10+")}, ("networks",)
    )
