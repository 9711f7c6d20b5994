import enum
import json
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storages import CONFIGS, VALUES, same

from robust_eval.errors import InvalidArgument, StorageError
from robust_eval.storage.encoding import decode, digest, encode, encode_lossy

QUICK = settings(max_examples=50, deadline=None)


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


class Point(NamedTuple):
    x: int
    y: int


class Share(float):
    __slots__ = ()


@QUICK
@given(VALUES)
def test_what_is_encoded_comes_back(value):
    """Type and value, nested as deeply as may be; and the text is JSON of ASCII characters without NaN."""
    text = encode(value)
    assert same(decode(text), value)
    assert text.isascii()
    json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_of_any_size_comes_back(sign):
    """Also one that Python would not write in decimal digits."""
    value = sign * 10**5000
    assert decode(encode({"n": value})) == {"n": value}
    assert digest({"n": value}) != digest({"n": value + 1})


@QUICK
@given(VALUES)
def test_the_lossless_and_the_lossy_form_are_one(value):
    """Nothing that has an encoding is replaced by its repr."""
    assert encode_lossy(value) == encode(value)


@QUICK
@given(CONFIGS)
def test_a_stored_configuration_is_the_same_by_value(config):
    """So that a configuration that ran is found in any storage."""
    assert digest(decode(encode(config))) == digest(config)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Colour.RED, 1),
        (Name("a"), "a"),
        (Share(0.5), 0.5),
        (OrderedDict(a=1), {"a": 1}),
        (Point(1, 2), (1, 2)),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
    ],
)
def test_subclasses_come_back_plain(value, plain):
    """No class is named in the text: reading it runs no code."""
    back = decode(encode(value))
    assert (type(back), back) == (type(plain), plain)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, object()]}, r"config\['a'\]\[1\]=<object"),
        ({object(): 1}, r"config, key <object"),
        ({"f": print}, r"config\['f'\]=<built-in function print>.*keep the search in memory"),
        ({"n": np.array([object()], dtype=object)}, r"config\['n'\]=array"),
        ({"v": np.zeros(1, dtype=[("a", "i4")])}, r"config\['v'\]"),
        ({"m": np.ma.array([1, 2], mask=[0, 1])}, r"config\['m'\]=masked_array"),
    ],
)
def test_what_cannot_be_stored_is_named_with_its_place(value, where):
    """The message says what, where, and what to do."""
    with pytest.raises(InvalidArgument, match=where):
        encode(value, "config")


def test_a_circle_is_refused():
    """Also where everything else would be replaced by its repr; and there is no configuration that is one."""
    circle: list[object] = []
    circle.append(circle)
    for function in (encode, digest):
        with pytest.raises(InvalidArgument, match="too deeply, or contains itself"):
            function(circle)
    assert decode(encode_lossy({"a": circle})) == "{'a': [[[[[[...]]]]]]}"


def test_of_metadata_only_the_part_without_an_encoding_is_lost():
    """It is there as its repr."""
    assert decode(encode_lossy({"a": (1, print), "b": 2})) == {"a": (1, "<built-in function print>"), "b": 2}


@pytest.mark.parametrize("text", ["", "{", '{"$pickle": "gASVA"}', '{"$array": ["O", [1], "AAAA"]}', '{"$int": 5}'])
def test_what_is_not_of_the_encoding_is_refused(text):
    """A damaged text is told as such, with its beginning."""
    with pytest.raises(StorageError, match="cannot be read"):
        decode(text)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ({"a": 1, "b": 2}, {"b": 2.0, "a": np.int8(1)}, True),
        ({"a": (1, 2)}, {"a": np.array([1.0, 2.0])}, True),
        ({"a": float("nan")}, {"a": np.float32("nan")}, True),
        ({"a": 0.0}, {"a": -0.0}, True),
        ({"a": 2**70}, {"a": float(2**70)}, True),
        ({"a": {1, 2}}, {"a": frozenset({2, 1})}, True),
        ({"a": np.datetime64("2026-01-01")}, {"a": np.datetime64("2026-01-01")}, True),
        ({"a": b"1"}, {"a": b"1"}, True),
        ({"a": True}, {"a": 1}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({1: 1}, {"1": 1}, False),
        ({"a": b"1"}, {"a": "1"}, False),
        ({"a": None}, {}, False),
    ],
)
def test_configurations_are_compared_by_value(left, right, equal):
    """As a user would say that they are the same."""
    assert (digest(left) == digest(right)) is equal


@given(st.dictionaries(st.text(), st.integers() | st.floats() | st.booleans()))
def test_the_order_of_keys_plays_no_role(config):
    """One configuration, however it was built."""
    assert digest(dict(reversed(config.items()))) == digest(config)
