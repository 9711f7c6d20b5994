"""Objects as opaque bytes: what goes in comes out, and no descriptor is left."""

import os
import pickle
import resource
import sys
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from children import Helper, in_child
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import nothing_left

from robust_eval.plain import copy_of_plain, is_plain
from robust_eval.processes import parcel as parcel_module
from robust_eval.processes.parcel import (
    INLINE_BYTES,
    Memory,
    Parcel,
    discard,
    mentions_of,
    needs_proof,
    open_parcel,
    pack,
    pack_plain,
    store,
    unpack,
    view,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.frozensets(st.integers(), max_size=4)
    ),
    max_leaves=12,
)
ARRAYS = st.lists(
    st.tuples(st.integers(0, 300_000), st.sampled_from(["u1", "f8", "i4", "c16"])), min_size=1, max_size=4
)


class Poison:
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        msg = "not me"
        raise RuntimeError(msg)


def back(parcel: Parcel) -> Any:
    return unpack(open_parcel(parcel))


@given(obj=NESTED)
def test_plain_objects_come_back_inline(obj: Any):
    """Nested built-in types travel as bytes, and no proof is asked for them."""
    parcel = pack(obj)
    assert isinstance(parcel, bytes)
    assert back(parcel) == obj
    assert back(pack_plain(obj)) == obj


@settings(max_examples=25, deadline=None)
@given(shapes=ARRAYS)
def test_arrays_come_back_and_can_be_written_to(shapes: list[tuple[int, str]]):
    """Small and large arrays come back equal, whatever their number and their place; none holds a descriptor."""
    arrays = [np.arange(size).astype(kind) for size, kind in shapes]
    with nothing_left():
        given_back = back(pack({"arrays": arrays, "first": arrays[0]}))
        for sent, array in zip(arrays, given_back["arrays"], strict=True):
            np.testing.assert_array_equal(sent, array)
            array[:1] = 1
        assert given_back["first"] is given_back["arrays"][0]


@pytest.mark.parametrize("size", [INLINE_BYTES - 200, INLINE_BYTES - 65, INLINE_BYTES, 5 * INLINE_BYTES + 1])
def test_what_is_large_lies_in_memory(size: int):
    """From 1 MiB on a parcel is a memfd; its content is the same, whether it is one buffer or one pickle."""
    for obj in (b"x" * size, np.zeros(size, "u1").tobytes(), bytearray(size)):
        with nothing_left():
            parcel = pack(obj)
            assert isinstance(parcel, Memory) or size < INLINE_BYTES
            assert back(parcel) == obj


def test_a_mapped_array_lives_as_long_as_it_is_used():
    """The mapping outlasts its descriptor, and what a receiver writes does not reach the memfd."""
    parcel = pack(np.ones(200_000))
    assert isinstance(parcel, Memory)
    array = unpack(view(parcel))
    array[:] = 2.0
    assert unpack(view(parcel))[0] == 1.0
    discard(parcel)
    assert array.sum() == 400_000.0


def test_an_array_that_cannot_be_read_in_place_is_copied():
    """A strided array has no single buffer and comes back all the same."""
    array = np.arange(100_000).reshape(100, 1000)[:, ::2]
    np.testing.assert_array_equal(back(pack(array)), array)


def test_what_main_defines_travels_by_value():
    """A function, a class and its instance from a script are understood by a process that has no such script."""
    script = (
        "import sys, pickle\n"
        "from robust_eval.processes.parcel import pack\n"
        "import numpy as np\n"
        "scale = 3\n"
        "class Point:\n"
        "    def __init__(self, x): self.x = x\n"
        "def triple(x): return scale * x\n"
        "parcel = pack((triple, Point(4), lambda x: x + scale, np.ones(100_000, 'u1')))\n"
        "print(parcel.hex(), flush=True)\n"
    )
    with Helper(script) as helper:
        triple, point, added, array = back(bytes.fromhex(helper.read()))
    assert (triple(2), point.x, added(1), array.sum()) == (6, 4, 4, 100_000)
    assert type(point).__module__ == "__main__"


