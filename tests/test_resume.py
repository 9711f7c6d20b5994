"""What a driver leaves, and what the next one makes of it."""

import signal
import threading

import pandas as pd
import pytest
from drivers import driver, hear
from storages import url_of
from waiting import wait_until

from robust_eval import Evaluator, SqliteStorage
from robust_eval.errors import EvaluatorClosed, InvalidArgument

# The first half of the search ends, the second half hangs until the driver is killed.
HANGS = """
def run(job):
    if job["x"] >= 3:
        tell(hangs=job["x"])
        time.sleep(60)
    return {"objective": job["x"], "metadata": {"what": run}}

evaluator = Evaluator.create(run, METHOD, {"num_workers": 2, "storage": URL, "log_dir": LOGS})
evaluator.submit([{"x": x} for x in range(6)])
evaluator.gather("BATCH", 1)
evaluator.dump_evals()
while evaluator.stats()["jobs"]["settled"] < 3:
    time.sleep(0.01)
tell(gathered=evaluator.num_jobs_gathered)
sys.stdin.read()
"""


def settings(method, url):
    return (
        HANGS.replace("METHOD", repr(method)).replace("URL", repr(url)).replace('"log_dir": LOGS', '"max_attempts": 2')
    )


def double(job):
    return 2.0 * job["x"]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'runs.db'}"


def resumed(run, url, method="thread", **kwargs):
    return Evaluator.create(run, method, {"num_workers": 2, "storage": url, "search_id": "0", **kwargs})


@pytest.mark.parametrize(("method", "kind"), [("process", "sqlite"), ("thread", "redis")])
def test_a_killed_driver_loses_nothing_and_repeats_nothing(method, kind, tmp_path):
    """What had settled is not run again; gather gives what was never gathered, and the CSV file becomes whole."""
    with url_of(kind, tmp_path) as url:
        with driver(tmp_path, settings(method, url)) as first:
            gathered = next(words["gathered"] for words in iter(lambda: hear(first), None) if "gathered" in words)
            first.kill()
        ran = []

        def run(job):
            ran.append(job["x"])
            return 2.0 * job["x"]

        with resumed(run, url) as evaluator:
            found = evaluator.resume()
            assert (found.again, found.lost, found.settled + found.gathered) == (3, 0, 3)
            # The mark of a job that was gathered a moment before the kill may be missing: it is given once more.
            assert found.gathered <= gathered
            assert len(evaluator.gather("ALL")) == 6 - found.gathered
            evaluator.dump_evals(log_dir=tmp_path)
            by_x = {job.config["x"]: job for job in evaluator.jobs}
            assert [by_x[x].objective for x in range(6)] == [0.0, 1.0, 2.0, 6.0, 8.0, 10.0]
            assert "function run" in by_x[0].metadata["what"]
            assert sorted(ran) == [3, 4, 5]
            rows = pd.read_csv(tmp_path / "results.csv")
            assert sorted(rows["p:x"]) == list(range(6))
            assert rows["m:timestamp_gather"].notna().all()
            assert not (tmp_path / "results.csv.1").exists()


def test_a_driver_that_died_before_its_dump_has_its_rows_all_the_same(url, tmp_path):
    """What was gathered and not dumped is in the first dump after the resume, what was dumped is not there twice."""
    script = f"""
evaluator = Evaluator.create(lambda job: job["x"], "serial", {{"storage": {url!r}}})
evaluator.submit([{{"x": 0}}]); evaluator.gather("ALL"); evaluator.dump_evals()
evaluator.submit([{{"x": 1}}]); evaluator.gather("ALL")
evaluator.close()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with driver(tmp_path, script) as first:
        assert first.wait() == -signal.SIGKILL
    with resumed(double, url) as evaluator:
        assert evaluator.resume().gathered == 2
        evaluator.submit([{"x": 2}])
        assert [job.objective for job in evaluator.gather("ALL")] == [4.0]
        evaluator.dump_evals(log_dir=tmp_path)
    assert list(pd.read_csv(tmp_path / "results.csv")["p:x"]) == [0, 1, 2]


@pytest.mark.parametrize("method", ["process", "serial"])
def test_a_job_that_kills_its_driver_is_lost_after_max_attempts(method, url, tmp_path):
    """It is known exactly which jobs had begun, so its neighbours in the queue are never blamed."""
    script = f"""
def run(job, driver):
    if job["x"] == 0:
        os.kill(driver, signal.SIGKILL)
        time.sleep(60)
    return job["x"]

