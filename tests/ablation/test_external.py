"""Ablations of the user's own command or function, and comparisons of numbers that exist."""

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dnas.ablation.command import Printed, Written, fill, split_command
from dnas.ablation.function import ablate_function
from dnas.ablation.numbers import compare_numbers
from dnas.ablation.results import Ablation, read_ablation
from dnas.analysis.verdicts import answer, sentence
from dnas.cli import main
from dnas.cli.ablate_text import describe_effects, effects_as_json
from dnas.errors import InputError
from dnas.executors.command import RunFailed
from dnas.report.ablation import write_ablation, write_analysed
from dnas.study.folder import StudyFolder
from tests.support.ablations import VARIANTS, make_ablation
from tests.support.commands import Command
from tests.support.patience import patience, wait_until

SEEDS = range(7)
BASE = [0.10, 0.11, 0.125, 0.10, 0.09, 0.1, 0.115]
SHIFT = {
    ("a", "x"): [0.0] * 7,
    ("b", "x"): [0.02, 0.01, 0.03, 0.02, 0.015, 0.02, 0.0123],
    ("a", "y"): [0.01, -0.01] * 4,
}
TABLE = {(lr, width, seed): BASE[seed] + shift[seed] for (lr, width), shift in SHIFT.items() for seed in SEEDS}
NAMES = {("a", "x"): "base", ("b", "x"): "lr=b", ("a", "y"): "width=y"}
LOOK_UP = "grep -h '^{lr} {width} {seed} ' table.txt"  # prints the line of the run, such as `a x 3 val_error=0.1`
FACTORS = ["--factor", "lr=a,b", "--factor", "width=x,y"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"{lr} {width} {seed} val_error={value!r}" for (lr, width, seed), value in TABLE.items()]
    Path("table.txt").write_text("\n".join(lines))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures in tests of text."""
    monkeypatch.setattr("dnas.report.ablation._draw_all", lambda *_: None)


def ablate(command: str, *more: str, factors: Sequence[str] = FACTORS, metric: str = "val_error=(.*)") -> int:
    return main(["ablate", "--command", command, *factors, "--metric", metric, "-q", *more])


def conclusions(a: Ablation) -> str:
    """Return everything that is said about the numbers."""
    sentences = [answer(a.effects), *(sentence(comparison, a.effects) for comparison in a.effects.comparisons)]
    return "\n".join([*describe_effects(a), *sentences, json.dumps(effects_as_json(a))])


def look_up(seed: int, lr: str, width: str) -> dict[str, float]:
    return {"val_error": TABLE[lr, width, seed], "loss": 0.0}


def own_ablation() -> Ablation:
    """Return an ablation of networks of dnas with the numbers of the table."""
    specs = dict(zip(NAMES.values(), [spec for _, spec in VARIANTS.values()], strict=False))
    variants = {name: ({"lr": lr, "width": width}, specs[name]) for (lr, width), name in NAMES.items()}
    errors = {name: {seed: TABLE[lr, width, seed] for seed in SEEDS} for (lr, width), name in NAMES.items()}
    return read_ablation(make_ablation(Path("studies/own"), errors, variants, design="one-at-a-time").path)


def test_same_numbers_give_the_same_verdict_from_any_source(undrawn: None) -> None:
    own = own_ablation()
    write_ablation("own", Path("page"))
    assert ablate(LOOK_UP, "--error-rate", "--workers", "3", "--study", "command") == 0
    by_function = ablate_function(look_up, {"lr": ["a", "b"], "width": ["x", "y"]}, metric="val_error", error_rate=True)
    by_file = compare_numbers(Path("page/numbers.csv"), "base", error_rate=True)
    texts = {conclusions(a) for a in (own, read_ablation("command"), by_function, by_file)}
    assert len(texts) == 1
    assert "lr=b makes more errors than base: +1.82 percentage points of validation error" in texts.pop()


def test_page_says_what_a_comparison_of_its_numbers_says(undrawn: None) -> None:
    assert ablate(LOOK_UP, "--workers", "3", "--study", "s") == 0
    page = write_ablation("s").read_text()
    again = write_analysed(compare_numbers(Path("reports/s/numbers.csv"), "base"), Path("again")).read_text()
    said = re.findall(r'<span class="verdict.*</li>', page)
    assert len(said) == 2
    assert said == re.findall(r'<span class="verdict.*</li>', again)
    assert "lr=b is worse than base: +0.0182 of val_error, the mean of 7 pairs" in page
    assert "<code>grep -h &#39;^{lr} {width} {seed} &#39; table.txt</code>" in page
    assert "dnas ablate" not in again
    for absent in ("params", "epochs", 'checklist"', "learning curve", "trained"):
        assert absent not in page, absent


def test_page_of_a_factorial_has_its_effects() -> None:
    ablate_function(lambda seed, a, b: seed + a * b, {"a": [0, 1, 2], "b": [0, 1]}, study="f", design="factorial")
    write_ablation("f")
    assert {"effects.svg", "factor_means.svg", "forest.svg", "slopes.svg"} <= {
        path.name for path in Path("reports/f").iterdir()
    }


def test_larger_values_are_better_if_asked() -> None:
    factors: dict[str, list[Any]] = {"lr": ["a", "b"], "width": ["x", "y"]}
    lower = ablate_function(look_up, factors, metric="val_error", study="low")
    higher = ablate_function(look_up, factors, metric="val_error", study="high", maximize=True)
    assert [c.verdict for c in lower.effects.comparisons] == ["worse", "cannot tell"]
    assert [c.verdict for c in higher.effects.comparisons] == ["better", "cannot tell"]
    assert answer(higher.effects) == "lr=b (+0.0182) is better than base; width=y is inconclusive"
    assert [c.p_holm for c in lower.effects.comparisons] == [c.p_holm for c in higher.effects.comparisons]


# --- running, resuming --------------------------------------------------------------------------------------------


def test_more_seeds_run_only_what_is_missing(capfd: pytest.CaptureFixture[str]) -> None:
    command = "sh -c 'echo {seed} >> starts; " + LOOK_UP.replace("'", '"') + "'"
    assert ablate(command, "--seeds", "2", "--study", "s") == 0
    assert ablate(command, "--seeds", "7", "--study", "s") == 0
    assert sorted(Path("starts").read_text().split()) == sorted(str(seed) for seed in SEEDS for _ in NAMES)
    assert read_ablation("s").earlier == (2,)
    capfd.readouterr()
    assert main(["status", "s"]) == 0
    assert "val_error of sh -c" in capfd.readouterr().out


def test_failed_runs_are_recorded_with_their_reason_and_run_again() -> None:
    script = Path("run.sh")
    script.write_text(
        'case $1 in exit) echo broken >&2; echo "out of luck $2" >&2; exit 3;; none) ;; nan) echo err=1; echo err=nan;;'
        " big) echo err=1e-3;; kill) kill -9 $$;; *) echo err=0.$2; esac"
    )
    factors = ["--factor", "how=ok,exit,none,nan,big,kill"]
    more = ("--seeds", "2", "--study", "s", "--workers", "6")
    assert ablate("sh run.sh {how} {seed}", *more, factors=factors, metric="err=([0-9.]+)") == 1
    records = {record.called: record for record in StudyFolder(Path("studies/s")).records()}
    reasons = {record.called: record.reason for record in records.values() if record.state == "failed"}
    assert reasons["how=exit/s1"] == "error: the command exited with status 3: out of luck 1"
    assert reasons["how=none/s0"] == "error: no metric: the output does not match 'err=([0-9.]+)'"
    assert reasons["how=nan/s0"] == "diverged: printed 'err=nan', which is not finite"
    assert (reasons["how=big/s0"] or "").startswith("error: --metric 'err=([0-9.]+)' ends inside the number 1e-3")
    assert reasons["how=kill/s1"] == "error: the command was ended by SIGKILL, without any output"
    assert records["base/s1"].objectives == {"err": 0.1}
    folder = Path(records["how=exit/s1"].data["folder"])
    assert (folder / "stderr.log").read_text() == "broken\nout of luck 1\n"
    script.write_text("echo err=0.3$2")
    assert ablate("sh run.sh {how} {seed}", *more, factors=factors, metric="err=([0-9.]+)") == 1
    states = {record.called: record.state for record in StudyFolder(Path("studies/s")).records()}
    failed = {key for key, state in states.items() if state == "failed"}
    assert failed == {"how=nan/s0", "how=nan/s1"}  # a result, which running it again would repeat


def test_runs_end_at_the_time_limit() -> None:
    more = ("--seeds", "2", "--study", "s", "--timeout", "0.5", "--workers", "4")
    assert ablate("sleep 60{seed}{lr}", *more, factors=["--factor", "lr=1,2"]) == 1
    reasons = [str(record.reason) for record in StudyFolder(Path("studies/s")).records()]
    assert len(reasons) == 4
    assert all(reason.startswith("timeout: ") for reason in reasons)


def test_a_command_that_always_fails_stops_the_study(capfd: pytest.CaptureFixture[str]) -> None:
    assert ablate("sh missing.sh {seed} {lr}", "--study", "s", factors=["--factor", "lr=1,2"]) == 1
    output = capfd.readouterr().out
    assert "stopped: 3 trials in a row failed with the same error: the command exited with status" in output
    assert "missing.sh" in output
    assert len(StudyFolder(Path("studies/s")).records()) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_ablation_resumes_and_leaves_no_process(number: int) -> None:
    hold = "test -e go || test {seed}{lr} = 0a || sleep 600"  # all but the first run
    command = "sh -c 'echo $$ > pid-{lr}-{seed}; " + hold + """; grep -h "^{lr} x {seed} " table.txt'"""
    arguments = ["ablate", "--command", command, "--factor", "lr=a,b", "--metric", "val_error=(.*)", "--study", "s"]
    process = Command(*arguments, "--seeds", "2", merge=True)
    wait_until(lambda: Path("pid-b-0").exists() and Path("pid-b-0").read_text().endswith("\n"), 60)
    sleeping = int(Path("pid-b-0").read_text())
    process.send_signal(number)
    status = process.wait(patience(60))
    assert status == (130 if number == signal.SIGINT else -number)
    assert number == signal.SIGKILL or "the runs that ended are saved in studies/s/" in process.communicate()[0]
    wait_until(lambda: not _is_running(sleeping), 20)
    assert {r.called: r.state for r in StudyFolder(Path("studies/s")).records()} == {
        "base/s0": "complete",
        "lr=b/s0": "running",
    }
    first = Path("pid-a-0").read_text()
    Path("go").touch()
    assert main([*arguments, "--seeds", "2", "-q"]) == 0
    assert Path("pid-a-0").read_text() == first  # the finished run did not run again
    assert read_ablation("s").values.notna().all(axis=None)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_interrupted_function_resumes() -> None:
    calls: list[int] = []

    def train(seed: int, lr: float) -> float:
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return lr + seed / 100

    with pytest.raises(KeyboardInterrupt):
        ablate_function(train, {"lr": [0.1, 0.2]}, seeds=3)
    assert [record.state for record in StudyFolder(Path("studies/train")).records()] == ["complete"] * 2 + ["running"]
    ablation = ablate_function(train, {"lr": [0.1, 0.2]}, seeds=3)
    assert calls == [0, 0, 1, 1, 1, 2, 2]
    assert ablation.values["lr=0.2"].tolist() == pytest.approx([0.2, 0.21, 0.22])


