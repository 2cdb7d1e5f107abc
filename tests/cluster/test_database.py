"""What a database promises to several hosts: one proposer, one worker a job, no time but its own, no password shown."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from dnas.cluster.address import Address
from dnas.cluster.database import Storage
from dnas.cluster.executor import PostgresExecutor
from dnas.errors import InputError
from dnas.executors.lease import LeaseLost
from tests.support.patience import patience
from tests.support.postgres import PASSWORD, Server

JOB = {"spec": {"k": 1}, "recipe": {"epochs": 3}, "seed": [0, 0], "final": False, "recompute": False}
Open = Callable[..., Storage]


@pytest.fixture
def database(server: Server) -> str:
    return server.database(f"d{uuid.uuid4().hex}")


@pytest.fixture
def open_storage(database: str) -> Iterator[Open]:
    """Opens the study `s` as one more host; `expiry_seconds` is short."""
    opened: list[Storage] = []

    def open_one(expiry_seconds: float = 1.0, **changes: Any) -> Storage:
        opened.append(Storage(database, "s", expiry_seconds=expiry_seconds, **changes))
        return opened[-1]

    yield open_one
    for storage in opened:
        storage.close()


def begun(storage: Storage) -> Storage:
    storage.create("id", "config")
    assert storage.take_lease()
    return storage


def pass_time(seconds: float, *alive: Storage) -> None:
    """Lets time pass, in which these are heard."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for storage in alive:
            storage.beat(1)
        time.sleep(0.05)


# --- the proposer's lease -----------------------------------------------------------------------------------------


def test_one_host_proposes_until_its_lease_runs_out(open_storage: Open) -> None:
    one, two = begun(open_storage()), open_storage()
    assert one.take_lease()
    pass_time(1.5, one, two)
    assert not two.take_lease(), "a lease that is kept alive stays"
    pass_time(1.2, two)
    assert two.take_lease()
    assert not one.beat(1).proposes
    assert not one.take_lease()


def test_who_lost_the_lease_writes_nothing(open_storage: Open) -> None:
    one, two = begun(open_storage()), open_storage()
    one.append(0, {"event": "a"})
    pass_time(1.2, two)
    assert two.take_lease()
    before = two.events()
    for write in (
        lambda: one.append(1, {"event": "b"}),
        lambda: one.write_record("trials/0/record.json", "{}", None),
        lambda: one.write_config("other"),
        lambda: one.start_job("0", 1, JOB, afresh=False),
        lambda: one.answer("0", 1, 1, True, 1),
        lambda: one.drop_jobs(["0"]),
        lambda: one.finish("complete"),
        lambda: one.expire(),
    ):
        with pytest.raises(LeaseLost, match="another host proposes for study s"):
            write()
    assert (two.events(), two.records(), two.read()) == (before, {}, ("id", "config", None))


