"""A part of the catalogue of faults against real processes; `stress/test_faults.py` runs all of it."""

from pathlib import Path

import pytest

from stress.faults import CATALOGUE
from stress.trial import hold_against

pytestmark = pytest.mark.unmeasured  # what it runs is measured by the tests of its parts

# One or two of each kind, and whatever is alone in taking some way through the code.
FORKED = (
    "ask_its_grandparent_to_end",
    "ask_its_parent_to_end",
    "be_traced_by_its_parent",
    "close_all_descriptors",
    "configuration_does_not_pickle",
    "configuration_does_not_unpickle",
    "detach_stdout",
    "disown_orphans",
    "exception_raises_in_reduce",
    "exhaust_descriptors",
    "fork_and_return_twice",
    "hang_with_all_signals_masked",
    "leave_a_child_without_a_signal",
    "leave_a_daemon",
    "leave_shared_memory_and_die",
    "limit_its_cpu_time",
    "print_fifty_megabytes_and_raise",
    "print_what_is_not_text",
    "raise_memory_error",
    "record_what_exits_in_the_driver",
    "replace_builtins",
    "result_does_not_pickle",
    "result_exits_in_the_driver",
    "result_is_nan",
    "result_of_a_hundred_megabytes",
    "segfault",
    "stop_its_grandparent_and_hang",
    "stop_its_parent_and_die",
    "stop_unasked",
)
SPAWNED = ("hang_in_c_with_the_gil", "close_all_descriptors", "leave_a_daemon")
LOCAL = ("exception_has_no_name", "exception_raises_whatever_is_asked", "result_lies_about_its_class")


@pytest.mark.parametrize("name", FORKED)
def test_a_fault_costs_its_own_job_alone(name: str, tmp_path: Path):
    """Two guilty jobs of twenty fail alone and rightly, nothing runs twice, nothing is left, the pool goes on."""
    hold_against(CATALOGUE[name], tmp_path)


@pytest.mark.parametrize("name", SPAWNED)
def test_a_fault_costs_its_own_job_alone_where_workers_are_spawned(name: str, tmp_path: Path):
    """The same promise, with a fresh interpreter for each worker."""
    hold_against(CATALOGUE[name], tmp_path, start_method="spawn")


@pytest.mark.parametrize("method", ["serial", "thread"])
@pytest.mark.parametrize("name", LOCAL)
def test_a_fault_costs_its_own_job_alone_in_the_driver(name: str, method: str, tmp_path: Path):
    """The same promise for what does no harm to a process."""
    hold_against(CATALOGUE[name], tmp_path, method=method)
