"""A worker whose channel a job has written into."""

import os
from collections import Counter
from pathlib import Path

import pytest

from robust_eval import ProcessPoolEvaluator, RunningJob

pytestmark = pytest.mark.unmeasured  # whole ways: their parts are measured in tests of their own

JOBS = 300
GUILTY = range(50, JOBS, 50)


def note(job: RunningJob) -> int:
    with open(job["diary"], "ab", buffering=0) as diary:  # noqa: PTH123
        diary.write(b"%d\n" % job["x"])
    if job["x"] in GUILTY:
        for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
            try:
                os.set_blocking(fd, job["blocking"])
                os.write(fd, b"garbage" * 30)
            except OSError:
                continue
    return int(job["x"])


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_job_that_writes_into_the_channel_pays_alone(tmp_path: Path, start_method: str, blocking: bool):
    """The short jobs that wait behind it in the same inbox run once, and it is not tried again."""
    diary = tmp_path / "diary"
    with ProcessPoolEvaluator(note, num_workers=1, start_method=start_method) as evaluator:
        evaluator.submit([{"x": x, "diary": str(diary), "blocking": blocking} for x in range(JOBS)])
        jobs = evaluator.gather("ALL")
    failed = {job.config["x"]: job.failure for job in jobs if job.failure is not None}
    assert [failed[x].kind for x in GUILTY] == ["crash"] * len(GUILTY), failed
    assert failed.keys() == set(GUILTY), failed
    assert Counter(map(int, diary.read_text().split())) == Counter(range(JOBS))


def test_a_forked_child_may_record_values(tmp_path: Path):
    """What a child of the job sends in its name is no garbage."""

    def record_in_a_child(job: RunningJob) -> int:
        pid = os.fork()
        if pid == 0:
            job.record(1.0, 2.0)
            os._exit(0)
        os.waitpid(pid, 0)
        return 1

    with ProcessPoolEvaluator(record_in_a_child) as evaluator:
        evaluator.submit([{}] * 3)
        jobs = evaluator.gather("ALL")
    assert [job.objective for job in jobs] == [1, 1, 1], [job.failure for job in jobs]
    assert [job.recorded for job in jobs] == [[(1.0, 2.0)]] * 3
