"""Trials on workers that share nothing but a database and a shared folder: jobs are rows, messages too."""

import time
from dataclasses import asdict

from dnas.cluster.database import Said, Storage
from dnas.executors.worker import Job, Message

SHORTEST_LOOK, LONGEST_LOOK = 0.01, 0.1  # seconds between two looks for messages
LOOK_FOR_DEAD = 1.0  # seconds between two looks for workers that vanished, and between two counts of the living


class PostgresExecutor:
    """The proposer's side: queues jobs, reads what workers say, answers. `dnas.cluster.worker` is the workers' side.

    A message stays in the database until it is handled, so that whoever proposes next hears it. Jobs that are there
    when the study is opened are adopted. Raises `LeaseLost` as soon as another host proposes.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._running: dict[str, int] = {}  # key -> attempt
        self._asking: dict[str, Said] = {}
        self._handed: set[int] = set()  # messages that the driver has, and handles before it comes again
        self._over: set[str] = set()  # keys whose end it has
        self._counted, self._slots = -float("inf"), 1
        self._looked = -float("inf")
        self._clock = 0.0

    @property
    def running(self) -> list[str]:
        return list(self._running)

    @property
    def workers(self) -> int:
        """The trainings that all living workers take at once; at least one: a job may wait for a worker. And never
        fewer than are under way: a new proposer adopts them all, for one that nobody answers holds its worker's slot
        while a dead worker's training waits for it."""
        if time.monotonic() - self._counted >= LOOK_FOR_DEAD:
            self._slots = max(1, self.storage.slots(), self.storage.under_way())
            self._counted = time.monotonic()
        return self._slots

    @property
    def queued(self) -> set[str]:
        """The jobs that no worker has claimed."""
        return self.storage.queued() & set(self._running)

    def clock(self) -> float:
        self._clock = max(self._clock, self.storage.clock())
        return self._clock

    def room(self, job: Job) -> bool:
        return True

    def start(self, job: Job) -> None:
        """Queues `job`, or adopts the same training where it is queued or under way."""
        plain = asdict(job) | {"folder": "", "data": job.data | {"data_root": None}}
        self._running[job.key] = self.storage.start_job(job.key, job.attempt, plain, afresh=job.key in self._over)
        self._over.discard(job.key)
        self._asking.pop(job.key, None)

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        self._forget_handled()
        end, pause = time.monotonic() + timeout, SHORTEST_LOOK
        while True:
            found = self._messages() or self._dead()
            left = end - time.monotonic()
            if found or left <= 0:
                return found
            time.sleep(min(pause, left))
            pause = min(LONGEST_LOOK, 2 * pause)

    def _forget_handled(self) -> None:
        if self._handed:
            self.storage.heard(self._handed)
            self._handed.clear()
        if self._over:
            self.storage.drop_jobs(self._over)
            self._over.clear()

    def _messages(self) -> list[tuple[str, Message]]:
        found = []
        for said in self.storage.said():
            if self._running.get(said.key) != said.attempt or said.key in self._asking:
                continue  # of a job that is not adopted yet, or after a question without an answer: it waits
            found.append((said.key, Message(said.kind, said.values)))
            if said.kind == "epoch":
                self._asking[said.key] = said
            else:
                self._handed.add(said.id)
            if found[-1][1].ends:
                del self._running[said.key]
                self._over.add(said.key)
        return found

    def _dead(self) -> list[tuple[str, Message]]:
        if time.monotonic() - self._looked < LOOK_FOR_DEAD:
            return []
        self._looked = time.monotonic()
        found = []
        for key, attempt, host in self.storage.expire():
            if self._running.get(key) == attempt:
                del self._running[key]
                self._asking.pop(key, None)
                found.append((key, Message("lost", {"text": f"its worker on {host} gave no sign of life"})))
        return found

    def answer(self, key: str, go_on: bool) -> None:
        said = self._asking.pop(key)
        self.storage.answer(key, said.attempt, said.values["epoch"], go_on, said.id)

    def kill(self, key: str) -> None:
        """Ends one job, wherever it runs: its worker sees at its next heartbeat that it is gone."""
        del self._running[key]
        self._asking.pop(key, None)
        self.storage.drop_jobs([key])

    def stop(self) -> None:
        """Nothing is ended: whoever proposes next adopts the jobs."""
        self._running.clear()
