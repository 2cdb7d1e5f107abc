"""Tests of the guarantees of the database: one proposer, one worker per job, one clock, and no password in any text."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from dnas.cluster import jobs, proposer, queries
from dnas.cluster.address import Address
from dnas.cluster.database import Database
from dnas.cluster.executor import PostgresExecutor
from dnas.cluster.jobs import StoredCheckpoint
from dnas.cluster.proposer import StoredMessage
from dnas.errors import InputError
from dnas.executors.lease import LeaseLost
from tests.support.patience import patience
from tests.support.postgres import PASSWORD, Server

pytestmark = pytest.mark.xdist_group("postgres")  # one server for all tests

JOB = {"spec": {"k": 1}, "recipe": {"epochs": 3}, "seed": [0, 0], "final": False, "recompute": False}
Open = Callable[..., Database]


@pytest.fixture
def url(server: Server) -> str:
    return server.database(f"d{uuid.uuid4().hex}")


@pytest.fixture
def open_database(url: str) -> Iterator[Open]:
    """Open the study `s` as another host, with a short `expiry_seconds`."""
    opened: list[Database] = []

    def open_one(expiry_seconds: float = 1.0, **changes: Any) -> Database:
        opened.append(Database(url, "s", expiry_seconds=expiry_seconds, **changes))
        return opened[-1]

    yield open_one
    for database in opened:
        database.close()


def start_study(database: Database) -> Database:
    queries.create_study(database, "id", "config")
    assert proposer.take_lease(database)
    return database


def pass_time(seconds: float, *alive: Database) -> None:
    """Wait, while the given hosts send heartbeats."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for database in alive:
            jobs.beat(database, 1)
        time.sleep(0.05)


# --- the proposer's lease -----------------------------------------------------------------------------------------


def test_one_host_proposes_until_its_lease_expires(open_database: Open) -> None:
    one, two = start_study(open_database()), open_database()
    assert proposer.take_lease(one)
    pass_time(1.5, one, two)
    assert not proposer.take_lease(two), "a lease with heartbeats does not expire"
    pass_time(1.2, two)
    assert proposer.take_lease(two)
    assert not jobs.beat(one, 1).proposes
    assert not proposer.take_lease(one)


def test_stale_proposer_cannot_write(open_database: Open) -> None:
    one, two = start_study(open_database()), open_database()
    proposer.append_event(one, 0, {"event": "a"})
    pass_time(1.2, two)
    assert proposer.take_lease(two)
    before = queries.read_events(two)
    for write in (
        lambda: proposer.append_event(one, 1, {"event": "b"}),
        lambda: proposer.write_record(one, "trials/0/record.json", "{}", None),
        lambda: proposer.write_config(one, "other"),
        lambda: proposer.queue_job(one, "0", 1, JOB, replace=False),
        lambda: proposer.answer_epoch(one, StoredMessage(1, "0", 1, "epoch", {"epoch": 1}), True),
        lambda: proposer.delete_jobs(one, ["0"]),
        lambda: proposer.finish_study(one, "complete"),
        lambda: proposer.expire_jobs(one),
    ):
        with pytest.raises(LeaseLost, match="another host proposes for study s"):
            write()
    assert queries.read_events(two) == before
    assert queries.read_records(two) == {}
    assert queries.read_study(two) == ("id", "config", None)


