"""Executables as run functions: real processes, real kills, real directories."""

import json
import os
import pickle
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest
from waiting import alive_with, nothing_left, wait_until

from robust_eval.command import Command, CommandResult
from robust_eval.command.process import KEPT_BYTES
from robust_eval.command.scratch import Scratch, this_process
from robust_eval.command.template import Template
from robust_eval.decorators import profile, queued
from robust_eval.errors import CommandFailed, InvalidArgument, InvalidArgumentType, InvalidOutput, JobCrashed
from robust_eval.evaluators.base import Evaluator
from robust_eval.evaluators.process import ProcessPoolEvaluator

PYTHON = sys.executable


def script(code: str) -> list[str]:
    """The command line of a Python program, whose braces stay."""
    return [PYTHON, "-S", "-c", code.replace("{", "{{").replace("}", "}}")]


def shell(code: str) -> list[str]:
    """The same for a shell, which starts faster; its parameters are filled in."""
    return ["sh", "-c", code]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that do not say where put their directories below the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(command, configs, method="process", **limits):
    with (
        nothing_left(),
        Evaluator.create(command, method=method, method_kwargs={"num_workers": 2, **limits}) as evaluator,
    ):
        evaluator.submit(configs)
        return sorted(evaluator.gather("ALL"), key=lambda job: job.id)


# -- templates


def test_a_template_is_filled_in_like_a_format_string():
    """Format specs, indexing, and braces that stay."""
    values = {"re": 1000.0, "gpu": [3], "name": "x"}
    assert Template("{re:.1e} {gpu[0]} {{{name}}}", "args[1]").fill(values) == "1.0e+03 3 {x}"
    assert Template(7, "args[2]").fill({}) == "7"
    assert not Template("{x}", "stdin").is_plain


@pytest.mark.parametrize("text", ["{", "}", "{}", "{0}", "{x"])
def test_a_template_that_is_none_is_refused_when_it_is_made(text: str):
    """With the place, the text, and how to write it."""
    with pytest.raises(InvalidArgument, match=re.escape("args[1]=")) as refused:
        Command(["true", text])
    assert "{{" in str(refused.value)


def test_a_missing_parameter_is_named_with_those_that_there_are(at_home: Path):
    """It fails the job, and says which text needs it."""
    (job,) = evaluate(Command(["echo", "1"], files={"in.cfg": "a={alpha}"}), [{"beta": 1}], method="serial")
    assert job.failure.kind == "exception"
    assert "files['in.cfg'] needs the parameter 'alpha'" in job.failure.message
    assert "It has: beta" in job.failure.message


@pytest.mark.parametrize("text", ["{x:d}", "{x.nothing}", "{x[0]}"])
def test_a_value_that_does_not_fit_its_template_is_told(text: str):
    """With the place."""
    with pytest.raises(InvalidArgument, match="stdin="):
        Template(text, "stdin").fill({"x": 1.5})


# -- what is refused when a command is made


def test_misuse_is_told_when_the_command_is_made(tmp_path: Path):
    """Each with the value and the next step."""
    with pytest.raises(InvalidArgumentType, match="shlex"):
        Command("./solver --fast")
    with pytest.raises(InvalidArgumentType):
        Command([])
    with pytest.raises(InvalidArgument, match="not found on the PATH"):
        Command(["no-such-program-anywhere"])
    with pytest.raises(InvalidArgument, match="not found from"):
        Command(["./no-such-program"])
    with pytest.raises(InvalidArgument, match="keep="):
        Command(["true"], keep="sometimes")
    with pytest.raises(InvalidArgument, match="inside the scratch directory"):
        Command(["true"], files={"../escape": ""})
    with pytest.raises(InvalidArgument, match="cannot be read"):
        Command(["true"], files={"in": tmp_path / "missing"})
    with pytest.raises(InvalidArgument, match="no group"):
        Command(["true"], parse="loss=.*")
    with pytest.raises(InvalidArgument, match="no regular expression"):
        Command(["true"], parse="(")
    with pytest.raises(InvalidArgumentType, match="parse=7"):
        Command(["true"], parse=7)
    assert repr(Command(["true", "{x}"])) == "Command(['true', '{x}'])"


# -- arguments, files, environment, directory, stdin


