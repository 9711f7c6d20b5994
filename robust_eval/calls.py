"""Calls of any functions on one supervised pool, each a real `concurrent.futures.Future`.

It owns the queue of calls that have not begun, so that these can be cancelled, and one thread that resolves futures
and thereby runs their callbacks. The pool is started by the first call, and again by the next one should it ever be
lost: a pool of calls is never broken.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import os
import resource
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from robust_eval.errors import EvaluatorClosed, InternalError, InvalidArgumentType, RemoteTraceback, RobustEvalError
from robust_eval.evaluators.settlement import failure_of
from robust_eval.failure import Failure
from robust_eval.processes.bundle import Bundle
from robust_eval.processes.calling import Calling, Snapshot, Snapshots
from robust_eval.processes.loading import sources
from robust_eval.processes.parcel import discard, landed, needs_proof, pack, unpack, view
from robust_eval.processes.pending import Done, Failed, Settled, Submission
from robust_eval.processes.pool import Pool, PoolSettings
from robust_eval.processes.shelf import Shelf
from robust_eval.supervision.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_WEIGHT = 0.2  # of the latest duration in their mean
_TURN_S = 0.015  # three times what a thread waits for its turn while another one computes
_MOST_AHEAD = 2048  # calls a worker
_ROUNDS_AHEAD = 3  # so many wait in the pool that each worker has its next call in its inbox
_PORTION = 256
_JOIN_S = 5.0
_OPEN_SHARE = 4


class Budget(NamedTuple):
    """What one call may use: seconds and bytes, None for no limit."""

    timeout_s: float | None = None
    memory_limit: int | None = None


class CallFuture(Future[Any]):
    """The future of a call. Its callbacks run in the thread of its `Calls`, or in that which cancels it.

    Where outcomes are received they must not: one that waits for another call would wait for ever.
    """

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls

    def _invoke_callbacks(self) -> None:
        if self._done_callbacks and self._calls.is_receiving():  # type: ignore[attr-defined] # not in its stubs
            self._calls.call_back(self)
        else:
            self.call_back()

    def call_back(self) -> None:
        """Run the callbacks here."""
        super()._invoke_callbacks()  # type: ignore[misc] # as above


class Calls:
    """One pool that calls functions. Thread-safe; refuses to be used after a fork of the driver.

    Args:
        settings: how the pool's processes are made.
        initializer: called once in each worker.
        initargs: its arguments.

    Raises:
        InvalidArgumentType: the initializer cannot be pickled.
    """

    def __init__(
        self,
        settings: PoolSettings,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        self._settings = settings
        self._initializer = initializer
        self._initargs = tuple(initargs)
        try:
            discard(pack((self._initializer, self._initargs)))
        except Exception as error:
            msg = f"the initializer or its initargs cannot be pickled: {error}. Make what they hold inside of it."
            raise InvalidArgumentType(msg) from error
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._snapshots = Snapshots()
        self._shelf = Shelf()
        # So many calls that wait keep their memory files open: without its descriptor a parcel is written once more.
        self._most_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _OPEN_SHARE
        self._numbers = itertools.count()
        self._queue: deque[tuple[Future[Any], Submission]] = deque()
        self._running: dict[int, Future[Any]] = {}
        self._mean_s = math.inf
        self._num_workers = int(settings.policy["num_workers"])
        self._policy = Policy()
        # How many calls the pool has at once: those of the inboxes, which is one each unless they are short, and those
        # that are done until the thread which hands on more of them gets its turn.
        self._window = self._num_workers
        self._pool: Pool | None = None
        self._thread: threading.Thread | None = None
        self._inbox: SimpleQueue[list[Settled] | CallFuture | None] = SimpleQueue()
        self._receivers: set[int] = set()  # the threads that receive, while they resolve
        self._closing = False

    def submit(
        self, budget: Budget, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        """Have a function called.

        Raises:
            EvaluatorClosed: no call is accepted any more (a ``RuntimeError``).
            RobustEvalError: this is a forked child of the driver.
        """
        self._check_process()
        future = CallFuture(self)
        try:
            snapshot = self._snapshots.of(function)
            if isinstance(snapshot, Snapshot):
                parcel = pack((snapshot.key, snapshot.data, args, kwargs), snapshot.mentions, self._shelf.store)
            else:
                parcel = pack((None, snapshot, args, kwargs), 0, self._shelf.store)
        except Exception as error:  # noqa: BLE001 - the user's reductions raise anything
            message = f"the function or its arguments cannot be pickled: {error}"
            failure = Failure("unpicklable", message, 0, exception_type=type(error).__qualname__, exception=error)
            parcel = None
        with self._lock:
            if self._closing:
                discard(parcel)
                msg = "cannot schedule new futures after shutdown: make a new executor"
                raise EvaluatorClosed(msg)
            if parcel is not None:
                self._ensure_pool(snapshot)
                # While every worker has a call, others gather here until one is over, or until they are many: a message
                # for each would cost the submitting thread five times as much.
                at_once = not self._queue and len(self._running) < self._num_workers
                shown = parcel if len(self._queue) < self._most_open else landed(parcel)
                self._queue.append((future, Submission(next(self._numbers), shown, *budget)))
                if at_once or len(self._queue) == _PORTION:
                    self._feed()
        if parcel is None:
            future.set_exception(failure.to_exception())
        return future

    def shutdown(self, *, cancel_futures: bool) -> None:
        """Accept no more calls. What was accepted is done, unless it is to be cancelled, then the pool is closed."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closing = True
            cancelled = list(self._queue) if cancel_futures else []
            if cancel_futures:
                self._queue.clear()
        for future, submission in cancelled:
            future.cancel()
            future.set_running_or_notify_cancel()
            discard(submission.parcel)
        self._inbox.put(None)

    def retire(self) -> None:
        """Nobody is left who could submit: end once all is done. Takes no lock: it may come from the collector."""
        self._closing = True
        self._inbox.put(None)

    def join(self) -> None:
        """Wait until all is done and the pool is closed."""
        thread = self._thread
        if os.getpid() == self._pid and thread is not None and thread is not threading.current_thread():
            thread.join()

    def abort(self) -> None:
        """End everything now. Bounded; also called at the interpreter's exit."""
        if os.getpid() != self._pid:
            return
        self.shutdown(cancel_futures=True)
        pool, thread = self._pool, self._thread
        if pool is not None:
            pool.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)

    def kill(self, future: Future[Any]) -> None:
        """End one call now, whether it runs or not."""
        if future.cancel() or os.getpid() != self._pid:
            return
        with self._lock:
            numbers = [number for number, each in self._running.items() if each is future]
            if self._pool is not None and numbers:
                self._pool.cancel(numbers)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            msg = (
                f"this executor belongs to process {self._pid} and was used in its forked child {os.getpid()}: "
                "make an executor of its own there"
            )
            raise RobustEvalError(msg)

    # -- to the pool, with the lock held

    def _ensure_pool(self, snapshot: object) -> Pool:
        """The pool, started where there is none, with a template that loads this function, and the thread."""
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="robust_eval calls", daemon=True)
            thread.start()  # raises where no thread is free; the next call tries again
            self._thread = thread
            # Without a limit a call may never end; an exit that waited for it would not either.
            atexit.register(self.abort)
        if self._pool is None or self._pool.closed:
            known = snapshot if isinstance(snapshot, Snapshot) else None
            bundle = pack(Bundle(Calling(known), self._initializer, self._initargs, sources()))
            self._pool = Pool(bundle, self._settings, self._receive, _ignore_record)
        return self._pool

    def _feed(self) -> None:
        """Hand the pool as many calls as it can begin soon; from then on they are running."""
        queue, running, submissions = self._queue, self._running, []
        while queue and len(running) < self._window:
            future, submission = queue.popleft()
            if future.set_running_or_notify_cancel():
                running[submission.job_id] = future
                submissions.append(submission)
            else:
                discard(submission.parcel)
        if submissions:
            self._send(submissions)

    def _send(self, submissions: list[Submission]) -> None:
        try:
            self._ensure_pool(None).submit(submissions)
        except (OSError, RobustEvalError) as error:
            # The pool's supervisors died too often, or none can be started. The next call tries anew.
            self._pool = None
            info = {"kind": "lost", "cause": "supervisor", "attempts": 0, "memory_limit": None, "unkilled_pids": []}
            info["detail"] = str(error)
            self._inbox.put([Failed(submission.job_id, info) for submission in submissions])

    # -- from the pool, in its receiving thread

    def _receive(self, settled: list[Settled]) -> None:
        """Resolve a single plain result here, which saves a switch of threads; all else is for the thread behind."""
        item = settled[0]
        plain = isinstance(item, Done) and isinstance(item.parcel, bytes) and not needs_proof(item.parcel)
        if len(settled) > 1 or not plain:
            self._inbox.put(settled)
            return
        me = threading.get_ident()
        with self._lock:
            self._receivers.add(me)
        try:
            self._take(settled)
        finally:
            with self._lock:
                self._receivers.remove(me)
            if self._closing:
                self._inbox.put(None)

    def is_receiving(self) -> bool:
        """Whether this is a thread that all results come through."""
        return threading.get_ident() in self._receivers

    def call_back(self, future: CallFuture) -> None:
        """Have the callbacks of a future run in the thread of this object."""
        self._inbox.put(future)

    # -- from there, in the thread of this object

    def _serve(self) -> None:
        while not self._is_over() or not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, CallFuture):
                with contextlib.suppress(BaseException):  # the user's, who may exit
                    item.call_back()
            elif item is not None:
                self._take(item)
            del item
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
        self._shelf.close()
        atexit.unregister(self.abort)

    def _is_over(self) -> bool:
        with self._lock:
            return self._closing and not self._running and not self._queue and not self._receivers

    def _take(self, settled: list[Settled]) -> None:
        """Resolve what settled; before that, so that nobody idles meanwhile, hand on what waits."""
        refused = [item for item in settled if isinstance(item, Failed) and item.info["kind"] == "startup"]
        with self._lock:
            over = [(self._running.pop(item.job_id), item) for item in reversed(settled)]
            self._observe(settled)
            if not refused:
                self._feed()
        settled.clear()
        if refused:
            self._give_up(refused[0])
        while over:
            self._resolve(*over.pop())  # and forget it: nothing here keeps a result

    def _observe(self, settled: list[Settled]) -> None:
        mean_s = self._mean_s
        for item in settled:
            if isinstance(item, Done):
                duration_s = item.ended_at - item.begun_at
                mean_s = duration_s if mean_s == math.inf else mean_s + _WEIGHT * (duration_s - mean_s)
        self._mean_s = mean_s
        ahead = int(_TURN_S / max(mean_s, _TURN_S / _MOST_AHEAD))
        if mean_s <= self._policy.ahead_s:
            ahead = max(ahead, _ROUNDS_AHEAD)
        self._window = self._num_workers * (self._policy.depth(mean_s, 0) + ahead)

    def _give_up(self, refused: Failed) -> None:
        """No worker can be started: what waits fails of that, too, and the next call tries anew."""
        with self._lock:
            pool, self._pool = self._pool, None
            waiting = list(self._queue)
            self._queue.clear()
        if pool is not None:
            pool.close()
        for future, submission in waiting:
            discard(submission.parcel)
            if future.set_running_or_notify_cancel():
                self._resolve(future, refused)

    def _resolve(self, future: Future[Any], item: Settled) -> None:
        try:
            if isinstance(item, Failed):
                future.set_exception(exception_of(failure_of(item, self._settings.policy)))
            else:
                _deliver(future, item)
        except BaseException:  # noqa: BLE001 - callbacks of the user: one that exits must not end this thread
            return