storage = Storage.from_url({url!r}).connect()
search_id = (storage.load_all_search_ids() or [None])[0]
kwargs = {{"storage": storage, "search_id": search_id, "max_attempts": 2}}
kwargs["run_function_kwargs"] = {{"driver": os.getpid()}}
evaluator = Evaluator.create(run, {method!r}, kwargs)
found = evaluator.resume()
evaluator.submit([{{"x": x}} for x in range(4)], skip_done=True)
jobs = evaluator.gather("ALL")
tell(lost=found.lost, kinds=sorted((job.config["x"], job.failure and job.failure.kind) for job in evaluator.jobs))
evaluator.close()
"""
    for _ in range(2):
        with driver(tmp_path, script) as one:
            assert one.wait() == -signal.SIGKILL
    with driver(tmp_path, script) as last:
        assert hear(last) == {"lost": 1, "kinds": [[0, "lost"], [1, None], [2, None], [3, None]]}
        last.wait()
    storage = SqliteStorage(tmp_path / "runs.db").connect()
    failure = storage.load_job("0.0")["failure"]
    assert (failure["kind"], failure["lost"], failure["attempts"]) == ("lost", "driver", 2)
    storage.close()
    assert not list(tmp_path.glob("*-begun-*"))


def test_what_close_cancelled_is_left_for_resume(url):
    """Neither an outcome nor an attempt; but who gathered a cancelled job has had its outcome."""
    begun, end = threading.Event(), threading.Event()

    def hang(job):
        begun.set()
        end.wait(20)

    with Evaluator.create(hang, "serial", {"storage": url, "max_attempts": 1}) as evaluator:
        evaluator.submit([{"x": 0}, {"x": 1}])
        assert begun.wait(20)
    with resumed(double, url, max_attempts=1) as evaluator:
        assert evaluator.resume() == (2, 0, 0, 0)
        evaluator.close()
        kinds = {job.failure.kind if job.failure else None for job in evaluator.gather("ALL")}
        assert kinds <= {None, "cancelled"}
    with resumed(double, url) as evaluator:
        assert evaluator.resume() == (0, 0, 0, 2)
    end.set()


def test_jobs_of_a_living_driver_stay_with_it(url, tmp_path):
    """Two drivers on one search take different jobs, and both find all results."""
    with driver(tmp_path, settings("thread", url)) as first:
        assert hear(first)
        with resumed(double, url) as evaluator:
            assert evaluator.resume() == (0, 0, 0, 0)
            assert evaluator.gather("ALL") == []
            evaluator.submit([{"x": 10}])
            assert [job.config for job in evaluator.gather("ALL")] == [{"x": 10}]
            assert [job.id for job in evaluator.jobs] == ["0.6"]


def test_of_two_that_resume_only_one_gets_the_jobs(url, tmp_path):
    """However close together they ask."""
    with driver(tmp_path, settings("thread", url)) as first:
        wait_until(lambda: "gathered" in hear(first))
        first.kill()
    evaluators = [resumed(double, url) for _ in range(4)]
    found = []
    threads = [threading.Thread(target=lambda each=each: found.append(each.resume())) for each in evaluators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.again for each in found) == [0, 0, 0, 3]
    assert sum(map(sum, found)) == 6
    for each in evaluators:
        each.close()


def test_limits_are_given_to_what_runs_again(url):
    """A resumed job has the limits of the resume, as a submitted one those of its submit."""
    with Evaluator.create(double, "serial", {"storage": url}) as evaluator:
        evaluator._storage.create_driver_jobs("0", evaluator._keeper.driver, ['{"x":1}'])
        evaluator._storage.store_job_out("0.0", 7.0)  # as a job may that is then cut short
    with resumed(double, url, "process") as evaluator:
        with pytest.raises(InvalidArgument, match="job_timeout"):
            evaluator.resume(job_timeout=-1)
        assert evaluator.resume(job_timeout=20).again == 1
        assert evaluator.gather("ALL")[0].objective == 2.0


def test_resume_needs_a_storage_that_lasts(url):
    """The refusal says which one to take; a closed evaluator refuses, too."""
    with Evaluator.create(double) as evaluator, pytest.raises(InvalidArgument, match=r"sqlite:///runs\.db"):
        evaluator.resume()
    evaluator = Evaluator.create(double, "serial", {"storage": url})
    evaluator.close()
    with pytest.raises(EvaluatorClosed):
        evaluator.resume()
    with pytest.raises(InvalidArgument, match="max_attempts=0"):
        Evaluator.create(double, "serial", {"storage": url, "max_attempts": 0})


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_skip_done_skips_by_value(kind, tmp_path):
    """What has an outcome or is on its way; failures count, cancelled jobs do not."""
    with (
        url_of(kind, tmp_path) as url,
        Evaluator.create(lambda job: 1 / job["x"], "serial", {"storage": url}) as evaluator,
    ):
        evaluator.submit([{"x": 1}, {"x": 0}, {"x": 1.0}, {"x": 2}], skip_done=True)
        assert [job.config["x"] for job in evaluator.gather("ALL")] == [1, 0, 2]
        evaluator.submit([{"x": 0}, {"x": 3}], skip_done=True)
        assert [job.config["x"] for job in evaluator.gather("ALL")] == [3]
        evaluator.submit([{"x": 3}], skip_done=True)
        assert evaluator.gather("ALL") == []
        evaluator.set_timeout(0)
        evaluator.submit([{"x": 4}])
        assert evaluator.gather("ALL")[0].failure.kind == "cancelled"
        evaluator.set_timeout(None)
        evaluator.submit([{"x": 4}], skip_done=True)
        assert evaluator.gather("ALL")[0].objective == 0.25


def test_everything_skipped_is_no_error(url):
    """A script that is run again after its end gathers nothing, and finds all in the storage."""
    for skipped in (0, 2):
        storage = SqliteStorage(url.removeprefix("sqlite:///")).connect()
        search_id = (storage.load_all_search_ids() or [None])[0]
        with Evaluator.create(double, "serial", {"storage": storage, "search_id": search_id}) as evaluator:
            evaluator.submit([{"x": 1}, {"x": 2}], skip_done=True)
            assert len(evaluator.gather("ALL")) == 2 - skipped
            assert evaluator.num_jobs_skipped == skipped
        storage.close()


def test_sigterm_stops_in_good_order(url, tmp_path):
    """The driver ends with 143, its workers are gone, what settled is kept, what ran is run again and not blamed."""
    script = f"""
