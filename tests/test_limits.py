from decimal import Decimal

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_eval.errors import InvalidArgument, InvalidArgumentType
from robust_eval.limits import machine_memory, parse_count, parse_memory, parse_seconds

GIB = 1024**3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (2 * GIB, 2 * GIB),
        (2e9, 2_000_000_000),
        (np.int64(GIB), GIB),
        ("2GiB", 2 * GIB),
        (" 512 MiB ", 512 << 20),
        ("1GB", 10**9),
        ("1.5gib", 3 * GIB // 2),
        (".5 TiB", 512 * GIB),
        ("4194304", 4 << 20),
        ("2097152B", 2 << 20),
    ],
)
def test_sizes_are_read(value, expected):
    """Bytes and sizes with a unit mean what they say."""
    assert parse_memory(value, num_workers=4) == expected


def test_shares_are_of_the_machine():
    """A share is of the machine's or container's memory, "auto" divides it by the workers."""
    memory = machine_memory()
    assert 0 < memory <= psutil.virtual_memory().total
    assert parse_memory(0.5, num_workers=4) == memory // 2
    assert parse_memory(1.0, num_workers=4) == memory
    assert parse_memory("auto", num_workers=4) == memory // 4
    assert parse_memory(" AUTO", num_workers=1) == memory


@pytest.mark.parametrize("value", [512, 1, 0, -5, 1.5, 2048.0, "512", "0", float("nan"), float("inf"), -0.5])
def test_a_forgotten_unit_is_refused(value):
    """No process runs in less than 1 MiB: the unit was forgotten, and the message says so."""
    with pytest.raises(InvalidArgument, match=r"memory_limit.*Allowed"):
        parse_memory(value, num_workers=1)


@pytest.mark.parametrize("value", ["2 elephants", "2G", "", "GiB", "1e9", "-1GiB"])
def test_what_is_no_size_is_refused(value):
    """The message names the value and the units."""
    with pytest.raises(InvalidArgument, match="MiB"):
        parse_memory(value, num_workers=1)


@pytest.mark.parametrize("value", [True, [1], b"1GiB", 1j, Decimal(5)])
def test_what_is_no_number_is_refused(value):
    """A wrong type is a TypeError."""
    with pytest.raises(InvalidArgumentType, match="memory_limit"):
        parse_memory(value, num_workers=1)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_smallest_limit_upward_counts(tmp_path):
    """Control groups of version 2 limit all below them."""
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", "max\n")
    write(tmp_path / "sys/fs/cgroup/a/memory.max", "5000000\n")
    write(tmp_path / "sys/fs/cgroup/a/b/memory.max", "7000000\n")
    assert machine_memory(tmp_path) == 5000000


def test_the_first_version_of_control_groups_is_read(tmp_path):
    """Version 1 limits too, also where the path is the host's and cannot be seen here."""
    write(tmp_path / "proc/self/cgroup", "4:cpu,cpuacct:/x\n3:memory:/docker/123\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", "6000000\n")
    assert machine_memory(tmp_path) == 6000000


def test_without_control_groups_the_machine_counts(tmp_path):
    """No control groups, no limit of theirs."""
    assert machine_memory(tmp_path) == psutil.virtual_memory().total


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False) | st.integers(1, 10**6))
def test_durations_are_seconds(value):
    """Every positive finite number is a duration."""
    assert parse_seconds("job_timeout", value) == float(value)


def test_zero_and_none_are_durations_where_that_is_said():
    """None is no limit; 0 only where it makes sense."""
    assert parse_seconds("x", None) is None
    assert parse_seconds("x", 0, allow_zero=True) == 0.0
    assert parse_seconds("x", np.float32(0.5)) == 0.5
    with pytest.raises(InvalidArgument, match="job_timeout=0"):
        parse_seconds("job_timeout", 0)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), -float("inf")])
def test_impossible_durations_are_refused(value):
    """The message names the argument."""
    with pytest.raises(InvalidArgument, match="grace_period"):
        parse_seconds("grace_period", value, allow_zero=True)


@pytest.mark.parametrize("value", [True, "10", [1], 1j])
def test_durations_are_numbers(value):
    """A wrong type is a TypeError that names the argument."""
    with pytest.raises(InvalidArgumentType, match="grace_period"):
        parse_seconds("grace_period", value)


def test_counts_are_whole_numbers():
    """Integers of numpy count; fractions, booleans and strings do not, nor what is too small."""
    assert parse_count("num_workers", 3) == 3
    assert type(parse_count("num_workers", np.int32(3))) is int
    assert parse_count("max_retries", 0, minimum=0) == 0
    with pytest.raises(InvalidArgument, match=r"num_workers=0.*from 1"):
        parse_count("num_workers", 0)
    for value in (True, 1.0, "2", None):
        with pytest.raises(InvalidArgumentType, match="num_workers"):
            parse_count("num_workers", value)
