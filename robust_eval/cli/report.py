"""`robust-eval report`."""

from pathlib import Path
from typing import Annotated

import typer

from robust_eval.cli.exits import told
from robust_eval.cli.outputs import check_writable
from robust_eval.cli.searching import DEFAULT_STORAGE
from robust_eval.cli.stored import jobs_of, open_storage, search_of


def report(
    storage: Annotated[str, typer.Argument(help="A file (runs.db) or a storage's URL.")] = DEFAULT_STORAGE,
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="The page to write.")] = Path(
        "report.html"
    ),
    search_id: Annotated[str | None, typer.Option(help="The search; by default the last one.")] = None,
) -> None:
    """Write one self-contained page about a search, which opens from disk."""
    with told():
        from robust_eval.report import write_report  # noqa: PLC0415  another extra, needed only here

        check_writable("--output", output)
        opened = open_storage(storage)
        search = search_of(opened, search_id)
        jobs = jobs_of(opened, search)
        write_report(jobs, output, title=f"{storage}, search {search}")
    typer.echo(f"{len(jobs)} jobs in {output}")
