"""Forks of a process that has one thread. Each test is in a child of its own: handlers at forks stay for good."""

import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
from children import in_child

from robust_eval import ProcessPoolEvaluator
from robust_eval.processes.forking import AtFork

MOMENTS = ("before", "after_in_parent", "after_in_child")


def register(module: str, *, note: Callable[[str], None]) -> None:
    """Register a handler for each moment as code of a module of this name does."""
    handlers: dict[str, Any] = {moment: lambda moment=moment: note(f"{moment} {module}") for moment in MOMENTS}
    code = compile("import os; os.register_at_fork(**handlers)", module, "exec")
    exec(code, {"__name__": module, "handlers": handlers})  # noqa: S102 - the name of the caller is what matters


def notes_of(fork: Callable[[], int], notes: list[str]) -> tuple[list[str], list[str]]:
    """What was noted at a fork: here, and in the child."""
    notes.clear()
    reading, writing = os.pipe()
    if fork() == 0:
        os.write(writing, repr(notes).encode())
        os._exit(0)
    os.wait()
    theirs: list[str] = eval(os.read(reading, 1 << 12))  # noqa: S307 - our own child's list
    return notes[:], theirs


def listening() -> tuple[AtFork, list[str]]:
    """A listener, and what the handlers note that were registered with it: by two modules of threads and by another."""
    notes: list[str] = []
    AtFork().listen()
    at_fork = AtFork.of_this_process()
    for module in ("threading", "mine", "logging"):
        register(module, note=notes.append)
    return at_fork, notes


def test_a_fork_alone_runs_only_the_handlers_of_others():
    """What a library has registered runs at each fork; what mends threads does not where there is one."""

    def test() -> tuple[list[str], list[str]]:
        at_fork, notes = listening()
        return notes_of(at_fork.fork, notes)

    assert in_child(test) == (["before mine", "after_in_parent mine"], ["before mine", "after_in_child mine"])


@pytest.mark.parametrize("beside", [False, True], ids=["a fork of a job's own", "another thread"])
def test_other_forks_run_all(beside):
    """In the order of the standard library: the last registered is the first before a fork and the last behind it."""

    def test() -> tuple[list[str], list[str]]:
        at_fork, notes = listening()
        done = threading.Event()
        if beside:
            threading.Thread(target=done.wait, daemon=True).start()
        try:
            return notes_of(at_fork.fork if beside else os.fork, notes)
        finally:
            done.set()

    here, there = in_child(test)
    assert [note for note in here if "mine" not in note] == [
        "before logging",
        "before threading",
        "after_in_parent threading",
        "after_in_parent logging",
    ]
    assert [note for note in there if "after" in note and "mine" not in note] == [
        "after_in_child threading",
        "after_in_child logging",
    ]
    assert "after_in_child mine" in there


def test_a_handler_may_miss_moments():
    """Most register only what is to be done in the child."""

    def test() -> list[str]:
        notes: list[str] = []
        AtFork().listen()
        handlers = {"after_in_child": lambda: notes.append("child")}
        exec("import os; os.register_at_fork(**handlers)", {"__name__": "random", "handlers": handlers})  # noqa: S102
        return notes_of(os.fork, notes)[1]

    assert in_child(test) == ["child"]


def test_wrong_arguments_are_refused_as_ever():
    """By the standard library itself."""

    def test() -> str:
        AtFork().listen()
        with pytest.raises(TypeError) as caught:
            os.register_at_fork(after=print)  # type: ignore[call-overload]
        return str(caught.value)

    assert "after" in in_child(test)


def test_who_does_not_listen_knows_of_no_handler():
    """A fork is then an ordinary one."""

    def test() -> bool:
        os.register_at_fork = types.MethodType(lambda _, **__: None, object())  # somebody else's
        pid = AtFork.of_this_process().fork()
        if pid == 0:
            os._exit(0)
        return os.waitpid(pid, 0) == (pid, 0)

    assert in_child(test)


@pytest.mark.unmeasured
def test_a_worker_of_a_template_with_a_thread_knows_that_it_is_alone(tmp_path, monkeypatch):
    """A module that a template loads may start a thread, which no worker has."""
    (tmp_path / "busybody.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with ProcessPoolEvaluator(lambda _: float(threading.active_count()), preload=["busybody"]) as evaluator:
        evaluator.submit([{}])
        (job,) = evaluator.gather("ALL")
    assert job.objective == 1.0


@pytest.mark.unmeasured
def test_what_a_job_forks_draws_numbers_of_its_own():
    """`random` gives the child of a job another state, as in any program."""

    def run(_: Any) -> dict[str, Any]:
        import random

        reading, writing = os.pipe()
        pid = os.fork()
        number = random.random()
        if pid == 0:
            os.write(writing, repr(number).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        return {"objective": number, "metadata": {"theirs": float(os.read(reading, 100))}}

    with ProcessPoolEvaluator(run) as evaluator:
        evaluator.submit([{}])
        (job,) = evaluator.gather("ALL")
    assert job.metadata["theirs"] != job.objective, sys.version
