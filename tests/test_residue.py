"""What a job left where no state of the interpreter shows it. Each test runs in a forked child, which it may spoil."""

import _thread
import gc
import importlib
import multiprocessing.process
import multiprocessing.util
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from children import in_child

from robust_eval.job import RunningJob
from robust_eval.processes import residue
from robust_eval.processes.heard import Tripwires
from robust_eval.processes.residue import CoreModules, Garbage


def replace_and_restore() -> None:
    kept, os.write = os.write, print  # type: ignore[assignment]
    os.write = kept


CHANGES: list[tuple[Callable[[], Any], bool]] = [
    (lambda: setattr(os, "write", print), True),
    (lambda: delattr(time, "sleep"), True),
    (lambda: threading.settrace(print), True),
    (lambda: setattr(random, "random", print), True),
    (lambda: setattr(os, "new", 1), False),
    (replace_and_restore, False),
    (lambda: setattr(threading.Thread, "start", print), True),
    (lambda: delattr(random.Random, "choice"), True),
    (lambda: setattr(RunningJob, "__getitem__", print), True),
    (lambda: setattr(random.Random, "random", print), True),
    (lambda: sys.modules.update(json=os), True),
    (lambda: sys.modules.pop("json"), True),
    (lambda: sys.modules.update(new=os), False),
]


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize(("change", "shows"), CHANGES)
def test_a_function_that_was_replaced_is_noticed(
    counted: bool, change: Callable[[], Any], shows: bool, monkeypatch: pytest.MonkeyPatch
):
    """Where the interpreter counts the changes of a dict, and where it does not. What was added is no harm."""
    if not counted:
        monkeypatch.setattr(residue, "version_of", lambda _: None)
    counted = residue.version_of({}) is not None

    def look() -> list[bool]:
        core = CoreModules()
        before = [core.are_changed(), core.differ_unnoticed()]
        change()
        return [*before, core.are_changed(), core.differ_unnoticed(), core.are_changed()]

    assert in_child(look) == [False, False, shows and counted, shows and not counted, False]


@pytest.mark.parametrize("stands_there", [None, ModuleType("json.decoder")])
def test_a_module_that_is_not_the_usual_one_keeps_no_worker_from_starting(stands_there: ModuleType | None):
    """None forbids its import, and a user's own module of the same name has other contents."""

    def look() -> list[bool]:
        for name in ("json.decoder", "json"):
            sys.modules[name] = stands_there  # type: ignore[assignment]
        core = CoreModules()
        before = core.are_changed()
        os.write = print  # type: ignore[assignment]
        return [before, core.are_changed() or core.differ_unnoticed()]

    assert in_child(look) == [False, True]


@pytest.mark.parametrize(
    "call",
    [
        lambda: sys.addaudithook(lambda *_: None),
        lambda: _thread.start_new_thread(lambda: None, ()),
        lambda: os.register_at_fork(before=lambda: None),
    ],
)
def test_what_nobody_can_undo_is_noticed_when_it_is_called(call: Callable[[], Any]):
    """An audit hook cannot be listed, and a raw thread is counted only once it runs."""

    def look() -> tuple[bool, bool]:
        tripwires = Tripwires()
        before = tripwires.touched
        call()
        return before, tripwires.touched

    assert in_child(look) == (False, True)


def test_what_a_module_registers_on_its_import_is_its_own(tmp_path: Path):
    """As `logging` and `concurrent.futures` do, which a job may be the first to import."""
    (tmp_path / "registering.py").write_text("import os\nos.register_at_fork(before=lambda: None)\n")

    def look() -> bool:
        sys.path.insert(0, str(tmp_path))
        tripwires = Tripwires()
        importlib.import_module("registering")
        return tripwires.touched

    assert not in_child(look)


class Tale:
    """A cycle that tells of its end."""

    def __init__(self, told: list[str]) -> None:
        self.itself = self
        self.told = told

    def __del__(self) -> None:
        self.told.append("collected")


def grow_old(told: list[str]) -> None:
    """A cycle that survives collections, and is left then."""
    tale = Tale(told)
    gc.collect()
    gc.collect()
    del tale


def grow_up(told: list[str]) -> None:
    """A cycle that survives collections of the youngest only, and is left then."""
    tale = Tale(told)
    gc.collect(0)
    gc.collect(0)
    del tale


def grow_old_unseen(told: list[str]) -> None:
    """A cycle that comes to the oldest generation with no collection of that."""
    tale = Tale(told)
    gc.collect(1)
    gc.collect(1)
    del tale


