"""The harness of the comparison: its statistics, its rules, its cells, and that what is printed is what was found."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from stress.bench import __main__ as command
from stress.bench import cell, kept, matrix, matrix_table, peers, plots, speed, speed_table, statistic, verdict
from stress.bench.cell import Ended, Limits
from stress.bench.fault_cell import GUILTY, JOBS, MORE
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.faults import CATALOGUE

pytestmark = pytest.mark.unmeasured  # what it runs is measured by the tests of its parts

ROOT = Path(__file__).resolve().parent.parent


# -- statistics


def test_a_median_is_of_those_that_have_the_figure():
    """A sample that failed to give a figure does not count as zero."""
    samples = {"ours": [{"rate": 1.0}, {"rate": 9.0}, {"rate": 2.0}], "peer": [{}]}
    assert statistic.medians(samples, "rate") == {"ours": 2.0}
    assert statistic.spread(samples["ours"], "rate") == (1.0, 9.0)


@pytest.mark.parametrize(("more_is_better", "expected"), [(True, 2.0), (False, 0.5)])
def test_a_ratio_above_one_is_good(more_is_better: bool, expected: float):
    """Whichever direction is the better one."""
    assert statistic.ratio(10.0, 5.0, more_is_better=more_is_better) == expected


@pytest.mark.parametrize(
    ("target", "more_is_better", "ours", "holds"),
    [
        (Target("2x", against=("a", "b"), factor=2.0), True, 40.0, True),
        (Target("2x", against=("a", "b"), factor=2.0), True, 39.0, False),
        (Target("half", against=("a", "b"), factor=0.5), False, 5.0, True),
        (Target("half", against=("a", "b"), factor=0.5), False, 6.0, False),
        (Target("bound", bound=7.0), False, 7.0, True),
        (Target("bound", bound=7.0), True, 6.0, False),
        (Target("absent", against=("c",)), True, 1e9, None),
    ],
)
def test_a_target_is_held_against_the_best_of_the_others(
    target: Target, more_is_better: bool, ours: float, holds: bool | None
):
    """The fastest of them, or the least; where none was measured, nothing is claimed."""
    assert target.holds(ours, {"a": 10.0, "b": 20.0}, more_is_better=more_is_better) is holds


def test_every_measurement_can_be_taken():
    """Ours comes first, each who takes part is known, each target is about one of them."""
    for name in speed.NAMES:
        measurement = speed.load(name)
        assert next(iter(measurement.sizes)) in peers.OURS
        for peer in measurement.sizes:
            assert speed_table.title_of(measurement, peer)
        for figure in measurement.figures.values():
            for target in figure.targets:
                assert set(target.against) <= measurement.sizes.keys()


def test_the_table_says_what_was_not_reached(monkeypatch: pytest.MonkeyPatch):
    """A missed target stands in the table as plainly as one that was reached."""
    figure = Figure("jobs", "/s", targets=(Target("2x", against=("futures",), factor=2.0), Target("any", bound=1.0)))
    measurement = Measurement("speed", lambda *_: {}, {"ours": 1, "futures": 1}, {"rate": figure})
    monkeypatch.setattr(speed, "load", lambda _: measurement)
    samples = {"ours": [{"rate": 1500.0}], "futures": [{"rate": 1000.0}]}
    table = speed_table.targets({"it": samples})
    assert "| 1,500 /s | 2x | **not reached** |" in table
    assert "| 1,500 /s | any | reached |" in table
    shown = speed_table.one("it", samples, {**command.circumstances(), "date": "2999-01-01"})
    assert "| concurrent.futures | 1,000 /s | 1,000 to 1,000 | 1.50x as good |" in shown
    assert "Taken on 2999-01-01" in shown
    assert "1 runs of each" in shown


def test_unknown_names_are_refused():
    """With a list of those that exist."""
    with pytest.raises(ValueError, match="evaluator_throughput"):
        speed.load("nothing")
    with pytest.raises(ValueError, match="pebble"):
        peers.load("nothing")


# -- rules


def ended(changes: dict[str, Any] | None = None, **attributes: Any) -> Ended:
    """A cell in which all went well, but for the changes."""
    first = {str(x): ["right"] for x in range(JOBS)} | {str(x): ["failed crash crash: it died"] for x in GUILTY}
    told = {
        "ready": {"1000": ["right"]},
        "first": first,
        "more": {str(x): ["right"] for x in MORE},
        "runs": {str(x): 1 for x in range(JOBS)},
        "closed": True,
    }
    return Ended([{**told, **(changes or {})}], **attributes)


@pytest.mark.parametrize(
    ("found", "letters"),
    [
        (ended(), ""),
        (ended({"ready": {}}), ""),
        (Ended([]), "s"),
        (ended({"more": {}}), "u"),
        (ended({"runs": {"1": 2}}), "2"),
        (ended(left=["sleep 3600"]), "p"),
        (ended(how="memory"), "m"),
        (ended(how="limit"), "c"),
        (ended({"first": {}}), "ig"),
    ],
)
def test_a_cell_is_judged_by_what_it_said(found: Ended, letters: str):
    """Each promise that is broken has its letter."""
    assert verdict.judge("pebble", CATALOGUE["exit_with_1"], found) == letters


def test_only_of_ours_the_kind_must_be_right():
    """A peer that reports a crash as anything has reported it; ours must call it by its name."""
    hang = CATALOGUE["hang_in_python"]
    assert verdict.judge("pebble", hang, ended()) == ""
    assert verdict.judge("ours", hang, ended()) == "k"
    assert verdict.judge("ours", CATALOGUE["exit_with_1"], ended()) == ""


@pytest.mark.parametrize(
    ("peer", "fault", "said", "letters"),
    [
        ("pebble", "result_is_nan", "wrong", "g"),
        ("pebble", "configuration_does_not_pickle", "right", ""),
        ("ours", "configuration_does_not_pickle", "right", "g"),
        ("pebble", "leave_a_child", "right", ""),
        ("ours", "leave_a_child", "right", ""),
        ("pebble", "leave_a_child", "failed None any", ""),
        ("ours", "leave_a_child", "failed crash any", "g"),
    ],
)
def test_what_a_guilty_job_may_deliver(peer: str, fault: str, said: str, letters: str):
    """A wrong value is no report; the right one will do for a peer, for ours only where nothing is the matter."""
    first = ended().told()["first"] | {str(x): [said] for x in GUILTY}
    assert verdict.judge(peer, CATALOGUE[fault], ended({"first": first})) == letters


def test_the_representative_faults_are_in_the_catalogue():
    """Each once, and those of memory are known to be heavy, so that they run one at a time."""
    assert len(set(matrix.REPRESENTATIVE)) == len(matrix.REPRESENTATIVE)
    assert set(matrix.REPRESENTATIVE) <= CATALOGUE.keys()
    assert all(CATALOGUE[name].heavy for name in matrix.GROUPS["memory"])


# -- cells


def script(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of that code, which is told the path of its report."""
    (tmp_path / "a_cell.py").write_text(f"import sys\nfrom stress.bench.cell import Report\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return "a_cell"


def test_a_cell_tells_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All that it said, how it ended, and what it printed as errors."""
    module = script(tmp_path, "Report(sys.argv[1]).say(found=1)\nsys.stderr.write('why')\nsys.exit(3)", monkeypatch)
    found = cell.run(module, [], Limits())
    assert (found.told(), found.how, found.exit_code, found.left) == ({"found": 1}, "ended", 3, [])
    assert found.stderr == "why"


def test_a_cell_that_leaves_a_process_is_told_and_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a session of its own or not, it is counted and then killed."""
    code = "import subprocess\nsubprocess.Popen(['sleep', '3601'], start_new_session=True)"
    monkeypatch.setattr(cell, "_GOING_S", 0.2)
    found = cell.run(script(tmp_path, code, monkeypatch), [], Limits())
    assert found.left == ["sleep 3601"]
    assert not [process for process in psutil.process_iter() if process.name() == "sleep" and "3601" in _line(process)]


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize(
    ("code", "limits", "how"),
    [
        ("Report(sys.argv[1]).say(ready=1)\nwhile True: pass", Limits(run_s=0.1), "limit"),
        ("import time\ntime.sleep(3600)", Limits(start_s=0.3), "limit"),
        ("x = bytearray(b'x') * 300_000_000\nwhile True: pass", Limits(ceiling_bytes=200_000_000), "memory"),
    ],
)
def test_a_cell_is_killed_at_its_limits(
    code: str, limits: Limits, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """However it goes on: at its limit, and at its ceiling of memory."""
    assert cell.run(script(tmp_path, code, monkeypatch), [], limits).how == how


# -- adapters


@pytest.mark.parametrize("name", peers.OURS)
def test_an_adapter_gives_each_outcome_once(name: str):
    """Position and value, or an error with our kind; in the order asked for; again after a failure."""
    session = peers.load(name).make(invert, peers.Settings(job_timeout=60.0))
    try:
        outcomes = dict(session.run([{"x": x} for x in (1.0, 0.0, 4.0)]))
        assert [objective(outcomes[index]) for index in range(3)] == [1.0, None, 0.25]
        assert outcomes[1].kind == "exception"
        assert "exception" in str(outcomes[1].error)
        assert [objective(outcome) for outcome in session.in_order([{"x": 2.0}, {"x": 5.0}])] == [0.5, 0.2]
        assert all(psutil.pid_exists(pid) for pid in session.helpers())
    finally:
        session.close()


def invert(job: Any) -> dict[str, float]:
    return {"objective": 1.0 / job["x"]}


def objective(outcome: peers.Outcome) -> float | None:
    return None if outcome.value is None else outcome.value["objective"]


@pytest.mark.parametrize(("peer", "fault", "letters"), [("ours", "segfault", ""), ("futures", "exit_with_1", "iu")])
def test_a_cell_of_the_matrix_is_run_and_judged(peer: str, fault: str, letters: str, monkeypatch: pytest.MonkeyPatch):
    """Ours passes; the standard library's pool is broken by the death of a worker, as its documentation says."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert matrix.run_cell(peer, CATALOGUE[fault])["letters"] == letters


def test_a_sample_is_taken_in_a_cell(monkeypatch: pytest.MonkeyPatch):
    """One small sample of ours gives the figure that the measurement names."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = command.parse(["--only", "pool_throughput", "--quick", "--peers", "pipeline"])
    (figures,) = command.take("pool_throughput", options, sys.stderr)["pipeline"]
    assert figures["rate"] > 0


def test_a_peer_that_is_missing_is_told_as_such():
    """It has no version, and its column says so."""
    missing = peers.Peer("missing", "no-such-distribution-anywhere", peers.load("pebble").offers, print)
    assert peers.version(missing) is None
    assert peers.version(peers.load("futures")) is not None
    results = kept.Results(versions={"ours": "here", "pebble": None})
    assert "| `segfault` | ? | not installed |" in matrix_table.full(results, ["segfault"])


# -- what is written


def test_results_are_kept_and_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cell is known after it was written, and when; one that did not start is tried again."""
    results = kept.Results(tmp_path / "matrix.json")
    assert results.dates() == []
    results.keep("ours", "segfault", {"letters": ""})
    monkeypatch.setattr(kept, "today", lambda: "2999-01-01")
    results.keep("ours", "abort", {"letters": "s"})
    again = kept.Results.load(tmp_path / "matrix.json")
    assert again.dates()[1:] == ["2999-01-01"]
    assert again.knows("ours", "segfault")
    assert not again.knows("ours", "abort")
    assert not again.knows("pebble", "segfault")


def test_results_name_no_directory(tmp_path: Path):
    """What a package says may hold paths; only the names of files are kept."""
    results = kept.Results(tmp_path / "matrix.json")
    results.keep("pebble", "abort", {"letters": "i", "saw": 'File "/home/me/site-packages/pebble/pool.py", 1/2 of it'})
    assert kept.Results.load(tmp_path / "matrix.json").cells["pebble"]["abort"]["saw"] == 'File "pool.py", 1/2 of it'


def test_a_block_is_written_between_its_markers():
    """And nothing else is touched; without markers nothing is written."""
    text = "a\n<!-- x -->\nold\n<!-- end of x -->\nb"
    assert matrix_table.with_block(text, "new", "x") == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb"
    with pytest.raises(ValueError, match="<!-- y -->"):
        matrix_table.with_block(text, "new", "y")


def test_what_stands_in_the_readme_is_what_was_found():
    """The README's block and the docs' table are those that the kept results give."""
    results = kept.Results.load()
    readme = matrix_table.README.read_text(encoding="utf-8")
    assert matrix_table.with_block(readme, matrix_table.short(results, matrix.GROUPS), "matrix") == readme
    assert matrix_table.TABLE.read_text(encoding="utf-8") == matrix_table.page(results, matrix.GROUPS)


def test_what_stands_in_the_performance_page_is_what_was_measured():
    """The page's table is the one that the kept samples give."""
    content = next(command.everything(command.parse(["--write-only"])))
    page = command.PAGE.read_text(encoding="utf-8")
    assert matrix_table.with_block(page, speed_table.page(content), "speed") == page


def test_the_plots_are_drawn_from_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One for throughput, one for kills."""
    monkeypatch.setattr(plots, "CURVE", tmp_path / "curve.svg")
    monkeypatch.setattr(plots, "KILLS", tmp_path / "kills.svg")
    curve = {"ours": [{str(length): 10.0 for length in plots.LENGTHS_S}]}
    drawn = plots.draw({"curve": curve, "deadline_idle": {"ours": [{"all_reported": [1.0, 2.0]}]}})
    assert [path.name for path in drawn] == ["curve.svg", "kills.svg"]
    assert all(b"</svg>" in path.read_bytes() for path in drawn)


@pytest.mark.parametrize("module", ["stress.bench", "stress.bench.matrix"])
def test_the_commands_tell_their_arguments(module: str):
    """`--help` ends well without any peer."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "--peers" in done.stdout
