import contextlib
import csv
import io
import subprocess
import sys
import types

import pytest
from rich.console import Console
from rich.progress import ProgressSample, Task
from terminal import Terminal

from robust_eval.callbacks import (
    Callback,
    CSVLoggerCallback,
    LoggerCallback,
    ProfilingCallback,
    SearchEarlyStopping,
    TqdmCallback,
    total_objective,
)
from robust_eval.decorators import profile
from robust_eval.errors import InvalidArgument, RobustEvalError, SearchStopped
from robust_eval.evaluators.serial import SerialEvaluator
from robust_eval.failure import Failure
from robust_eval.job import Job
from robust_eval.progress import ProgressCallback, _Rate, _Time


def done(output, failure=None):
    job = Job("0.0", {}, None)
    job.set_output(output)
    if failure is not None:
        job.fail(failure)
    return job


def evaluate(outputs, *callbacks):
    """Gather jobs with these outputs, one after the other."""
    with SerialEvaluator(lambda job: outputs[job["i"]], callbacks=callbacks) as evaluator:
        evaluator.submit([{"i": i} for i in range(len(outputs))])
        return evaluator.gather("ALL")


def test_an_objective_amounts_to_a_number():
    """The sum of several, none for a failure."""
    assert total_objective(2) == 2.0
    assert total_objective((1, 2.5)) == 3.5
    assert total_objective("F") is None
    assert total_objective((1, "F")) is None
    assert total_objective(None) is None


def test_the_logger_prints_a_line_for_each(capsys):
    """The number, the best and the received, failures with their cause."""
    logger = LoggerCallback()
    for job in (done(1), done("F_own"), done((1, 2)), done(0, Failure("crash", "SIGSEGV")), done(2)):
        logger.on_done_other(job)
    assert capsys.readouterr().out.splitlines() == [
        "[00001] -- best objective: 1.00000 -- received objective: 1.00000",
        "[00002] -- received failure: F_own",
        "[00003] -- best sum(objective): 3.00000 -- received sum(objective): 3.00000",
        "[00004] -- received failure: F (crash: SIGSEGV)",
        "[00005] -- best objective: 3.00000 -- received objective: 2.00000",
    ]


def test_the_bar_counts_failures(capsys):
    """It shows the best objective and the failures, and can begin anew."""
    bar = TqdmCallback()
    bar.set_max_evals(4)
    for job in (done(1), done("F"), done((2, 3))):
        bar.on_done(job)
    bar.on_done_other(done(0))
    bar.on_close()
    bar.on_close()
    assert "4/4" in capsys.readouterr().err
    bar.set_max_evals(None)
    bar.on_done(done("F"))
    bar.on_close()
    assert "failures=2" in capsys.readouterr().err


