"""`falsify`: the smallest configuration for each way to fail, found in parallel and found again."""

import json
import os
from pathlib import Path
from typing import Any, TypedDict

import pytest
from hypothesis import find, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase
from hypothesis.errors import NoSuchExample

from robust_eval import Falsification, InvalidArgument, InvalidArgumentType, JobStartupFailed, falsify
from robust_eval.spaces import as_strategy, load_space, space_from_json


class Config(TypedDict):
    n: int
    flag: bool


SPACE = {"n": [0, 100], "flag": {"type": "bool"}}


def faulty(job: Any) -> float:
    """Fails in two ways, and says of itself that it failed in a third case."""
    if job["n"] >= 60 and job["flag"]:
        os.abort()
    if 30 <= job["n"] < 50:
        raise ValueError(job["n"])
    return "F_by_itself" if job["n"] < 3 else float(job["n"])  # type: ignore[return-value]


def not_finite(job: Any) -> float:
    return float("nan") if job["n"] > 7 else 0.0


def honest(job: Any) -> float:
    return float(job["n"])


def hangs(job: Any) -> float:
    while job["n"] > 90:
        pass
    return 0.0


def smallest(found: Falsification) -> dict[str, dict[str, Any]]:
    return {finding.failure.kind: finding.config for finding in found.findings}


def test_each_way_to_fail_has_its_smallest_configuration():
    """With its failure, its place and a line that does it again; the next search begins with what is known."""
    database = InMemoryExampleDatabase()
    found = falsify(faulty, SPACE, max_examples=60, num_workers=2, job_timeout=60, database=database)
    assert smallest(found) == {"crash": {"n": 60, "flag": True}, "exception": {"n": 30, "flag": False}}
    assert all(finding.shrunk for finding in found.findings)
    text = found.render()
    assert text.startswith(f"2 ways to fail found in {found.runs} runs.")
    assert "test_falsification.py" in text
    assert "ValueError: 30" in text
    [crash] = [finding for finding in found.findings if finding.failure.kind == "crash"]
    assert crash.place is not None
    assert crash.place.function == "faulty"
    assert crash.reproduce.startswith("import robust_eval as r; from test_falsification import faulty; r.call(faulty, ")
    compile(crash.reproduce, "line", "exec")

    again = falsify(faulty, SPACE, max_examples=1, num_workers=1, job_timeout=60, database=database)
    assert smallest(again) == smallest(found)
    assert all(finding.shrunk for finding in again.findings)
    assert again.runs <= 4


def test_a_failure_that_is_gone_is_forgotten():
    """Once a search finds that what was known does not fail any more."""
    database = InMemoryExampleDatabase()
    key = b"robust_eval.falsify test_falsification:honest"
    for entry in (b"({'n': 5, 'flag': True}, True)", b"rubbish", b"(5, True)"):
        database.save(key, entry)
    found = falsify(honest, SPACE, max_examples=5, num_workers=1, database=database)
    assert not found
    assert found.render() == f"No failing configuration found in {found.runs} runs."
    assert set(database.fetch(key)) == {b"rubbish", b"(5, True)"}


def test_a_value_that_is_no_result_is_a_failure():
    """As it is for evaluators."""
    found = falsify(not_finite, SPACE, max_examples=30, num_workers=2, database=None)
    assert smallest(found) == {"invalid": {"n": 8, "flag": False}}


def test_a_budget_bounds_the_search():
    """What was found until then is reported, and says that it was not shrunk to the end."""
    found = falsify(
        hangs, {"n": st.just(100)}, max_examples=5, num_workers=1, job_timeout=0.5, timeout=0.2, database=None
    )
    assert smallest(found) == {"timeout": {"n": 100}}
    assert not found.findings[0].shrunk
    assert "not shrunk to the end" in found.render()
    assert not falsify(hangs, SPACE, num_workers=1, timeout=1e-9, database=None).runs


class FailsToLoad:
    def __reduce__(self) -> Any:
        return int, ("x",)

    def __call__(self, job: Any) -> float:
        return 0.0


def test_a_run_function_that_cannot_be_loaded_is_no_finding():
    """It is told as what it is."""
    with pytest.raises(JobStartupFailed):
        falsify(FailsToLoad(), SPACE, max_examples=3, num_workers=1, database=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, SPACE, {}), "cannot be called"),
        ((honest, 5, {}), "Pass a dict of parameters"),
        ((honest, st.integers(), {}), "A configuration is a dict"),
        ((honest, {"n": {"type": "complex"}}, {}), "space\\['n'\\]"),
        ((honest, {"n": [5, 1]}, {}), "is not understood"),
        ((honest, {"n": {"type": "int", "most": 3}}, {}), "is not understood"),
        ((honest, SPACE, {"database": "here"}), "ExampleDatabase"),
        ((honest, SPACE, {"num_workers": 0}), "num_workers"),
    ],
)
def test_what_means_nothing_is_refused(arguments, message):
    """With what is allowed instead."""
    run, space, options = arguments
    with pytest.raises((InvalidArgument, InvalidArgumentType), match=message):
        falsify(run, space, **{"num_workers": 1, "database": None, **options})


def test_a_space_can_be_written_in_many_ways(tmp_path: Path, monkeypatch):
    """JSON, a file, a name, a TypedDict, types and strategies all give configurations."""
    text = json.dumps({
        "int": {"type": "int", "low": 1, "high": 3},
        "float": {"type": "float", "low": 0, "high": 1},
        "choice": {"type": "categorical", "choices": ["a", "b"]},
        "flag": {"type": "bool"},
        "text": {"type": "str", "max_size": 2},
        "range": [5, 6],
        "share": [0.0, 0.5],
        "names": ["x", "y", "z"],
        "fixed": 7,
    })  # fmt: skip
    (tmp_path / "space.json").write_text(text)
    for strategy in (space_from_json(text), load_space(str(tmp_path / "space.json"))):
        simplest = find(strategy, lambda _: True)
        assert simplest == {
            "int": 1, "float": 0.0, "choice": "a", "flag": False, "text": "", "range": 5, "share": 0.0, "names": "x",
            "fixed": 7,
        }  # fmt: skip
        with pytest.raises(NoSuchExample):
            find(strategy, lambda config: not 0 <= config["share"] <= 0.5, settings=settings(max_examples=20))
    assert find(load_space("test_falsification:SPACE"), lambda _: True) == {"n": 0, "flag": False}
    assert find(as_strategy(Config), lambda _: True) == {"n": 0, "flag": False}
    assert find(as_strategy({"n": int, "m": st.just(1), "l": list[int]}), lambda _: True) == {"n": 0, "m": 1, "l": []}


@pytest.mark.parametrize(
    "where", ["nowhere.json", "no_such_module_anywhere:space", "test_falsification:nothing", "neither"]
)
def test_a_space_that_is_not_there_is_refused(where):
    """By its name."""
    with pytest.raises(InvalidArgument, match="space="):
        load_space(where)


@pytest.mark.parametrize("text", ["{", "[1, 2]"])
def test_json_that_is_no_space_is_refused(text):
    """Whether it is not JSON or not an object."""
    with pytest.raises(InvalidArgument):
        space_from_json(text)
