"""Outcomes on their way into a durable storage, also where that fails."""

import math
import os
import threading
import time

import pytest
from servers import redis_server
from storages import url_of
from waiting import nothing_left, wait_until

from robust_eval import Callback, Evaluator, ProcessPoolEvaluator, SerialEvaluator, SqliteStorage, Storage
from robust_eval.errors import InvalidArgument, RobustEvalError, StorageError
from robust_eval.evaluators import keeper as keeping
from robust_eval.evaluators.presence import dead_among, identity, lives
from robust_eval.processes.begun import VARIABLE, BegunLog, note_begun, open_begun, read_begun, take_path
from robust_eval.storage.durable import Driver, Outcome


@pytest.fixture
def storage(tmp_path):
    storage = SqliteStorage(tmp_path / "runs.db").connect()
    yield storage
    storage.close()


def double(job):
    return {"objective": 2.0 * job["x"], "metadata": {"f": double, "pair": (1, 2)}}


def big(job):
    return {"objective": job["x"], "metadata": {"long": "x" * 50_000}}


def fill(storage):
    """Let the file not grow any more: every write that needs a page fails as on a full disk."""
    db = storage._open()
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")


def make_room(storage):
    storage._open().execute("PRAGMA max_page_count = 1000000")


@pytest.mark.parametrize("method", ["serial", "process"])
def test_an_outcome_lasts_before_it_is_gathered(method, storage):
    """It is in the storage as soon as it is counted as settled; metadata without an encoding are kept as text."""
    with Evaluator.create(double, method, {"storage": storage}) as evaluator:
        evaluator.submit([{"x": 1}])
        assert storage.load_job("0.0")["in"]["args"] == ({"x": 1},)
        wait_until(lambda: evaluator.stats()["jobs"]["settled"] == 1)
        data = storage.load_job("0.0")
        assert (data["out"], data["metadata"]["pair"]) == (2.0, (1, 2))
        assert data["metadata"]["f"].startswith("<function double")
        (job,) = evaluator.gather("ALL")
        assert job.metadata["pair"] == (1, 2)
        wait_until(lambda: next(storage.load_driver_jobs("0", evaluator._keeper.driver)).gathered is not None)


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_when_a_job_was_gathered_is_in_the_storage(kind, tmp_path):
    """With everything else of it, for whoever reads the search; a job that was not gathered has None there."""
    with url_of(kind, tmp_path) as url:
        with Evaluator.create(double, "serial", {"storage": url}) as evaluator:
            evaluator.submit([{"x": 1}])
            (job,) = evaluator.gather("ALL")
            evaluator.submit([{"x": 2}])
            wait_until(lambda: evaluator.stats()["jobs"]["settled"] == 2)
        storage = Storage.from_url(url).connect()
        try:
            first, second = storage.load_jobs(["0.0", "0.1"]).values()
            assert first["metadata"]["timestamp_gather"] == job.metadata["timestamp_gather"]
            assert second["metadata"]["timestamp_gather"] is None
            assert storage.load_metadata_from_all_jobs("0", "timestamp_gather") == [job.metadata["timestamp_gather"]]
        finally:
            storage.close()


def test_what_a_job_was_comes_back_whole(storage):
    """Failure, observations and what it recorded, too."""

    def run(job):
        job.record(1, 0.5)
        if job["x"]:
            raise ValueError("too large")
        return {"objective": [[1, 2], [0.5, 0.7]], "observations": [[1, 2], [0.5, 0.7]]}

    with Evaluator.create(run, "serial", {"storage": storage}) as evaluator:
        evaluator.submit([{"x": 0}, {"x": 1}])
        wait_until(lambda: evaluator.stats()["jobs"]["settled"] == 2)
    with Evaluator.create(run, "serial", {"storage": storage, "search_id": "0"}) as evaluator:
        evaluator.resume()
        good, bad = sorted(evaluator.gather("ALL"), key=lambda job: job.config["x"])
    assert (good.objective, good.observations, good.recorded) == (0.7, [[1, 2], [0.5, 0.7]], [(1, 0.5)])
    assert (bad.objective, bad.failure.kind, bad.recorded) == ("F", "exception", [(1, 0.5)])
    assert "ValueError: too large" in bad.failure.traceback


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_a_job_in_a_worker_uses_the_storage_of_its_driver(kind, tmp_path):
    """What it stores there itself stays beside its outcome, as in DeepHyper."""

    def run(job):
        assert job.storage.connected
        job.storage.store_job_metadata(job.id, "foo", 0)
        job.storage.store_job(job.id, "mine", [1])
        if job["x"]:
            raise ValueError(job["x"])
        return {"objective": job["x"], "metadata": {"bar": 1}}

    with url_of(kind, tmp_path) as url, Evaluator.create(run, "process", {"storage": url}) as evaluator:
        evaluator.submit([{"x": 0}, {"x": 1}])
        evaluator.gather("ALL")
        good, bad = evaluator.storage.load_search(evaluator.search_id).values()
        assert (good["metadata"]["foo"], good["metadata"]["bar"], good["mine"]) == (0, 1, [1])
        assert (bad["metadata"]["foo"], bad["mine"], bad["failure"]["kind"]) == (0, [1], "exception")


