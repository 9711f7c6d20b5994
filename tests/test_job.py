import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_eval.errors import InvalidOutput
from robust_eval.failure import Failure
from robust_eval.job import Job, JobStatus, RunningJob, copy_config
from robust_eval.storage import MemoryStorage

CONFIGS = st.dictionaries(
    st.text(max_size=5), st.recursive(st.integers() | st.text(max_size=3), st.lists, max_leaves=5), max_size=4
)


class Stopper:
    """Stops after two observations."""

    def __init__(self):
        self.job = None
        self.seen = []

    def observe(self, budget, objective):
        self.seen.append((budget, objective))

    def stop(self):
        return len(self.seen) >= 2

    @property
    def objective(self):
        return max(objective for _, objective in self.seen)


@given(CONFIGS)
def test_a_job_owns_its_configuration(config):
    """What the user does to the configuration later, or to a copy from the job, changes nothing."""
    job = Job("0.0", config, None)
    expected = copy_config(config)
    job[0]["new"] = next(iter(job))["new"] = 1
    for value in [*config.values(), *job[0].values()]:
        if isinstance(value, list):
            value.append("changed")
    config["new"] = 1
    assert job.config == job.args == expected


def test_what_cannot_be_copied_is_shared():
    """A lock in a configuration is for the evaluator to judge, not for the copy."""
    lock = threading.Lock()
    config = {"lock": lock, "x": [1]}
    copied = copy_config(config)
    assert copied is not config
    assert copied["lock"] is lock


def test_a_job_is_a_pair():
    """`config, objective = job` and indexing work as in DeepHyper."""
    job = Job("0.3", {"x": 1}, None)
    job.set_output(5)
    config, objective = job
    assert (config, objective, len(job)) == ({"x": 1}, 5.0, 2)
    assert (job[0], job[1], job[-1], job[:]) == ({"x": 1}, 5.0, 5.0, ({"x": 1}, 5.0))
    with pytest.raises(IndexError):
        job[2]


def test_the_states_have_deephyper_numbers():
    """Old code reads numbers, new code names."""
    assert (Job.READY, Job.RUNNING, Job.DONE) == (0, 1, 2)
    assert Job("0.0", {}, None).status.name == "READY"
    assert JobStatus(2) is Job.DONE
    job = Job("0.0", {"x": 1}, None)
    assert repr(job) == "Job(id=0.0, status=READY, config={'x': 1})"
    job.rank = 2
    assert "rank=2" in repr(job)


def test_output_has_the_form_of_deephyper():
    """Objective and metadata, the timestamps first."""
    job = Job("0.0", {}, None)
    assert job.objective is None
    assert job.result is None
    job.submitted_at = 1.5
    assert job.output == {"objective": None, "metadata": {"timestamp_submit": 1.5, "timestamp_gather": None}}
    job.set_output({"objective": [[1, 2], [3, 4]], "metadata": {"a": 1}})
    assert (job.objective, job.result, job.observations) == (4, 4, [[1, 2], [3, 4]])
    assert list(job.metadata) == ["timestamp_submit", "timestamp_gather", "a"]
    job.output = {"objective": 1, "metadata": {}}
    assert job.objective == 1


def test_a_wrong_output_changes_nothing():
    """A refused output leaves the job as it was."""
    job = Job("0.0", {}, None)
    with pytest.raises(InvalidOutput):
        job.set_output("no")
    assert job.objective is None


def test_a_failed_job_stays_failed():
    """What an abandoned run reports later is too late."""
    job = Job("0.0", {}, None)
    job.fail(Failure("timeout", "x"))
    job.set_output(3)
    assert (job.objective, job.failure.kind) == ("F", "timeout")


def test_users_can_put_their_own_attributes_on_a_job():
    """Multi-objective searches mark jobs, `queued` notes resources."""
    job = Job("0.0", {}, None)
    job.pareto_efficient, job.dequed = True, [1]
    assert vars(job) == {"pareto_efficient": True, "dequed": [1]}


def test_a_running_job_is_a_mapping_of_its_parameters():
    """It reads, writes and lists like a dict; the number of the job is extra."""
    job = RunningJob("3.14", {"x": 1})
    assert (job["x"], job.get("y"), job["job_id"], "job_id" in job) == (1, None, 14, True)
    assert (dict(job), len(job), list(job)) == ({"x": 1}, 1, ["x"])
    job["y"] = 2
    del job["x"]
    assert job.parameters == {"y": 2}
    with pytest.raises(KeyError, match="job_id"):
        job["job_id"] = 3
    assert repr(job) == "RunningJob(id=3.14, parameters={'y': 2})"


def test_a_running_job_alone_has_a_storage():
    """Without an evaluator there is a storage that knows this job, made when it is read."""
    job = RunningJob(parameters={"x": 1})
    assert job["job_id"] == 0
    assert job.storage is job.storage
    assert job.storage.load_all_job_ids("0") == ["0.0"]
    job = RunningJob("2.7")
    job.storage.store_job_metadata(job.id, "a", 1)
    assert job.storage.load_job("2.7")["metadata"] == {"a": 1}
    assert job.storage.create_new_job("2") == "2.8"
    assert [job.storage.create_new_search() for _ in range(2)] == ["1", "3"]


def test_records_arrive_as_they_happen():
    """The recorder is called at once; the last one is the objective."""
    seen = []
    job = RunningJob("0.0", {}, recorder=lambda *pair: seen.append(pair))
    job.record(1, 0.5)
    assert seen == [(1, 0.5)]
    job.record(2, 0.6)
    assert (seen, job.objective, job.obs) == ([(1, 0.5), (2, 0.6)], 0.6, 0.6)
    RunningJob().record(1, 2.0)


def test_a_stopper_is_asked_and_told():
    """It observes, decides and stands for the objective; each job has its own copy."""
    stopper = Stopper()
    job = Job("0.0", {"x": 1}, None)
    running = job.create_running_job(MemoryStorage(), stopper)
    assert running.stopper is not stopper
    assert running.stopper.job is running
    running.record(1, 3.0)
    assert not running.stopped()
    running.record(2, 1.0)
    assert running.stopped()
    assert running.objective == 3.0
    assert job.recorded == [(1, 3.0), (2, 1.0)]
    assert stopper.seen == []


def test_a_stopper_need_not_know_its_job():
    """A stopper without the attribute gets none."""
    running = Job("0.0", {}, None).create_running_job(None, {"plain": 1})
    assert running.stopper == {"plain": 1}


def test_stopped_listens_to_the_evaluator():
    """The budget is a second voice."""
    assert not RunningJob().stopped()
    assert RunningJob(stop_requested=lambda: True).stopped()
    assert not RunningJob(stop_requested=lambda: False).stopped()


def test_the_run_function_cannot_change_the_job():
    """What it writes to its mapping stays there."""
    job = Job("0.0", {"x": 1}, None)
    job.create_running_job(None, None)["x"] = 2
    assert job.config == {"x": 1}


def test_a_running_job_pickles_without_its_ties():
    """It arrives with its parameters, its attributes and an empty storage."""
    job = RunningJob("0.1", {"x": 1}, MemoryStorage().connect(), Stopper(), recorder=print, stop_requested=print)
    job.note = "mine"
    job.obs = 2.0
    back = pickle.loads(pickle.dumps(job))
    assert (back.id, back.parameters, back.note, back.obs) == ("0.1", {"x": 1}, "mine", 2.0)
    assert back.storage.load_all_search_ids() == []
    assert not back.stopped()
    plain = pickle.loads(pickle.dumps(RunningJob("0.1", {"x": 1})))
    assert plain == {"x": 1}
