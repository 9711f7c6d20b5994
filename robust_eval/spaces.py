"""What configurations are like, as a Hypothesis strategy: from JSON, from type hints, from strategies themselves."""

from __future__ import annotations

import importlib
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

from robust_eval.errors import InvalidArgument, bounded_repr

if TYPE_CHECKING:
    from collections.abc import Callable

_PAIR = 2
_ALLOWED = (
    'Allowed are {"type": "int", "low": 1, "high": 9}, {"type": "float", "low": 0, "high": 1}, '
    '{"type": "categorical", "choices": [...]}, {"type": "bool"}, {"type": "str", "max_size": 9}, [low, high], '
    "a list of choices, or a constant."
)


def as_strategy(space: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Bring a space to a strategy.

    Args:
        space: a strategy that gives dicts; a ``TypedDict``; or a mapping from each parameter to a strategy, a type, or
            what `space_from_json` takes.

    Raises:
        InvalidArgument: it is none of these.
    """
    if isinstance(space, st.SearchStrategy):
        return space
    if typing.is_typeddict(space):
        return st.from_type(space)
    if isinstance(space, Mapping):
        return st.fixed_dictionaries({name: _parameter(name, spec) for name, spec in space.items()})
    raise InvalidArgument(
        f"space={bounded_repr(space)} is a {type(space).__name__}. "
        "Pass a dict of parameters, a Hypothesis strategy that gives dicts, or a TypedDict."
    )


def space_from_json(text: str) -> st.SearchStrategy[dict[str, Any]]:
    """Read a space from JSON.

    The JSON is an object with, for each parameter, one of

    - ``{"type": "int", "low": 1, "high": 9}``, and likewise ``"float"``;
    - ``{"type": "categorical", "choices": ["a", "b"]}``, ``{"type": "bool"}``, ``{"type": "str", "max_size": 9}``;
    - ``[1, 9]``, a range of whole numbers, or ``[0.0, 1.0]``, of numbers; any other list holds choices;
    - anything else, a constant.

    Raises:
        InvalidArgument: it is not JSON, or not this.
    """
    try:
        space = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"space is not JSON: {error}") from error
    if not isinstance(space, dict):
        raise InvalidArgument(f"space is {bounded_repr(space)}. Write an object with one entry for each parameter.")
    return as_strategy(space)


def load_space(where: str) -> st.SearchStrategy[dict[str, Any]]:
    """Find a space by name.

    Args:
        where: the path of a JSON file, ending in ``.json``, or ``"module:name"`` of what `as_strategy` takes.

    Raises:
        InvalidArgument: there is nothing under that name.
    """
    if where.endswith(".json"):
        try:
            return space_from_json(Path(where).read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidArgument(f"space={where!r} cannot be read: {error}.") from error
    module, separator, name = where.partition(":")
    if not separator:
        raise InvalidArgument(f'space={where!r} is no name. Write "module:name", or the path of a .json file.')
    try:
        space = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidArgument(f"space={where!r} cannot be found: {error}.") from error
    return as_strategy(space)


def _parameter(name: str, spec: Any) -> st.SearchStrategy[Any]:
    try:
        return _strategy(spec)
    except (HypothesisException, KeyError, TypeError) as error:
        raise InvalidArgument(
            f"space[{name!r}]={bounded_repr(spec)} is not understood ({error}). {_ALLOWED}"
        ) from error


def _strategy(spec: Any) -> st.SearchStrategy[Any]:
    if isinstance(spec, st.SearchStrategy):
        return spec
    if isinstance(spec, type) or typing.get_origin(spec) is not None:
        return st.from_type(spec)
    if isinstance(spec, dict):
        options = dict(spec)
        made = _KINDS[options.pop("type")](**options)
        made.validate()
        return made
    if isinstance(spec, list):
        if len(spec) == _PAIR and all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in spec):
            made = _integers(*spec) if all(isinstance(bound, int) for bound in spec) else _floats(*spec)
            made.validate()
            return made
        return st.sampled_from(spec)
    return st.just(spec)


def _integers(low: int | None = None, high: int | None = None) -> st.SearchStrategy[int]:
    return st.integers(low, high)


def _floats(low: float | None = None, high: float | None = None) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


def _choices(choices: list[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(choices)


def _texts(max_size: int | None = None) -> st.SearchStrategy[str]:
    return st.text(max_size=max_size)


_KINDS: dict[str, Callable[..., st.SearchStrategy[Any]]] = {
    "int": _integers,
    "float": _floats,
    "categorical": _choices,
    "bool": st.booleans,
    "str": _texts,
}
