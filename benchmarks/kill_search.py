"""Kill a search with SIGKILL repeatedly, and compare its result with that of an undisturbed search.

    python benchmarks/kill_search.py --random 12

Each kill ends the driver, its fork server and its workers at once. Four kills are aimed: after an ask, inside an
epoch, while a checkpoint is written (which is slowed down for this purpose), and before a tell. The others come at
random times. Prints the state that each kill interrupted, and at the end whether specs, errors and the digests of the
final weights are equal. The exit status is 1 if they are not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dnas.study.folder import StudyFolder

STUDY = Path("studies/digits_bc")


def command(trials: int, epochs: int) -> list[str]:
    options = ["--space", "digits_bc", "--trials", str(trials), "--epochs", str(epochs), "--stopping", "asha"]
    return [sys.executable, "-m", "dnas.cli", "search", *options]


def essence(folder: Path) -> list[tuple[object, ...]]:
    records = StudyFolder(folder / STUDY).records()
    return [
        (r.number, r.state, r.digest, r.val_error, r.val_loss, r.epochs, r.weights_digest, r.history_digest)
        for r in records
    ]


# Imported by every Python process of a search with this folder in PYTHONPATH: delays the renaming of checkpoints.
SLOW_RENAME = """import pathlib, time
plain = pathlib.Path.replace
def replace(self, target):
    if self.name.startswith(".checkpoint"):
        time.sleep(10)  # a worker whose driver is killed meanwhile ends at once
    return plain(self, target)
pathlib.Path.replace = replace
"""


def kill(folder: Path, run: list[str], ripe: Callable[[Path], bool], slow: Path | None = None) -> str:
    """Start the search, kill all its processes as soon as `ripe` is true, and return the interrupted state."""
    environment = dict(os.environ)
    if slow is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(slow), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        run,
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    study = folder / STUDY
    while not ripe(study):
        if process.poll() is not None:
            return "it had ended"
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    if torn := [path.name for path in study.rglob(".*.[0-9]*")]:
        return f"while {torn[0].rpartition('.')[0].lstrip('.')} was written"
    events = StudyFolder(study).events()
    last = events[-1] if events else {"event": "nothing"}
    if last["event"] == "report":
        record = StudyFolder(study).records()[int(last["number"])]
        ended = last["epoch"] == record.epochs_planned or not last["go_on"]
        return "before a tell" if ended else "inside an epoch"
    return {"ask": "after an ask", "tell": "after a tell"}.get(last["event"], "before the first ask")


def reports(study: Path) -> int:
    path = study / "events.jsonl"
    return path.read_bytes().count(b'"event": "report"') if path.exists() else 0


def aimed(study: Path, at: str) -> Callable[[Path], bool]:
    """Return a condition that becomes true at the next event of the given kind."""
    log = study / "events.jsonl"
    start = log.stat().st_size if log.exists() else 0

    def after(word: bytes) -> Callable[[Path], bool]:
        return lambda _: log.exists() and word in log.read_bytes()[start:]

    def last_epoch(study: Path) -> bool:
        events = StudyFolder(study).events()
        return bool(events) and log.stat().st_size > start and events[-1].get("epoch") == EPOCHS

    def writing(study: Path) -> bool:
        numbers = sorted((int(p.name) for p in (study / "trials").glob("*")), reverse=True) if study.exists() else []
        newest = study / "trials" / str(numbers[0]) if numbers else None
        return newest is not None and any(e.name.startswith(".checkpoint") for e in os.scandir(newest))

    conditions = {"ask": after(b'"event": "ask"'), "epoch": after(b'"event": "report"'), "write": writing}
    return conditions.get(at, last_epoch)


EPOCHS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--random",
        type=int,
        default=12,
        help="number of kills at random times, in addition to the aimed ones (default: 12)",
    )
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, run = random.Random(args.seed), command(args.trials, EPOCHS)
    with tempfile.TemporaryDirectory() as place:
        alone, killed = Path(place) / "alone", Path(place) / "killed"
        alone.mkdir()
        killed.mkdir()
        subprocess.run(run, cwd=alone, check=True, stdout=subprocess.DEVNULL)
        slow = Path(place) / "slow"
        slow.mkdir()
        (slow / "sitecustomize.py").write_text(SLOW_RENAME)
        kills = 0
        met: dict[str, int] = {}

        def strike(what: str, ripe: Callable[[Path], bool]) -> str:
            nonlocal kills
            state = kill(killed, run, ripe, slow if what == "aimed at write" else None)
            kills += 1
            met[state] = met.get(state, 0) + 1
            print(f"kill {kills:3d}  {what:16s} {state}", flush=True)
            return state

        for at, wanted in (("ask", "ask"), ("epoch", "inside"), ("write", "checkpoint.pt"), ("tell", "tell")):
            for _ in range(3):
                if wanted in strike(f"aimed at {at}", aimed(killed / STUDY, at)):
                    break
        for _ in range(args.random):
            at = time.monotonic() + 1.5 + 8 * rng.random()
            strike("at random", lambda _, at=at: time.monotonic() > at)  # type: ignore[misc]
        subprocess.run(run, cwd=killed, check=True, stdout=subprocess.DEVNULL)
        equal = essence(alone) == essence(killed)
        print(f"\n{kills} kills: " + ", ".join(f"{number} {what}" for what, number in sorted(met.items())))
        print(f"{len(essence(alone))} trials; specs, errors and weights {'are equal' if equal else 'DIFFER'}")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
