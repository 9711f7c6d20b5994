"""The command line: `robust-eval`. It needs the extra `cli`, and says so where that is missing."""

from robust_eval.cli.exits import Exit
from robust_eval.cli.extras import needs


def main() -> None:
    """Run the command line and end the interpreter with its exit code."""
    try:
        with needs("cli"):
            from robust_eval.cli.app import app  # noqa: PLC0415  it may be missing, and that is said clearly
    except KeyboardInterrupt:  # before there is anything to stop
        raise SystemExit(Exit.INTERRUPTED) from None
    app()
