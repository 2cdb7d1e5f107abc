"""Kill workers and drivers of a search with several objectives at random, and check every trial at the end.

    python benchmarks/kill_workers.py --kills 100 --trials 40

Half of the SIGKILLs hit one worker, a quarter the driver alone, and a quarter the driver with its fork server and
workers. A killed driver is restarted by the same command, and is killed again only after it has made progress. At the
end the script checks that every number has one record and one proposal, that each trial is complete or paused, that
every epoch was reported once, that no network was tried twice, that `dnas replay` finds no difference, that no
partial file remains, and that some of the trials, retrained from the start, have the same curves and weights. The
exit status is 1 if a check fails.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dnas.executors.lease import read_lease
from dnas.strategy.replay import replay, retrain_trial
from dnas.study.folder import StudyFolder

NO_PROCESS = "no process"


def command(trials: int, epochs: int) -> list[str]:
    options = ["--space", "digits_bc", "--study", "front", "--objective", "val_error,params", "--workers", "2"]
    options += ["--trials", str(trials), "--epochs", str(epochs), "--threads", "1", "--control", "0.2"]
    return [sys.executable, "-m", "dnas.cli", "search", *options]


def start(folder: Path, run: list[str]) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(run, cwd=folder, start_new_session=True, stdout=log, stderr=log)


def workers(study: StudyFolder) -> list[int]:
    """Return the processes that hold a lease on a trial."""
    leases = [read_lease(path.parent) for path in study.path.glob("trials/*/lease.json")]
    return [lease.pid for lease in leases if lease is not None]


def log_size(study: StudyFolder) -> int:
    path = study.path / "events.jsonl"
    return path.stat().st_size if path.exists() else 0


def strike(process: subprocess.Popen[bytes], study: StudyFolder, rng: random.Random) -> str:
    """Send one SIGKILL, and return its target."""
    if rng.random() < 0.5:
        victims = workers(study)
        if not victims:
            return NO_PROCESS
        with suppress(ProcessLookupError):
            os.kill(rng.choice(victims), signal.SIGKILL)
        return "a worker"
    if rng.random() < 0.5:
        process.kill()
        process.wait()
        return "the driver"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "all processes"


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return True
    return False


def kill_at_random(
    folder: Path, run: list[str], kills: int, seed: int, pause: tuple[float, float], start: Callable[..., Any] = start
) -> Counter[str]:
    """Run the command to its end under at most `kills` kills, and return the number of kills by target.

    start: Function that starts the command, with the interface of `start`.
    """
    rng, study, met = random.Random(seed), StudyFolder(folder / "studies" / "front"), Counter[str]()
    process, size = start(folder, run), log_size(study)
    failures = 0
    while True:
        left = kills - sum(met.values())
        if ended(process, rng.uniform(*pause) if left > 0 else 600):
            if process.returncode == 0:
                return met
            failures += process.returncode > 0
            if failures > kills + 20:
                raise AssertionError(f"the search repeatedly ends with status {process.returncode}; see its log")
            # It was killed, or it ended with status 2 because an earlier one was still ending.
            process, size = start(folder, run), log_size(study)
        elif left > 0:
            target = strike(process, study, rng) if log_size(study) > size else NO_PROCESS
            if target != NO_PROCESS:
                met[target] += 1
                print(f"kill {sum(met.values()):3d}  {target:10s}  {len(study.events())} events", flush=True)
        else:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError("the search does not end")


def failed_checks(study: StudyFolder, trials: int, retrained: int) -> list[str]:
    """Return one line per failed check. retrained: Number of trials to retrain."""
    wrong = []
    records, events = study.records(), study.events()
    numbers = [event["number"] for event in events if event["event"] == "ask"]
    if numbers != list(range(trials)) or [record.number for record in records] != numbers:
        wrong.append(f"{trials} trials were asked for; {len(numbers)} were proposed, {len(records)} have a record")
    if len({record.digest for record in records}) != len(records):
        wrong.append("a network was tried twice")
    for record in records:
        if record.state not in ("complete", "paused"):
            wrong.append(f"trial {record.number} ended as {record.state}: {record.reason}")
        told = [e["epoch"] for e in events if e["event"] == "report" and e["number"] == record.number]
        if told != list(range(1, record.epochs + 1)):
            wrong.append(f"trial {record.number} has {record.epochs} epochs, but reported {told}")
    wrong += replay(study).differences
    wrong += [f"{path.relative_to(study.path)} remains" for path in study.path.rglob(".*.[0-9]*")]
    for record in sorted(records, key=lambda r: -r.losses)[:retrained]:
        result = retrain_trial(study, record.number)
        if result.first is not None or result.same_weights is False:
            wrong.append(f"trial {record.number} retrained differs (epoch {result.first}): {result.then}, {result.now}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--again", type=int, default=6, help="number of trials to retrain at the end (default: 6)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        run = command(args.trials, args.epochs)
        met = kill_at_random(Path(place), run, args.kills, args.seed, (0.5, 5.0))
        study = StudyFolder(Path(place) / "studies" / "front")
        wrong = failed_checks(study, args.trials, args.again)
        records = study.records()
        states = Counter(record.state for record in records)
        events = Counter(event["event"] for event in study.events())
        print(f"\n{sum(met.values())} kills ({', '.join(f'{n} {target}' for target, n in met.items())}) in")
        print(f"{(time.monotonic() - began) / 60:.0f} min; {len(records)} trials: {dict(states)};")
        print(f"{events['promote']} promotions; {sum(r.losses for r in records)} lost workers seen by a driver;")
        print(f"{args.again} of the most often killed trials retrained; {len(wrong)} checks failed")
        print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