def run(job):
    if job["x"] == 1:
        tell(pid=os.getpid())
        time.sleep(60)
    return job["x"]

evaluator = Evaluator.create(run, "thread", {{"num_workers": 2, "storage": {url!r}, "max_attempts": 1}})
with evaluator.stop_on_sigterm():
    evaluator.submit([{{"x": x}} for x in range(3)])
    while evaluator.stats()["jobs"]["settled"] < 2:
        time.sleep(0.01)
    tell(ready=True)
    evaluator.gather("ALL")
"""
    with driver(tmp_path, script) as first:
        wait_until(lambda: "ready" in hear(first))
        first.terminate()
        assert first.wait() == 143
    with resumed(double, url, max_attempts=1) as evaluator:
        assert evaluator.resume() == (1, 0, 2, 0)
        assert len(evaluator.gather("ALL")) == 3


def test_sigterm_is_handled_in_the_main_thread_only(url):
    """Elsewhere the block is refused; afterwards the handler from before is back."""
    refused = []
    before = signal.getsignal(signal.SIGTERM)
    with Evaluator.create(double, "serial", {"storage": url}) as evaluator:

        def enter():
            with pytest.raises(InvalidArgument, match="main thread"), evaluator.stop_on_sigterm():
                pytest.fail("it was let in")
            refused.append(True)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert refused
        with evaluator.stop_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGTERM) is before
        with pytest.raises(SystemExit), evaluator.stop_on_sigterm():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(EvaluatorClosed):
            evaluator.submit([{"x": 1}])


class TerminatedWhilePickled:
    """SIGTERM comes just while this is pickled, as it may while any configuration is."""

    def __reduce__(self):
        signal.raise_signal(signal.SIGTERM)
        return TerminatedWhilePickled, ()


def test_sigterm_is_no_failure_of_what_is_being_pickled(url):
    """It ends the search, and the job is run by whoever resumes it."""
    with pytest.raises(SystemExit) as ended:  # noqa: SIM117  the inner block is what must be left
        with Evaluator.create(double, "process") as evaluator, evaluator.stop_on_sigterm():
            evaluator.submit([{"x": TerminatedWhilePickled()}])
    assert ended.value.code == 143
    assert not [job for job in evaluator.jobs if job.failure]
