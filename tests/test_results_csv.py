import csv
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robust_eval.errors import InvalidArgumentType
from robust_eval.evaluators.serial import SerialEvaluator
from robust_eval.failure import Failure
from robust_eval.job import Job
from robust_eval.results import ResultsFile, csv_value, ordered_columns, rows_of
from robust_eval.storage import MemoryStorage

BASE = ["p:x", "objective", "job_id", "m:timestamp_submit", "m:timestamp_gather"]


def done(number, output=1.0, config=None, failure=None):
    """A settled job."""
    job = Job(f"0.{number}", {"x": number} if config is None else config, None)
    job.set_output(output)
    if failure is not None:
        job.fail(failure)
    job.metadata["timestamp_submit"], job.metadata["timestamp_gather"] = 0.25 + number, 0.5 + number
    return job


def rows(*jobs, saved_keys=None, num_objective=None):
    return rows_of(jobs, saved_keys, csv_value, num_objective)[0]


@pytest.fixture
def storage():
    storage = MemoryStorage().connect()
    storage.create_new_search()
    return storage


@pytest.fixture
def file(storage):
    return ResultsFile(storage, "0")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.csv"


def test_a_row_has_the_columns_of_deephyper():
    """Parameters, objective, number, metadata; nothing else for a job that delivered."""
    (row,) = rows(done(3, {"objective": 2, "metadata": {"a": 1, "_hidden": 2}}, {"x": 1, "y": "b"}))
    assert list(row.items()) == [
        ("p:x", 1),
        ("p:y", "b"),
        ("objective", 2),
        ("job_id", 3),
        ("m:timestamp_submit", 3.25),
        ("m:timestamp_gather", 3.5),
        ("m:a", 1),
    ]


def test_a_failed_job_says_why():
    """Two columns more, at the end; a failure of the run function's own adds none."""
    failed, own = rows(done(0, failure=Failure("crash", "SIGSEGV")), done(1, "F_own"))
    assert list(failed)[-2:] == ["m:failure", "m:failure_message"]
    assert (failed["objective"], failed["m:failure"], failed["m:failure_message"]) == ("F", "crash", "SIGSEGV")
    assert list(own) == BASE
    assert own["objective"] == "F_own"


def test_ranks_resources_and_foreign_ids_are_shown():
    """MPI ranks and queued resources have columns; an id without a number is kept."""
    job = done(0)
    job.rank, job.dequed, job.id = 3, [1, "gpu"], "search.job"
    (row,) = rows(job)
    assert (row["rank"], row["m:dequed"], row["job_id"]) == (3, "1,gpu", "search.job")


def test_several_objectives_have_columns():
    """A failure fills each of them, also where only later jobs show how many there are."""
    table, count = rows_of([done(0, "F"), done(1, (1, 2)), done(2, [3, 4])], None, csv_value, None)
    assert count == 2
    assert [(row["objective_0"], row["objective_1"]) for row in table] == [("F", "F"), (1, 2), (3, 4)]
    assert all("objective" not in row for row in table)


def test_the_number_of_objectives_can_be_set_and_grows():
    """It is a minimum; without any job it is not known."""
    assert rows_of([], None, csv_value, None) == ([], None)
    assert rows(done(0, "F"), num_objective=2)[0]["objective_1"] == "F"
    assert rows_of([done(0, (1, 2, 3))], None, csv_value, 2)[1] == 3
    assert rows_of([done(0)], None, csv_value, None)[1] == 1


def test_parameters_can_be_chosen():
    """None saves all, a list those named, a callable what it gives; anything else is refused."""
    job = done(0, config={"x": [1, 2], "y": 2})
    assert list(rows(job, saved_keys=["y", "z"])[0])[:2] == ["p:y", "p:z"]
    assert rows(job, saved_keys=lambda job: {"n": len(job.config)})[0]["p:n"] == 2
    assert rows(job)[0]["p:x"] == "[1, 2]"
    with pytest.raises(InvalidArgumentType, match="saved_keys"):
        rows(job, saved_keys="x")


def test_what_cannot_be_written_costs_its_own_cell_alone(tmp_path):
    """A number with more digits than Python writes, and an object whose text raises; all other cells are there."""

    class Mute:
        def __str__(self):
            raise ValueError

        __repr__ = __str__

    metadata = [{"a": 10**5000}, {"a": [10**5000]}, {"a": Mute()}, {"a": 0.1}]
    jobs = [Job(f"0.{number}", {"x": number}, None) for number in range(4)]
    for job, each in zip(jobs, metadata, strict=True):
        job.set_output({"objective": 1.0, "metadata": each})
    rows, _ = rows_of(jobs, None, csv_value, 1)
    path = tmp_path / "results.csv"
    storage = MemoryStorage()
    ResultsFile(storage, storage.create_new_search()).write(path, rows)
    written = path.read_text().splitlines()
    assert [line.split(",")[0] for line in written[1:]] == ["0", "1", "2", "3"]
    assert "0x" in written[1]
    assert "0x" in written[2]
    assert "Mute" in written[3]
    assert written[4].endswith("0.1")