def test_values_stay_inside_their_argument() -> None:
    factors = {"text": ("a; touch x", "$(touch y) 'q'")}
    arguments = split_command("echo --text={text} {seed} {{seed}}", factors)
    filled = [fill(argument, {"text": "a; touch x", "seed": 3}) for argument in arguments]
    assert filled == ["echo", "--text=a; touch x", "3", "{seed}"]
    assert (
        ablate(
            "echo err=0.{seed} {text}",
            "--seeds",
            "2",
            "--study",
            "s",
            factors=["--factor", "text=a; touch x,$(touch y)"],
            metric=r"err=([\d.]+)",
        )
        == 0
    )
    assert not Path("x").exists()
    assert not Path("y").exists()


def test_metric_from_a_json_file(capfd: pytest.CaptureFixture[str]) -> None:
    write = """printf "{\\"val\\": {\\"acc\\": 0.%s}}" {seed} > {folder}/out.json"""
    command = f"sh -c '{write}; echo $DNAS_SEED > {{folder}}/seed'"
    metric = "json:{folder}/out.json:val.acc"
    more = ("--seeds", "2", "--study", "s", "--maximize", "--workers", "2")
    assert ablate(command + " {lr}", *more, factors=["--factor", "lr=1,2"], metric=metric) == 0
    a = read_ablation("s")
    assert a.values["lr=2"].tolist() == [0.0, 0.1]
    assert a.metric.key == "val.acc"
    assert [Path(r.data["folder"], "seed").read_text() for r in a.records if r.seed[0]] == ["1\n", "1\n"]