def test_a_missing_tqdm_is_named(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(RobustEvalError, match="pip install"):
        TqdmCallback().on_done(done(1))


def test_profiles_count_running_jobs():
    """The decorator's timestamps where there are some, the evaluator's otherwise."""
    profiler = ProfilingCallback()
    job = done({"objective": 1, "metadata": {"timestamp_start": 10.0, "timestamp_end": 20.0}})
    profiler.on_done(job)
    job = done(1)
    job.metadata.update(timestamp_submit=15.0, timestamp_gather=25.0)
    profiler.on_done_other(job)
    profiler.on_done(done(1))
    assert profiler.profile.to_numpy().tolist() == [[10, 1], [15, 2], [20, 1], [25, 0]]
    assert list(profiler.profile.columns) == ["timestamp", "n_jobs_running"]


def test_a_profiled_search_is_profiled():
    """The whole way through an evaluator."""
    profiler = ProfilingCallback()
    with SerialEvaluator(profile(lambda job: 1), callbacks=[profiler]) as evaluator:
        evaluator.submit([{}, {}])
        evaluator.gather("ALL")
    assert profiler.profile["n_jobs_running"].tolist()[-1] == 0
    assert len(profiler.profile) == 4


def test_a_search_that_does_not_improve_is_stopped(capsys):
    """After as many jobs as its patience, failures among them; an improvement begins anew."""
    stopping = SearchEarlyStopping(patience=3)
    for output in ("F", 1, 0, "F", (1, 1), 2, 1.5):
        stopping.on_done(done(output))
    with pytest.raises(SearchStopped, match="3 evaluations"):
        stopping.on_done_other(done(0))
    assert capsys.readouterr().out == "Objective has improved from 1.00000 -> 2.00000\n"


def test_the_value_to_improve_can_be_chosen():
    """Any function of the job."""
    stopping = SearchEarlyStopping(1, objective_func=lambda job: -job.objective)
    stopping.on_done(done(2))
    stopping.on_done(done(1))
    with pytest.raises(SearchStopped):
        stopping.on_done(done(3))


def test_a_search_ends_with_its_batch_recorded():
    """It raises after the whole batch is recorded, and gives the batch to the next call."""
    with SerialEvaluator(lambda job: 1, callbacks=[SearchEarlyStopping(patience=2)]) as evaluator:
        evaluator.submit([{}] * 5)
        with pytest.raises(SearchStopped):
            evaluator.gather("ALL")
        assert len(evaluator.jobs_done) == 5
        assert len(evaluator.gather("ALL")) == 5
        assert evaluator.gather("ALL") == []


def test_every_hook_is_called():
    """Launch, done, gather for each job, close once."""
    heard = []

    class Listener(Callback):
        def on_launch(self, job):
            heard.append(("launch", job.id))

        def on_done(self, job):
            heard.append(("done", job.objective))

        def on_gather(self, job):
            heard.append(("gather", job.status.name))

        def on_close(self):
            heard.append("close")

    evaluate([3], Listener(), Callback())
    assert heard == [("launch", "0.0"), ("done", 3.0), ("gather", "DONE"), "close"]
    assert Callback().on_done_other(done(1)) is None


def test_a_broken_callback_costs_no_job(caplog):
    """Its first error is logged with its name, the others are not; callbacks without hooks are fine."""

    class Broken:
        def on_done(self, job):
            raise ValueError("mine")

    assert [job.objective for job in evaluate([1, 2, 3], Broken(), object(), LoggerCallback())] == [1, 2, 3]
    (record,) = caplog.records
    assert "Broken.on_done" in record.getMessage()
    assert isinstance(record.exc_info[1], ValueError)


def test_an_interrupt_in_a_callback_passes_and_loses_nothing():
    """Ctrl-C in a callback ends the gather at once; the next one has every job."""

    class Interrupted:
        def on_done(self, job):
            if job.config["i"] == 1:
                raise KeyboardInterrupt

    with SerialEvaluator(lambda job: job["i"], callbacks=[Interrupted()]) as evaluator:
        evaluator.submit([{"i": i} for i in range(4)])
        with pytest.raises(KeyboardInterrupt):
            evaluator.gather("ALL")
        assert [job.objective for job in evaluator.gather("ALL")] == [0, 1, 2, 3]
        assert len(evaluator.jobs_done) == 4


def test_the_csv_is_written_as_jobs_come(tmp_path):
    """Row by row, failures too, new columns with the rest; what another search left is kept."""
    path = tmp_path / "results.csv"
    path.write_text("theirs\n")
    evaluate([1, {"objective": 2, "metadata": {"n": 3}}, None], CSVLoggerCallback(path))
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["objective"] for row in rows] == ["1.0", "2", "F"]
    assert [row["m:n"] for row in rows] == ["", "3", ""]
    assert rows[2]["m:failure"] == "invalid"
    assert (tmp_path / "results.csv.1").read_text() == "theirs\n"
    CSVLoggerCallback(tmp_path / "other.csv").on_done_other(done(1))
    assert (tmp_path / "other.csv").exists()


def test_a_csv_without_a_directory_is_refused(tmp_path):
    """Before any job runs."""
    with pytest.raises(InvalidArgument, match="no directory"):
        CSVLoggerCallback(tmp_path / "missing" / "results.csv")


def screen(**how):
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None, **how)