def test_names_that_are_no_text_are_columns_as_others(tmp_path):
    """A file with such a column, in which they are escaped, takes further rows."""
    storage = MemoryStorage()
    file = ResultsFile(storage, storage.create_new_search())
    path = tmp_path / "results.csv"
    for number in range(3):
        job = Job(f"0.{number}", {"\udc80": number, "a\0b": 1}, None)
        job.set_output(1.0)
        rows, _ = rows_of([job], None, csv_value, 1)
        file.write(path, rows)
        file.forget()
    lines = path.read_text().splitlines()
    assert lines[0].startswith("p:\\udc80,p:a\\x00b,objective")
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2"]


def test_values_of_numpy_lose_their_names():
    """What is written can be read back: no "np.float64(1.0)" anywhere."""
    assert csv_value(np.float32(0.5)) == 0.5
    assert csv_value([np.float64(1.0), (np.int8(2),)]) == "[1.0, (2,)]"
    assert csv_value(np.array([1, 2])) == "[1, 2]"
    assert csv_value({"a": 1}) == {"a": 1}
    assert csv_value(None) is None


def test_columns_stay_in_their_groups():
    """A parameter that appears later still stands with the parameters."""
    table = rows(done(0), done(1, {"objective": 1, "metadata": {"a": 1}}, {"x": 1, "y": 2}))
    assert ordered_columns(table) == ["p:x", "p:y", *BASE[1:], "m:a"]


def test_a_dump_can_be_read(file, path):
    """The first dump writes a header, the next appends."""
    file.write(path, rows(done(0), done(1)))
    file.write(path, rows(done(2)))
    table = pd.read_csv(path)
    assert list(table.columns) == BASE
    assert list(table["job_id"]) == [0, 1, 2]
    assert list(table["m:timestamp_submit"]) == [0.25, 1.25, 2.25]


def test_what_another_search_left_is_kept(file, path):
    """It is moved to the first free number."""
    path.write_text("precious")
    path.with_name("results.csv.1").write_text("older")
    file.write(path, rows(done(0)))
    assert path.with_name("results.csv.2").read_text() == "precious"
    assert path.with_name("results.csv.1").read_text() == "older"
    assert len(pd.read_csv(path)) == 1


def test_an_empty_file_is_not_worth_keeping(file, path):
    """It is replaced."""
    path.touch()
    file.write(path, rows(done(0)))
    assert [each.name for each in path.parent.iterdir()] == ["results.csv"]


def test_new_columns_are_added(file, path):
    """The file is written anew with the old values; nothing else is left in the directory."""
    file.write(path, rows(done(0)))
    file.write(path, rows(done(1, {"objective": 1, "metadata": {"a": 5}}, {"x": 1, "y": 2})))
    file.write(path, rows(done(2)))
    table = pd.read_csv(path)
    assert list(table.columns) == ["p:x", "p:y", *BASE[1:], "m:a"]
    assert table["p:y"].isna().tolist() == [True, False, True]
    assert table["m:a"].isna().tolist() == [True, False, True]
    assert table["job_id"].tolist() == [0, 1, 2]
    assert [each.name for each in path.parent.iterdir()] == ["results.csv"]


def test_one_objective_becomes_several(file, path):
    """Failures written before the number was known fill each column, as they would have."""
    file.write(path, rows(done(0, "F")))
    file.write(path, rows(done(1, (1.0, 2.0))))
    table = pd.read_csv(path)
    assert list(table.columns) == ["p:x", "objective_0", "objective_1", *BASE[2:]]
    assert table["objective_1"].tolist() == ["F", "2.0"]


def test_a_resumed_search_appends(storage, path):
    """Another evaluator of the same search goes on with its file, and finds its columns."""
    ResultsFile(storage, "0").write(path, rows(done(0)))
    ResultsFile(storage, "0").write(path, rows(done(1)))
    assert pd.read_csv(path)["job_id"].tolist() == [0, 1]
    assert [each.name for each in path.parent.iterdir()] == ["results.csv"]


def test_a_resumed_search_recognises_its_file(storage, path):
    """What another search wrote meanwhile is moved away, not appended to."""
    ResultsFile(storage, "0").write(path, rows(done(0)))
    path.write_text("job_id,m:timestamp_submit\r\n0,99\r\n")
    ResultsFile(storage, "0").write(path, rows(done(1)))
    assert pd.read_csv(path)["job_id"].tolist() == [1]
    assert "99" in path.with_name("results.csv.1").read_text()


def test_what_is_no_csv_is_moved_away(storage, path):
    """So is a file that cannot be read at all."""
    ResultsFile(storage, "0").write(path, rows(done(0)))
    path.write_bytes(b"\xff\xfe\x00\xff")
    ResultsFile(storage, "0").write(path, rows(done(1)))
    assert pd.read_csv(path)["job_id"].tolist() == [1]


def test_a_file_that_was_deleted_is_made_anew(file, path):
    """With its header."""
    file.write(path, rows(done(0)))
    path.unlink()
    file.write(path, rows(done(1)))
    assert pd.read_csv(path)["job_id"].tolist() == [1]