def test_event_is_stored_once_if_the_connection_dies_during_its_commit(
    open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    one = start_study(open_database(note=notes.append))
    real, left = psycopg.Transaction.__exit__, [2]

    def die_after_the_commit(self: Any, *error: Any) -> Any:
        result = real(self, *error)
        if left[0] and error == (None, None, None):
            left[0] -= 1
            self.connection.close()
            raise psycopg.OperationalError("the connection is lost")
        return result

    monkeypatch.setattr(psycopg.Transaction, "__exit__", die_after_the_commit)
    line = proposer.append_event(one, 0, {"event": "a"})
    assert left == [0]
    assert queries.read_events(one) == [line]
    assert json.loads(line)["event"] == "a"
    assert [note.split(" (")[0] for note in notes] == [
        "the database does not answer; waiting",
        "the database is back",
    ]


def test_two_proposers_cannot_write_the_same_event(open_database: Open) -> None:
    one = start_study(open_database())
    proposer.append_event(one, 0, {"event": "a"})
    with pytest.raises(LeaseLost, match="another host has written event 0"):
        proposer.append_event(one, 0, {"event": "b"})


def test_finished_study_has_no_proposer(open_database: Open) -> None:
    one, two = start_study(open_database()), open_database()
    proposer.finish_study(one, "complete")
    proposer.release_lease(one)
    assert not proposer.take_lease(two)
    assert jobs.beat(two, 1).done == "complete"
    queries.reopen_study(two, "more")
    assert proposer.take_lease(two)


# --- the clock of the database -----------------------------------------------------------------------------------


def test_clock_of_the_host_is_not_used(open_database: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    one = start_study(open_database())
    year = time.gmtime(one.clock()).tm_year
    assert year > 2020
    assert one.now().startswith(f"{year}-")
    assert json.loads(proposer.append_event(one, 0, {"event": "a"}))["time"].startswith(f"{year}-")


def test_leases_that_expire_during_an_outage_are_kept(server: Server, open_database: Open) -> None:
    one, two = start_study(open_database(2.0)), open_database(2.0)
    proposer.queue_job(one, "0", 1, JOB, replace=False)
    assert jobs.claim(one, []) is not None
    server.kill()
    time.sleep(2.1)
    server.start()
    fresh = open_database(2.0)
    assert not proposer.take_lease(fresh), "a process that connects after the outage has to wait too"
    assert not proposer.take_lease(two)
    assert jobs.beat(one, 1).proposes
    assert proposer.expire_jobs(one) == []
    assert jobs.beat(one, 1).jobs == {"0": 1}


def test_leases_are_kept_if_all_hosts_were_cut_off_and_expire_later(open_database: Open) -> None:
    one, two = start_study(open_database()), open_database()
    time.sleep(1.2)
    assert not proposer.take_lease(two), "the database cannot tell whether the hosts were cut off"
    pass_time(0.5, two)
    assert not proposer.take_lease(two)
    pass_time(0.8, two)
    assert proposer.take_lease(two)
    assert not jobs.beat(one, 1).proposes


def test_host_that_was_cut_off_does_not_declare_others_dead(open_database: Open) -> None:
    one, two, three = start_study(open_database()), open_database(), open_database()
    pass_time(1.2, three)
    two._count_failure(psycopg.OperationalError("cut off"), lost=True)
    assert not proposer.take_lease(two)
    pass_time(1.1, three)
    assert proposer.take_lease(two)
    assert not jobs.beat(one, 1).proposes


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_jobs_are_claimed_once_in_the_order_of_the_queue(open_database: Open) -> None:
    one, two = start_study(open_database()), open_database()
    for key in ("3", "1", "2"):
        proposer.queue_job(one, key, 1, JOB, replace=False)
    taken = [jobs.claim(host, known) for host, known in ((one, []), (two, []), (one, ["3"]))]
    assert [job and job[0] for job in taken] == ["3", "1", "2"]
    assert jobs.claim(two, ["1"]) is None
    assert jobs.claim(two, []) == ("1", 1, JOB), "a host may repeat a claim whose reply was lost"


def test_dead_workers_jobs_are_lost_and_it_cannot_send_messages(open_database: Open) -> None:
    one, two = start_study(open_database()), open_database()
    proposer.queue_job(one, "0", 1, JOB, replace=False)
    assert jobs.claim(two, []) is not None
    jobs.send(two, "0", 1, "epoch", {"epoch": 1})
    pass_time(0.5, one)
    assert proposer.expire_jobs(one) == []
    pass_time(0.7, one)
    assert [(key, attempt) for key, attempt, _ in proposer.expire_jobs(one)] == [("0", 1)]
    assert proposer.read_messages(one) == [], "its messages are deleted with its job"
    proposer.queue_job(one, "0", 2, JOB, replace=True)
    with pytest.raises(LeaseLost, match="job 0 of study s belongs to another worker"):
        jobs.send(two, "0", 1, "epoch", {"epoch": 2}, checkpoint=StoredCheckpoint(3, 2, "late.pt", 0.1))
    assert not jobs.holds(two, "0", 1)
    assert jobs.beat(two, 1).jobs == {}
    assert jobs.furthest_checkpoint(one, "0", 3) is None


def test_new_proposer_adopts_an_equal_job_and_replaces_a_different_one(open_database: Open) -> None:
    one, two = start_study(open_database()), open_database()
    proposer.queue_job(one, "0", 1, JOB, replace=False)
    jobs.claim(two, [])
    jobs.send(two, "0", 1, "epoch", {"epoch": 1})
    assert proposer.queue_job(one, "0", 2, JOB, replace=False) == 1, "the adopted job keeps its attempt"
    assert [message.kind for message in proposer.read_messages(one)] == ["epoch"], "the adopted job keeps its messages"
    assert proposer.queue_job(one, "0", 3, JOB | {"recompute": True}, replace=False) == 3
    assert proposer.read_messages(one) == []
    assert jobs.held_jobs(two) == {}


def test_new_proposer_adopts_every_unfinished_job(open_database: Open) -> None:
    """The host of the new proposer has one slot and runs the second job. The first job belongs to a dead host. If only
    the first job were adopted, it would wait for the slot of a job that gets no answers.
    """
    one, two = start_study(open_database()), open_database()
    for key, claimer in (("0", one), ("1", two)):
        proposer.queue_job(one, key, 1, JOB, replace=False)
        assert jobs.claim(claimer, []) == (key, 1, JOB)
    pass_time(1.2, two)
    assert proposer.take_lease(two)
    assert proposer.count_slots(two) == 1
    assert PostgresExecutor(two).workers == 2
    proposer.delete_jobs(two, ["0", "1"])
    assert PostgresExecutor(two).workers == 1


def test_final_record_and_end_of_its_job_are_one_transaction(open_database: Open) -> None:
    one, two = start_study(open_database()), open_database()
    proposer.queue_job(one, "0", 1, JOB, replace=False)
    jobs.claim(two, [])
    jobs.send(two, "0", 1, "done", {}, ends=True, result="trials/0/x")
    proposer.write_record(one, "trials/0/record.json", "{}", "0")
    assert proposer.read_messages(one) == []
    assert proposer.queue_job(one, "0", 2, JOB, replace=False) == 2, "the ended job is not adopted"
    assert queries.read_results(one) == {"0": "trials/0/x"}


def test_last_and_best_checkpoint_are_kept(open_database: Open) -> None:
    one = start_study(open_database(20.0))
    proposer.queue_job(one, "0", 1, JOB, replace=False)
    jobs.claim(one, [])
    stale = [
        jobs.send(one, "0", 1, "epoch", {}, checkpoint=StoredCheckpoint(9, epoch, f"{epoch}.pt", error))
        for epoch, error in ((1, 0.5), (2, 0.2), (3, 0.4), (4, 0.3))
    ]
    assert stale == [[], ["1.pt"], [], ["3.pt"]]
    assert jobs.furthest_checkpoint(one, "0", 9) == (4, "4.pt")
    assert jobs.furthest_checkpoint(one, "0", 12) is None, "a longer run has another schedule"
    assert sorted(jobs.send(one, "0", 1, "done", {}, ends=True, finished=True)) == ["2.pt", "4.pt"]


def test_leaving_returns_lease_and_jobs_at_once(open_database: Open) -> None:
    one, two = start_study(open_database(20.0)), open_database(20.0)
    jobs.beat(one, 2)
    jobs.beat(two, 3)
    assert proposer.count_slots(two) == 5
    proposer.queue_job(one, "0", 1, JOB, replace=False)
    jobs.claim(one, [])
    jobs.leave(one)
    assert proposer.count_slots(two) == 3
    assert proposer.take_lease(two)
    assert jobs.claim(two, []) == ("0", 1, JOB)


def test_frozen_transaction_does_not_block_other_hosts(open_database: Open) -> None:
    one, two = start_study(open_database()), open_database()
    began, limit = time.monotonic(), patience(5)
    frozen = one._connection()
    frozen.autocommit = False
    frozen.execute("SELECT 1 FROM dnas_leases FOR UPDATE")
    late = threading.Timer(limit + 1, frozen.close)
    late.start()
    assert proposer.take_lease(two), "the lease is free after the frozen transaction has timed out"
    assert time.monotonic() - began < limit
    late.cancel()
    with pytest.raises(psycopg.Error):
        frozen.execute("SELECT 1")


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD)])
def test_password_may_be_escaped_or_not(server: Server, password: str) -> None:
    name = f"d{uuid.uuid4().hex}"
    server.database(name)
    for url in (
        f"postgresql://owner:{password}@127.0.0.1:{server.port}/{name}",
        f"postgres://127.0.0.1:{server.port}/{name}?user=owner&password={password.replace('@', '%40')}",
    ):
        database = Database(url, "s")
        assert queries.list_studies(database) == []
        assert password not in str(database)
        database.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://owner:SECRET@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("postgresql://owner:SEC@RET:x/y?z#@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("postgresql://owner:SEC%ZZRET@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("postgresql://owner:S%45CRET@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("postgresql://127.0.0.1:{port}/postgres?user=owner&password=SECRET", "password authentication failed"),
        ("postgresql://owner:SECRET@nowhere.invalid/postgres", "nowhere.invalid"),
        ("postgresql://owner:" + PASSWORD + "@127.0.0.1:{port}/missing", 'database "missing" does not exist'),
        ("postgresql://owner:" + PASSWORD + "@127.0.0.1:1/postgres", "cannot reach the database"),
        ("postgresql://owner:SECRET", "is not a valid address"),
        ("postgresql://owner:SECRET@host:port/x", "is not a valid address"),
        ("postgresql://owner:SECRET@host/x?password", "cannot reach the database"),
        ("host=127.0.0.1 password='SEC RET'", "--storage needs postgresql://USER@HOST:PORT/DATABASE"),
        ("sqlite:///SECRET.db", "--storage needs postgresql://USER@HOST:PORT/DATABASE"),
    ],
)
def test_unusable_storage_is_reported_in_one_line_without_the_password(server: Server, url: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError) as error:
        Database(url.format(port=server.port), "s")
    text = str(error.value)
    assert message in text
    assert "\n" not in text
    for part in ("SEC", "CRET", "RET", PASSWORD, "s3cret"):
        assert part not in text
    assert time.monotonic() - began < patience(10)