def test_a_configuration_that_cannot_be_stored_is_refused(storage):
    """By name and place; none of its batch is submitted, and the next one is."""
    with Evaluator.create(double, "serial", {"storage": storage}) as evaluator:
        with pytest.raises(InvalidArgument, match=r"configs\[1\]\['f'\]\[0\]=<built-in"):
            evaluator.submit([{"x": 1}, {"x": 2, "f": [print]}])
        assert storage.load_all_job_ids("0") == []
        evaluator.submit([{"x": math.inf}])
        assert evaluator.gather("ALL")[0].failure.kind == "invalid"


def test_a_full_disk_costs_no_outcome(storage):
    """A gather tells it, the next gives all; submit refuses; with room again everything is written."""
    go = threading.Event()

    def run(job):
        go.wait(20)
        return {"objective": job["x"], "metadata": {"long": "x" * 50_000}}

    with Evaluator.create(run, "serial", {"storage": storage}) as evaluator:
        evaluator.submit([{"x": x} for x in range(5)])
        fill(storage)
        go.set()
        with pytest.raises(StorageError, match=r"full.*Free some space.*can be gathered all the same"):
            evaluator.gather("ALL")
        assert sorted(job.objective for job in evaluator.gather("ALL")) == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert len(storage.load_out_from_all_jobs("0")) < 5
        with pytest.raises(StorageError, match="full"):
            evaluator.submit([{"x": "y" * 100_000}])
        make_room(storage)
        wait_until(lambda: len(storage.load_out_from_all_jobs("0")) == 5)
        evaluator.submit([{"x": 5}])
        assert [job.objective for job in evaluator.gather("ALL")] == [5.0]


def test_a_file_that_is_gone_is_told(storage):
    """Moved away or replaced: SQLite would go on in a file that nobody finds. Back in its place, it has everything."""
    go, elsewhere = threading.Event(), storage.path.with_name("elsewhere.db")
    with Evaluator.create(lambda job: go.wait(20) and job["x"], "serial", {"storage": storage}) as evaluator:
        evaluator.submit([{"x": 1}, {"x": 2}])
        storage.path.rename(elsewhere)
        go.set()
        with pytest.raises(StorageError, match=r"deleted, moved or replaced.*can be gathered all the same"):
            evaluator.gather("ALL")
        assert [job.objective for job in evaluator.gather("ALL")] == [1.0, 2.0]
        storage.path.write_text("")
        with pytest.raises(StorageError, match="Put the file back"):
            evaluator.submit([{"x": 3}])
        elsewhere.replace(storage.path)
        wait_until(lambda: evaluator._keeper._error is None)
        assert storage.load_out_from_all_jobs("0") == [1.0, 2.0]


def test_close_without_its_storage_names_no_outcome_that_is_kept(storage):
    """Where only the farewell could not be written, nothing is called lost."""
    evaluator = Evaluator.create(double, "serial", {"storage": storage})
    evaluator.submit([{"x": 1}])
    assert len(evaluator.gather("ALL")) == 1
    wait_until(lambda: not evaluator._keeper._gathered)
    storage.path.unlink()
    with pytest.raises(StorageError, match=r"with another one\.$"):
        evaluator.close()


def test_close_tells_what_could_not_be_written(storage):
    """It closes all the same, the outcomes can be gathered, and are written then if there is room again."""
    go = threading.Event()
    evaluator = Evaluator.create(lambda job: go.wait(20) and big(job), "serial", {"storage": storage})
    evaluator.submit([{"x": x} for x in range(3)])
    fill(storage)
    go.set()
    wait_until(lambda: evaluator.stats()["jobs"]["settled"] == 3)
    with pytest.raises(StorageError, match=r"outcome\(s\) could not be stored: gather and dump them now"):
        evaluator.close()
    evaluator.close()
    assert len(evaluator.gather("BATCH", 1)) == 3
    assert len(storage.load_out_from_all_jobs("0")) < 3
    make_room(storage)
    assert evaluator.gather("ALL") == []
    assert len(storage.load_out_from_all_jobs("0")) == 3