# --- metrics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "output", "value", "name"),
    [
        ("val_err=([0-9.]+)", "val_err=0.5\nval_err=0.25\n", 0.25, "val_err"),
        (r"acc\s*:\s*([-+.\de]+)", "acc :  1e-05", 1e-05, "acc"),
        (r"(?P<loss>-?[\d.]+) nats", "0.5 nats, -0.25 nats.", -0.25, "loss"),
        ("^([0-9.]+)$", "noise 3\n17\nmore", 17.0, "value"),
        ("err=([0-9.]+)", "the err=0.5.", 0.5, "err"),
        (r"[(]a[)] \(b\) ([0-9]+)", "(a) (b) 3", 3.0, "b"),
    ],
)
def test_last_match_is_the_metric(pattern: str, output: str, value: float, name: str) -> None:
    metric = Printed(pattern)
    assert metric.read(output, {}, 0.0) == value
    assert metric.name == name


@pytest.mark.parametrize(
    ("pattern", "output", "reason"),
    [
        ("err=([0-9.]+)", "err=0.5\nerr=NaN\n", "diverged: printed 'err=NaN', which is not finite"),
        ("err=([0-9.]+)", "err=0.5\nerr=-inf", "diverged: printed 'err=-inf', which is not finite"),
        ("err=([0-9.]+)", "err=0.5\nerr=-0.25", "error: printed 'err=-0.25', which --metric"),
        (r"err=(\d)", "err=0.5", "error: --metric 'err=(\\d)' ends inside the number 0.5"),
        (r"err=(\S+)", "err=none", "error: printed 'err=none', which is no number"),
        (r"err=(\S+)", "", "error: no metric: the output does not match"),
    ],
)
def test_output_without_a_clear_metric_fails_the_run(pattern: str, output: str, reason: str) -> None:
    with pytest.raises(RunFailed) as caught:
        Printed(pattern).read(output, {}, 0.0)
    assert f"{caught.value.reason}: {caught.value}".startswith(reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no metric: the run did not write out.json"),
        ("{", "out.json is no JSON file"),
        ('{"loss": 1}', "no metric: out.json has no key 'err'"),
        ('{"err": "low"}', "wrote err = 'low', which is no number"),
        ('{"err": true}', "wrote err = True, which is no number"),
        ('{"err": NaN}', "wrote err = nan, which is not finite"),
    ],
)
def test_file_without_a_metric_fails_the_run(content: str | None, reason: str) -> None:
    if content is not None:
        Path("out.json").write_text(content)
    with pytest.raises(RunFailed, match=re.escape(reason)):
        Written("out.json", "err").read("", {}, time.time())


