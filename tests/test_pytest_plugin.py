"""The pytest plugin, in real runs of pytest over a small project."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import robust_eval

ROOT = Path(robust_eval.__file__).resolve().parent.parent
PATIENCE_S = 100.0
INSTALLED = bool(importlib.metadata.entry_points(group="pytest11", name="robust_eval"))
CONFTEST = """
import os
import pytest

def pytest_addoption(parser):
    parser.addoption("--flavour", default="vanilla")

@pytest.fixture(scope="session")
def session_pid():
    return os.getpid()

@pytest.fixture(scope="module")
def module_value():
    yield 3
    print("module value torn down")
"""
MIXED = """
import ctypes
import os
import pytest

HOME = os.getpid()

def test_before(module_value):
    assert module_value == 3

@pytest.mark.isolated(job_timeout=3)
def test_hangs(module_value):
    while True:
        pass

@pytest.mark.isolated
def test_crashes():
    ctypes.string_at(0)

@pytest.mark.isolated(memory_limit="150MiB")
def test_hoards():
    hoard = []
    while True:
        hoard.append(b"x" * 2**20)

@pytest.mark.isolated
def test_asserts():
    print("what it printed")
    config = {"a": 1}
    assert config == {"a": 2}

@pytest.mark.isolated
@pytest.mark.parametrize("value", ["a::b", 2])
def test_everything_works(value, session_pid, module_value, capsys, tmp_path, pytestconfig):
    print("hello")
    assert capsys.readouterr().out == "hello\\n"
    assert session_pid == os.getpid()
    assert pytestconfig.getoption("flavour") == "mint"
    (tmp_path / "file").touch()

@pytest.mark.isolated
def test_skips():
    pytest.skip("for a reason")

class TestGroup:
    @pytest.mark.isolated
    @pytest.mark.xfail(strict=True)
    def test_expected(self):
        assert not os

@pytest.mark.isolated
def test_breaks_a_fixture(missing):
    pass

def test_after(session_pid):
    assert session_pid == os.getpid()
"""
SECOND = """
import pytest

@pytest.mark.isolated
def test_of_another_file():
    pass
"""
COUNTS = {"passed": 5, "failed": 4, "skipped": 1, "xfailed": 1, "error": 1}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_mixed.py").write_text(MIXED)
    (tmp_path / "test_second.py").write_text(SECOND)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --flavour=mint --strict-markers\n")
    return tmp_path


def run_pytest(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    load = () if INSTALLED else ("-p", "robust_eval.pytest_plugin")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *load, "-p", "no:cacheprovider", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def counts(output: str) -> dict[str, int]:
    last = output.strip().splitlines()[-1]
    return {
        name.removesuffix("s") if name == "errors" else name: int(n) for n, name in re.findall(r"(\d+) (\w+)", last)
    }


@pytest.mark.parametrize("spread", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_run_goes_on_whatever_a_test_does(project, spread):
    """Every test is reported, the faulty ones with their cause; fixtures, capture, parameters and marks work."""
    done = run_pytest(project, *spread)
    found = counts(done.stdout)
    assert {name: found.get(name) for name in COUNTS} == COUNTS, done.stdout + done.stderr
    assert "timeout: the job did not finish within its job_timeout" in done.stdout
    assert re.search(r'File ".*test_mixed.py", line 1[34] in test_hangs\n', done.stdout), done.stdout
    assert "signal SIGSEGV" in done.stdout
    assert "over its memory_limit" in done.stdout
    assert "assert {'a': 1} == {'a': 2}" in done.stdout
    assert "what it printed" in done.stdout
    assert "fixture 'missing' not found" in done.stdout
    assert "_pytest/" not in done.stdout


EXPECTED = """
import os
import pytest
from robust_eval import JobCrashed

@pytest.mark.isolated(job_timeout=0.5)
@pytest.mark.xfail(raises=TimeoutError, reason="a known hang")
def test_hangs():
    while True:
        pass