def test_a_storage_that_breaks_in_a_way_of_its_own_costs_no_outcome(storage, monkeypatch):
    """Whatever it raises."""
    with Evaluator.create(double, "serial", {"storage": storage}) as evaluator:
        monkeypatch.setattr(storage, "write", lambda *_: 1 / 0)
        evaluator.submit([{"x": 1}])
        with pytest.raises(StorageError, match="ZeroDivisionError"):
            evaluator.gather("ALL")
        assert len(evaluator.gather("ALL")) == 1
        monkeypatch.undo()


def test_who_delivers_waits_while_too_much_is_unwritten(storage, monkeypatch):
    """A storage that is slower than the jobs slows them down; memory does not grow without bound."""
    monkeypatch.setattr(keeping, "_MOST_WAITING", 4)
    written, go = [], threading.Event()
    write = SqliteStorage.write

    def slow(self, driver, outcomes, gathered):
        go.wait(20)
        written.append(len(outcomes))
        write(self, driver, outcomes, gathered)

    monkeypatch.setattr(SqliteStorage, "write", slow)
    ran = []
    with Evaluator.create(
        lambda job: ran.append(1) or 1, "thread", {"storage": storage, "num_workers": 2}
    ) as evaluator:
        evaluator.submit([{"x": x} for x in range(50)])
        wait_until(lambda: len(ran) >= 6)
        keeper = evaluator._keeper
        wait_until(lambda: len(keeper._arrived) >= 4)
        assert len(ran) <= 4 + 4 + 2 * 2
        go.set()
        assert len(evaluator.gather("ALL")) == 50


class Own(SerialEvaluator):
    async def execute(self, job):
        job.set_output(job.config["x"])
        return job


class OverProcess(ProcessPoolEvaluator):
    async def execute(self, job):
        job = await super().execute(job)
        job.metadata["more"] = True
        return job


@pytest.mark.parametrize("kind", [Own, OverProcess])
def test_an_execute_of_ones_own_is_kept_too(kind, storage):
    """As it settles, with what the override added."""
    with kind(lambda job: job["x"], storage=storage) as evaluator:
        evaluator.submit([{"x": 1}, {"x": 2}])
        wait_until(lambda: evaluator.stats()["jobs"]["settled"] == 2)
        assert storage.load_out_from_all_jobs("0") == [1.0, 2.0]
        assert len(evaluator.gather("ALL")) == 2
    assert storage.load_metadata_from_all_jobs("0", "more") == ([True, True] if kind is OverProcess else [])


def test_nothing_is_left_of_an_evaluator(tmp_path):
    """Neither a thread's descriptor nor the log of what began; dropped or closed."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    with nothing_left():
        with Evaluator.create(double, "serial", {"storage": url}) as evaluator:
            evaluator.submit([{"x": 1}])
            evaluator.gather("ALL")
        evaluator.storage.close()
        evaluator = Evaluator.create(double, "serial", {"storage": url})
        storage = evaluator.storage
        del evaluator
        wait_until(lambda: all(each.gone for search in "01" for each in storage.load_drivers(search)))
        storage.close()
    assert not list(tmp_path.glob("*-begun-*"))


# -- others


class Heard(Callback):
    def __init__(self):
        self.own, self.others = [], []

    def on_done(self, job):
        self.own.append(job.id)

    def on_done_other(self, job):
        self.others.append((job.id, job.objective, job.failure and job.failure.kind))


@pytest.mark.parametrize("kind", ["memory", "redis", "sqlite"])
def test_evaluators_of_one_search_see_each_other(kind, tmp_path):
    """Each job is own in one and other in the rest, once, as in DeepHyper; gather gives only one's own."""
    with url_of(kind, tmp_path) as url:
        storage = Storage.from_url(url).connect()
        heard = [Heard(), Heard()]
        pair = [
            SerialEvaluator(lambda job: 1 / job["x"], callbacks=[each], storage=storage, search_id=search_id)
            for each, search_id in zip(heard, (None, "0"), strict=True)
        ]
        pair[0].submit([{"x": 1}, {"x": 0}])
        assert [job.id for job in pair[0].gather("ALL")] == ["0.0", "0.1"]
        pair[1].submit([{"x": 2}])
        assert [job.id for job in pair[1].gather("ALL")] == ["0.2"]
        assert heard[1].others == [("0.0", 1.0, None), ("0.1", "F", "exception")]
        assert [job.config["x"] for job in pair[1].gather_other_jobs_done()] == [1, 0]
        assert pair[1].gather_other_jobs_done() == []
        assert [(job.id, job.objective) for job in pair[0].gather_other_jobs_done()] == [("0.2", 0.5)]
        assert heard[0].others == [("0.2", 0.5, None)]
        assert (heard[0].own, heard[1].own) == (["0.0", "0.1"], ["0.2"])
        assert len(pair[0].jobs_done) == len(pair[1].jobs_done) == 3
        for each in pair:
            each.close()
        if kind != "memory":
            storage.close()


