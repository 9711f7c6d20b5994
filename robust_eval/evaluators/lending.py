"""Large arrays of a configuration, which are copied once: into the memory that their job gets them from.

A job's configuration is nobody else's, so that it is copied when it is submitted. A large array is instead lent to the
job until it is pickled, within the same call of `submit`; from then on the job has the array that lies in the parcel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robust_eval.plain import ATOMS, is_array_of_numbers
from robust_eval.processes.parcel import INLINE_BYTES, Memory, Parcel, unpack, view

if TYPE_CHECKING:
    from collections.abc import Mapping

    from robust_eval.job import Job


def lendable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The large arrays of a configuration; none where it holds anything but these and plain values."""
    if type(config) is not dict or ATOMS.issuperset(map(type, config.values())):
        return {}
    others = {name: value for name, value in config.items() if type(value) not in ATOMS}
    if all(is_array_of_numbers(value) and _is_large(value) for value in others.values()):
        return others
    return {}


def _is_large(array: Any) -> bool:
    """Whether it is pickled as it lies in memory, into a file of its own."""
    contiguous = array.flags.c_contiguous or array.flags.f_contiguous
    return bool(contiguous and array.nbytes >= INLINE_BYTES)


def lend(job: Job, arrays: dict[str, Any]) -> Job:
    """Give them to a job for the time being."""
    job.config.update(arrays)
    job._lent = tuple(arrays)  # type: ignore[attr-defined]  # noqa: SLF001 - our own
    return job


def settle_loans(job: Job, parcel: Parcel | None) -> None:
    """Let the job have its own arrays instead of what was lent to it.

    Args:
        job: the job, pickled with nothing but its configuration.
        parcel: what it was pickled into; None where that is of no use.
    """
    names = getattr(job, "_lent", None)  # not by its `__dict__`, which each of a million jobs would then get
    if names is None:
        return
    del job._lent  # type: ignore[attr-defined]  # noqa: SLF001 - our own
    try:
        own = unpack(view(parcel))[1] if isinstance(parcel, Memory) else None
    except OSError:  # it cannot be mapped
        own = None
    for name in names:
        job.config[name] = job.config[name].copy() if own is None else own[name]
