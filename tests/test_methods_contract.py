"""One contract for every method of evaluation; the documentation's table of what holds where is that contract."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from contract import METHODS, NEEDS, PROMISES, table

from robust_eval import Evaluator

ROOT = Path(__file__).resolve().parent.parent
MARKS = {"ray": [pytest.mark.ray]}
PARTS = [
    pytest.param(method, name, marks=MARKS.get(method, []))
    for method in METHODS
    for name, (_, methods) in PROMISES.items()
    if method in methods
]
REFUSED = [(method, name) for name in NEEDS for method in METHODS if method not in PROMISES[name][1]]


@pytest.fixture(scope="session")
def kept_by_mpi(session_mark: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of every promise on real ranks: nothing, or the traceback. Found out once, whoever runs beside."""
    pytest.importorskip("mpi4py", reason="the extra `mpi` is not installed")
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    directory = shared / "mpi"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "kept.json").exists():
            _keep_on_ranks(directory)
    kept: dict[str, str] = json.loads((directory / "kept.json").read_text())
    return kept


def _keep_on_ranks(directory: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("mpiexec")),
        "-n",
        "3",
        sys.executable,
        "tests/contract.py",
        str(directory),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("method", "name"), PARTS)
def test_what_a_method_promises_holds(method: str, name: str, tmp_path: Path, request: pytest.FixtureRequest):
    """The promise, on real processes, nodes and ranks."""
    if method == "mpicomm":
        kept = request.getfixturevalue("kept_by_mpi")
        assert not kept[name], kept[name]
        return
    kwargs: dict[str, Any] = {} if method == "serial" else {"num_workers": 2}
    if method == "ray":
        pytest.importorskip("ray", reason="the extra `ray` is not installed")
        request.getfixturevalue("cluster")
    PROMISES[name][0](lambda run, **more: Evaluator.create(run, method, {**kwargs, **more}), tmp_path)


@pytest.mark.parametrize(("method", "name"), REFUSED)
def test_what_a_method_cannot_do_is_refused(method: str, name: str):
    """When the evaluator is made, never accepted in silence."""
    with pytest.raises((TypeError, ValueError)):
        Evaluator.create(lambda job: 1.0, method, dict(NEEDS[name]))


def test_the_table_in_the_documentation_is_the_contract():
    """Row for row."""
    assert (ROOT / "docs" / "methods-table.md").read_text(encoding="utf-8").strip() == table()
