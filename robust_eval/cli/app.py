"""The commands and their arguments; what they do lives on the floors below."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from robust_eval.cli.extras import needs

app = typer.Typer(
    help="Evaluate a function over many configurations: one honest outcome per job, whatever the function does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001  typer calls it with the flag
    if wanted:
        typer.echo(f"robust-eval {version('robust-eval')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def demo(
    workers: Annotated[int, typer.Option(min=1, help="Configurations that run at a time.")] = os.cpu_count() or 1,
    output: Annotated[Path, typer.Option(help="The CSV file to write.", dir_okay=False)] = Path("results.csv"),
) -> None:
    """Run a sweep over simulations that hang, crash and exhaust memory by themselves."""
    with needs("demo"):
        from robust_eval.demo.show import demo as run_demo  # noqa: PLC0415  another extra, needed only here
    raise typer.Exit(run_demo(workers, output, Console()))
