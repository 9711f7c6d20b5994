"""The catalogue of faults: each is one named entry with the outcome that must be reported for it.

`behave` is the run function of every test that takes its faults from here: a guilty job does what its configuration
names, an innocent one leaves a line in a file, so that double runs show, and says what state it found its worker in.
"""

import os
from pathlib import Path
from typing import Any

from robust_eval import RunningJob
from stress import (
    faults_attacks,
    faults_data,
    faults_ending,
    faults_interpreter,
    faults_memory,
    faults_residue,
    faults_traces,
    faults_values,
)
from stress.fault import CATALOGUE, Fault, own_value
from stress.state import worker_state

__all__ = ["CATALOGUE", "ENTRIES", "Fault", "behave", "configuration"]

ENTRIES = (
    faults_ending,
    faults_values,
    faults_data,
    faults_memory,
    faults_traces,
    faults_residue,
    faults_interpreter,
    faults_attacks,
)


def configuration(x: int, diary: Path, fault: Fault | None = None) -> dict[str, Any]:
    """The configuration of one job.

    Args:
        x: its number, of which the result is made.
        diary: the file that every job leaves a line in.
        fault: what it does; None for an innocent job.
    """
    extra = {} if fault is None else fault.config()
    return {"x": x, "diary": str(diary), "fault": None if fault is None else fault.name, **extra}


def behave(job: RunningJob) -> Any:
    """Run one job as its configuration says."""
    line = f"{job['x']}\n".encode()
    diary = os.open(job["diary"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(diary, line)
    os.close(diary)
    if job["fault"] is not None:
        return CATALOGUE[job["fault"]].run(job)
    return {"objective": own_value(job), "metadata": {"met": worker_state()}}
