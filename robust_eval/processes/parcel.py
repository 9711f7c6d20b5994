"""Objects as opaque bytes, and back. Small ones travel inline, large ones in a memfd that changes hands.

A parcel is `bytes`, or a `Memory`: a memfd and its size. The content is a pickle of protocol 5. Buffers of 64 KiB and
more (numpy arrays, for one) lie behind the pickle and are not copied into it, with a table of sizes before both, and
the receiver's objects point straight into the mapped memory.
"""

import collections
import contextlib
import errno
import functools
import io
import os
import pickle
import struct
import types
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from robust_eval.processes import system

INLINE_BYTES = 1 << 17  # more is copied eight times on its way through the supervisor, and in memory twice
MISSING = -1
_OUT_OF_BAND_BYTES = 1 << 16
_READ_OUT_BYTES = 1 << 20
_ALIGN = 64
_MAIN = b"__main__"
_BUFFERS = b"B"  # before the table; a pickle begins with another byte
_PICKLE = pickle.PROTO
_PICKLE_BYTE = _PICKLE[0]
_loads = pickle.loads  # a job may put something else in its place
_STACK_GLOBAL = 0x93
_NUMBER_TYPES = frozenset({bool, float, int, type(None)})
_NO_FILE = "<dynamic-code>"
_COUNT = struct.Struct("<I")


class Memory(NamedTuple):
    """A memfd that holds a parcel; whoever receives it closes it."""

    fd: int
    size: int


Parcel = bytes | Memory
Piece = bytes | memoryview
Store = Callable[[list[Piece], int], Parcel]
Landed = bytes | memoryview | Memory


def pack(obj: Any, mentions: int = 0, store_large: Store | None = None) -> Parcel:
    """Pickle an object: with the C pickler, or by value with cloudpickle where that cannot do it.

    Args:
        obj: the object.
        mentions: how often parts of it that are bytes already name the module ``__main__``, whose objects go by value.
        store_large: writes what is large into memory; into a file of its own by default.

    Raises:
        Exception: whatever the object's own reduction raises; `pickle.PicklingError` and `TypeError` are usual.
    """
    if type(obj) in _NUMBER_TYPES and len(data := pickle.dumps(obj, 5)) < INLINE_BYTES:
        return data  # as most results are, and in a third of the time
    found: list[pickle.PickleBuffer] = []
    buffers: list[memoryview] = []
    try:
        data = pickle.dumps(obj, 5, buffer_callback=found.append)
        if found:  # rare, and nothing of the buffers was copied yet
            data = pickle.dumps(obj, 5, buffer_callback=functools.partial(_is_small, buffers))
        by_value = system.count_in(data, _MAIN) > mentions
    except Exception:  # noqa: BLE001 - user reductions raise anything; cloudpickle decides whether it can be done
        by_value = True
    if by_value:
        buffers.clear()
        with io.BytesIO() as file:
            _by_value_pickler()(file, 5, buffer_callback=functools.partial(_is_small, buffers)).dump(obj)
            data = file.getvalue()
    if not buffers and len(data) < INLINE_BYTES:
        return data
    return _join(data, buffers, store_large or store)


