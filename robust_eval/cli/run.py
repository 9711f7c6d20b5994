"""`robust-eval run`: the arguments, and nothing of the search itself."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from robust_eval.cli import searching, values
from robust_eval.cli.configs import configurations
from robust_eval.cli.exits import told
from robust_eval.cli.outputs import check_writable
from robust_eval.cli.target import command_of, function_of
from robust_eval.errors import InvalidArgument

_LIMITS, _KEPT, _SHOWN, _COMMAND = "Limits", "What is kept", "What is shown", "Executables"


class Keep(StrEnum):
    """Whose scratch directories stay."""

    failed = "failed"
    always = "always"
    never = "never"


def run(
    target: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODULE:FUNCTION] [CONFIGS]",
            help="The function, and the file of configurations: CSV, JSON lines (- for standard input) or a JSON list. "
            "With --command only the file.",
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUES", help="Values of a parameter; one --grid for each."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", "-w", parser=values.count, metavar="N", help="Jobs that run at a time.")
    ] = os.cpu_count() or 1,
    job_timeout: Annotated[
        float | None,
        typer.Option(parser=values.seconds, metavar="SECONDS", help="How long a job may run.", rich_help_panel=_LIMITS),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            parser=values.memory,
            metavar="SIZE",
            help="What a job may take with all its processes: 2GiB, 0.5 (of this machine), or auto (this machine "
            "shared by the workers).",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    grace_period: Annotated[
        float,
        typer.Option(
            parser=values.seconds_from_zero,
            metavar="SECONDS",
            help="Time between a polite stop and the kill.",
            rich_help_panel=_LIMITS,
        ),
    ] = 0.0,
    max_retries: Annotated[
        int,
        typer.Option(
            parser=values.count_or_none,
            metavar="N",
            help="Further attempts of a job that failed.",
            rich_help_panel=_LIMITS,
        ),
    ] = 0,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=values.seconds_from_zero,
            metavar="SECONDS",
            help="How long the whole search may take.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_failure_rate: Annotated[
        float | None,
        typer.Option(
            parser=values.share,
            metavar="SHARE",
            help="Stop when more than this share failed, from 0 to 1.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_consecutive_failures: Annotated[
        int | None,
        typer.Option(
            parser=values.count,
            metavar="N",
            help="Stop after so many failures in a row.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Where jobs are kept as they come; memory:// for nowhere.", rich_help_panel=_KEPT)
    ] = searching.DEFAULT_STORAGE,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the last search: what has an outcome is skipped.", rich_help_panel=_KEPT
        ),
    ] = False,
    search_id: Annotated[
        str | None, typer.Option(help="The search to resume, instead of the last one.", rich_help_panel=_KEPT)
    ] = None,
    output: Annotated[
        Path, typer.Option(dir_okay=False, help="The CSV file of results.", rich_help_panel=_KEPT)
    ] = Path("results.csv"),
    log_dir: Annotated[
        Path | None, typer.Option(help="A directory for what each job printed.", rich_help_panel=_KEPT)
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            help="An executable instead of a function, './solver --re={re}': {name} is a parameter, {job_dir} the "
            "scratch directory where it runs. No shell reads it.",
            rich_help_panel=_COMMAND,
        ),
    ] = None,
    parse: Annotated[
        str | None,
        typer.Option(
            help="A regular expression whose group is the objective; by default JSON on the last line.",
            rich_help_panel=_COMMAND,
        ),
    ] = None,
    ok_exit_code: Annotated[
        list[int] | None,
        typer.Option(
            parser=values.count_or_none,
            metavar="CODE",
            help="An exit code that is no failure, instead of 0; may be repeated.",
            rich_help_panel=_COMMAND,
        ),
    ] = None,
    scratch: Annotated[
        Path, typer.Option(file_okay=False, help="Where scratch directories are made.", rich_help_panel=_COMMAND)
    ] = Path("scratch"),
    keep: Annotated[Keep, typer.Option(help="Which of them stay.", rich_help_panel=_COMMAND)] = Keep.failed,
    live: Annotated[bool, typer.Option("--live", help="Show what each worker does.", rich_help_panel=_SHOWN)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing.", rich_help_panel=_SHOWN)] = False,
    json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each job, as into a pipe.", rich_help_panel=_SHOWN)
    ] = False,
) -> None:
    """Evaluate a function or an executable over many configurations.

    Every outcome is stored as it comes. Ctrl-C stops and keeps what there is;
    twice, it ends at once. The same line with --resume goes on.

    On a terminal a bar shows the progress; into a file or a pipe goes
    a line of JSON for each job.

    For example:

      robust-eval run model:train configs.csv --workers 8 --job-timeout 60

      robust-eval run --command './solver --re={re}' --grid re=10,100,1000
    """
    with told():
        given = list(target or [])
        if command is None and parse is not None:
            raise InvalidArgument(f"--parse {parse!r} reads what a --command prints, and there is none.")
        if command is not None:
            check_writable("--scratch", scratch)
            codes = ok_exit_code or [0]
            function = command_of(command, parse, scratch=scratch, keep=keep.value, ok_exit_codes=codes)
        elif given:
            function = function_of(given.pop(0))
        else:
            raise InvalidArgument("There is nothing to run. Pass module:function, or --command.")
        if len(given) > 1:
            raise InvalidArgument(f"{given[1:]} is too much. Pass one file of configurations.")
        if not given and not grid and not (resume or search_id):
            raise InvalidArgument("There are no configurations. Pass a file, --grid x=1,2,3, or --resume.")
        configs = configurations(given[0] if given else None, grid or ()) if given or grid else []
        check_writable("--output", output)
        limits: dict[str, Any] = {
            "job_timeout": job_timeout,
            "memory_limit": memory_limit,
            "grace_period": grace_period,
            "max_retries": max_retries,
            "max_failure_rate": max_failure_rate,
            "max_consecutive_failures": max_consecutive_failures,
            "log_dir": log_dir,
            "num_workers": workers,
        }
        kept = searching.Kept(storage, search_id, output, resume=resume or search_id is not None)
        shown = searching.Shown(live=live, quiet=quiet, json=json)
        code = searching.search(function, configs, limits, timeout=timeout, kept=kept, shown=shown)
    raise typer.Exit(code)
