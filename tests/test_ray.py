"""`method="ray"` on a real cluster of three nodes, in a run of its own: `python -m pytest -m ray -n 0`."""

import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import CPUS, GPUS, STORE_BYTES
from waiting import wait_until

from robust_eval import Evaluator, RobustEvalError
from stress.faults import CATALOGUE, behave, configuration

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

from robust_eval import RayEvaluator  # noqa: E402 - it needs ray
from robust_eval.evaluators.ray.host import gpu_environments  # noqa: E402
from robust_eval.evaluators.ray.share import Share  # noqa: E402

pytestmark = pytest.mark.ray
FAULTS = ("hang_in_c_with_the_gil", "segfault", "result_does_not_unpickle_in_the_driver", "leave_a_daemon")


def double(job):
    return 2.0 * job["x"]


def where(job):
    import os
    import time
    from pathlib import Path

    file = os.open(job["diary"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{job['x']}\n".encode())
    os.close(file)
    while not Path(job["diary"]).with_name("go").exists():
        time.sleep(0.01)
    return {"objective": 1.0, "metadata": {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid()}}


def configs(directory: Path, count: int) -> list[dict[str, Any]]:
    return [{"x": x, "diary": str(directory / "diary")} for x in range(count)]


def begun(directory: Path) -> Counter[int]:
    diary = directory / "diary"
    return Counter(map(int, diary.read_text().split())) if diary.exists() else Counter()


def hosts(evaluator: RayEvaluator) -> list[str]:
    return [line.about for line in list(evaluator._pool._exchange.lines.values())]


def test_the_cluster_is_filled_and_every_slot_has_its_own_gpus(cluster: Any, tmp_path: Path):
    """A worker for each CPU, on all nodes; each sees the GPU that Ray gave to its slot, and no other."""
    with RayEvaluator(where, num_gpus_per_task=1) as evaluator:
        assert evaluator.num_workers == 3 * CPUS
        evaluator.submit(configs(tmp_path, 6))
        wait_until(lambda: len(begun(tmp_path)) == 6)
        assert len(evaluator.stats()["hosts"]) == 3
        assert sum(ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")) == 0.0
        (tmp_path / "go").touch()
        jobs = evaluator.gather("ALL")
        assert sorted(job.metadata["gpu"] for job in jobs) == ["0", "0", "0", "1", "1", "1"]
    wait_until(lambda: ray.available_resources().get("CPU") == 3.0 * CPUS)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_on_nodes_cost_their_own_jobs_alone(cluster: Any, name: str, tmp_path: Path):
    """As on one machine: the right kind, nothing twice, nothing left."""
    fault = CATALOGUE[name]
    guilty = (3, 8)
    with Evaluator.create(behave, "ray", {"num_workers": 3}) as evaluator:
        inputs = [configuration(x, tmp_path / "diary", fault if x in guilty else None) for x in range(12)]
        limits = {
            name: (lambda config, value=value: value if config["fault"] else None)
            for name, value in fault.limits.items()
        }
        evaluator.submit(inputs, **limits)
        for job in evaluator.gather("ALL"):
            if job.config["x"] in guilty and fault.kinds:
                assert job.failure.kind in fault.kinds, job.failure.render()
            else:
                assert job.objective == 2.0 * job.config["x"], job.failure.render()
    assert begun(tmp_path) == dict.fromkeys(range(12), 1)


def test_a_node_killed_in_the_middle_and_one_that_joins(cluster: Any, tmp_path: Path):
    """What ran on the node is lost, everything else runs, nothing runs twice; the new node is used."""
    with RayEvaluator(where) as evaluator:
        evaluator.submit(configs(tmp_path, 14))
        wait_until(lambda: len(begun(tmp_path)) == 6)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        wait_until(lambda: len(hosts(evaluator)) == 2)
        lost = evaluator.gather("BATCH", 2)
        assert [(job.failure.kind, job.failure.lost) for job in lost] == [("lost", "host")] * 2
        cluster.add_node(num_cpus=CPUS, num_gpus=GPUS, object_store_memory=STORE_BYTES)
        wait_until(lambda: len(hosts(evaluator)) == 3)
        wait_until(lambda: len(begun(tmp_path)) == 8)
        assert evaluator.num_workers == 3 * CPUS
        (tmp_path / "go").touch()
        assert [job.failure for job in evaluator.gather("ALL")] == [None] * 12
    assert begun(tmp_path) == dict.fromkeys(range(14), 1)


def test_a_killed_actor_is_replaced_on_its_node(cluster: Any, tmp_path: Path):
    """Its jobs are retried where that was asked for, its processes die with it, and the node goes on."""
    with RayEvaluator(where, max_retries=1) as evaluator:
        evaluator.submit(configs(tmp_path, 6))
        wait_until(lambda: len(begun(tmp_path)) == 6)
        before = set(hosts(evaluator))
        fleet = evaluator._pool._fleet
        victim = next(node for node in fleet._nodes.values() if node.actor is not None)
        ray.kill(victim.actor)
        wait_until(lambda: len(set(hosts(evaluator)) - before) == 1)
        (tmp_path / "go").touch()
        jobs = evaluator.gather("ALL")
        assert [job.failure for job in jobs] == [None] * 6
        assert Counter(job.metadata["attempts"] for job in jobs) == {1: 4, 2: 2}


def test_workers_are_spread_over_the_nodes(cluster: Any, tmp_path: Path):
    """As many as asked for, on as many nodes as there are; more than have room wait for nodes to come."""
    with RayEvaluator(where, num_workers=4) as evaluator:
        evaluator.submit(configs(tmp_path, 5))
        wait_until(lambda: len(begun(tmp_path)) == 4)
        assert sorted(host["slots"] for host in evaluator.stats()["hosts"]) == [1, 1, 2]
        with RayEvaluator(double, num_workers=9) as second:
            wait_until(lambda: len(hosts(second)) == 2)
            assert sum(host["slots"] for host in second.stats()["hosts"]) == 2
            second.submit([{"x": 1}])
            assert second.gather("ALL")[0].objective == 2.0
        (tmp_path / "go").touch()
        evaluator.gather("ALL")
    assert ray.is_initialized(), "the cluster is not the evaluator's"


def test_arguments_are_checked_before_anything_starts(cluster: Any):
    """With the value, what is allowed, and the next step."""
    for arguments, said in (
        ({"num_cpus_per_task": 0}, "num_cpus_per_task=0"),
        ({"num_cpus_per_task": 1.5}, "a fraction or a whole number"),
        ({"num_gpus_per_task": -1}, "num_gpus_per_task=-1"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"num_cpus_per_task": 64}, "no node of the cluster has room for num_cpus_per_task=64"),
        ({"job_timeout": -1}, "job_timeout"),
        ({"max_start_failures": 0}, "max_start_failures"),
    ):
        with pytest.raises(ValueError, match=said):
            RayEvaluator(double, **arguments)
    with pytest.raises(TypeError, match="num_cpus_per_task='1'"):
        RayEvaluator(double, num_cpus_per_task="1")
    with pytest.raises(RobustEvalError, match="Ray Client"):
        RayEvaluator(double, address="ray://127.0.0.1:10001")


_ALONE = """
import os, sys
os.environ.update({environment!r})
sys.path.insert(0, {root!r})
from robust_eval import Evaluator
import ray
try:
    wrong = {{"address": "local", "num_cpus": 1, "job_timeout": -1, "ray_kwargs": {kwargs!r}}}
    Evaluator.create(lambda job: 1.0, "ray", wrong)
except ValueError:
    assert not ray.is_initialized()
kwargs = {{"address": "local", "num_cpus": 2, "num_cpus_per_task": 0.5, "ray_kwargs": {kwargs!r}}}
with Evaluator.create(lambda job: 2.0 * job["x"], "ray", kwargs) as evaluator:
    evaluator.submit([{{"x": x}} for x in range(20)])
    assert sorted(job.objective for job in evaluator.gather("ALL")) == [2.0 * x for x in range(20)]
    print("workers", evaluator.num_workers, flush=True)
    if "die" in sys.argv:
        os.kill(os.getpid(), 9)
    other = Evaluator.create(lambda job: 3.0 * job["x"], "ray", {{"num_workers": 1, "num_cpus_per_task": 0.5}})
with other:
    other.submit([{{"x": 1}}])
    assert [job.objective for job in other.gather("ALL")] == [3.0]
    print("shared", flush=True)
assert not ray.is_initialized()
print("done")
"""


_SHUT_DOWN = """
import os, sys, time
os.environ.update({environment!r})
sys.path.insert(0, {root!r})
from robust_eval import Evaluator
import ray

def run(job):
    job.record(0.0, 0.0)
    time.sleep(3600)

kwargs = {{"address": "local", "num_cpus": 1, "ray_kwargs": {kwargs!r}}}
with Evaluator.create(run, "ray", kwargs) as evaluator:
    evaluator.submit([{{"x": x}} for x in range(3)])
    while not any(job.recorded for job in evaluator.jobs):
        time.sleep(0.01)
    ray.shutdown()
    print(sorted((job.failure.kind, job.failure.lost) for job in evaluator.gather("ALL")))
    evaluator.submit([{{"x": 3}}])
    print([job.failure.kind for job in evaluator.gather("ALL")])
assert not ray.is_initialized()
print("done")
"""


_START_NOTHING = """
import os, sys, threading
os.environ.update({environment!r})
sys.path.insert(0, {root!r})
import ray
from robust_eval.evaluators.ray import visit

def call():
    try:
        ray.put(1)
    except ray.exceptions.RaySystemError:
        told.append("nothing is started")

told = []
with visit.starting_nothing():
    call()
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", object_store_memory={store})
    ray.shutdown()
    call()
    assert not ray.is_initialized()
    from ray._private import auto_init_hook as hook
    other = threading.Thread(target=lambda: told.append(bool(hook.enable_auto_connect)))
    other.start()
    other.join()
print(told, bool(hook.enable_auto_connect))
"""


def test_a_thread_that_was_overtaken_by_a_shutdown_starts_no_ray():
    """Whatever it asks Ray for then, it gets an error; other threads of the user's start Ray as ever."""
    import subprocess

    from ray_cluster import ENVIRONMENT

    code = _START_NOTHING.format(environment=ENVIRONMENT, root=str(Path(__file__).parent.parent), store=STORE_BYTES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
    told = "['nothing is started', 'nothing is started', True] True"
    assert done.stdout.splitlines()[-1:] == [told], done.stderr


def test_ray_that_the_user_shuts_down_leaves_no_job_waiting():
    """What ran is lost, what waits fails, and no other cluster is started behind the user's back."""
    import subprocess

    from ray_cluster import ENVIRONMENT

    kwargs = {"object_store_memory": STORE_BYTES, "logging_level": "ERROR"}
    code = _SHUT_DOWN.format(environment=ENVIRONMENT, root=str(Path(__file__).parent.parent), kwargs=kwargs)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
    told = ["[('lost', 'host'), ('startup', None), ('startup', None)]", "['startup']", "done"]
    assert done.stdout.splitlines()[-3:] == told, done.stderr


@pytest.mark.parametrize("end", ["close", "die"])
def test_what_was_started_is_ended(end: str):
    """A cluster that an evaluator started ends with the last that uses it, and with the driver when that is killed."""
    import subprocess

    from ray_cluster import ENVIRONMENT

    kwargs = {"object_store_memory": STORE_BYTES, "logging_level": "ERROR"}
    code = _ALONE.format(environment=ENVIRONMENT, root=str(Path(__file__).parent.parent), kwargs=kwargs)
    done = subprocess.run([sys.executable, "-c", code, end], capture_output=True, text=True, timeout=90, check=False)
    assert "workers 4" in done.stdout, done.stderr
    assert ("done" in done.stdout) == (end == "close"), done.stderr
    assert done.returncode == (0 if end == "close" else -signal.SIGKILL), done.stderr


def test_gpus_are_divided_among_slots():
    """Whole ones, shared ones, and none."""
    shown = lambda *given: [each["CUDA_VISIBLE_DEVICES"] for each in gpu_environments(*given)]  # noqa: E731
    assert shown([4, 5, 6, 7], 2, 2.0) == ["4,5", "6,7"]
    assert shown(["a", "b"], 4, 0.5) == ["a", "a", "b", "b"]
    assert shown([3], 3, 1 / 3) == ["3", "3", "3"]
    assert gpu_environments([], 2, 0.0) == []


def test_a_share_of_a_node_is_what_ray_can_give():
    """Whole CPUs from one on, and no slot over the edge of a GPU."""
    share = Share(0.5, 0.4)
    assert share.slots({"CPU": 3.0, "GPU": 2.0}) == 4
    assert share.options(4) == {"num_cpus": 2.0, "num_gpus": 2}
    assert share.options(1) == {"num_cpus": 0.5, "num_gpus": 0.4}
    assert Share(0.3, 0.0).options(5) == {"num_cpus": 2, "num_gpus": 0.0}
    assert Share(1.0, 1.0).slots({"CPU": 4.0}) == 0