def test_file_of_an_earlier_run_does_not_count() -> None:
    Path("out.json").write_text('{"err": 1}')
    with pytest.raises(RunFailed, match="did not write"):
        Written("out.json", "err").read("", {}, time.time() + 10)


# --- bad input ----------------------------------------------------------------------------------------------------

GOOD = {"--command": "echo {lr} {seed}", "--factor": "lr=1,2", "--metric": "(.*)"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--command": "echo {lr} {seed} {x}"}, "--command has {x}, which no --factor fills."),
        ({"--command": "echo {seed}"}, "--factor lr is not used: --command has no {lr}"),
        ({"--command": "echo {lr}"}, "--command has no {seed}, so its runs cannot be paired"),
        ({"--command": "no-such-program {lr} {seed}"}, "no program 'no-such-program' can be run"),
        ({"--command": "echo '{lr} {seed}"}, "--command cannot be split into arguments (no closing quotation)"),
        ({"--command": ""}, "--command is empty"),
        ({"--factor": "lr"}, "--factor must read NAME=LEVEL,LEVEL, such as lr=0.1,0.01, but got 'lr'"),
        ({"--factor": "lr=1"}, "factor lr has 1 level, 1; give the base's level and at least one other."),
        ({"--factor": "lr=1,1"}, "factor lr has the level 1 twice"),
        ({"--factor": "lr=1,"}, "factor lr has an empty level"),
        ({"--factor": "seed=1,2"}, "a factor cannot be called seed"),
        ({"--metric": "err=[0-9]"}, "--metric 'err=[0-9]' has no group"),
        ({"--metric": "(a)(b)"}, "--metric '(a)(b)' has 2 groups, so its value would be ambiguous"),
        ({"--metric": "(a"}, "--metric '(a' is no regular expression"),
        ({"--metric": "json:x"}, "--metric json:x must read json:PATH:KEY"),
        ({"--metric": "json:{ls}.json:x"}, "--metric has {ls}, which is no factor."),
        ({"--metric": "json:out.json:x", "--workers": "2"}, "runs at the same time would both write"),
        ({"--metric": None}, "--command needs --metric"),
        ({"--seeds": "1"}, "`seeds >= 2` must hold"),
        ({"--seeds": "auto"}, "--seeds must be a number of seeds with --command, but got 'auto'."),
        ({"--alpha": "2"}, "`0 < alpha < 1` must hold"),
        ({"--epochs": "3"}, "--epochs is for networks that dnas trains"),
        ({"--executor": "ray"}, "--command runs on this machine"),
        ({"--command": None, "--metric": None}, "--factor is for --command"),
    ],
)
def test_bad_commands_are_refused_in_one_line(
    changes: dict[str, str | None], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {key: value for key, value in (GOOD | changes).items() if value is not None}
    assert main(["ablate", *(f"{key}={value}" for key, value in options.items())]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not Path("studies").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--factor": "lr=1,3"}, "was started with other factors: lr=1, 2 (now lr=1, 3)"),
        (
            {"--command": "echo {seed} {lr}"},
            "was started with another command: echo {lr} {seed} (now echo {seed} {lr})",
        ),
        ({"--metric": "[0-9] (.*)"}, "was started with another metric"),
        ({"--design": "factorial"}, "was started with another design: one-at-a-time (now factorial)"),
        ({"--alpha": "0.1"}, "was started with another alpha: 0.05 (now 0.1)"),
        ({"--study": "own"}, "study own already exists and is an ablation of networks"),
    ],
)
def test_study_with_another_design_is_refused(
    change: dict[str, str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(options: dict[str, str]) -> int:
        return main(["ablate", *(f"{key}={value}" for key, value in options.items()), "-q"])

    first = GOOD | {"--metric": "[12] (.*)", "--study": "s", "--seeds": "2"}
    assert run(first) == 0
    own_ablation()
    capfd.readouterr()
    before = Path("studies/s/study.toml").read_text()
    assert run(first | change) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert Path("studies/s/study.toml").read_text() == before


@pytest.mark.parametrize(
    ("function", "factors", "message"),
    [
        (3, {"a": [1, 2]}, "needs a function to call, but got 3"),
        (lambda a: 1.0, {"a": [1, 2]}, "must take seed and a as keywords"),
        (lambda seed: 1.0, {"a": [1, 2]}, "must take seed and a as keywords"),
        (lambda seed, a: 1.0, {"a": [1]}, "factor a has 1 level"),
        (lambda seed, a: 1.0, {"a": [[1], 2]}, "a level of a must be a number, a text or a truth value"),
        (lambda seed, a: 1.0, {"a": "xy"}, "the levels of a must be a list"),
        (lambda seed, a: 1.0, {}, "an ablation needs a factor"),
        (lambda seed, a: 1 / 0, {"a": [1, 2]}, "failed with the same error: ZeroDivisionError: division by zero"),
        (lambda seed, a: None, {"a": [1, 2]}, "it returned None, which is no number"),
        (lambda seed, a: {"x": 1, "y": 2}, {"a": [1, 2]}, "it returned a dict of x and y; name one with metric="),
    ],
)
def test_bad_functions_are_refused(function: Callable[..., Any], factors: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ablate_function(function, factors, study="s")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,seed,value\nA,0,1", "has no column variant; its first line must name the columns"),
        ("variant,seed\nA,0", "has no further column beside variant and seed; name the metric's column"),
        ("variant,seed,x,y\nA,0,1,2", "has x and y beside variant and seed; name the metric's column"),
        ("variant,seed,value\nA,0,1\nA,1,2", "has A only; a comparison needs two variants"),
        ("variant,seed,value\nA,0,1\nB,0,2", "has one seed; one pair cannot show"),
        ("variant,seed,value\nA,0,1\nA,1,1\nB,0,2", "the runs are not paired: B has no run of seed 1, but A has"),
        ("variant,seed,value\nA,0,1\nB,0,2\nB,4,2", "the runs are not paired: A has no run of seed 4, but B has"),
        ("variant,seed,value\nA,0,1\nA,0,1\nB,0,2", "line 3: variant A, seed 0 occurs twice"),
        ("variant,seed,value\nA,x,1", "line 2: a seed is a whole number, but got 'x'"),
        ("variant,seed,value\nA,0,nan", "line 2: variant A, seed 0: value is 'nan', which is not finite"),
        ("variant,seed,value\nA,0,", "line 2: variant A, seed 0: value is '', which is no number"),
        ("variant,seed,value\nA,0\n", "line 2: variant A, seed 0: value is None, which is no number"),
        (
            "variant,seed,value,budget\nA,0,1,10\nA,1,1,10\nB,0,2,10\nB,1,2,20",
            "the budgets are not equal: 10 for A, seed 0, but 20 for B, seed 1",
        ),
        ("variant,seed,value\nC,0,1\nC,1,1\nB,0,2\nB,1,2", "has no variant 'A' to compare with; it has C, B."),
        ("", "has no column variant and seed"),
    ],
)
def test_unpaired_numbers_are_refused(text: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("runs.csv").write_text(text)
    assert main(["compare", "runs.csv", "--base", "A", "--out", "page"]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("page").exists()


# --- a script that knows nothing of dnas ----------------------------------------------------------------------------

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "ablations.md"


@pytest.mark.slow
def test_script_of_the_guide_is_ablated_through_kills(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    section = GUIDE.read_text().split("## Your own program\n")[1]
    script, command = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)[0] for kind in ("python", "sh"))
    Path("train.py").write_text(script)
    command = command.replace("\\\n", "").partition("dnas report")[0]
    arguments = [*shlex.split(command)[1:], "--workers", "2"]
    study = StudyFolder(Path("studies/train"))

    def complete() -> dict[int, Any]:
        return {record.number: record for record in study.records() if record.state == "complete"}

    kept: dict[int, Any] = {}
    for number in (signal.SIGKILL, signal.SIGINT):
        process = Command(*arguments, merge=True)
        wait_until(lambda: len(complete()) >= len(kept) + 3 or process.poll() is not None, 240)  # noqa: B023
        process.send_signal(number)
        process.wait(patience(60))
        now = complete()
        assert {key: now[key] for key in kept} == kept
        kept = now
        assert len(kept) < 21
    assert main([*arguments, "-q"]) == 0
    finished = complete()
    assert len(finished) == 21
    assert {key: finished[key] for key in kept} == kept  # bit by bit, with their times
    page = write_ablation("train").read_text()
    assert "lr=0.001 is worse than base" in page
    again = write_analysed(compare_numbers(Path("reports/train/numbers.csv"), "base"), Path("again")).read_text()
    said = re.findall(r'<span class="verdict.*</li>', page)
    assert said
    assert said == re.findall(r'<span class="verdict.*</li>', again)