def test_the_name_of_main_in_bytes_makes_nothing_go_by_value(monkeypatch: pytest.MonkeyPatch):
    """As it stands in a function that is pickled already. What else is of `__main__` goes by value beside that, too."""

    def double(x: int) -> int:
        return 2 * x

    monkeypatch.setattr(double, "__module__", "__main__")
    monkeypatch.setattr(double, "__qualname__", "double")
    monkeypatch.setattr(sys.modules["__main__"], "double", double, raising=False)
    inner = pack(double)
    mentions = mentions_of(inner)
    alone, both = pack((inner,), mentions), pack((inner, double), mentions)
    assert (mentions, mentions_of(store([b"__main__"], 8))) == (inner.count(b"__main__"), 0)
    once = inner.count(b"cloudpickle")
    assert (alone.count(b"cloudpickle"), both.count(b"cloudpickle")) == (once, 2 * once)
    assert back(alone) == (inner,)
    assert back(both)[1](4) == 8


def test_what_pickle_cannot_do_cloudpickle_does():
    """A lambda of an importable module travels too."""
    assert back(pack(lambda x: x + 1))(1) == 2


def test_code_that_travels_by_value_knows_its_file():
    """So that stacks and tracebacks name it and show its lines, in functions inside of functions, too."""
    copy = unpack(pack(lambda: lambda: 1))
    assert copy.__code__.co_filename == __file__
    assert copy().__code__.co_filename == __file__
    assert copy()() == 1


def test_what_cannot_be_pickled_raises_what_it_raised():
    """The user's own error comes out, and nothing is left open."""
    with nothing_left(), pytest.raises(RuntimeError, match="not me"):
        pack([np.zeros(300_000), Poison()])


def test_without_a_descriptor_a_parcel_is_inline():
    """Where no memfd can be made, the bytes travel in the message."""

    def without_descriptors() -> tuple[bool, bool, bool]:
        array = np.arange(300_000)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        parcel = pack(array)
        return isinstance(parcel, bytes), bool((back(parcel) == array).all()), store([b"a", b"b"], 2) == b"ab"

    assert in_child(without_descriptors) == (True, True, True)


def test_a_memfd_that_cannot_be_written_is_closed(tmp_path: Any):
    """A limit on file sizes costs the parcel and no descriptor."""

    def with_small_files() -> str:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with nothing_left(), pytest.raises(OSError, match="too large") as caught:
            pack(bytes(2 * INLINE_BYTES))
        return type(caught.value).__name__

    assert in_child(with_small_files) == "OSError"


def test_a_size_that_lies_is_an_error_and_not_a_signal():
    """A memfd that is smaller than announced is refused before anything is read behind its end."""
    parcel = pack(bytes(2 * INLINE_BYTES))
    assert isinstance(parcel, Memory)
    for size in (0, parcel.size + 1, 1 << 40):
        with pytest.raises(ValueError, match="were announced"):
            view(Memory(parcel.fd, size))
    with nothing_left():
        discard(parcel)
        parcel = Memory(os.memfd_create("empty"), 10)
        with pytest.raises(ValueError, match="were announced"):
            open_parcel(parcel)


@pytest.mark.parametrize("content", [b"", b"B", b"Bxxxx", b"P", b"Pgarbage", b"B\1\0\0\0" + b"\xff" * 8])
def test_garbage_raises(content: bytes):
    """What is not a parcel raises an exception and nothing worse."""
    with pytest.raises(Exception):  # noqa: B017, PT011 - which one is the pickle module's business
        unpack(content)


@pytest.mark.parametrize(
    ("obj", "needed"),
    [
        ({"a": [1, 2.0, "x", b"y", None, True, (1,), {2}]}, False),
        (np.float64(1.0), True),
        (np.zeros(3), True),
        (np.zeros(10_000), True),
        (pickle.PickleError, True),
        (lambda: None, True),
    ],
)
def test_only_what_names_a_global_needs_proof(obj: object, needed: bool):
    """Unpickling built-in types runs nobody's code."""
    parcel = pack(obj)
    assert isinstance(parcel, bytes)
    assert needs_proof(parcel) is needed


