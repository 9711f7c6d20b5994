"""What the package logs, and that it says nothing unasked."""

import logging
import os
import subprocess
import sys

import psutil
import pytest
from waiting import nothing_left, wait_until

from robust_eval import Evaluator, ProcessPoolEvaluator, SearchBroken


def run(job):
    if job["x"] % 3 == 0:
        raise ValueError("a bad x")
    return job["x"]


def refuse():
    raise OSError("no licence")


def records(caplog, area):
    return [record for record in caplog.records if record.name == f"robust_eval.{area}"]


@pytest.fixture(autouse=True)
def everything(caplog):
    """Hear all levels."""
    caplog.set_level(logging.DEBUG, logger="robust_eval")


@pytest.mark.parametrize("method", ["serial", "thread", "process"])
def test_jobs_that_fail_are_logged_with_their_fields(caplog, method):
    """One record a failed job, as it is gathered; none for a job that delivers."""
    with nothing_left(), Evaluator.create(run, method) as evaluator:
        evaluator.submit([{"x": x} for x in range(7)])
        evaluator.gather("ALL")
    told = records(caplog, "jobs")
    assert sorted(record.job_id for record in told) == ["0.0", "0.3", "0.6"]
    assert {(record.kind, record.attempts, record.levelname) for record in told} == {("exception", 1, "INFO")}
    assert all("ValueError: a bad x" in record.getMessage() for record in told)
    assert all(record.duration >= 0.0 for record in told)


def test_failures_are_not_put_into_words_that_nobody_hears(caplog):
    """With a level above theirs there is no record."""
    caplog.set_level(logging.WARNING, logger="robust_eval")
    with Evaluator.create(run, "serial") as evaluator:
        evaluator.submit([{"x": 0}])
        evaluator.gather("ALL")
    assert records(caplog, "jobs") == []


def test_the_life_of_a_pool_is_logged(caplog):
    """Its start, the death of a supervisor and the next one, its end: each with the process id."""
    with nothing_left(), ProcessPoolEvaluator(run) as evaluator:
        first = evaluator._pool.supervisor_pid
        psutil.Process(first).kill()
        wait_until(lambda: evaluator._pool.supervisor_pid != first)
        evaluator.submit([{"x": 1}])
        assert [job.objective for job in evaluator.gather("ALL")] == [1.0]
        second = evaluator._pool.supervisor_pid
    told = [(record.levelname, record.supervisor_pid) for record in records(caplog, "pool")]
    assert told == [("INFO", first), ("WARNING", first), ("INFO", second), ("INFO", second)]
    assert "exit code -9" in records(caplog, "pool")[1].getMessage()


def test_start_ups_that_fail_are_logged(caplog):
    """Each with what the worker said; the jobs that they cost are warnings, for it is not their fault."""
    with nothing_left(), ProcessPoolEvaluator(run, initializer=refuse) as evaluator:
        evaluator.submit([{"x": 1}])
        evaluator.gather("ALL")
    told = [record for record in records(caplog, "pool") if hasattr(record, "worker_pid")]
    assert len(told) >= 3
    assert all("OSError: no licence" in record.detail for record in told)
    assert [record.levelname for record in records(caplog, "jobs")] == ["WARNING"]


def test_a_template_that_does_not_start_is_logged(caplog):
    """With the reason."""
    with nothing_left(), ProcessPoolEvaluator(run, preload=["no_such_module"]) as evaluator:
        evaluator.submit([{"x": 1}])
        evaluator.gather("ALL")
    (record, *_) = [record for record in records(caplog, "pool") if hasattr(record, "template_pid")]
    assert "the template did not start" in record.getMessage()
    assert "no_such_module" in record.detail


def test_a_search_that_is_stopped_is_logged(caplog):
    """With the counts."""
    with Evaluator.create(run, "serial", {"max_consecutive_failures": 2}) as evaluator:
        evaluator.submit([{"x": 0}] * 5)
        with pytest.raises(SearchBroken):
            evaluator.gather("ALL")
    (record,) = records(caplog, "search")
    assert record.levelname == "ERROR"
    assert record.outcomes["exception"] >= 2


def test_nothing_is_said_unasked():
    """Without a handler of the user's not even errors come out, such as that of a search that is stopped."""
    code = (
        "from robust_eval import Evaluator, SearchBroken\n"
        "def run(job): raise ValueError\n"
        "with Evaluator.create(run, 'serial', {'max_consecutive_failures': 1}) as evaluator:\n"
        "    evaluator.submit([{}, {}])\n"
        "    try: evaluator.gather('ALL')\n"
        "    except SearchBroken: pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("", "")


CALLBACK = """
import logging
from robust_eval import Callback, SerialEvaluator
{setup}
class Broken(Callback):
    def on_done(self, job):
        raise LookupError(f"of job {{job.id}}")
with SerialEvaluator(lambda job: 1, callbacks=[Broken()]) as evaluator:
    evaluator.submit([{{}}, {{}}])
    assert [job.objective for job in evaluator.gather("ALL")] == [1, 1]
"""


@pytest.mark.parametrize(
    ("setup", "heard"),
    [
        ("", 1),
        ("logging.basicConfig()", 1),
        ("logging.getLogger('robust_eval').addHandler(logging.StreamHandler())", 1),
        ("logging.getLogger('robust_eval.callbacks').setLevel(logging.CRITICAL)", 0),
        ("logging.disable()", 0),
    ],
)
def test_what_a_callback_raised_is_told_once_even_where_nobody_listens(setup, heard):
    """With its traceback, by a handler of the user's or else on stderr; unless it is silenced."""
    script = CALLBACK.format(setup=setup)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("LookupError: of job 0.0") == heard
    assert done.stderr.count("Callback Broken.on_done raised") == heard
    assert "0.1" not in done.stderr
