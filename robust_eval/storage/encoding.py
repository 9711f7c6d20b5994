"""Values as JSON text and back, without pickle: reading a storage can never run code.

JSON's own values stand for themselves. Everything else is an object with one key that begins with ``$``:

    {"$tuple": [...]}                       a tuple; a named tuple comes back as a plain one
    {"$set": [...]}, {"$frozenset": [...]}  sets
    {"$dict": [[key, value], ...]}          a dict with keys that are no strings, or that begin with ``$``
    {"$int": "0x..."}                       an integer of more than 64 bits
    {"$float": "nan"}                       nan, inf, -inf
    {"$complex": [real, imaginary]}         a complex number
    {"$bytes": "base64"}                    bytes
    {"$scalar": ["<f8", 0.5]}               a numpy scalar: its dtype and its value
    {"$array": ["<f8", [2, 3], "base64"]}   a numpy array: dtype, shape, bytes in C order; without a shape a scalar
    {"$repr": "..."}                        only in metadata: the repr of what has no encoding, read back as that text

Subclasses of Python's types come back as the plain type, numpy's strings as Python's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from robust_eval.errors import InvalidArgument, StorageError, bounded_repr

_Walk: TypeAlias = Callable[[Any, str], Any]

_ATOMS: Final = frozenset({int, float, str, bool, type(None)})
_LARGEST: Final = 2**63
_MARK: Final = '"$'
_SCALAR_KINDS: Final = "biuf"
_ARRAY_KINDS: Final = "biufcSUmM"
_LARGEST_FLOAT_BYTES: Final = 8
_DIGEST_BYTES: Final = 16
# The methods of the bases: what a subclass overrides plays no role.
_PLAIN: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (int, int.__int__),
    (float, float.__float__),
    (str, str.__str__),
    (list, list),
    (tuple, tuple),
)
_dumps: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode(value: Any, name: str = "value") -> str:
    """Give a value as JSON text.

    Args:
        value: what is to be kept.
        name: what it is called in the message of an error.

    Raises:
        InvalidArgument: a part of it has no encoding; the message says which and where (a ``ValueError``).
    """
    text = _flat(value)
    return _encoded(value, name, _refuse) if text is None else text


def encode_lossy(value: Any) -> str:
    """Give a value as JSON text; what has no encoding is kept as its bounded repr, so that nothing else is lost."""
    text = _flat(value)
    if text is not None:
        return text
    try:
        return _encoded(value, "value", _shown)
    except Exception:  # noqa: BLE001  too deep, in a circle, or a class of the user's that raises: nothing else is lost
        return _dumps(_shown(value, ""))


def decode(text: str) -> Any:
    """Give the value that a text stands for.

    Raises:
        StorageError: the text is not of this encoding.
    """
    try:
        value = json.loads(text)
        return _untagged(value) if _MARK in text else value
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StorageError(f"The storage holds {bounded_repr(text)}, which cannot be read: {error}.") from error


def digest(value: Any) -> bytes:
    """Give a short value that is the same for configurations that are the same by value.

    Numbers are compared as Python does (``1`` is ``1.0``), numpy's scalars and arrays are their Python values, lists
    and tuples are alike, the order of a dict's keys and of a set plays no role, nan is nan. ``True`` is not ``1``.

    Raises:
        InvalidArgument: a part of it has no encoding.
    """
    try:
        text = _dumps(_canonical(value, "config"))
    except RecursionError as error:
        raise InvalidArgument("config is nested too deeply, or contains itself; make it flat.") from error
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


def _flat(value: Any) -> str | None:  # noqa: PLR0911  one return for each reason
    """Encode a plain dict of plain values, which is nearly every configuration; ``None`` for all else."""
    if type(value) is not dict:
        if type(value) is float and math.isfinite(value):
            return float.__repr__(value)
        return None
    if not _ATOMS.issuperset(map(type, value.values())):
        return None
    for key in value:
        if type(key) is not str or key[:1] == "$":
            return None
    for each in value.values():
        if type(each) is int and not -_LARGEST <= each < _LARGEST:
            return None
    try:
        return _dumps(value)
    except ValueError:  # nan or infinity
        return None


def _encoded(value: Any, name: str, otherwise: _Walk) -> str:
    try:
        return _dumps(_tagged(value, name, otherwise))
    except RecursionError as error:
        raise InvalidArgument(f"{name} is nested too deeply, or contains itself, and cannot be stored.") from error


def _refuse(value: Any, path: str) -> Any:
    raise InvalidArgument(
        f"{path}={bounded_repr(value)} is a {type(value).__qualname__}, which cannot be stored. Stored are None, "
        "booleans, numbers, text, bytes, lists, tuples, sets, dicts, and numpy's scalars and arrays of these: "
        "convert it, with str(...) for one, or keep the search in memory."
    )


def _shown(value: Any, _path: str) -> Any:
    return {"$repr": bounded_repr(value)}


def _tagged(value: Any, path: str, otherwise: _Walk) -> Any:  # noqa: PLR0911  one return for each kind
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        return value if -_LARGEST <= value < _LARGEST else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [_tagged(each, f"{path}[{index}]", otherwise) for index, each in enumerate(value)]
    if kind is tuple:
        return {"$tuple": _tagged(list(value), path, otherwise)}
    if kind is dict:
        return _tagged_dict(value, path, otherwise)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
        return _tagged_numpy(value, path, otherwise)
    return _tagged_rare(value, path, otherwise)


def _tagged_dict(value: Mapping[Any, Any], path: str, otherwise: _Walk) -> Any:
    if all(type(key) is str and key[:1] != "$" for key in value):
        return {key: _tagged(each, f"{path}[{key!r}]", otherwise) for key, each in value.items()}
    pairs = (
        [_tagged(key, f"{path}, key {bounded_repr(key)}", otherwise), _tagged(each, f"{path}[{key!r}]", otherwise)]
        for key, each in value.items()
    )
    return {"$dict": list(pairs)}


def _tagged_numpy(value: Any, path: str, otherwise: _Walk) -> Any:
    kind, dtype = value.dtype.kind, value.dtype.str
    if isinstance(value, str | bytes):
        return _tagged(value[:], path, otherwise)  # slicing gives Python's own
    if kind not in _ARRAY_KINDS or hasattr(value, "mask"):  # a masked array's bytes do not say what is masked
        return otherwise(value, path)
    is_scalar = not isinstance(value, sys.modules["numpy"].ndarray)
    if is_scalar and kind in _SCALAR_KINDS and value.dtype.itemsize <= _LARGEST_FLOAT_BYTES:
        return {"$scalar": [dtype, _tagged(value.item(), path, otherwise)]}
    shape = None if is_scalar else list(value.shape)
    return {"$array": [dtype, shape, base64.b64encode(value.tobytes()).decode()]}


def _tagged_rare(value: Any, path: str, otherwise: _Walk) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, complex):
        return {"$complex": [_tagged(part, path, otherwise) for part in (value.real, value.imag)]}
    if isinstance(value, set | frozenset):
        tag = "$frozenset" if isinstance(value, frozenset) else "$set"
        return {tag: sorted((_tagged(each, f"{path}, member", otherwise) for each in value), key=_dumps)}
    for base, plain in _PLAIN:
        if isinstance(value, base):
            return _tagged(plain(value), path, otherwise)
    if isinstance(value, Mapping):
        return _tagged_dict(value, path, otherwise)
    return otherwise(value, path)


def _untagged(value: Any) -> Any:
    if type(value) is list:
        return [_untagged(each) for each in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        (tag,) = value
        if tag[:1] == "$":
            return _READERS[tag](value[tag])
    return {key: _untagged(each) for key, each in value.items()}


def _array(content: list[Any]) -> Any:
    import numpy as np  # noqa: PLC0415  imported only by those who stored an array

    dtype, shape, data = content
    array = np.frombuffer(base64.b64decode(data), np.dtype(dtype))
    return array[0] if shape is None else array.reshape(shape).copy()


def _scalar(content: list[Any]) -> Any:
    import numpy as np  # noqa: PLC0415  imported only by those who stored a scalar

    dtype, value = content
    return np.dtype(dtype).type(_untagged(value))


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "$tuple": lambda content: tuple(_untagged(content)),
    "$set": lambda content: set(_untagged(content)),
    "$frozenset": lambda content: frozenset(_untagged(content)),
    "$dict": lambda content: {_untagged(key): _untagged(value) for key, value in content},
    "$int": lambda content: int(content, 16),
    "$float": float,
    "$complex": lambda content: complex(*_untagged(content)),
    "$bytes": base64.b64decode,
    "$scalar": _scalar,
    "$array": _array,
    "$repr": str,
}


def _canonical(value: Any, path: str) -> Any:
    """Give JSON that is the same for what is the same by value."""
    tagged = _tagged(value, path, _refuse)
    return _ordered(_untagged(tagged))


def _ordered(value: Any) -> Any:  # noqa: PLR0911  one return for each kind
    kind = type(value)
    if kind in (str, bool) or value is None:
        return value
    if kind is int or (kind is float and value.is_integer()):
        number = int(value)
        return number if -_LARGEST <= number < _LARGEST else {"$int": hex(number)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind in (list, tuple):
        return [_ordered(each) for each in value]
    if kind is dict:
        return {"$dict": sorted(([_ordered(key), _ordered(each)] for key, each in value.items()), key=_dumps)}
    if kind in (set, frozenset):
        return {"$set": sorted((_ordered(each) for each in value), key=_dumps)}
    if hasattr(value, "tolist"):
        plain = value.tolist()
        return _ordered(plain) if type(plain) in (int, float, bool, list, str) else _tagged(value, "", _shown)
    return _tagged(value, "", _shown)
