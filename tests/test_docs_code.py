"""What the documentation shows, runs: every Python block of a page, in order, as one plain script."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The whole info string is read, so that a block cannot opt out by a word after the language.
BLOCK = re.compile(r"^```(?:python|py)\b[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