def test_progress_is_shown_live():
    """The number, the rate, the best and the failures by kind."""
    console = screen()
    evaluate([1, 3, None, "F_own"], ProgressCallback(console=console))
    shown = console.file.getvalue().splitlines()
    assert any("4/4" in line and "jobs/s" in line for line in shown)
    assert any("3 ok, 1 invalid, best 3" in line for line in shown)


def test_progress_may_know_how_many_there_will_be():
    """From the start or later; jobs of other evaluators count."""
    console = screen()
    progress = ProgressCallback(total=4, console=console)
    progress.on_launch(done(1))
    progress.on_done_other(done(1))
    progress.on_close()
    assert "1/4" in console.file.getvalue()
    progress.set_max_evals(9)
    progress.on_launch(done(1))
    progress.on_close()
    progress.on_close()
    assert "1/9" in console.file.getvalue()


def test_progress_in_a_file_is_what_was_at_the_end():
    """Nothing is redrawn there."""
    console = Console(file=io.StringIO(), width=100)
    evaluate([1] * 5, ProgressCallback(console=console))
    assert console.file.getvalue().count("evaluating") == 1


def test_progress_that_nobody_closes_gives_the_cursor_back(tmp_path):
    """At the end of the program."""
    script = (
        "from robust_eval import *\n"
        "evaluator = SerialEvaluator(lambda job: 1, callbacks=[ProgressCallback()])\n"
        "evaluator.submit([{}])\n"
        "evaluator.gather('ALL')\n"
    )
    with Terminal([sys.executable, "-c", script], tmp_path) as terminal:
        assert terminal.wait() == 0
        hidden, shown = (terminal.seen.rfind(code) for code in (b"\x1b[?25l", b"\x1b[?25h"))
    assert 0 <= hidden < shown


def test_progress_in_a_notebook_leaves_the_output_of_later_cells_alone(monkeypatch):
    """It lives until the evaluator is closed; what is printed meanwhile goes where it always goes."""
    for name, attribute, value in (
        ("IPython.display", "display", lambda _: None),
        ("ipywidgets", "Output", lambda: contextlib.nullcontext(types.SimpleNamespace(clear_output=lambda **_: None))),
    ):
        module = types.ModuleType(name)
        setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, name, module)
    progress = ProgressCallback(console=Console(file=io.StringIO(), force_jupyter=True))
    streams = sys.stdout, sys.stderr
    progress.on_launch(done(1))
    try:
        assert (sys.stdout, sys.stderr) == streams
    finally:
        progress.on_close()


def test_the_time_is_what_is_left_and_in_the_end_what_it_took():
    """In minutes and seconds, with hours where there are some."""
    task = Task(0, "t", 4, 0, _get_time=lambda: 3700.0)
    assert str(_Time().render(task)) == ""
    task.start_time, task.finished_time, task.finished_speed = 0.0, 3700.0, 1.0
    task.stop_time = 3700.0
    assert str(_Time().render(task)) == "in 1:01:40"
    task = Task(1, "t", 4, 3, _get_time=lambda: 3.0)
    task.start_time = 0.0
    task._progress.extend([ProgressSample(0.0, 0), ProgressSample(3.0, 3)])
    assert str(_Time().render(task)) == "00:01 left"


def test_a_slow_search_has_seconds_per_job():
    """Below one job a second the reciprocal can be read."""
    task = Task(0, "t", None, 3, _get_time=lambda: 0.0, finished_speed=0.25)
    assert str(_Rate().render(task)) == "4.0 s/job"
    assert str(_Rate().render(Task(1, "t", None, 0, _get_time=lambda: 0.0))) == ""


def test_a_missing_rich_is_named():
    """With the command that installs it."""
    code = "import sys; sys.modules['rich'] = None; import robust_eval; robust_eval.ProgressCallback"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'robust-eval[progress]'" in told.stderr


def test_early_stopping_says_that_it_stopped():
    """As the attribute that newer DeepHyper reads."""
    stopping = SearchEarlyStopping(patience=1)
    stopping.on_done(done(1))
    assert not stopping.search_stopped
    with pytest.raises(SearchStopped):
        stopping.on_done(done(0))
    assert stopping.search_stopped