@pytest.mark.parametrize("leave", [Tale, grow_up, grow_old_unseen, grow_old])
def test_a_cycle_is_collected_in_the_time_of_its_job(leave: Callable[[list[str]], Any]):
    """A young one, and one that is not found among the young."""

    def look() -> tuple[list[str], list[str]]:
        told: list[str] = []
        garbage = Garbage()
        garbage.settle()
        garbage.begin()
        leave(told)
        before = list(told)
        garbage.collect(1.0, time.monotonic)
        return before, told

    assert in_child(look) == ([], ["collected"])


def seeming_to_take(duration_s: float) -> Callable[[], float]:
    """A clock on which each collection takes so long."""
    instants = iter(range(0, 1000, int(duration_s)))
    return lambda: next(instants)


def test_a_collection_is_paid_for_by_the_time_of_the_job():
    """Where collections take long, short jobs are not made to wait for them; the next long one does it."""

    def look() -> list[int]:
        told: list[str] = []
        clock = seeming_to_take(10)
        garbage, found = Garbage(), []
        garbage.settle()
        for spent_s in (1.0, 1.0, 1000.0):
            garbage.begin()
            grow_old_unseen(told)
            garbage.collect(spent_s, clock)
            found.append(len(told))
        return found

    assert in_child(look) == [1, 1, 3]


@pytest.mark.parametrize("leave", [Tale, grow_up, grow_old])
def test_a_short_job_pays_for_what_costs_no_more_than_it_did_itself(leave: Callable[[list[str]], Any]):
    """What is young costs little, and a job that collected everything has spent as much as that costs again."""

    def look() -> int:
        told: list[str] = []
        clock = seeming_to_take(10)
        garbage = Garbage()
        garbage.settle()
        garbage.begin()
        grow_old_unseen(told)
        garbage.collect(1.0, clock)
        told.clear()
        garbage.begin()
        leave(told)
        garbage.collect(1.0, clock)
        return len(told)

    assert in_child(look) == 1


def test_what_an_import_has_made_is_not_gone_through_again(tmp_path: Path):
    """A job that is the first to import a large library would else make the collections of all others dear."""
    (tmp_path / "a_large_library.py").write_text("stays = [[number] for number in range(30_000)]\n")

    def look() -> tuple[int, int]:
        sys.path.insert(0, str(tmp_path))
        told: list[str] = []
        clock = seeming_to_take(10)
        garbage = Garbage()
        garbage.settle()
        garbage.begin()
        importlib.import_module("a_large_library")
        grow_old_unseen(told)
        garbage.collect(1.0, clock)
        garbage.begin()
        grow_old_unseen(told)
        garbage.collect(1.0, clock)
        return len(told), sum(isinstance(each, list) and len(each) == 1 for each in gc.get_objects())

    collected, gone_through = in_child(look)
    assert collected == 2
    assert gone_through < 30_000


def test_a_job_that_left_nothing_costs_no_collection():
    """Whatever came and went before it. Nor does one of a user who switched the collector off."""

    def look() -> tuple[list[str], list[str]]:
        sys.settrace(None)  # a measurement of coverage makes objects as it goes
        ran: list[str] = []
        garbage = Garbage()
        garbage.settle()
        between = [[] for _ in range(10)]  # type: ignore[var-annotated]
        gc.callbacks.append(lambda phase, _: ran.append(phase))
        for _ in range(4):
            ran.clear()
            between = [[] for _ in between]
            garbage.begin()
            garbage.collect(1.0, time.monotonic)
        nothing = list(ran)
        garbage.begin()
        gc.disable()
        kept = [[] for _ in range(10)]  # type: ignore[var-annotated]
        garbage.collect(1.0, time.monotonic)
        return nothing, ran if kept else ["?"]

    assert in_child(look) == ([], [])


def test_the_directory_of_multiprocessing_goes_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Unless it was there before the first job; its sockets go with it, and a new one can be made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def look() -> list[bool]:
        found = [residue.temporary_directory() is None]
        residue.remove_temporary_directory(None)
        directory = multiprocessing.util.get_temp_dir()
        (Path(directory) / "listener").touch()
        residue.remove_temporary_directory(directory)
        found.append(Path(directory).exists())
        residue.remove_temporary_directory(None)
        found.append(not Path(directory).exists())
        found.append(Path(multiprocessing.util.get_temp_dir()).exists())
        return found

    assert in_child(look) == [True] * 4


def test_nothing_is_asked_of_multiprocessing_where_it_is_not_loaded():
    """A worker that never used it has no directory."""

    def look() -> str | None:
        del sys.modules["multiprocessing.process"]
        return residue.temporary_directory()

    assert in_child(look) is None