def test_password_is_removed_from_texts_of_the_database() -> None:
    address = Address("postgresql://me:p@ss:w/o%72d@host/x")
    assert str(address) == "postgresql://me:***@host/x"
    assert address.arguments["password"] == "p@ss:w/ord"
    assert address.arguments["host"] == "host"
    for form in ("p@ss:w/ord", "p%40ss%3Aw/ord", "p%40ss%3Aw%2Ford"):
        assert address.clean(f"no {form}\nhere") == "no ***; here"
    assert address.clean("password=hush") == "password=***"


def test_missing_right_to_create_tables_is_reported_in_one_line(server: Server, url: str) -> None:
    name = url.rpartition("/")[2]
    server.sql(f"CREATE ROLE {name} LOGIN PASSWORD 'guest-word'")
    server.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", name)
    guest = f"postgresql://{name}:guest-word@127.0.0.1:{server.port}/{name}"
    with pytest.raises(InputError, match=r"does not let this user create tables .*GRANT CREATE") as error:
        Database(guest, "s")
    assert "guest-word" not in str(error.value)
    Database(url, "s").close()
    with pytest.raises(InputError, match="permission denied") as error:  # the tables exist already
        queries.list_studies(Database(guest, "s"))
    assert "\n" not in str(error.value)
    server.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}", name)
    assert queries.list_studies(Database(guest, "s")) == []


def test_newer_schema_is_reported_in_one_line(server: Server, url: str) -> None:
    Database(url, "s").close()
    server.sql("UPDATE dnas_schema SET version = 7", url.rpartition("/")[2])
    with pytest.raises(InputError, match=r"tables of another dnas version \(schema 7, this version uses 1\)"):
        Database(url, "s")


def test_error_for_a_missing_study_lists_the_existing_ones(open_database: Open, url: str) -> None:
    start_study(open_database())
    other = Database(url, "t")
    assert str(queries.missing_study(other)).startswith("no study 't' in postgresql://owner:***@127.0.0.1")
    assert "; there are s." in str(queries.missing_study(other))
    other.close()