def test_everything_reaches_the_executable(at_home: Path):
    """Arguments (with spaces, quotes, stars: no shell reads them), files, environment, stdin, directory."""
    code = (
        "import json, os, sys; print('noise'); print(json.dumps({'objective': 1, 'metadata': {"
        "'argv': sys.argv[1:], 'file': open('deep/in.cfg').read(), 'mode': os.environ['MODE'],"
        "'path': 'PATH' in os.environ, 'stdin': sys.stdin.read(), 'here': os.getcwd()}}))"
    )
    (at_home / "stdin.tpl").write_text("n {n}")
    command = Command(
        [*script(code), "--x={x:.2f}", "a b '*' $HOME", "{job_dir}/deep", "{job_id}"],
        files={"deep/in.cfg": "[{{x}}] = {x}", "more": at_home / "stdin.tpl"},
        stdin="n={n}",
        env={"MODE": "m{n}"},
    )
    (job,) = evaluate(command, [{"x": 0.5, "n": 3}], method="serial")
    said = job.metadata
    assert said["argv"][:2] == ["--x=0.50", "a b '*' $HOME"]
    assert said["argv"][2:] == [f"{said['here']}/deep", "0"]
    assert (said["file"], said["mode"], said["stdin"]) == ("[{x}] = 0.5", "m3", "n=3")
    assert said["path"]
    assert Path(said["here"]).parent == at_home / "scratch"
    assert not (at_home / "scratch").exists()


def test_a_program_is_found_from_where_the_command_was_made(at_home: Path):
    """`./solver` is the user's, although it starts in another directory; cwd chooses that."""
    solver = at_home / "sol{v}er"
    solver.write_text("#!/bin/sh\necho 4; pwd >&2; echo $1\n")
    solver.chmod(0o755)
    (job,) = evaluate(Command(["./sol{{v}}er", "{x}"], cwd="{place}"), [{"x": 9, "place": at_home}], method="serial")
    assert job.objective == 9.0


def test_the_parameters_of_the_command_cannot_be_taken(at_home: Path):
    """A configuration with a `job_dir` of its own is refused."""
    (job,) = evaluate(Command(["echo", "1"]), [{"job_dir": "/"}], method="serial")
    assert "job_dir" in job.failure.message


def test_resources_of_a_queue_are_parameters(at_home: Path):
    """What `queued` lends to a job can stand in its texts."""
    command = Command(shell("echo {dequed[0]}"))
    with queued(ProcessPoolEvaluator)(command, queue=[7], num_workers=1) as evaluator:
        evaluator.submit([{}])
        assert evaluator.gather("ALL")[0].objective == 7.0


# -- the objective


def result(output: str, path: Path = Path()) -> CommandResult:
    return CommandResult(output, 0, path, 0.1)


@pytest.mark.parametrize(
    ("parse", "printed", "objective"),
    [
        (None, "iter 1\n2.5\n\n", 2.5),
        (None, "[1, 2]", [1, 2]),
        (None, '"F_diverged"', "F_diverged"),
        (r"loss=(\S+)", "loss=3\nloss=2e-1\nend", 0.2),
        (re.compile(r"LOSS=(\d+)", re.IGNORECASE), "loss=4", 4),
        (lambda got: len(got.output), "four", 4),
    ],
)
def test_the_objective_is_found(at_home: Path, parse, printed: str, objective):
    """JSON on the last line that is not empty, the last match, or whatever a function says."""
    assert Command(["printf", "%s", "{text}"], parse=parse)({"text": printed}) in (
        objective,
        {"objective": objective, "metadata": {}},
    )


def test_named_groups_are_metadata(at_home: Path):
    """Numbers as numbers; the group called objective is the objective wherever it stands."""
    command = Command(
        ["echo", "n=3 why=slow f=1.5"], parse=r"n=(?P<n>\d+) why=(?P<why>\w+)(?P<no>x)? f=(?P<objective>.+)"
    )
    assert command({}) == {"objective": 1.5, "metadata": {"n": 3, "why": "slow"}}


@pytest.mark.parametrize(
    ("parse", "printed", "message"),
    [(None, "done", "not JSON"), (None, "", "printed nothing"), ("f=(.*)", "g=1", "matches"), (None, "NaN", "finite")],
)
def test_an_objective_that_is_not_there_is_invalid(at_home: Path, parse, printed: str, message: str):
    """The failure shows what was there instead, and the directory stays."""
    (job,) = evaluate(Command(["printf", "%s", printed], parse=parse), [{}], method="serial")
    assert job.failure.kind == "invalid"
    assert message in job.failure.message
    assert Path(job.metadata["job_dir"]).is_dir()


def test_a_function_reads_the_files_of_the_job(at_home: Path):
    """Its result has the directory, which is removed after it."""

    def read(got: CommandResult) -> float:
        assert got.exit_code == 3
        assert got.duration > 0
        return float((got.job_dir / "out").read_text())

    command = Command(shell("echo {x} > out; exit 3"), parse=read, ok_exit_codes=(0, 3))
    (job,) = evaluate(command, [{"x": 5}])
    assert job.objective == 5.0
    assert not (at_home / "scratch").exists()


