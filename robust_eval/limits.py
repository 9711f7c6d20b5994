"""What users write for limits, checked and brought to one unit: bytes, seconds, counts.

Every refusal names the argument, the value, what is allowed and the next step.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import re
from pathlib import Path
from typing import Any, Final

from robust_eval.errors import InvalidArgument, InvalidArgumentType, bounded_repr

_MIB: Final = 1024 * 1024
_FDS_PER_WORKER: Final = 10
_OTHER_FDS: Final = 64
_UNITS: Final = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": _MIB,
    "gib": 1024**3,
    "tib": 1024**4,
}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)
_ALLOWED_MEMORY: Final = (
    'Allowed are bytes (from 1 MiB), a size such as "2GiB" or "512 MB", '
    'a share of the machine such as 0.5, "auto", or None for no limit.'
)


def parse_memory(value: Any, *, num_workers: int) -> int | None:
    """Bring a memory limit to bytes.

    Args:
        value: bytes; a size such as ``"2GiB"`` or ``"512 MB"``; a float in (0, 1], the share of the
            machine's memory that one job may use; ``"auto"``, the machine's memory divided by the
            workers; ``None`` for no limit. In a container the machine's memory is the container's.
        num_workers: how many workers share the machine, for ``"auto"``.

    Returns:
        Bytes for each job, or ``None``.

    Raises:
        InvalidArgument: the value is no size, or below 1 MiB, where a unit was likely forgotten.
        InvalidArgumentType: the value is neither a number nor a string.
    """
    if value is None:
        return None
    if isinstance(value, str):
        size = _parse_size(value, num_workers)
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidArgumentType(f"memory_limit={bounded_repr(value)} is a {type(value).__name__}. {_ALLOWED_MEMORY}")
    elif not isinstance(value, numbers.Integral) and 0.0 < float(value) <= 1.0:
        size = int(machine_memory() * float(value))
    elif not math.isfinite(value) or value <= 0:
        raise InvalidArgument(f"memory_limit={value!r} is no size. {_ALLOWED_MEMORY}")
    else:
        size = int(float(value))
    if size < _MIB:
        raise InvalidArgument(
            f"memory_limit={value!r} is {size} bytes, less than any Python process needs. "
            f'{_ALLOWED_MEMORY} Write the unit: "{size}MiB" or "{size}GiB"?'
        )
    return size


def _parse_size(text: str, num_workers: int) -> int:
    if text.strip().lower() == "auto":
        return machine_memory() // num_workers
    match = _SIZE.fullmatch(text)
    unit = match[2].lower() if match is not None else None
    if match is None or (unit and unit not in _UNITS):
        raise InvalidArgument(
            f"memory_limit={bounded_repr(text)} is no size. {_ALLOWED_MEMORY} "
            "The units are B, kB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (of 1024)."
        )
    return int(float(match[1]) * _UNITS[unit or "b"])


def machine_memory(root: Path = Path("/")) -> int:
    """Give the memory that this process may share in, in bytes: the container's or the machine's.

    ``psutil.virtual_memory`` reports the machine even inside a container, so the limits of the
    control groups are read too (the kernel's "Control Group v2", ``memory.max``, and version 1,
    ``memory.limit_in_bytes``); every group up to the root counts, and the smallest wins.

    Args:
        root: where ``proc`` and ``sys`` are found; another one only in tests.
    """
    import psutil  # noqa: PLC0415  imported only by those who need it

    return min([int(psutil.virtual_memory().total), *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> list[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            limits += _limits_upward(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits_upward(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
    return limits


def _limits_upward(mount: Path, path: str, name: str) -> list[int]:
    # Without a cgroup namespace the path is the host's and not to be found here: its parents are tried.
    group = mount / path.lstrip("/")
    limits = []
    for directory in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # no such group here, or the word "max"
            limits.append(int((directory / name).read_text(encoding="ascii")))
        if directory == mount:
            break
    return limits


def parse_seconds(name: str, value: object, *, allow_zero: bool = False) -> float | None:
    """Bring a duration to a float of seconds.

    Args:
        name: the argument's name, for the message.
        value: a number of seconds, or ``None`` for no limit.
        allow_zero: whether 0 is a duration here.

    Returns:
        Seconds, or ``None``.

    Raises:
        InvalidArgument: the number is negative, not finite, or 0 where that is not allowed.
        InvalidArgumentType: the value is no number.
    """
    if value is None:
        return None
    allowed = f"a number of seconds {'from' if allow_zero else 'above'} 0, or None for no limit"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidArgumentType(f"{name}={bounded_repr(value)} is a {type(value).__name__}. Allowed is {allowed}.")
    seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and not allow_zero):
        raise InvalidArgument(f"{name}={value!r} is no duration. Allowed is {allowed}.")
    return seconds


def parse_count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Check a whole number.

    Args:
        name: the argument's name, for the message.
        value: a whole number.
        minimum: the smallest that is allowed.

    Returns:
        The number, as a plain ``int``.

    Raises:
        InvalidArgument: it is smaller than ``minimum``.
        InvalidArgumentType: the value is no whole number.
    """
    allowed = f"a whole number from {minimum}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidArgumentType(f"{name}={bounded_repr(value)} is a {type(value).__name__}. Allowed is {allowed}.")
    count = operator.index(value)
    if count < minimum:
        raise InvalidArgument(f"{name}={count} is too small. Allowed is {allowed}.")
    return count


def refuse_too_many_workers(num_workers: int) -> None:
    """See that the supervisor of so many workers can open their channels; it may go up to the hard limit.

    Raises:
        InvalidArgument: it cannot.
    """
    import resource  # noqa: PLC0415  not on Windows, where no such workers exist

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = (hard - _OTHER_FDS) // _FDS_PER_WORKER
    if hard != resource.RLIM_INFINITY and num_workers > most:
        raise InvalidArgument(
            f"num_workers={num_workers} needs about {num_workers * _FDS_PER_WORKER + _OTHER_FDS} open files and this "
            f"process may have {hard}: use at most {max(1, most)} workers, or raise the hard limit (ulimit -Hn)"
        )