TRICKY = {"text": 'a "quoted"\r\nline, and\rmore\n', "n": 1}


def test_a_torn_line_is_cut_wherever_it_tore(storage, tmp_path):
    """A kill at any byte of the last row, quotes and line breaks in it included, costs that row only."""
    whole = tmp_path / "whole.csv"
    ResultsFile(storage, "0").write(whole, rows(done(0, config=TRICKY)))
    first = len(whole.read_bytes())
    ResultsFile(storage, "0").write(whole, rows(done(1, config=TRICKY)))
    content = whole.read_bytes()
    for end in range(first, len(content)):
        whole.write_bytes(content[:end])
        ResultsFile(storage, "0").write(whole, rows(done(2, config=TRICKY)))
        table = pd.read_csv(whole)
        assert table["job_id"].tolist() == [0, 2]
        assert table["p:text"].tolist() == [TRICKY["text"]] * 2


def test_a_line_torn_while_we_live_is_cut_too(file, path):
    """As after a full disk: the next dump of the same evaluator repairs it."""
    file.write(path, rows(done(0)))
    with path.open("a") as torn:
        torn.write("1,2")
    file.write(path, rows(done(1)))
    assert pd.read_csv(path)["job_id"].tolist() == [0, 1]


SCALARS = (
    st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(SCALARS, min_size=1, max_size=3), st.lists(SCALARS, min_size=1, max_size=3))
def test_values_round_trip_through_pandas(tmp_path, before, after):
    """Whatever is in a cell, pandas reads the same text, line breaks and quotes included."""
    storage = MemoryStorage().connect()
    storage.create_new_search()
    path = tmp_path / "round.csv"
    path.unlink(missing_ok=True)
    file = ResultsFile(storage, "0")
    file.write(path, rows(*(done(n, config={"v": value}) for n, value in enumerate(before))))
    later = [done(10 + n, config={"v": value, "w": value}) for n, value in enumerate(after)]
    file.write(path, rows(*later))
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert table["p:v"].tolist() == [str(value) for value in before + after]
    assert table["p:w"].tolist() == [""] * len(before) + [str(value) for value in after]


def test_numbers_come_back_as_numbers(file, path):
    """Types survive, floats to what pandas promises."""
    values = [0.1, 1 / 3, 1e-300, math.pi]
    file.write(path, rows(*(done(n, value, {"x": value, "flag": True}) for n, value in enumerate(values))))
    table = pd.read_csv(path)
    assert table["objective"].tolist() == pytest.approx(values, rel=1e-14)
    assert table["p:x"].tolist() == pytest.approx(values, rel=1e-14)
    assert table["p:flag"].dtype == bool


def test_nothing_in_a_cell_raises(file, path):
    """Lone surrogates, NUL and a megabyte of text are written somehow, and rewritten."""
    file.write(path, rows(done(0, config={"x": "\ud800"}), done(1, config={"x": "a\0b"})))
    file.write(path, rows(done(2, config={"x": "y" * 10**6, "new": 1})))
    file.write(path, rows(done(3, config={"newer": 1})))
    table = pd.read_csv(path)
    assert table["p:x"].tolist()[:2] == ["\\ud800", "a\\x00b"]
    assert len(table["p:x"][2]) == 10**6
    assert csv.field_size_limit() < 10**6


def test_a_dump_that_fails_loses_nothing(tmp_path):
    """The jobs stay for the next dump."""
    with SerialEvaluator(lambda job: job["x"]) as evaluator:
        evaluator.submit([{"x": 1}])
        evaluator.gather("ALL")
        with pytest.raises(FileNotFoundError, match=r"make it first: '.*nowhere'"):
            evaluator.dump_evals(log_dir=tmp_path / "nowhere")
        evaluator.dump_evals(log_dir=tmp_path)
        assert evaluator.jobs_done == []
        evaluator.dump_evals(log_dir=tmp_path)
    assert len(pd.read_csv(tmp_path / "results.csv")) == 1


@pytest.mark.parametrize("dumps_before", [0, 1])
def test_a_dump_that_is_interrupted_writes_nothing_twice(tmp_path, monkeypatch, dumps_before):
    """Ctrl-C just after the rows were written and before anybody knows: the next dump looks at the file."""
    with SerialEvaluator(lambda job: job["x"]) as evaluator:
        for x in range(dumps_before):
            evaluator.submit([{"x": x}])
            evaluator.gather("ALL")
            evaluator.dump_evals(log_dir=tmp_path)
        evaluator.submit([{"x": 10}, {"x": 11}])
        evaluator.gather("ALL")
        write = ResultsFile.write

        def interrupted(*arguments):
            write(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ResultsFile, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                evaluator.dump_evals(log_dir=tmp_path)
        evaluator.dump_evals(log_dir=tmp_path)
    assert pd.read_csv(tmp_path / "results.csv")["p:x"].tolist() == [*range(dumps_before), 10, 11]
    assert not (tmp_path / "results.csv.1").exists()
