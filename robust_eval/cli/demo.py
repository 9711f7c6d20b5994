"""`robust-eval demo`."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from robust_eval.cli import values
from robust_eval.cli.exits import told
from robust_eval.cli.extras import needs
from robust_eval.cli.outputs import check_writable


def demo(
    workers: Annotated[
        int,
        typer.Option("--workers", "-w", parser=values.count, metavar="N", help="Configurations that run at a time."),
    ] = os.cpu_count() or 1,
    output: Annotated[Path, typer.Option(help="The CSV file to write.", dir_okay=False)] = Path("results.csv"),
) -> None:
    """Run a sweep over simulations that hang, crash and exhaust memory by themselves.

    It takes less than a minute, and shows what became of every configuration and one example of each failure.
    """
    with told():
        check_writable("--output", output)
    with needs("demo"):
        from robust_eval.demo.show import demo as run_demo  # noqa: PLC0415  another extra, needed only here
    raise typer.Exit(run_demo(workers, output, Console()))
