"""The command line, run as its users run it: in a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

_AS_INSTALLED = "from robust_eval.cli import main; main()"
# An interpreter in which one package cannot be found, as on a machine without the extra.
_WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from robust_eval.cli import main

main()
"""


@pytest.fixture
def command(tmp_path: Path) -> Run:
    """`robust-eval` with arguments, in an empty directory."""

    def run(*arguments: str, script: str = _AS_INSTALLED) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", script, *arguments],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_version_is_the_installed_one(command: Run):
    """`--version` says what pip says, and nothing else."""
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"robust-eval {version('robust-eval')}\n")


def test_help_lists_the_commands(command: Run):
    """`--help` names every command, and so does the bare command."""
    done = command("--help")
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert "demo" in command().stdout


def test_an_unknown_command_is_refused_in_one_block(command: Run):
    """Misuse is told without a traceback, with the exit code of misuse."""
    done = command("dance")
    assert done.returncode == 2
    assert "dance" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_workers_are_refused(command: Run):
    """`--workers 0` is refused before anything is started."""
    done = command("demo", "--workers", "0")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("package", "extra"), [("typer", "cli"), ("rich", "cli"), ("scipy", "demo")])
def test_a_missing_extra_is_named(command: Run, package: str, extra: str):
    """Without an optional package the command says which extra to install, in one line."""
    done = command("demo", script=_WITHOUT.format(package=package))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"robust-eval needs the package {package!r} for this: pip install 'robust-eval[{extra}]'"
    ]


def test_a_broken_module_of_ours_is_no_missing_extra():
    """A module of this package that is not found is our bug and keeps its traceback."""
    from robust_eval.cli.extras import needs

    with pytest.raises(ModuleNotFoundError, match="nowhere"), needs("cli"):
        import robust_eval.nowhere  # noqa: F401
