"""The README keeps its word: its commands are those that CI runs, its links lead somewhere."""

import ast
import re
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from robust_eval.failure import FailureKind

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
BASH = re.findall(r"^```bash\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)


def test_it_opens_with_an_example_of_five_lines():
    """The first thing below the title is code: one import and at most five further lines."""
    opening = re.match(r"# robust_eval\n\n```python\n(.*?)\n```\n", README, re.DOTALL)
    assert opening is not None
    lines = [line for line in opening[1].splitlines() if line]
    assert lines[0].startswith("from robust_eval import ")
    assert len(lines) - 1 <= 5
    ast.parse(opening[1])


def test_its_commands_are_single_lines():
    """One command sets up and runs the demo, the other the tests, each a line to copy."""
    demo, test = BASH
    assert "\n" not in demo
    assert demo.endswith("robust-eval demo")
    assert "\n" not in test
    assert test.endswith("python -m pytest")


def test_ci_runs_the_line_of_the_readme():
    """CI reads the test command out of the README with the very expression tested here."""
    expression = re.search(r"^test_command=\$\((sed .*README\.md)\)$", CI, re.MULTILINE)
    assert expression is not None
    read = subprocess.run(
        ["bash", "-c", expression[1]], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10
    )
    assert read.stdout.strip() == BASH[1]
    assert 'eval "$test_command"' in CI


@pytest.mark.parametrize("page", ["README.md", "docs/faults-table.md"])
def test_the_fault_table_has_every_kind(page: str):
    """The kinds of failure that the code knows are the rows of the table, in the same order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == get_args(FailureKind)


def test_its_links_lead_to_files():
    """Every relative link is to a file of the checkout."""
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_what_is_installed_says_that_it_is_typed():
    """Type checkers read the annotations of an installed package only where this marker is (PEP 561)."""
    assert (ROOT / "robust_eval" / "py.typed").is_file()