def test_an_event_stands_once_even_where_its_commit_was_not_heard_of(
    open_storage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    one = begun(open_storage(note=notes.append))
    real, left = psycopg.Transaction.__exit__, [2]

    def dies_after_the_commit(self: Any, *error: Any) -> Any:
        result = real(self, *error)
        if left[0] and error == (None, None, None):
            left[0] -= 1
            self.connection.close()
            raise psycopg.OperationalError("the connection is lost")
        return result

    monkeypatch.setattr(psycopg.Transaction, "__exit__", dies_after_the_commit)
    line = one.append(0, {"event": "a"})
    assert left == [0]
    assert one.events() == [line]
    assert json.loads(line)["event"] == "a"
    assert [note.split(" (")[0] for note in notes] == [
        "the database does not answer; waiting",
        "the database is back",
    ]


def test_two_proposers_never_both_write_the_same_event(open_storage: Open) -> None:
    one = begun(open_storage())
    one.append(0, {"event": "a"})
    with pytest.raises(LeaseLost, match="another host has written event 0"):
        one.append(0, {"event": "b"})


def test_a_study_that_is_done_has_no_proposer(open_storage: Open) -> None:
    one, two = begun(open_storage()), open_storage()
    one.finish("complete")
    one.release_lease()
    assert not two.take_lease()
    assert two.beat(1).done == "complete"
    two.reopen("more")
    assert two.take_lease()


# --- the database's time ------------------------------------------------------------------------------------------


def test_no_clock_of_a_host_is_asked(open_storage: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    one = begun(open_storage())
    year = time.gmtime(one.clock()).tm_year
    assert year > 2020
    assert one.now().startswith(f"{year}-")
    assert json.loads(one.append(0, {"event": "a"}))["time"].startswith(f"{year}-")


def test_leases_that_ran_out_while_the_database_was_down_are_not_dead(server: Server, open_storage: Open) -> None:
    one, two = begun(open_storage(2.0)), open_storage(2.0)
    one.start_job("0", 1, JOB, afresh=False)
    assert one.claim([]) is not None
    server.kill()
    time.sleep(2.1)
    server.start()
    fresh = open_storage(2.0)
    assert not fresh.take_lease(), "not even by who came after it was up again"
    assert not two.take_lease()
    assert one.beat(1).proposes
    assert one.expire() == []
    assert one.beat(1).jobs == {"0": 1}


def test_a_break_of_everybody_kills_nobody_and_ends(open_storage: Open) -> None:
    one, two = begun(open_storage()), open_storage()
    time.sleep(1.2)
    assert not two.take_lease(), "a database that nobody reached looks like this"
    pass_time(0.5, two)
    assert not two.take_lease()
    pass_time(0.8, two)
    assert two.take_lease()
    assert not one.beat(1).proposes


def test_who_was_cut_off_itself_declares_nobody_dead(open_storage: Open) -> None:
    one, two, three = begun(open_storage()), open_storage(), open_storage()
    pass_time(1.2, three)
    two._fail(psycopg.OperationalError("cut off"), lost=True)
    assert not two.take_lease()
    pass_time(1.1, three)
    assert two.take_lease()
    assert not one.beat(1).proposes


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_a_job_is_claimed_once_in_the_order_of_the_queue(open_storage: Open) -> None:
    one, two = begun(open_storage()), open_storage()
    for key in ("3", "1", "2"):
        one.start_job(key, 1, JOB, afresh=False)
    taken = [host.claim(known) for host, known in ((one, []), (two, []), (one, ["3"]))]
    assert [job and job[0] for job in taken] == ["3", "1", "2"]
    assert two.claim(["1"]) is None
    assert two.claim([]) == ("1", 1, JOB), "its own, whose claim it did not hear of"


def test_a_vanished_workers_jobs_are_lost_and_it_can_say_nothing_more(open_storage: Open) -> None:
    one, two = begun(open_storage()), open_storage()
    one.start_job("0", 1, JOB, afresh=False)
    assert two.claim([]) is not None
    two.say("0", 1, "epoch", {"epoch": 1})
    pass_time(0.5, one)
    assert one.expire() == []
    pass_time(0.7, one)
    assert [(key, attempt) for key, attempt, _ in one.expire()] == [("0", 1)]
    assert one.said() == [], "what it said goes with its job"
    one.start_job("0", 2, JOB, afresh=True)
    with pytest.raises(LeaseLost, match="job 0 of study s is another's"):
        two.say("0", 1, "epoch", {"epoch": 2}, checkpoint=(3, 2, "late.pt", 0.1))
    assert not two.holds("0", 1)
    assert two.beat(1).jobs == {}
    assert one.checkpoint("0", 3) is None


def test_a_new_proposer_adopts_the_same_training_and_replaces_another(open_storage: Open) -> None:
    one, two = begun(open_storage()), open_storage()
    one.start_job("0", 1, JOB, afresh=False)
    two.claim([])
    two.say("0", 1, "epoch", {"epoch": 1})
    assert one.start_job("0", 2, JOB, afresh=False) == 1, "it goes on under the attempt that it has"
    assert [said.kind for said in one.said()] == ["epoch"], "and what it said is heard"
    assert one.start_job("0", 3, JOB | {"recompute": True}, afresh=False) == 3
    assert one.said() == []
    assert two.held() == {}


def test_a_new_proposer_adopts_every_training_under_way(open_storage: Open) -> None:
    """Its host takes one, and has one; the other is a dead host's, and comes first. Were that alone adopted, it would
    wait for the slot of a training that nobody answers."""
    one, two = begun(open_storage()), open_storage()
    for key, claimer in (("0", one), ("1", two)):
        one.start_job(key, 1, JOB, afresh=False)
        assert claimer.claim([]) == (key, 1, JOB)
    pass_time(1.2, two)
    assert two.take_lease()
    assert two.slots() == 1
    assert PostgresExecutor(two).workers == 2
    two.drop_jobs(["0", "1"])
    assert PostgresExecutor(two).workers == 1


def test_a_record_of_an_end_and_the_end_of_its_job_are_one_step(open_storage: Open) -> None:
    one, two = begun(open_storage()), open_storage()
    one.start_job("0", 1, JOB, afresh=False)
    two.claim([])
    two.say("0", 1, "done", {}, ends=True, result="trials/0/x")
    one.write_record("trials/0/record.json", "{}", "0")
    assert one.said() == []
    assert one.start_job("0", 2, JOB, afresh=False) == 2, "nothing old is adopted"
    assert one.results() == {"0": "trials/0/x"}


def test_the_last_and_the_best_checkpoint_stay(open_storage: Open) -> None:
    one = begun(open_storage(20.0))
    one.start_job("0", 1, JOB, afresh=False)
    one.claim([])
    stale = [
        one.say("0", 1, "epoch", {}, checkpoint=(9, epoch, f"{epoch}.pt", error))
        for epoch, error in ((1, 0.5), (2, 0.2), (3, 0.4), (4, 0.3))
    ]
    assert stale == [[], ["1.pt"], [], ["3.pt"]]
    assert one.checkpoint("0", 9) == (4, "4.pt")
    assert one.checkpoint("0", 12) is None, "a longer training has another schedule"
    assert sorted(one.say("0", 1, "done", {}, ends=True, finished=True)) == ["2.pt", "4.pt"]


def test_leaving_gives_everything_back_at_once(open_storage: Open) -> None:
    one, two = begun(open_storage(20.0)), open_storage(20.0)
    one.beat(2)
    two.beat(3)
    assert two.slots() == 5
    one.start_job("0", 1, JOB, afresh=False)
    one.claim([])
    one.leave()
    assert two.slots() == 3
    assert two.take_lease()
    assert two.claim([]) == ("0", 1, JOB)


def test_a_frozen_transaction_does_not_hold_the_others_up(open_storage: Open) -> None:
    one, two = begun(open_storage()), open_storage()
    began, limit = time.monotonic(), patience(5)
    frozen = one._connection()
    frozen.autocommit = False
    frozen.execute("SELECT 1 FROM dnas_leases FOR UPDATE")
    late = threading.Timer(limit + 1, frozen.close)
    late.start()
    assert two.take_lease(), "as soon as the frozen one's time is over"
    assert time.monotonic() - began < limit
    late.cancel()
    with pytest.raises(psycopg.Error):
        frozen.execute("SELECT 1")


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD)])
def test_a_password_may_be_escaped_or_not(server: Server, word: str) -> None:
    name = f"d{uuid.uuid4().hex}"
    server.database(name)
    for url in (
        f"postgresql://owner:{word}@127.0.0.1:{server.port}/{name}",
        f"postgres://127.0.0.1:{server.port}/{name}?user=owner&password={word.replace('@', '%40')}",
    ):
        storage = Storage(url, "s")
        assert storage.studies() == []
        assert word not in str(storage)
        storage.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://owner:SECRET@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("postgresql://owner:SEC@RET:x/y?z#@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("postgresql://owner:SEC%ZZRET@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("postgresql://owner:S%45CRET@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("postgresql://127.0.0.1:{port}/postgres?user=owner&password=SECRET", "password authentication failed"),
        ("postgresql://owner:SECRET@nowhere.invalid/postgres", "nowhere.invalid"),
        ("postgresql://owner:" + PASSWORD + "@127.0.0.1:{port}/missing", 'database "missing" does not exist'),
        ("postgresql://owner:" + PASSWORD + "@127.0.0.1:1/postgres", "can't be reached"),
        ("postgresql://owner:SECRET", "can't be read as that"),
        ("postgresql://owner:SECRET@host:port/x", "can't be read as that"),
        ("postgresql://owner:SECRET@host/x?password", "can't be reached"),
        ("host=127.0.0.1 password='SEC RET'", "a storage is postgresql://USER@HOST:PORT/DATABASE"),
        ("sqlite:///SECRET.db", "a storage is postgresql://USER@HOST:PORT/DATABASE"),
    ],
)
def test_a_storage_that_can_not_be_used_is_one_line_without_the_password(server: Server, url: str, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError) as error:
        Storage(url.format(port=server.port), "s")
    text = str(error.value)
    assert says in text
    assert "\n" not in text
    for part in ("SEC", "CRET", "RET", PASSWORD, "s3cret"):
        assert part not in text
    assert time.monotonic() - began < patience(10)


