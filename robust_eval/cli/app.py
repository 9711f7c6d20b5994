"""The commands, each from a module of its own; what they do lives there and on the floors below."""

from importlib.metadata import version
from typing import Annotated

import typer

from robust_eval.cli.demo import demo
from robust_eval.cli.doctor import doctor
from robust_eval.cli.exits import EPILOG
from robust_eval.cli.falsify import falsify
from robust_eval.cli.report import report
from robust_eval.cli.run import run
from robust_eval.cli.show import show

app = typer.Typer(
    help="Evaluate a function over many configurations: one honest outcome per job, whatever the function does.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
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


app.command(epilog=EPILOG)(run)
app.command()(show)
app.command()(report)
app.command()(falsify)
app.command()(doctor)
app.command()(demo)