@pytest.mark.isolated
@pytest.mark.xfail
def test_crashes():
    os.abort()

@pytest.mark.isolated
@pytest.mark.xfail(raises=TimeoutError)
def test_crashes_instead():
    os.abort()
"""


def test_a_mark_of_xfail_holds_for_a_test_that_is_killed(project):
    """By the exception that its failure is, unless marks of xfail are not to count."""
    (project / "test_mixed.py").write_text(EXPECTED)
    found = counts(run_pytest(project, "test_mixed.py").stdout)
    assert {name: found.get(name) for name in ("failed", "xfailed")} == {"failed": 1, "xfailed": 2}
    found = counts(run_pytest(project, "--runxfail", "test_mixed.py", "-k", "hangs").stdout)
    assert found.get("failed") == 1


def test_with_s_the_output_of_isolated_tests_is_shown(project):
    """Once they are done, also of one that passed."""
    (project / "test_second.py").write_text(SECOND.replace("pass", 'print("said in passing")'))
    done = run_pytest(project, "-s", "test_second.py")
    assert "said in passing" in done.stdout
    assert counts(done.stdout)["passed"] == 1


def test_a_debugger_is_refused(project):
    """With the option that lets it in."""
    done = run_pytest(project, "--pdb", "test_second.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--no-isolation" in done.stderr
    assert counts(run_pytest(project, "--no-isolation", "--pdb", "test_second.py").stdout)["passed"] == 1


@pytest.mark.parametrize("arguments", ["5", "job_timeout=5, wrong=1"])
def test_an_argument_that_is_not_known_is_refused(project, arguments):
    """Before anything runs, by the name of the test."""
    (project / "test_second.py").write_text(SECOND.replace("isolated", f"isolated({arguments})"))
    done = run_pytest(project, "test_second.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_second.py::test_of_another_file: isolated(" in done.stderr
    assert "Allowed are job_timeout and memory_limit" in done.stderr


def test_a_value_that_means_nothing_fails_its_test(project):
    """With the words of the limit."""
    (project / "test_second.py").write_text(SECOND.replace("isolated", "isolated(job_timeout=-1)"))
    done = run_pytest(project, "test_second.py")
    assert counts(done.stdout)["failed"] == 1
    assert "job_timeout=-1 is no duration" in done.stdout


def test_a_failing_teardown_is_reported(project):
    """Of a fixture that an earlier test of the file set up in the run's own process."""
    (project / "test_second.py").write_text(
        SECOND
        + "\n\n@pytest.fixture(scope='module')\ndef broken():\n    yield\n    assert 0, 'torn'\n"
        + "\n\ndef test_earlier(broken):\n    pass\n\n\n@pytest.mark.isolated\ndef test_last():\n    pass\n"
    )
    done = run_pytest(project, "test_second.py")
    assert (counts(done.stdout)["passed"], counts(done.stdout)["error"]) == (3, 1)
    assert "torn" in done.stdout


def test_a_time_limit_of_the_run_ends_the_test(project):
    """pytest-timeout interrupts the wait; the process is ended, and the run goes on."""
    pytest.importorskip("pytest_timeout")
    hang = "\n\n@pytest.mark.isolated\n@pytest.mark.timeout(3)\ndef test_hangs():\n    while True:\n        pass\n"
    (project / "test_second.py").write_text(SECOND + hang)
    done = run_pytest(project, "test_second.py", "-p", "timeout")
    found = counts(done.stdout)
    assert (found["passed"], found["failed"]) == (1, 1), done.stdout + done.stderr
    assert "Timeout" in done.stdout


def test_it_costs_nothing_where_it_is_not_used():
    """Being installed imports two small modules and nothing of the machinery."""
    code = (
        "import sys, pytest; before = set(sys.modules); import robust_eval.pytest_plugin; "
        "print(sorted(set(sys.modules) - before))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "['robust_eval', 'robust_eval.pytest_plugin']\n"
