"""`robust-eval run`, `show`, `report` and `doctor` as their users meet them: in processes and on a terminal."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from terminal import Terminal
from waiting import alive_with, wait_until

from robust_eval.cli import values
from robust_eval.cli.configs import configurations, value_of
from robust_eval.cli.display import LiveCallback, workers_table
from robust_eval.cli.exits import told
from robust_eval.cli.target import command_of, function_of
from robust_eval.errors import InternalError, InvalidArgument, StorageError

COMMAND = [sys.executable, "-W", "error", "-c", "from robust_eval.cli import main; main()"]
MODEL = """
import os, time
from robust_eval import Callback

def run(job):
    if job["x"] == 3:
        raise ValueError("no three")
    if job["x"] == 4:
        os.abort()
    return job["x"] * job.get("scale", 1)

def slow(job):
    if job["x"] == 0:
        return 0
    open(f"began-{job['x']}", "w").close()
    if os.path.exists("quick"):
        return job["x"]
    time.sleep(600)

class Stubborn(Callback):
    def __call__(self, job):
        return slow(job)

    def on_close(self):
        open("closing", "w").close()
        while True:  # a signal that comes on the way into a sleep is seen after it
            time.sleep(0.1)

stubborn = Stubborn()
value = 7
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def robust_eval(here: Path, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command with its output in pipes."""
    given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(
        [*COMMAND, *arguments], cwd=here, capture_output=True, text=True, timeout=90, check=False, **given
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def objectives(path: Path) -> dict[str, str]:
    return {row["p:x"]: row["objective"] for row in csv.DictReader(io.StringIO(path.read_text()))}


# -- configurations and targets


def test_configurations_come_from_files_and_grids(tmp_path: Path):
    """CSV with numbers, text and empty cells; results of another search; JSON; every combination with a grid."""
    (tmp_path / "a.csv").write_text("\ufeffx,mode\n1,fast\n\n2.5,\n")  # with the mark of Excel, and an empty line
    (tmp_path / "results.csv").write_text("p:x,p:mode,objective,job_id\n1,fast,3,0\n")
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": [2]}\n')
    (tmp_path / "a.json").write_text('[{"x": null}]')
    assert configurations(str(tmp_path / "a.csv"), ()) == [{"x": 1, "mode": "fast"}, {"x": 2.5}]
    assert configurations(str(tmp_path / "results.csv"), ()) == [{"x": 1, "mode": "fast"}]
    assert configurations(str(tmp_path / "a.jsonl"), ["y=1,b"]) == [
        {"x": 1, "y": 1},
        {"x": 1, "y": "b"},
        {"x": [2], "y": 1},
        {"x": [2], "y": "b"},
    ]
    assert configurations(str(tmp_path / "a.json"), ()) == [{"x": None}]
    assert configurations(None, ["x=1,2", 'y="a,b",true']) == [{"x": x, "y": y} for x in (1, 2) for y in ("a,b", True)]
    assert value_of("1e-3") == 0.001


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x,y\n1\n", r"a\.csv:2 has 1 cells and the header 2: x, y"),
        ("a.csv", "x\n1,2\n", r"a\.csv:2 has 2 cells and the header 1"),
        ("a.csv", "x;y\n1;2\n", "Separate cells by commas"),
        ("a.csv", "x,\n1,2\n", "without a name"),
        ("a.csv", "x,x\n1,2\n", "'x' twice"),
        ("a.csv", "", "has no configurations"),
        ("a.csv", "x,y\n", "has no configurations"),
        ("a.jsonl", "\n", "has no configurations"),
        ("a.json", "[]", "has no configurations"),
        ("a.jsonl", '{"x": 1}\n{"x"\n', r"a\.jsonl:2 is no JSON"),
        ("a.jsonl", "[1]\n", "A configuration is an object"),
        ("a.json", '{"x": 1}', "holds a list"),
        ("a.json", "[3]", r"a\.json\[0\]"),
        ("a.txt", "", "of no known form"),
        ("a.csv", "x\n\udcff\n", "cannot be read"),
    ],
)
def test_a_file_that_is_not_well_formed_is_told_by_its_line(tmp_path: Path, name: str, content: str, message: str):
    """With what is expected there."""
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(InvalidArgument, match=message):
        configurations(str(tmp_path / name), ())


def test_what_names_no_configurations_is_refused(tmp_path: Path):
    """A grid that is not well formed or says a thing twice, a file that is not there."""
    (tmp_path / "a.csv").write_text("x\n1\n")
    for grids, message in {
        ("x",): "--grid x has no values",
        ("=1",): "--grid =1 has no name",
        ("x=1,,2",): "has an empty value",
        ("x=[1",): "begins like JSON",
        ("x=1", "x=2"): "'x' twice",
    }.items():
        with pytest.raises(InvalidArgument, match=message):
            configurations(None, grids)
    with pytest.raises(InvalidArgument, match=r"which .*a\.csv has, too"):
        configurations(str(tmp_path / "a.csv"), ["y=1", "x=2"])
    with pytest.raises(InvalidArgument, match="cannot be read"):
        configurations(str(tmp_path / "missing.csv"), ())


def test_a_target_is_found_or_told(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Functions and attributes by name; else what is missing, and how it is written."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert function_of("os.path:join") is os.path.join
    assert function_of("pathlib:Path.cwd") is not None
    for target, message in {
        "model.py": "model:run",
        "sub/model.py:run": "sub.model:run",
        "model:ruin": "no function 'ruin'. It has: run, slow",
        "model:value": "model:value is 7, no function. It has: run, slow",
        "nowhere_at_all:run": "no module 'nowhere_at_all'",
        "os:nothing": "no function 'nothing'",
        "os:sep": "no function",
        "json:decoder": "no function",
        ":run": "module:function",
    }.items():
        with pytest.raises(InvalidArgument, match=message):
            function_of(target)
    with pytest.raises(InvalidArgument, match="cannot be split"):
        command_of("echo 'x", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_there\n", "No module named 'not_there'"),
        ("def run(:\n", "SyntaxError"),
        ("1 / 0\n", 'broken.py", line 1, in <module>\n    1 / 0\n'),
        ("raise SystemExit(7)\n", "SystemExit: 7"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_own_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
):
    """What it raised and where, without the machinery that imports, and with what to try."""
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    with pytest.raises(InvalidArgument, match="The module 'broken' cannot be imported") as refused:
        function_of("broken:run")
    assert message in str(refused.value)
    assert "importlib" not in str(refused.value)
    assert "python -c 'import broken'" in str(refused.value)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (values.count, "3", 3),
        (values.count_or_none, "0", 0),
        (values.seconds, "1e-1", 0.1),
        (values.seconds, "none", None),
        (values.seconds_from_zero, 0.0, 0.0),
        (values.share, "0.25", 0.25),
        (values.memory, "2GiB", "2gib"),
        (values.memory, "0.5", 0.5),
        (values.memory, "1048576", 1048576),
        (values.memory, "None", None),
        (values.memory, "auto", "auto"),
        (values.count, "0", "'0' is not allowed here. Write a whole number from 1"),
        (values.count, "1.5", "'1.5' is not allowed"),
        (values.count_or_none, "-1", "whole number from 0"),
        (values.seconds, "0", "above 0"),
        (values.seconds, "nan", "'nan' is no duration"),
        (values.seconds_from_zero, "soon", "'soon' is no duration"),
        (values.share, "3", "'3' is no share"),
        (values.share, "half", "'half' is no share"),
        (values.memory, "5", 'Write the unit: "5MiB" or "5GiB"'),
        (values.memory, "2XiB", "'2xib' is no size"),
    ],
)
def test_what_stands_behind_an_option_is_read_or_refused(read, text, value):
    """A refusal names the text and what is allowed."""
    if isinstance(value, str) and " " in value:
        with pytest.raises(typer.BadParameter) as refused:
            read(text)
        assert value in str(refused.value)
    else:
        assert read(text) == value


# -- run


def test_into_a_pipe_goes_a_line_for_each_job(here: Path):
    """JSON, the CSV beside it, the exit code of failures; and `show` gives them again, and one failure's block."""
    done = robust_eval(here, "run", "model:run", "--grid", "x=1,2,3,4", "-w", "2", "--memory-limit", "1GiB")
    assert done.returncode == 1
    assert done.stderr == ""
    by_x = {line["config"]["x"]: line for line in lines(done)}
    assert {x: line["objective"] for x, line in by_x.items()} == {1: 1.0, 2: 2.0, 3: "F", 4: "F"}
    assert by_x[4]["failure"]["signal"] == "SIGABRT"
    assert not [key for line in by_x.values() for key in line["metadata"] if key.startswith("_")]
    assert objectives(here / "results.csv") == {"1": "1.0", "2": "2.0", "3": "F", "4": "F"}
    shown = robust_eval(here, "show", "runs.db", "--kind", "exception")
    assert [line["config"]["x"] for line in lines(shown)] == [3]
    assert len(lines(robust_eval(here, "show", "--failed"))) == 2
    page = robust_eval(here, "report", "runs.db", "-o", "page.html")
    assert page.stdout == "4 jobs in page.html\n"
    assert "ValueError: no three" in (here / "page.html").read_text()


def test_a_reader_that_leaves_costs_nothing(here: Path):
    """`| head -1`: the search goes on to its end without a word."""
    (here / "waits.py").write_text(
        "import os, time\ndef run(job):\n    while job['x'] and not os.path.exists('left'):\n        time.sleep(0.01)\n"
        "    return 1\n"
    )
    with subprocess.Popen(
        [*COMMAND, "run", "waits:run", "--grid", "x=0,1,2,3"], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert json.loads(process.stdout.readline())["config"] == {"x": 0}
        process.stdout.close()
        (here / "left").touch()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
    assert len(objectives(here / "results.csv")) == 4


def test_all_well_is_zero(here: Path):
    """From standard input, without a storage, quietly."""
    done = robust_eval(
        here, "run", "model:run", "-", "--grid", "scale=2", "--storage", "memory://", "-q", stdin='{"x": 1}\n{"x": 2}\n'
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert objectives(here / "results.csv") == {"1": "2.0", "2": "4.0"}
    assert not (here / "runs.db").exists()


def test_an_executable_runs_like_a_function(here: Path):
    """With its parameters, its objective by a pattern, and its directories gone."""
    done = robust_eval(
        here, "run", "--command", "echo loss={re:.1f}", "--parse", "loss=(.*)", "--grid", "re=1,2", "--keep", "never"
    )
    assert done.returncode == 0
    assert sorted(line["objective"] for line in lines(done)) == [1.0, 2.0]
    assert not (here / "scratch").exists()
    codes = ["--command", "sh -c 'echo 1; exit {code}'", "--grid", "code=0,1,3", "--ok-exit-code", "0"]
    done = robust_eval(here, "run", *codes, "--ok-exit-code", "3", "--scratch", "kept")
    assert {line["config"]["code"]: line["objective"] for line in lines(done)} == {0: 1.0, 1: "F", 3: 1.0}
    failed = next(line for line in lines(done) if line["failure"])
    assert failed["failure"]["message"].endswith("ended with exit code 1, which is not in ok_exit_codes=[0, 3]")
    assert failed["metadata"]["job_dir"].startswith(str(here / "kept"))


def test_a_broken_search_has_its_own_code(here: Path):
    """And every outcome is kept."""
    grid = "x=" + ",".join(["3"] * 30)
    done = robust_eval(here, "run", "model:run", "--grid", grid, "--max-consecutive-failures", "3")
    assert done.returncode == 3
    assert len(lines(done)) == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to run"),
        (("model:run",), "no configurations"),
        (("model:nothing", "--grid", "x=1"), "no function"),
        (("model:run", "a.csv", "b.csv"), "too much"),
        (("model:run", "--grid", "x=1", "--parse", "(.*)"), "--parse '(.*)'"),
        (("model:run", "--grid", "x=1", "--output", "no/dir/a.csv"), "no directory 'no/dir'"),
        (("model:run", "--grid", "x=1", "--output", "/proc/a.csv"), "cannot be written"),
        (("--command", "echo 1", "--grid", "x=1", "--scratch", "no/scratch"), "no directory 'no'"),
        (("model:run", "--grid", "x=1", "--storage", "file.db"), "no URL"),
        (("model:run", "--resume"), "no search"),
        (("--command", "no-such-program-here", "--grid", "x=1"), "not found"),
    ],
)
def test_misuse_is_one_line_and_code_two(here: Path, arguments: tuple[str, ...], message: str):
    """Before anything runs."""
    done = robust_eval(here, "run", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("robust-eval: ")
    assert message in line


def test_looking_makes_no_file(here: Path):
    """A storage that is not there is told; so are searches and jobs that are not."""
    done = robust_eval(here, "show", "missing.db")
    assert (done.returncode, (here / "missing.db").exists()) == (2, False)
    robust_eval(here, "run", "model:run", "--grid", "x=1")
    assert "There are: 0" in robust_eval(here, "show", "--search-id", "9").stderr
    assert "no job '0.7'" in robust_eval(here, "show", "runs.db", "7").stderr
    assert "no kind of failure. Choose one of timeout, memory" in robust_eval(here, "show", "--kind", "late").stderr
    assert "no search" in robust_eval(here, "run", "model:run", "--resume", "--storage", "sqlite:///other.db").stderr
    assert not (here / "other.db").exists()
    assert "no directory 'no'" in robust_eval(here, "report", "-o", "no/a.html").stderr
    assert lines(robust_eval(here, "show", "runs.db", "0"))[0]["job_id"] == "0.0"


def test_wrong_usage_leaves_no_search(here: Path):
    """So that --resume goes on with the one before it."""
    robust_eval(here, "run", "model:run", "--grid", "x=1")
    wrong = robust_eval(here, "run", "model:run", "--grid", "x=1", "--log-dir", "model.py")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "0" in robust_eval(here, "show", "--search-id", "9").stderr.partition("There are: ")[2]
    assert "1" not in robust_eval(here, "show", "--search-id", "9").stderr.partition("There are: ")[2]


def test_a_results_file_that_cannot_be_written_ends_the_search_and_keeps_it(here: Path):
    """Code 4, one line, and what is done is in the storage."""
    (here / "full.py").write_text("import shutil\ndef run(job):\n    shutil.rmtree('out')\n    return 1\n")
    (here / "out").mkdir()
    done = robust_eval(here, "run", "full:run", "--grid", "x=1", "--output", "out/results.csv")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "--output out/results.csv cannot be written" in done.stderr
    assert lines(robust_eval(here, "show"))[0]["objective"] == 1.0


def test_errors_have_their_codes(capsys: pytest.CaptureFixture[str]):
    """Misuse, a storage that fails, Ctrl-C; a bug of ours keeps its traceback."""
    for error, code in ((InvalidArgument("a"), 2), (StorageError("b"), 4), (KeyboardInterrupt(), 130)):
        with pytest.raises(SystemExit) as ended, told():
            raise error
        assert ended.value.code == code
    assert capsys.readouterr().err == "robust-eval: a\nrobust-eval: b\n"
    with pytest.raises(InternalError), told():
        raise InternalError("ours")


def test_a_failure_of_the_functions_own_is_a_failure(here: Path):
    """A function that returns "F..." has told a failure: the exit code says so."""
    (here / "own.py").write_text("def run(job):\n    return 'F_diverged'\n")
    done = robust_eval(here, "run", "own:run", "--grid", "x=1")
    assert (done.returncode, lines(done)[0]["objective"]) == (1, "F_diverged")


# -- on a terminal


def test_a_terminal_shows_a_bar_and_what_to_do_next(here: Path):
    """The number, failures by kind, where the results are; then the table, and one job with all that is known."""
    with Terminal([*COMMAND, "run", "model:run", "--grid", "x=1,2,3"], here) as terminal:
        assert terminal.wait() == 1
        assert "3/3" in terminal.text
        assert "2 ok, 1 exception" in terminal.text
        assert "3 outcomes, 1 failed, in results.csv and in runs.db, search 0" in terminal.text
        assert "robust-eval show runs.db 0.2" in terminal.text
        assert "{" not in terminal.text
    with Terminal([*COMMAND, "show", "--limit", "2"], here) as terminal:
        assert terminal.wait() == 0
        assert "x=1" in terminal.text
        assert "1 more" in terminal.text
    with Terminal([*COMMAND, "show", "runs.db", "0.2"], here) as terminal:
        assert terminal.wait() == 0
        assert "exception: ValueError: no three" in terminal.text
        assert "in run" in terminal.text


def test_ctrl_c_stops_and_keeps_and_resume_goes_on(here: Path):
    """What was done is kept, nothing is left running, the same line with --resume does only the rest."""
    grid = ["run", "model:slow", "--grid", "x=0,1,2,3", "-w", "2", "--live", "--job-timeout", "500"]
    os.environ["CLI_STOP_MARK"] = mark = f"mark-{os.getpid()}-{here.name}"
    try:
        with Terminal([*COMMAND, *grid], here) as terminal:
            wait_until(lambda: len(list(here.glob("began-*"))) == 2, 60)
            terminal.wait_for("of 500 s")
            terminal.wait_for("1 ok")
            terminal.type(b"\x03")
            assert terminal.wait() == 130
            assert "--resume goes on" in terminal.text
            assert "Traceback" not in terminal.text
        wait_until(lambda: alive_with(mark) == [])
    finally:
        del os.environ["CLI_STOP_MARK"]
    assert objectives(here / "results.csv") == {"0": "0.0"}
    (here / "quick").touch()
    done = robust_eval(here, *grid[:-3], "--resume")
    assert done.returncode == 0
    assert sorted(line["config"]["x"] for line in lines(done)) == [1, 2, 3]
    assert objectives(here / "results.csv") == {"0": "0.0", "1": "1.0", "2": "2.0", "3": "3.0"}


def test_ctrl_c_twice_ends_at_once_and_leaves_nothing(here: Path):
    """Even where the end takes its time: what is stored is stored, and every process is gone."""
    os.environ["CLI_STOP_MARK"] = mark = f"twice-{os.getpid()}-{here.name}"
    try:
        with Terminal([*COMMAND, "run", "model:stubborn", "--grid", "x=0,1", "-w", "1"], here) as terminal:
            wait_until((here / "began-1").exists, 60)
            terminal.type(b"\x03")
            wait_until((here / "closing").exists, 60)
            terminal.type(b"\x03")
            assert terminal.wait() == 130
            assert "Traceback" not in terminal.text
        wait_until(lambda: alive_with(mark) == [])
    finally:
        del os.environ["CLI_STOP_MARK"]
    (done, left) = lines(robust_eval(here, "show"))
    assert (done["objective"], left["objective"]) == (0.0, None)


def test_sigterm_ends_in_good_order(here: Path):
    """As batch systems send it: its own code, nothing left running, and the search can be resumed."""
    with subprocess.Popen(
        [*COMMAND, "run", "model:slow", "--grid", "x=1", "-q"], cwd=here, stdout=subprocess.PIPE
    ) as process:
        wait_until((here / "began-1").exists, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    (here / "quick").touch()
    assert robust_eval(here, "run", "model:slow", "--resume", "-q").returncode == 0


def test_the_table_of_workers_marks_what_is_near_its_limit():
    """Job, time against deadline, memory against limit; idle workers too."""
    console = Console(file=io.StringIO(), width=100)
    assert LiveCallback(console).extra() == []
    near = {"slot": 1, "state": "busy", "job": "0.4", "seconds": 9.0, "job_timeout": 10.0, "memory": 2 << 20}
    table = workers_table({1: {**near, "memory_limit": None}}, 2)
    console.print(table)
    assert "idle" in console.file.getvalue()
    assert "9.0 of 10 s" in console.file.getvalue()
    assert "2 MiB" in console.file.getvalue()


def test_the_doctor_tries_what_is_promised(here: Path):
    """Both start methods, a kill, a memory limit, a crash: with real processes, all well here."""
    done = robust_eval(here, "doctor", "--json")
    found = {line["what"]: line["good"] for line in lines(done)}
    assert done.returncode == 0, done.stdout
    assert {name for name, good in found.items() if good} >= {
        "start method fork",
        "start method spawn",
        "a hanging job is killed",
        "a job over its memory is killed",
        "a crash costs its own job",
    }
    with Terminal([*COMMAND, "doctor", "--help"], here) as terminal:
        assert terminal.wait() == 0
        assert "really killed" in terminal.text


def test_falsify_prints_the_smallest_configuration_that_fails(here: Path):
    """Of each way to fail, and says by its exit code that there is one."""
    (here / "space.json").write_text('{"x": [0, 9]}')
    (here / "good.json").write_text('{"x": [5, 9]}')
    limits = ("--workers", "2", "--max-examples", "30", "--job-timeout", "20")
    assert robust_eval(here, "falsify", "model:run", "--space", "good.json", *limits).returncode == 0
    found = robust_eval(here, "falsify", "model:run", "--space", "space.json", *limits)
    assert found.returncode == 1
    assert "{'x': 3}" in found.stdout
    assert "{'x': 4}" in found.stdout
    assert "no three" in found.stdout
    unknown = robust_eval(here, "falsify", "model:run", "--space", "nothing")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("robust-eval: space='nothing' is no name")
