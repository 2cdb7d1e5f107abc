"""Executor of the proposer: trials run on workers that share only a database and a shared storage.

Jobs and messages are rows of the database. `dnas.cluster.worker` is the other side.
"""

import time
from dataclasses import asdict

from dnas.cluster import proposer
from dnas.cluster.database import Database
from dnas.cluster.proposer import StoredMessage
from dnas.executors.process import Job, Message

MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.01, 0.1  # shortest and longest pause between two reads of the messages
WORKER_CHECK_SECONDS = 1.0  # interval of the searches for dead workers and of the counts of living ones


class PostgresExecutor:
    """Executor that queues jobs, reads the workers' messages and answers them.

    A message stays in the database until it has been handled, so that the next proposer receives it if this one ends.
    Jobs that exist when the study is opened are adopted. Every method that writes raises `LeaseLost` once another host
    proposes.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._running: dict[str, int] = {}  # key -> attempt
        self._unanswered: dict[str, StoredMessage] = {}  # key -> the epoch that waits for an answer
        self._delivered: set[int] = set()  # messages that the loop handles before it calls `wait` again
        self._ended: set[str] = set()  # keys of the jobs whose last message was delivered
        self._counted, self._slots = -float("inf"), 1
        self._checked = -float("inf")
        self._clock = 0.0

    @property
    def running(self) -> list[str]:
        return list(self._running)

    @property
    def workers(self) -> int:
        """Number of jobs that all living workers can run at once; at least 1, since a job may wait for a worker.

        It is at least the number of unfinished jobs, so that a new proposer adopts all of them. A job that is not
        adopted gets no answers and blocks its worker's slot, possibly while the job of a dead worker waits for a slot.
        """
        if time.monotonic() - self._counted >= WORKER_CHECK_SECONDS:
            self._slots = max(1, proposer.count_slots(self.database), proposer.count_jobs(self.database))
            self._counted = time.monotonic()
        return self._slots

    @property
    def queued(self) -> set[str]:
        """Keys of the jobs that no worker has claimed."""
        return proposer.queued_keys(self.database) & set(self._running)

    def clock(self) -> float:
        self._clock = max(self._clock, self.database.clock())
        return self._clock

    def room(self, job: Job) -> bool:
        return True

    def start(self, job: Job) -> None:
        """Queue `job`, or adopt the existing job if it trains the same network in the same way."""
        values = asdict(job) | {"folder": "", "data": job.data | {"data_root": None}}
        ended = job.key in self._ended
        self._running[job.key] = proposer.queue_job(self.database, job.key, job.attempt, values, replace=ended)
        self._ended.discard(job.key)
        self._unanswered.pop(job.key, None)

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        self._delete_delivered()
        end, pause = time.monotonic() + timeout, MIN_POLL_SECONDS
        while True:
            messages = self._new_messages() or self._losses()
            left = end - time.monotonic()
            if messages or left <= 0:
                return messages
            time.sleep(min(pause, left))
            pause = min(MAX_POLL_SECONDS, 2 * pause)

    def _delete_delivered(self) -> None:
        if self._delivered:
            proposer.delete_messages(self.database, self._delivered)
            self._delivered.clear()
        if self._ended:
            proposer.delete_jobs(self.database, self._ended)
            self._ended.clear()

    def _new_messages(self) -> list[tuple[str, Message]]:
        messages = []
        for stored in proposer.read_messages(self.database):
            if self._running.get(stored.key) != stored.attempt or stored.key in self._unanswered:
                continue  # its job has not been adopted yet, or an earlier epoch of the job waits for its answer
            message = Message(stored.kind, stored.values)
            messages.append((stored.key, message))
            if stored.kind == "epoch":
                self._unanswered[stored.key] = stored
            else:
                self._delivered.add(stored.id)
            if message.ends:
                del self._running[stored.key]
                self._ended.add(stored.key)
        return messages

    def _losses(self) -> list[tuple[str, Message]]:
        """Return a `lost` message for each job of a worker that has died."""
        if time.monotonic() - self._checked < WORKER_CHECK_SECONDS:
            return []
        self._checked = time.monotonic()
        messages = []
        for key, attempt, host in proposer.expire_jobs(self.database):
            if self._running.get(key) == attempt:
                del self._running[key]
                self._unanswered.pop(key, None)
                messages.append((key, Message("lost", {"text": f"no heartbeat from its worker on {host}"})))
        return messages

    def answer(self, key: str, go_on: bool) -> None:
        proposer.answer_epoch(self.database, self._unanswered.pop(key), go_on)

    def kill(self, key: str) -> None:
        """End one job. Its worker stops it at the next heartbeat."""
        del self._running[key]
        self._unanswered.pop(key, None)
        proposer.delete_jobs(self.database, [key])

    def stop(self) -> None:
        """Leave all jobs running, to be adopted by the next proposer."""
        self._running.clear()