# -- a server


def test_a_dropped_connection_is_made_anew(tmp_path):
    """Nobody notices."""
    with redis_server(tmp_path) as server, Evaluator.create(double, "serial", {"storage": server.url}) as evaluator:
        for x in range(5):
            evaluator.submit([{"x": x}])
            server.drop_connections()
            assert [job.objective for job in evaluator.gather("ALL")] == [2.0 * x]
            server.drop_connections()
        assert len(evaluator.storage.load_out_from_all_jobs("0")) == 5


def test_a_server_that_dies_costs_no_outcome(tmp_path):
    """The search goes on without it and is written when it is back."""
    with redis_server(tmp_path) as server:
        go = threading.Event()
        with Evaluator.create(lambda job: go.wait(20) and job["x"], "serial", {"storage": server.url}) as evaluator:
            evaluator.submit([{"x": 1}, {"x": 2}])
            server.stop()
            go.set()
            with pytest.raises(StorageError, match="No Redis server answers"):
                evaluator.gather("ALL")
            assert [job.objective for job in evaluator.gather("ALL")] == [1.0, 2.0]
            server.start()
            wait_until(lambda: evaluator._keeper._error is None)
            assert evaluator.storage.load_out_from_all_jobs("0") == [1.0, 2.0]


def test_a_server_that_forgot_the_search_is_told(tmp_path):
    """Restarted without its data it would take outcomes and keep none: the driver hears of it, with all outcomes."""
    with redis_server(tmp_path) as server:
        go = threading.Event()
        evaluator = Evaluator.create(lambda job: go.wait(20) and job["x"], "serial", {"storage": server.url})
        evaluator.submit([{"x": 1}, {"x": 2}])
        server.admin.flushall()
        go.set()
        with pytest.raises(StorageError, match=r"has lost data of search 0.*--appendonly yes"):
            evaluator.gather("ALL")
        assert [job.objective for job in evaluator.gather("ALL")] == [1.0, 2.0]
        Storage.from_url(server.url).connect().create_new_search()
        with pytest.raises(StorageError, match="has lost data of search 0"):
            evaluator.submit([{"x": 3}])
        with pytest.raises(StorageError, match=r"2 outcome\(s\) could not be stored"):
            evaluator.close()
        assert server.admin.keys("robust_eval:job:*") == []


def test_a_server_that_lost_some_jobs_is_told(tmp_path):
    """An older copy of its data has the search and not the jobs: their outcomes and marks are not dropped silently."""
    with redis_server(tmp_path) as server:
        storage = Storage.from_url(server.url).connect()
        search = storage.create_new_search()
        driver = storage.join(search, identity())
        (job_id,) = storage.create_driver_jobs(search, driver, ['{"x":1}'])
        server.admin.delete(f"robust_eval:job:{job_id}")
        with pytest.raises(StorageError, match="has lost data"):
            storage.write(driver, [Outcome(job_id, "1.0", "{}")], [])
        with pytest.raises(StorageError, match="has lost data"):
            storage.write(driver, [], [(job_id, 1.0)])
        storage.close()


def test_redis_py_is_asked_for_by_name(monkeypatch):
    """Where it is not installed, the name can be imported all the same."""
    monkeypatch.setattr("robust_eval.storage.redis.redis", None)
    with pytest.raises(RobustEvalError, match=r"pip install 'robust-eval\[redis\]'"):
        Storage.from_url("redis://localhost")


def test_no_server_is_told_clearly():
    """With the address, without the password, and with what to do."""
    with pytest.raises(
        StorageError, match=r"No Redis server answers at redis://\.\.\.@127.0.0.1:1/0.*redis-server"
    ) as caught:
        Storage.from_url("redis://me:secret@127.0.0.1:1/0").connect()
    assert "secret" not in str(caught.value)
    with pytest.raises(StorageError, match=r"at unix:///no\.sock\?password=\.\.\.&db=1: ") as caught:
        Storage.from_url("unix:///no.sock?password=secret&db=1").connect()
    assert "secret" not in str(caught.value)


