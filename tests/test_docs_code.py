"""What the documentation shows, runs: every Python block of a page, in order, as one plain script."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from robust_eval.cli.app import app

pytestmark = pytest.mark.unmeasured  # what it runs is measured by the tests of its parts

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The whole info string is read, so that a block cannot opt out by a word after the language.
BLOCK = re.compile(r"^```(?:python|py)\b[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SHELL = re.compile(r"^```(?:bash|console)\b[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A command of ours, in a shell block or in a sentence, from after its name to the end of the line or of the code span.
COMMAND = re.compile(r"(?:^\$ |`|/bin/)robust-eval ([a-z][^`\n]*)", re.MULTILINE)
# A program of the checkout, named wherever it is.
PROGRAM = re.compile(r"python -m (stress(?:\.\w+)*)")


def _script(page: Path) -> str:
    return "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))


WITH_CODE = [page for page in PAGES if "_build" not in page.parts and _script(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path):
    """As a script without a main guard, in an empty directory, it ends well and without a warning."""
    script = tmp_path / "page.py"
    script.write_text(_script(page), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_the_pages_with_code_are_found():
    """The README, the tutorial and each how-to have code that is run."""
    names = {str(page.relative_to(ROOT)) for page in WITH_CODE}
    assert {"README.md", "docs/index.md", "docs/tutorial.md"} <= names
    assert {str(page.relative_to(ROOT)) for page in (ROOT / "docs" / "howto").glob("*.md")} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_line_of_code_fits(page: Path):
    """A code block is narrow enough to be read without scrolling: 120 columns."""
    long = [line for line in _script(page).splitlines() if len(line) > 120]
    assert not long


def _found(pattern: re.Pattern[str]) -> list[str]:
    texts = [page.read_text(encoding="utf-8") for page in PAGES if "_build" not in page.parts]
    return sorted({found for text in texts for found in pattern.findall(text)})


def _is_run(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


@pytest.mark.parametrize("line", _found(COMMAND))
def test_a_command_that_is_shown_is_understood(line: str):
    """Its name, its options and their values are taken by the parser of the command line as they stand."""
    name, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert command.make_context(name, arguments).params.keys() == {
        each.name for each in command.params if each.name != "help"
    }


def test_the_commands_are_found():
    """Each command of ours is shown somewhere, so that the test above has something to read."""
    shown = {line.split()[0] for line in _found(COMMAND)}
    assert shown == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", _found(SHELL), ids=lambda block: block.splitlines()[0][:40])
def test_a_shell_block_is_shell(block: str):
    """Bash reads it without an error; it is not run."""
    script = re.sub(r"^\$ ", "", block, flags=re.MULTILINE)
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, done.stderr


def test_a_program_that_is_named_is_there():
    """What follows `python -m` is a module of the checkout that can be run."""
    programs = _found(PROGRAM)
    assert "stress.bench.matrix" in programs
    assert [name for name in programs if not _is_run(name)] == []