def test_a_flood_of_output_is_bounded_and_its_end_is_read(at_home: Path):
    """Of more than is kept the last counts."""
    lines = 3 * KEPT_BYTES // 100
    code = f"import sys\nfor i in range({lines}): print('x' * 99)\nprint(6)"
    parsed = []

    def parse(got: CommandResult) -> float:
        parsed.append(len(got.output))
        return float(got.output.rstrip().rpartition("\n")[2])

    assert Command(script(code), parse=parse)({}) == 6.0
    assert KEPT_BYTES // 2 < parsed[0] <= KEPT_BYTES


# -- failures


@pytest.mark.parametrize("method", ["process", "thread"])
def test_an_exit_code_and_a_signal_are_crashes(at_home: Path, method: str):
    """With the code or the signal's name, the end of the output, and the directory."""
    command = Command(shell("echo said; echo kept > file; {how}"))
    configs = [{"how": "exit 3"}, {"how": "kill -SEGV $$"}, {"how": "exit 139"}]
    by_code, by_signal, by_launcher = evaluate(command, configs, method=method)
    assert [job.failure.kind for job in (by_code, by_signal, by_launcher)] == ["crash"] * 3
    assert (by_code.failure.exit_code, by_code.failure.signal) == (3, None)
    assert (by_signal.failure.exit_code, by_signal.failure.signal) == (None, "SIGSEGV")
    assert "sh was ended by SIGSEGV" in by_signal.failure.message
    assert "launcher's word for SIGSEGV" in by_launcher.failure.message
    assert by_code.failure.output_tail == "said\n"
    assert (Path(by_code.metadata["job_dir"]) / "file").read_text() == "kept\n"
    assert isinstance(by_code.failure.to_exception(), JobCrashed)


def test_a_failure_of_a_command_pickles():
    """With everything that it says."""
    error = pickle.loads(pickle.dumps(CommandFailed("it ended", None, 3, "tail")))
    assert (str(error), error.exit_code, error.output_tail) == ("it ended", 3, "tail")


# A parent, a child in a session of its own, and a grandchild whose parent has gone: like a launcher with its ranks.
_NEST = """
import os, sys, time
print("solving", flush=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open("deep", "w").write(str(os.getpid()))
            time.sleep(600)
        os._exit(0)
    time.sleep(600)
time.sleep(600)
"""


def test_a_command_over_its_time_dies_with_everything_below_it(at_home: Path):
    """Sessions of their own and orphans included; what it had printed is told; its directory stays."""
    command = Command(script(_NEST), env={"NEST_OF_THE_TEST": "{mark}"})
    (job,) = evaluate(command, [{"mark": "mark-7391"}], job_timeout=1.5)
    assert job.failure.kind == "timeout"
    assert job.failure.output_tail == "solving\n"
    assert job.failure.stack is None
    assert not alive_with("mark-7391")
    assert (Path(job.metadata["job_dir"]) / "deep").exists()


def test_a_command_that_takes_too_much_memory_is_ended(at_home: Path):
    """The limit is one of the whole tree."""
    (job,) = evaluate(Command(script("x = b'x' * (300 << 20); input()")), [{}], memory_limit="200MiB")
    assert job.failure.kind in ("memory", "crash")
    hungry = Command(script("x = b'x' * (300 << 20); import time; time.sleep(600)"))
    (job,) = evaluate(hungry, [{}], memory_limit="200MiB", job_timeout=60)
    assert job.failure.kind == "memory"


def test_a_polite_stop_reaches_the_command(at_home: Path):
    """With a grace period it gets SIGTERM, and what it then says is kept as the late result."""
    code = "trap 'echo 5; exit 0' TERM; while :; do sleep 0.05; done"
    (job,) = evaluate(Command(shell(code)), [{}], job_timeout=0.3, grace_period=30)
    assert job.failure.kind == "timeout"
    assert job.failure.late_result == 5.0


def test_what_a_command_left_in_its_group_ends_with_it(at_home: Path):
    """Also where the method cannot look for processes, and although the pipe is still open."""
    command = Command(shell("sleep 600 & echo $!"))
    with nothing_left():
        pid = int(command({}))
    wait_until(lambda: not psutil.pid_exists(pid))


# -- directories


def directories(scratch: Path) -> set[str]:
    return {path.name for path in scratch.iterdir()} if scratch.exists() else set()


@pytest.mark.parametrize(("keep", "kept"), [("failed", 2), ("always", 3), ("never", 0)])
def test_directories_stay_as_was_asked(scratch: Path, keep: str, kept: int):
    """Of failed jobs, killed ones included; of all; or of none, also after a kill. No mark stays."""
    command = Command(shell("echo 1; {then}"), scratch=scratch, keep=keep)
    jobs = evaluate(command, [{"then": ":"}, {"then": "exit 1"}, {"then": "sleep 600"}], job_timeout=1)
    assert [job.failure.kind if job.failure else "ok" for job in jobs] == ["ok", "crash", "timeout"]
    left = directories(scratch)
    assert len(left) == kept
    assert {Path(job.metadata["job_dir"]).name for job in jobs if "job_dir" in job.metadata} == left