def _is_small(large: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Whether a buffer may lie in the pickle; else it is kept for behind it."""
    raw = buffer.raw()
    if raw.nbytes < _OUT_OF_BAND_BYTES:
        return True
    large.append(raw)
    return False


@functools.cache
def _by_value_pickler() -> Any:
    """The pickler of cloudpickle, whose code still knows its file.

    cloudpickle writes ``<dynamic-code>`` for it since 3.1.2, so that equal cells of a notebook give equal bytes. That
    would be the file in every stack and traceback of a script's function, and no line of it would be shown.
    """
    import cloudpickle  # 25 ms, which the start of a pool would feel and most of its processes never need

    table = cloudpickle.Pickler.dispatch_table
    reduce_code = table[types.CodeType]

    def with_file(code: types.CodeType) -> tuple[Any, ...]:
        kind, args = reduce_code(code)
        return kind, tuple(code.co_filename if type(arg) is str and arg == _NO_FILE else arg for arg in args)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
        dispatch_table: ClassVar[Any] = collections.ChainMap({types.CodeType: with_file}, table)

    return Pickler


def mentions_of(parcel: Parcel) -> int:
    """How often a small parcel names the module ``__main__``: for a `pack` of which it is a part."""
    return system.count_in(parcel, _MAIN) if isinstance(parcel, bytes) else 0


def pack_plain(obj: Any) -> bytes:
    """Pickle a small object of built-in types inline."""
    return pickle.dumps(obj, 5)


def _join(data: bytes, buffers: list[memoryview], store_large: Store) -> Parcel:
    sizes = [len(data), *(buffer.nbytes for buffer in buffers)]
    head = _BUFFERS + _COUNT.pack(len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    pieces: list[Piece] = []
    position = 0
    contents: list[Piece] = [head, data, *buffers]
    for piece in contents:
        gap = -position % _ALIGN
        pieces.append(bytes(gap))
        pieces.append(piece)
        position += gap + len(piece)
    return store_large(pieces, position) if position >= INLINE_BYTES else b"".join(pieces)


def store(pieces: list[Piece], size: int) -> Parcel:
    """Write the pieces into a new memfd; inline where no descriptor is to be had."""
    try:
        fd = os.memfd_create("robust_eval", os.MFD_CLOEXEC)
    except OSError:
        return b"".join(pieces)
    try:
        write(fd, pieces)
    except BaseException:
        os.close(fd)
        raise
    return Memory(fd, size)


def write(fd: int, pieces: list[Piece]) -> None:
    """Write the pieces into a file, one behind the other."""
    for piece in pieces:
        left = memoryview(piece)
        while left.nbytes:
            left = left[os.write(fd, left) :]


def view(parcel: Landed) -> memoryview:
    """The bytes of a parcel, mapped and not copied where they lie in a memfd.

    Raises:
        OSError: they cannot be mapped, or their descriptor was lost on the way.
        ValueError: there are fewer than announced.
    """
    if not isinstance(parcel, Memory):
        return memoryview(parcel)
    if parcel.fd == MISSING:
        raise OSError(errno.EMFILE, "no descriptor was free when it came; close some files or raise ulimit -n")
    return system.map_privately(parcel.fd, parcel.size)


def landed(parcel: Parcel) -> Landed:
    """The parcel without its descriptor: however many a process keeps, it can go on opening files."""
    if not isinstance(parcel, Memory):
        return parcel
    try:
        content = view(parcel)
    except (OSError, ValueError):
        return parcel  # whoever opens it is told the same
    discard(parcel)
    return content


def kept_open(memory: Memory) -> Landed:
    """The content, which needs no descriptor; where it cannot be mapped, what holds it."""
    try:
        return view(memory)
    except OSError:
        return memory


def open_parcel(parcel: Landed) -> memoryview:
    """The same, and the memfd is closed: the mapping keeps what it holds."""
    if not isinstance(parcel, Memory):
        return memoryview(parcel)
    try:
        return view(parcel)
    finally:
        discard(parcel)


def unpack(content: memoryview | bytes) -> Any:
    """The object in a parcel. Runs the code of whoever made it: never call this in the supervisor."""
    if content[0] == _PICKLE_BYTE:
        return _loads(content)
    content = memoryview(content)
    if content.readonly:  # bytes: an array that was writable where it came from is so here
        content = memoryview(bytearray(content))
    (count,) = _COUNT.unpack_from(content, 1)
    sizes = struct.unpack_from(f"<{count}Q", content, 1 + _COUNT.size)
    position = 1 + _COUNT.size + 8 * count
    parts = []
    for size in sizes:
        position += -position % _ALIGN
        parts.append(content[position : position + size])
        position += size
    return _loads(parts[0], buffers=parts[1:])


def needs_proof(parcel: Parcel) -> bool:
    """Whether unpickling may run code, as far as the parcel shows: anything but built-in types names a global."""
    return isinstance(parcel, Memory) or parcel[:1] != _PICKLE or _STACK_GLOBAL in parcel


def read_out(memory: Memory, most_bytes: int = _READ_OUT_BYTES) -> Parcel:
    """The content as bytes, and no descriptor; as it is where that is missing, or the content larger than that."""
    if memory.size > most_bytes:
        return memory
    with contextlib.suppress(OSError, ValueError):
        content = bytes(view(memory))
        discard(memory)
        return content
    return memory


def discard(parcel: object) -> None:
    """Close the memfd of a parcel that nobody will open."""
    if isinstance(parcel, Memory) and parcel.fd != MISSING:
        os.close(parcel.fd)
