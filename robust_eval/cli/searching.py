"""One search from the command line: made or resumed, watched, stopped, and its exit code."""

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from rich.console import Console

from robust_eval.cli.display import JsonLines, LiveCallback, Summary
from robust_eval.cli.exits import Exit
from robust_eval.cli.stored import may_exist, search_of, short
from robust_eval.errors import InvalidArgument, SearchBroken, StorageError
from robust_eval.evaluators.process import ProcessPoolEvaluator
from robust_eval.progress import ProgressCallback
from robust_eval.storage.base import Storage

DEFAULT_STORAGE: Final = "sqlite:///runs.db"
_SHOW_CURSOR: Final = b"\x1b[?25h\n"


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a search is kept: the storage's URL, its id there (None for the last or a new one), the CSV file."""

    storage: str
    search_id: str | None
    output: Path
    resume: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a search."""

    live: bool = False
    quiet: bool = False
    json: bool = False


def search(
    function: Callable[..., Any],
    configs: list[dict[str, Any]],
    limits: dict[str, Any],
    *,
    timeout: float | None,
    kept: Kept,
    shown: Shown,
) -> Exit:
    """Evaluate the configurations, and keep every outcome as it comes.

    Args:
        function: the run function.
        configs: what is evaluated; those that have an outcome in a resumed search are skipped.
        limits: further arguments of `ProcessPoolEvaluator`.
        timeout: seconds that all of it may take.
        kept: where it is kept.
        shown: what is shown.

    Returns:
        The exit code.
    """
    storage, search_id = _storage(kept)
    console = Console()
    summary = Summary(console, short(kept.storage), kept.output)
    callbacks = [summary, *_watchers(shown, console)]
    evaluator = ProcessPoolEvaluator(function, callbacks=callbacks, storage=storage, search_id=search_id, **limits)
    summary.search_id = evaluator.search_id
    for callback in callbacks:
        if isinstance(callback, LiveCallback):
            callback.evaluator = evaluator
    try:
        with evaluator.stop_on_sigterm(), evaluator:
            evaluator.set_timeout(timeout)
            if kept.resume:
                evaluator.resume()
            evaluator.submit(configs, skip_done=kept.resume)
            code = _gathered(evaluator, kept.output)
    finally:
        _close(storage)
    if console.is_terminal and not shown.quiet and not shown.json:
        summary.print(code)
    return code


def _watchers(shown: Shown, console: Console) -> list[Any]:
    if shown.quiet:
        return []
    if shown.json or not console.is_terminal:
        return [JsonLines()]
    return [LiveCallback(console) if shown.live else ProgressCallback(console=console)]


def _storage(kept: Kept) -> tuple[Storage, str | None]:
    if not kept.resume:
        return Storage.from_url(kept.storage).connect(), None
    storage = Storage.from_url(kept.storage).connect() if may_exist(kept.storage) else None
    if storage is None or (kept.search_id is None and not storage.load_all_search_ids()):
        raise InvalidArgument(f"There is no search in {kept.storage} to resume. Leave out --resume to begin one.")
    return storage, search_of(storage, kept.search_id)


def _close(storage: Storage) -> None:
    close = getattr(storage, "close", None)
    if close is not None:
        close()


def _gathered(evaluator: ProcessPoolEvaluator, output: Path) -> Exit:
    """Gather and write what comes, until nothing is left or the search is stopped."""
    try:
        while evaluator.num_jobs_gathered < evaluator.num_jobs_submitted:
            evaluator.gather("BATCH", 1)
            _dump(evaluator, output)
    except SearchBroken:
        evaluator.gather("ALL")
        _dump(evaluator, output)
        return Exit.BROKEN
    except KeyboardInterrupt:
        _stop(evaluator, output)
        return Exit.INTERRUPTED
    _dump(evaluator, output)
    # A text is a failure of the run function's own: "F_diverged".
    failed = any(job.failure is not None or isinstance(job.objective, str) for job in evaluator.jobs)
    return Exit.SOME_FAILED if failed else Exit.OK


def _stop(evaluator: ProcessPoolEvaluator, output: Path) -> None:
    """Keep what there is. What has not settled is not gathered: a resumed search runs it."""
    # From now on Ctrl-C means now: the supervisor ends every process by itself, and what is stored is stored.
    signal.signal(signal.SIGINT, _end_now)
    if evaluator.num_jobs_submitted:
        evaluator.gather("BATCH", 0)
    _dump(evaluator, output)
    evaluator.close()


def _end_now(_number: int, _frame: object) -> NoReturn:
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)
    os._exit(Exit.INTERRUPTED)


def _dump(evaluator: ProcessPoolEvaluator, output: Path) -> None:
    try:
        evaluator.dump_evals(log_dir=output.parent, filename=output.name)
    except OSError as error:
        raise StorageError(
            f"--output {output} cannot be written: {error.strerror}. What is done is kept in the storage: the same "
            "line with --resume goes on."
        ) from error