def test_an_attempt_that_was_killed_leaves_nothing_once_another_succeeds(scratch: Path, tmp_path: Path):
    """The second attempt finds its directory empty, and it is removed."""
    flag = tmp_path / "tried"
    code = f"ls | wc -l; if [ ! -e {flag} ]; then touch {flag} rest; kill -9 $PPID; sleep 600; fi"
    (job,) = evaluate(Command(shell(code), scratch=scratch), [{}], max_retries=1)
    assert (job.objective, job.metadata["attempts"]) == (0.0, 2)
    assert directories(scratch) == set()


def test_what_never_began_or_was_cancelled_leaves_nothing(scratch: Path):
    """Closing is nothing that the command did: there is nothing to look at."""
    command = Command(shell("touch began; sleep 600"), scratch=scratch)
    with (
        nothing_left(),
        Evaluator.create(command, method="process", method_kwargs={"num_workers": 1}) as evaluator,
    ):
        evaluator.submit([{}, {}])
        wait_until(lambda: list(scratch.glob("*/began")))
        evaluator.close()
        assert {job.failure.kind for job in evaluator.gather("ALL")} == {"cancelled"}
    assert directories(scratch) == set()


def test_two_searches_with_one_command_do_not_meet(scratch: Path):
    """Both have a job 0.0, and both of its directories stay."""
    command = Command(["false"], scratch=scratch)
    first, second = (evaluate(command, [{}], method="serial")[0] for _ in range(2))
    assert first.id == second.id
    assert len({first.metadata["job_dir"], second.metadata["job_dir"]}) == 2


def test_the_directories_of_a_driver_that_was_killed_are_removed_by_the_next_command(scratch: Path):
    """Of its running jobs; those that were kept stay; those of a living driver and of another host stay."""
    place = Scratch(scratch)
    pid = os.fork()
    if pid == 0:
        place.open("0.0-orphan", {**this_process(), "pid": os.getpid(), "started": psutil.Process().create_time()})
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    place.open("0.1-alive", this_process())
    place.open("0.2-elsewhere", {**this_process(), "host": "another", "pid": pid})
    place.open("0.3-kept", {**this_process(), "started": 1.0})
    assert place.keep("0.3-kept") == scratch / "0.3-kept"
    (scratch / ".open" / "0.4-torn").write_text("{")
    evaluate(Command(["echo", "1"], scratch=scratch), [{}], method="serial")
    assert directories(scratch) == {"0.1-alive", "0.2-elsewhere", "0.3-kept", ".open"}


@pytest.mark.parametrize("error", [FileExistsError(17, "File exists"), FileNotFoundError(2, "No such file")])
def test_directories_that_others_remove_meanwhile_are_made_again(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    """A job that ends removes the common directories when it was the last: another one that begins then goes on."""
    make = Path.mkdir
    raced = iter([True])

    def mkdir(path: Path, *arguments: object, **options: object) -> None:
        if path.name == ".open" and next(raced, False):
            raise error
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert Command(["echo", "3"], scratch=scratch)({}) == 3


def test_a_scratch_directory_that_is_a_file_is_told(scratch: Path):
    """By its name."""
    scratch.write_text("")
    with pytest.raises((FileExistsError, NotADirectoryError), match="scratch"):
        Command(["echo", "3"], scratch=scratch)({})


def test_a_call_without_an_evaluator_takes_its_directory_back(scratch: Path):
    """Or keeps it where it failed; a profiled command is one too."""
    assert Command(["echo", "3"], scratch=scratch)({}) == 3
    assert profile(Command(["echo", "3"], scratch=scratch))({})["objective"] == 3.0
    assert directories(scratch) == set()
    with pytest.raises(CommandFailed):
        Command(["false"], scratch=scratch)({})
    assert len(directories(scratch)) == 1
    with pytest.raises(InvalidOutput):
        Command(["echo"], scratch=scratch, keep="never")({})


def test_a_profiled_command_has_its_directories_taken_back(scratch: Path):
    """The evaluator finds the command inside the decorator."""
    (job,) = evaluate(profile(Command(["false"], scratch=scratch)), [{}])
    assert Path(job.metadata["job_dir"]).is_dir()
    assert not list(scratch.glob(".open/*"))


def test_json_from_a_command_may_be_anything_that_a_run_function_returns(at_home: Path):
    """Several objectives and metadata."""
    answer = {"objective": [1, 2], "metadata": {"n": 4}}
    (job,) = evaluate(Command(["echo", json.dumps(answer).replace("{", "{{").replace("}", "}}")]), [{}])
    assert (job.objective, job.metadata["n"]) == ([1, 2], 4)
