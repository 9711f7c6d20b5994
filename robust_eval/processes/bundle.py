"""What workers are for, as it travels from the driver to the template. The driver knows this and no more of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from robust_eval.processes.kinship import Kinship


class Bundle(NamedTuple):
    """What a worker is for: `runner(arguments, context)` is called for each job, the initializer once.

    `sources` are the lines of code that lies in no file, such as the cells of a notebook, for tracebacks.
    """

    runner: Callable[[Any, Any], Any]
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    sources: dict[str, list[str]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # First, since the rest may hold proxies of a manager, which it must be let in by.
        return _bundle, (Kinship(), *self)


def _bundle(_kinship: None, *fields: Any) -> Bundle:
    return Bundle(*fields)
