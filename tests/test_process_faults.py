"""The catalogue of faults against real processes: the guilty are reported, the innocent never notice."""

from collections import Counter
from pathlib import Path

import pytest
from waiting import alive_with, is_alive, nothing_left

from robust_eval import Job, ProcessPoolEvaluator
from robust_eval.evaluators import process
from robust_eval.processes.pool import PoolSettings
from stress.faults import CATALOGUE, Fault, behave, configuration

JOBS = 20
GUILTY = (3, 11)
MORE = range(JOBS, JOBS + 4)
SPAWNED = (
    "hang_in_c_with_the_gil",
    "exit_with_0",
    "segfault",
    "result_does_not_unpickle_in_the_driver",
    "print_fifty_megabytes",
    "leave_a_daemon",
    "change_the_environment",
    "close_all_descriptors",
)


@pytest.fixture(autouse=True)
def patient_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a stack dump longer than the usual 5 ms, which it takes where all cores are busy with other things."""

    def settings(**given) -> PoolSettings:
        return PoolSettings(**{**given, "policy": {**given["policy"], "dump_s": 0.5}})

    monkeypatch.setattr(process, "PoolSettings", settings)


def noted(diary: Path) -> list[int]:
    """The processes that guilty jobs have left behind."""
    notes = Path(f"{diary}.pids")
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


def run_with(fault: Fault, diary: Path, start_method: str) -> list[Job]:
    """Twenty jobs of which two are guilty, then four more; the evaluator is closed when they are given."""
    evaluator = ProcessPoolEvaluator(behave, num_workers=2, start_method=start_method)
    cookie = evaluator._pool._cookie
    with evaluator:
        configs = [configuration(x, diary, fault if x in GUILTY else None) for x in range(JOBS)]
        limits = {
            name: (lambda config, value=value: value if config["fault"] else None)
            for name, value in fault.limits.items()
        }
        evaluator.submit(configs, **limits)
        jobs = evaluator.gather("ALL")
        assert not [pid for pid in noted(diary) if is_alive(pid)]
        evaluator.submit([configuration(x, diary) for x in MORE])
        jobs += evaluator.gather("ALL")
    assert alive_with(cookie) == []
    return jobs


def check_innocent(jobs: list[Job]) -> None:
    """Every innocent job has its own right result and met an untouched worker."""
    wrong = {job.config["x"]: job.failure or job.objective for job in jobs if job.objective != 2.0 * job.config["x"]}
    assert not wrong
    met = {job.metadata["met"] for job in jobs}
    assert len(met) == 1, "\n".join(met)


def check_guilty(jobs: list[Job], fault: Fault) -> None:
    """Each is reported with the right kind, or delivers its value where nothing else is the matter."""
    for job in jobs:
        if fault.kinds:
            assert job.failure is not None, job.objective
            assert job.objective == ProcessPoolEvaluator.FAIL_RETURN_VALUE
            assert job.failure.kind in fault.kinds, job.failure.render()
        else:
            assert job.failure is None, job.failure.render()
            assert job.objective == 2.0 * job.config["x"]
        if fault.check is not None:
            fault.check(job)


def hold_against(fault: Fault, directory: Path, start_method: str) -> None:
    diary = directory / "diary"
    with nothing_left():
        jobs = run_with(fault, diary, start_method)
    assert sorted(job.config["x"] for job in jobs) == list(range(MORE.stop))
    check_innocent([job for job in jobs if job.config["x"] not in GUILTY])
    check_guilty([job for job in jobs if job.config["x"] in GUILTY], fault)
    runs = Counter(map(int, diary.read_text().split()))
    never = GUILTY if runs.keys().isdisjoint(GUILTY) and fault.kinds else ()
    assert runs == {x: 1 for x in range(MORE.stop) if x not in never}


@pytest.mark.parametrize("name", [name for name, fault in CATALOGUE.items() if not fault.heavy])
def test_a_fault_costs_its_own_job_alone(name: str, tmp_path: Path):
    """Two guilty jobs of twenty fail alone and rightly, nothing runs twice, nothing is left, the pool goes on."""
    hold_against(CATALOGUE[name], tmp_path, "fork")


@pytest.mark.parametrize("name", SPAWNED)
def test_a_fault_costs_its_own_job_alone_where_workers_are_spawned(name: str, tmp_path: Path):
    """The same promise, with a fresh interpreter for each worker."""
    hold_against(CATALOGUE[name], tmp_path, "spawn")