def test_a_password_that_is_wrong_is_no_missing_server(tmp_path):
    """The server refuses, and the message says so."""
    with redis_server(tmp_path) as server, pytest.raises(StorageError, match=r"refuses: .*Correct the URL"):
        Storage.from_url(server.url.replace("//", "//me:secret@")).connect()


def test_a_url_that_redis_would_misread_is_refused():
    """A database that is no number would silently be number 0."""
    for url in ("redis://localhost/runs", "redis://localhost:port/0", "redis://localhost:0/0"):
        with pytest.raises(InvalidArgument, match=r"no URL of a Redis server.*redis://user:password@host:6379/0"):
            Storage.from_url(url)


# -- who lives


def test_a_process_is_known_by_more_than_its_number():
    """This one lives; its number with another start does not; of another machine nothing is known."""
    me = identity()
    assert lives(me) is True
    assert lives({**me, "started": me["started"] - 1}) is False
    assert lives({**me, "pid": 2**22 + 1}) is False
    assert lives({**me, "boot": "another"}) is None
    child = os.fork()
    if not child:
        os._exit(0)
    wait_until(lambda: lives({**me, "pid": child, "started": me["started"]}) is False)
    os.waitpid(child, 0)


def test_a_driver_elsewhere_lives_as_long_as_its_heart_beats():
    """By the clock of the one who looks; a silent one is dead after the lease, one that left at once."""
    elsewhere = {**identity(), "boot": "another"}
    beats = iter(range(1000))

    def load():
        return [
            Driver("1", elsewhere, next(beats), gone=False),
            Driver("2", elsewhere, 7, gone=False),
            Driver("3", elsewhere, 7, gone=True),
            Driver("4", identity(), 0, gone=False),
            Driver("5", identity(), 0, gone=False),
        ]

    begun_at = time.monotonic()
    assert {driver.id for driver in dead_among(load, "5", lease_s=1.2)} == {"2", "3"}
    assert time.monotonic() - begun_at >= 1.2


def test_the_log_tells_what_began(tmp_path):
    """Also where its last record is torn; a log that is not there tells nothing."""
    log = BegunLog(tmp_path / "log")
    log.expect([(0, 10), (1, 11), (2, 12)])
    log.note(20)
    with (tmp_path / "log").open("ab") as file:
        file.write(b"torn")
    assert read_begun(tmp_path / "log") == {20}
    log.close()
    log.close()  # free to be called again
    assert read_begun(tmp_path / "log") == set()


def test_a_worker_notes_what_it_begins(tmp_path, monkeypatch):
    """Its children, who inherit its environment, have no log; nor has a worker whose log cannot be opened."""
    log = BegunLog(tmp_path / "log")
    log.expect([(0, 10), (1, 11)])
    monkeypatch.setenv(VARIABLE, str(tmp_path / "log"))
    fd = open_begun(take_path())
    note_begun(fd, 1)
    os.close(fd)
    assert open_begun(take_path()) == -1
    note_begun(-1, 0)
    assert read_begun(tmp_path / "log") == {11}
    log.close()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "log"))
    assert open_begun(take_path()) == -1


def test_a_name_that_is_not_there():
    """The lazy package says so as any other."""
    with pytest.raises(ImportError, match="PaperStorage"):
        from robust_eval.storage import PaperStorage  # noqa: F401


def test_an_evaluator_without_its_storage_does_not_begin(tmp_path):
    """A path that cannot be is told before anything runs."""
    with pytest.raises(InvalidArgument, match="there is no directory"):
        Evaluator.create(double, "serial", {"storage": f"sqlite:///{tmp_path}/no/runs.db"})
    (tmp_path / "text").write_text("this is no database " * 100)
    with pytest.raises(StorageError, match="choose another path"):
        Evaluator.create(double, "serial", {"storage": f"sqlite:///{tmp_path}/text"})
    for url in ("sqlite://runs.db", "sqlite:///", "mysql://x/y", "memory", "redis://"):
        with pytest.raises(InvalidArgument, match=r"sqlite:///runs\.db"):
            Evaluator.create(double, "serial", {"storage": url})
    with pytest.raises(InvalidArgument, match=r"runs\.db\?mode=ro.*Leave them out"):
        Storage.from_url("sqlite:///runs.db?mode=ro")
    with pytest.raises(TypeError, match=r"storage=None is no URL"):
        Storage.from_url(None)
    with pytest.raises(RobustEvalError, match="no file"):
        Storage.from_url("sqlite:///:memory:")
