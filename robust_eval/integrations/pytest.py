"""Runs single tests of a pytest run in supervised processes of their own.

Each is run by a pytest in a fresh worker, which sets up every fixture of the test there and sends the reports back. The
worker is forked from a template that collected the test's file before, so that imports are on nobody's clock. The
process of the run itself is never forked: it may have threads, and its memory would count against the test's limit.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.skipping import evaluate_xfail_marks  # no public way leads to it

from robust_eval.calls import failure_in
from robust_eval.errors import RobustEvalError
from robust_eval.isolation import PatientExecutor
from robust_eval.processes.parcel import pack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from robust_eval.executor import RobustExecutor
    from robust_eval.failure import Failure

# Options of the run that must not reach a run of one test: they choose tests, spread them, or report about them.
_KEPT_BACK = frozenset({
    "basetemp", "cacheclear", "capture", "collectonly", "confcutdir", "deselect", "dist", "durations", "failedfirst",
    "file_or_dir", "ignore", "ignore_glob", "inifilename", "junitprefix", "keyword", "last_failed_no_failures", "lf",
    "looponfail", "markexpr", "maxfail", "maxprocesses", "newfirst", "no_isolation", "numprocesses", "override_ini",
    "plugins", "px", "rootdir", "rsyncdir", "setuponly", "setupplan", "stepwise", "stepwise_skip", "tx", "xmlpath",
})  # fmt: skip
_KEPT_BACK_PREFIXES = ("cov", "no_cov", "dist")
_WITHOUT = ("terminal", "cacheprovider", "junitxml", "cov", "_cov", "faulthandler")
_FRAMES_OF_PYTEST = ("/_pytest/", "/pluggy/", "robust_eval/integrations/pytest.py")


class Isolation:
    """The isolated tests of one run.

    Args:
        config: of the run.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._executor: RobustExecutor | None = None
        self._path: Path | None = None
        self._number = 0

    def run(self, item: pytest.Item, nextitem: pytest.Item | None, **limits: Any) -> None:
        """Run one test and report it, as pytest's own protocol would."""
        hooks = item.ihook
        hooks.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in (*self._reports(item, limits), *_torn_down(item, nextitem)):
            if self._config.option.capture == "no":
                sys.stdout.write(report.capstdout)
                sys.stderr.write(report.capstderr)
            hooks.pytest_runtest_logreport(report=report)
        hooks.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def close(self) -> None:
        """End every process."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _reports(self, item: pytest.Item, limits: dict[str, Any]) -> list[pytest.TestReport]:
        """The reports of the worker, or one that says what became of it."""
        try:
            executor = self._executor_for(item.path).with_options(**limits)
        except RobustEvalError as refusal:
            return [_failed(item, str(refusal), 0.0)]
        future = executor.submit(_run_test, self._arguments(item), _portable(vars(self._config.option)))
        try:
            error = future.exception()  # waits
        except pytest.fail.Exception as stop:  # a limit of pytest-timeout, which asks for the end of the test
            executor.kill(future)
            return [_failed(item, str(stop), 0.0)]
        except BaseException:
            executor.kill(future)
            raise
        if error is not None:
            failure = _without_frames_of_pytest(failure_in(error))
            return [_as_expected(item, error, _failed(item, failure.render(), failure.duration or 0.0))]
        restore = self._config.hook.pytest_report_from_serializable
        return [restore(config=self._config, data=data) for data in future.result()]

    def _executor_for(self, path: Path) -> RobustExecutor:
        """The pool whose template has this file collected; tests come file by file, so one is kept."""
        if self._executor is None or path != self._path:
            self.close()
            collected = _Collected([str(path), "--collect-only", *self._common()])
            self._executor = PatientExecutor(1, max_tasks_per_child=1, initializer=_ready, initargs=(collected,))
            self._path = path
        return self._executor

    def _arguments(self, item: pytest.Item) -> list[str]:
        self._number += 1
        base = self._config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined] # noqa: SLF001 - as xdist does
        _, separator, name = item.nodeid.partition("::")
        return [f"{item.path}{separator}{name}", f"--basetemp={base / f'isolated-{self._number}'}", *self._common()]

    def _common(self) -> Iterator[str]:
        """What a pytest must be told before it reads any file."""
        config, option = self._config, self._config.option
        yield from ("--no-isolation", f"--rootdir={config.rootpath}", f"--import-mode={option.importmode}")
        yield from ("-o", "addopts=", f"--capture={'fd' if option.capture == 'no' else option.capture}")
        yield from ("-c", str(config.inipath)) if config.inipath is not None else ()
        yield from (f"--confcutdir={option.confcutdir}",) if option.confcutdir else ()
        for name in (*option.plugins, *(f"no:{name}" for name in _WITHOUT)):
            yield from ("-p", name)
        for setting in option.override_ini or ():
            yield from ("-o", setting)
        for warning in option.pythonwarnings or ():
            yield from ("-W", warning)


def _portable(options: dict[str, Any]) -> dict[str, Any]:
    """The options of the run that a run of one of its tests has, too."""
    chosen = {}
    for name, value in options.items():
        if name not in _KEPT_BACK and not name.startswith(_KEPT_BACK_PREFIXES):
            try:
                pack(value)
            except Exception:  # noqa: BLE001, S112 - a plugin's own object, for its own use
                continue
            chosen[name] = value
    return chosen


def _without_frames_of_pytest(failure: Failure) -> Failure:
    """The failure with a stack that ends, at its bottom, with the test or the fixture."""
    if failure.stack is None:
        return failure
    lines = failure.stack.splitlines()
    while lines and any(frame in lines[-1] for frame in _FRAMES_OF_PYTEST):
        lines.pop()
    return replace(failure, stack="\n".join(lines))


def _failed(item: pytest.Item, text: str, duration_s: float) -> pytest.TestReport:
    call = pytest.CallInfo.from_call(lambda: None, when="call")
    report = pytest.TestReport.from_item_and_call(item, call)
    report.outcome, report.longrepr, report.duration = "failed", text, duration_s
    return report


def _as_expected(item: pytest.Item, error: BaseException, report: pytest.TestReport) -> pytest.TestReport:
    """The report of a test that was ended, as its `xfail` mark has it; what failed by itself its own run has judged."""
    mark = None if item.config.option.runxfail else evaluate_xfail_marks(item)
    if mark is not None:
        expected = mark.raises
        if isinstance(expected, type | tuple) or expected is None:
            fits = isinstance(error, expected or BaseException)
        else:
            fits = expected.matches(error)
        if fits:
            report.outcome, report.wasxfail = "skipped", mark.reason
    return report


def _torn_down(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Tear down what tests before this one left set up here for it, and what the next one does not need."""
    state = item.session._setupstate  # noqa: SLF001 - pytest offers no other way to skip a test's own setup
    call = pytest.CallInfo.from_call(lambda: state.teardown_exact(nextitem), when="teardown")
    return [pytest.TestReport.from_item_and_call(item, call)] if call.excinfo is not None else []


# -- in the worker


class _Collected:
    """Unpickles, in the template, after it has imported what a run of one test will import."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return _collect, (self._arguments,)


def _collect(arguments: list[str]) -> None:
    os.environ.pop("PYTEST_ADDOPTS", None)  # its options come with those of the run
    pytest.main(arguments)


def _ready(_collected: None) -> None:
    """What had to be done was done by unpickling the argument."""


class _Reports:
    """A plugin that takes over the options of the run, and keeps the reports for it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self.reports: list[Any] = []
        self.problems: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config
        vars(config.option).update(self._options)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        serialize = self._config.hook.pytest_report_to_serializable
        self.reports.append(serialize(config=self._config, report=report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.problems.append(report.longreprtext)


def _run_test(arguments: list[str], options: dict[str, Any]) -> list[Any]:
    plugin = _Reports(options)
    code = pytest.main(arguments, plugins=[plugin])
    if not plugin.reports:
        problems = "\n".join(plugin.problems)
        msg = f"pytest did not find this test in its own process, and ended with {code!r}. {problems}"
        raise RuntimeError(msg)
    return plugin.reports
