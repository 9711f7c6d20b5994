"""What the contract of storages is tried with: each kind, values of every kind, and what is the same value."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from servers import redis_server

KINDS = ("memory", "redis", "sqlite")

_ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**66)
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.binary(max_size=5)
    | st.complex_numbers()
    | st.sampled_from(["$tuple", "$", "\ud800", "\0", 2**200, -(2**63), 2**63])
)
_SCALARS = hnp.scalar_dtypes().flatmap(lambda dtype: hnp.arrays(dtype, ())).map(lambda array: array[()])
_ARRAYS = hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(max_side=3, min_side=0))
_HASHABLE = _ATOMS | st.tuples(st.integers(), st.text(max_size=2))
VALUES = st.recursive(
    _ATOMS | _SCALARS | _ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_HASHABLE, inner, max_size=3)
        | st.sets(_HASHABLE, max_size=3)
        | st.frozensets(_HASHABLE, max_size=3)
    ),
    max_leaves=8,
)
CONFIGS = st.dictionaries(st.text(max_size=3), VALUES, max_size=3)


@contextmanager
def url_of(kind: str, folder: Path) -> Iterator[str]:
    """Give the URL of an empty storage of a kind, for as long as the block lasts."""
    if kind == "redis":
        with redis_server(folder) as server:
            yield server.url
    else:
        yield {"memory": "memory://", "sqlite": f"sqlite:///{folder / 'runs.db'}"}[kind]


def same(left: Any, right: Any) -> bool:  # noqa: C901, PLR0911  one return for each kind
    """Whether two values are of one type and one value, nan being nan."""
    if isinstance(left, np.ndarray | np.generic) and not isinstance(left, str | bytes):
        if type(left) is not type(right) or left.dtype != right.dtype or left.shape != right.shape:
            return False
        return left.tobytes() == right.tobytes() or np.array_equal(left, right, equal_nan=left.dtype.kind in "fc")
    if isinstance(left, str | bytes):
        return isinstance(right, str | bytes) and left == right
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left), list(right)) and same(list(left.values()), list(right.values()))
    if isinstance(left, set | frozenset):
        return same(sorted(left, key=repr), sorted(right, key=repr))
    return bool(left == right)
