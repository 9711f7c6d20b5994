"""`robust-eval doctor`: what this machine can enforce, tried out rather than guessed."""

import importlib.util
import json as json_text
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robust_eval.cli.exits import Exit
from robust_eval.evaluators.process import ProcessPoolEvaluator
from robust_eval.failure import Failure
from robust_eval.limits import machine_memory
from robust_eval.processes import system

_GIB: Final = 2**30
_PACKAGES: Final = {
    "psutil": "",
    "cloudpickle": "",
    "pandas": "",
    "rich": "cli",
    "typer": "cli",
    "plotly": "report",
    "tqdm": "progress",
    "hypothesis": "falsify",
}
_TRIAL_S: Final = 1.0


class Finding(NamedTuple):
    """One line: whether it is well (None for a plain fact), what was looked at, what was found."""

    good: bool | None
    what: str
    found: str


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Lines of JSON.")] = False,
) -> None:
    """Tell what this machine can enforce: start methods, kills, limits, versions.

    Real workers are started and really killed, which takes a few seconds.
    The exit code is 1 where something that robust_eval promises does not work here.
    """
    findings = [*_facts(), *_kernel(), *_trials()]
    if json:
        for each in findings:
            typer.echo(json_text.dumps(each._asdict()))
    else:
        Console().print(_table(findings))
    raise typer.Exit(Exit.SOME_FAILED if any(each.good is False for each in findings) else Exit.OK)


def _table(findings: list[Finding]) -> Table:
    table = Table("", "what", "found", box=None)
    signs = {True: Text("ok", style="green"), False: Text("NO", style="bold red"), None: Text("")}
    for each in findings:
        table.add_row(signs[each.good], each.what, Text(each.found))
    return table


def _facts() -> Iterator[Finding]:
    yield Finding(None, "robust_eval", version("robust-eval"))
    yield Finding(None, "Python", f"{platform.python_version()} at {sys.executable}")
    yield Finding(None, "system", f"{platform.system()} {platform.release()} {platform.machine()}")
    for package, extra in _PACKAGES.items():
        hint = f"not installed: pip install 'robust-eval[{extra}]'"
        yield Finding(None, package, _version(package) if importlib.util.find_spec(package) else hint)
    yield Finding(None, "processors", f"{len(os.sched_getaffinity(0)) if system.LINUX else os.cpu_count()} usable")
    yield Finding(None, "memory to share", f"{machine_memory() / _GIB:.1f} GiB (memory_limit='auto' divides it)")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "installed, of an unknown version"


def _kernel() -> Iterator[Finding]:
    """What the rules of supervision stand on; a missing one weakens a rule, as the page on platforms says."""
    files = {
        "exact peak of each job's memory": "/proc/self/clear_refs",
        "proportional memory of shared pages": "/proc/self/smaps_rollup",
        "children without a scan of all processes": f"/proc/self/task/{os.getpid()}/children",
    }
    for what, path in files.items():
        there = Path(path).exists()
        yield Finding(there, what, path if there else f"{path} is missing: coarser, slower")
    yield Finding(hasattr(os, "pidfd_open"), "exits known at once", "pidfd" if system.LINUX else "kqueue")
    yield Finding(hasattr(os, "memfd_create"), "large results without a copy", "memfd")
    counted = system.oom_kills() is not None
    found = "counter readable" if counted else "no counter: such a kill is told as a crash by SIGKILL"
    yield Finding(None if not counted else True, "the kernel's OOM killer is recognised", found)


# -- trials: what a job does, and what must be told of it


def _value(_job: Any) -> float:
    return 1.0


def _hang(_job: Any) -> NoReturn:
    while True:
        time.sleep(_TRIAL_S)


def _eat(_job: Any) -> int:
    kept = [bytearray(b"x" * 2**20) for _ in range(4096)]
    return len(kept)


def _crash(_job: Any) -> NoReturn:
    os.abort()


_TRIALS: Final[Mapping[str, tuple[Callable[[Any], Any], str, dict[str, Any]]]] = {
    "start method fork": (_value, "ok", {}),
    "start method spawn": (_value, "ok", {"start_method": "spawn"}),
    "a hanging job is killed": (_hang, "timeout", {"job_timeout": _TRIAL_S}),
    "a job over its memory is killed": (_eat, "memory", {"memory_limit": "300MiB", "job_timeout": 60}),
    "a crash costs its own job": (_crash, "crash", {}),
}


def _trials() -> Iterator[Finding]:
    for what, (function, expected, limits) in _TRIALS.items():
        begun_at = time.monotonic()
        with ProcessPoolEvaluator(function, **limits) as evaluator:
            evaluator.submit([{}])
            (job,) = evaluator.gather("ALL")
        kind = "ok" if job.failure is None else job.failure.kind
        took = f"{kind} after {time.monotonic() - begun_at:.2f} s"
        yield Finding(kind == expected, what, took if job.failure is None else f"{took}: {_said(job.failure)}")


def _said(failure: Failure) -> str:
    if failure.kind != "timeout":
        return failure.message
    # A busy machine may be too slow for the stack, which waits 5 ms at most: that is not a broken promise.
    return f"{failure.message}; its stack: {'was had' if failure.stack else failure.stack_missing}"