def test_what_lies_in_memory_is_not_looked_through():
    """It needs a proof, unless the object itself says that it does not."""
    parcel = pack(np.zeros(INLINE_BYTES))
    assert needs_proof(parcel)
    discard(parcel)
    assert needs_proof(b"")


class Own(float):
    pass


@pytest.mark.parametrize(
    ("obj", "plain"),
    [
        ({"a": [1, 2.0, "x", b"y", None, True, (1,), {2}, bytearray(3)]}, True),
        ((0.5, {"x": np.zeros(3), "y": np.ones((2, 2), np.int8)}, None), True),
        ([0.5] * 1000, True),
        ([[0] * 10] * 10, True),
        (OrderedDict(a=1), False),
        (Path("x"), False),
        (datetime.now(UTC), False),
        ({"a": {"b": [Own(1.0)]}}, False),
        ({Own(1.0): 1}, False),
        (np.float64(1.0), False),
        (np.array([None]), False),
        (np.zeros(3, np.dtype("f8", metadata={"a": print})), False),
        (np.ma.zeros(3), False),
        (Own(1.0), False),
        (print, False),
    ],
)
def test_what_runs_nobodys_code_is_known_by_its_types(obj: object, plain: bool):
    """Built-in types and arrays of numbers, however deep; what inherits from them may be anything."""
    assert is_plain(obj) is plain


class Reduced:
    def __reduce__(self) -> Any:
        raise AssertionError("code of the user's was run")


def test_to_look_at_an_object_runs_none_of_its_code():
    """Not even how it would be pickled."""
    assert not is_plain([1, {"a": Reduced()}])
    with pytest.raises(ValueError, match="other types"):
        copy_of_plain([1, {"a": Reduced()}])


@given(NESTED)
def test_a_copy_of_plain_objects_is_deep_and_equal(obj: Any):
    """It shares nothing that can be changed, and what was one object twice still is."""
    twice = copy_of_plain([obj, obj])
    assert repr(twice) == repr([obj, obj])
    assert twice[0] is twice[1]
    if isinstance(obj, list | dict):
        assert twice[0] is not obj


def test_a_copy_of_plain_objects_knows_their_cycles():
    """And copies sets and bytes that can be changed; what cannot be changed is shared."""
    cycle: list[Any] = [{1}, bytearray(b"x"), {"inner": [1]}, ("a", "b"), ("a", [2]), frozenset({3})]
    cycle.append(cycle)
    copied = copy_of_plain(cycle)
    assert copied[:6] == cycle[:6]
    assert copied[6] is copied is not cycle
    assert all(copied[index] is not cycle[index] for index in (0, 1, 2, 4))
    assert copied[2]["inner"] is not cycle[2]["inner"]
    assert copied[3] is cycle[3]
    shared = {1}
    first, second = copy_of_plain([shared, shared])
    assert first is second is not shared
    outer: tuple[list[Any]] = ([],)
    outer[0].append(outer)
    within = copy_of_plain(outer)
    assert within[0][0] is within is not outer
    for other in ([OrderedDict()], {(1, 2): 3}, ({Own(1.0)},)):
        with pytest.raises(ValueError, match="other types"):
            copy_of_plain(other)


def test_a_nest_that_is_too_deep_is_not_plain():
    """The pickler gives up on it, and so does `copy.deepcopy`."""
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    assert not is_plain(nest)
    with pytest.raises(ValueError, match="other types"):
        copy_of_plain(nest)


def test_plain_objects_are_known_where_numpy_is_not_loaded(monkeypatch: pytest.MonkeyPatch):
    """Or stands for something else."""
    array = np.zeros(3)
    monkeypatch.setitem(sys.modules, "numpy", ModuleType("numpy"))
    assert not is_plain(array)
    monkeypatch.delitem(sys.modules, "numpy")
    assert not is_plain(array)
    assert is_plain([1, "two"])


def test_discarding_bytes_does_nothing():
    """Only a memfd is closed."""
    discard(b"bytes")
    discard(None)
    assert parcel_module.view(b"bytes") == b"bytes"
