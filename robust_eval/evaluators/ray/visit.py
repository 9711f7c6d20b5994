"""Ray as an evaluator finds it or starts it. It is one for the whole process, and so is what is known of it here.

An evaluator that is made while another one still uses the Ray that this had started must not lose it with that.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

from robust_eval.errors import RobustEvalError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Visit:
    """One evaluator's use of Ray, which is initialised where it is not. The last visitor ends what the first began.

    Args:
        arguments: of `ray.init`.

    Raises:
        RobustEvalError: there is no Ray, or the driver is a Ray Client.
    """

    _lock: ClassVar = threading.RLock()  # the collector may end a visit while another one begins
    _visitors: ClassVar[set[Visit]] = set()
    _started: ClassVar[tuple[str, str] | None] = None  # the session that this began

    def __init__(self, arguments: dict[str, Any]) -> None:
        ray = ray_itself()
        if str(arguments.get("address", "")).startswith("ray://") or ray.util.client.ray.is_connected():
            msg = (
                "the driver is a Ray Client (ray://), and the nodes cannot reach it: run the driver on a node of the "
                "cluster, for example with `ray job submit`"
            )
            raise RobustEvalError(msg)
        with Visit._lock:
            if not ray.is_initialized():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Ray leaves files open while it starts, and announces its plans
                    ray.init(**arguments)
                Visit._started = session()
            elif not Visit._visitors:
                Visit._started = None
            Visit._visitors.add(self)

    def leave(self) -> None:
        """End the visit, once."""
        with Visit._lock:
            Visit._visitors.discard(self)
            if Visit._started is not None and not Visit._visitors:
                started, Visit._started = Visit._started, None
                if session() == started:  # the user may have ended it, and begun another
                    ray_itself().shutdown()


class _Elsewhere:
    """Stands for whether Ray may start itself: as it was, but not in the threads that say so."""

    def __init__(self, was: object) -> None:
        self._was = was
        self.here = threading.local()

    def __bool__(self) -> bool:
        return bool(self._was) and not getattr(self.here, "starts_nothing", False)


@contextlib.contextmanager
def starting_nothing() -> Iterator[None]:
    """Within the block nothing of Ray's that this thread calls connects anew: it raises `RaySystemError` instead.

    Most of Ray calls ``ray.init()`` where nobody is connected. A thread that looked whether somebody is may be
    overtaken by the user's ``ray.shutdown()``, and would start another cluster behind the user's back.
    """
    hook: Any = importlib.import_module("ray._private.auto_init_hook")
    with Visit._lock:  # noqa: SLF001 - our own
        if not isinstance(hook.enable_auto_connect, _Elsewhere):
            hook.enable_auto_connect = _Elsewhere(hook.enable_auto_connect)
    here = hook.enable_auto_connect.here
    here.starts_nothing = True
    try:
        yield
    finally:
        here.starts_nothing = False


def session() -> tuple[str, str] | None:
    """What tells this connection to Ray from others before and after; None where there is none."""
    ray = ray_itself()
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_job_id()


def ray_itself() -> Any:
    """Ray, imported when somebody wants it."""
    try:
        import ray  # noqa: PLC0415 - optional, and seconds of import
    except ImportError as error:
        msg = 'method="ray" needs Ray: pip install "robust-eval[ray]".'
        raise RobustEvalError(msg) from error
    return ray