def _deliver(future: Future[Any], done: Done) -> None:
    try:
        result = unpack(view(done.parcel))
    except Exception as error:  # noqa: BLE001 - the user's __setstate__
        message = f"the result cannot be unpickled in the driver: {type(error).__qualname__}: {error}"
        duration = done.ended_at - done.begun_at
        failure = Failure("unpicklable", message, done.attempts, duration, done.peak_memory, exception=error)
        future.set_exception(failure.to_exception())
    else:
        future.set_result(result)
    finally:
        discard(done.parcel)


def exception_of(failure: Failure) -> BaseException:
    """What a failed call raises: its own exception where it raised one that travels, else one of ours by kind.

    Its own exception is caused by a `RemoteTraceback`, and ours has an attribute: both lead to the `failure`.
    """
    if failure.kind == "exception" and failure.exception is not None:
        failure.exception.__cause__ = RemoteTraceback(failure)
        return failure.exception
    if failure.kind == "cancelled":
        failure = replace(failure, message="the call was ended, or the executor closed, before it had finished")
    return failure.to_exception()


def failure_in(error: BaseException) -> Failure:
    """The failure that an exception from here leads to.

    Raises:
        InternalError: it is not from here.
    """
    for each in (error, error.__cause__):
        failure = getattr(each, "failure", None)
        if isinstance(failure, Failure):
            return failure
    msg = f"a call failed with {error!r}, which has no failure."
    raise InternalError(msg)


def _ignore_record(_number: int, _value: bytes) -> None:
    """Calls record nothing."""