def test_texts_of_the_database_lose_the_password() -> None:
    address = Address("postgresql://me:p@ss:w/o%72d@host/x")
    assert str(address) == "postgresql://me:***@host/x"
    assert address.arguments["password"] == "p@ss:w/ord"
    assert address.arguments["host"] == "host"
    for form in ("p@ss:w/ord", "p%40ss%3Aw/ord", "p%40ss%3Aw%2Ford"):
        assert address.clean(f"no {form}\nhere") == "no ***; here"
    assert address.clean("password=hush") == "password=***"


def test_a_database_without_the_right_to_create_tables_is_one_line(server: Server, database: str) -> None:
    name = database.rpartition("/")[2]
    server.sql(f"CREATE ROLE {name} LOGIN PASSWORD 'guest-word'")
    server.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", name)
    guest = f"postgresql://{name}:guest-word@127.0.0.1:{server.port}/{name}"
    with pytest.raises(InputError, match=r"does not let this user create tables .*GRANT CREATE") as error:
        Storage(guest, "s")
    assert "guest-word" not in str(error.value)
    Storage(database, "s").close()
    with pytest.raises(InputError, match="permission denied") as error:  # tables are there, but not for it
        Storage(guest, "s").studies()
    assert "\n" not in str(error.value)
    server.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}", name)
    assert Storage(guest, "s").studies() == []


def test_a_newer_schema_is_one_line(server: Server, database: str) -> None:
    Storage(database, "s").close()
    server.sql("UPDATE dnas_schema SET version = 7", database.rpartition("/")[2])
    with pytest.raises(InputError, match=r"tables of another dnas \(version 7, this one knows 1\)"):
        Storage(database, "s")


def test_a_study_that_is_not_there_names_those_that_are(open_storage: Open, database: str) -> None:
    begun(open_storage())
    other = Storage(database, "t")
    assert str(other.missing()).startswith("no study 't' in postgresql://owner:***@127.0.0.1")
    assert "; there are s." in str(other.missing())
    other.close()
