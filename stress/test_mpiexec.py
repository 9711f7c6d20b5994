"""A real MPI launcher below a command: its ranks die with the job. Needs the package `mpich`; skipped without it."""

import shutil
import sys
from pathlib import Path

import psutil
import pytest

from robust_eval.command import Command
from robust_eval.evaluators.base import Evaluator

MPIEXEC = shutil.which("mpiexec") or shutil.which("mpiexec", path=str(Path(sys.executable).parent))
RANK = "import os, time; os.write(1, b'rank %s\\n' % os.environ['PMI_RANK'].encode()); time.sleep(600)"


def ranks(mark: str) -> list[psutil.Process]:
    """Every process that inherited the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MPI_STRESS_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.skipif(MPIEXEC is None, reason="needs `pip install mpich`")
@pytest.mark.parametrize("number", range(5))
def test_the_ranks_of_a_launcher_die_with_the_job(tmp_path: Path, number: int):
    """Killed over its time, the launcher leaves neither a proxy nor a rank; what the ranks printed is told."""
    mark = f"{tmp_path.name}-{number}"
    command = Command(
        [MPIEXEC, "-n", "4", sys.executable, "-S", "-c", RANK],
        env={"MPI_STRESS_MARK": mark},
        scratch=tmp_path / "scratch",
        keep="never",
    )
    limits = {"num_workers": 1, "job_timeout": 5}
    with Evaluator.create(command, method="process", method_kwargs=limits) as evaluator:
        evaluator.submit([{}])
        (job,) = evaluator.gather("ALL")
        assert ranks(mark) == []
    assert job.failure.kind == "timeout"
    assert {f"rank {rank}" for rank in range(4)} <= set(job.failure.output_tail.splitlines())
    assert not (tmp_path / "scratch").exists()
