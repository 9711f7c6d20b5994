"""What a method of evaluation implements, apart from what its users see.

A backend takes jobs in `_begin`, from any thread, and delivers each exactly once to `_arrivals`, from
any thread. `_settle` turns what arrived into the settled job, in the thread that gathers. A backend
without `_begin` has an ``execute`` of the user's.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from robust_eval.errors import bounded_repr
from robust_eval.evaluators.arrivals import Arrivals, Mailbox
from robust_eval.evaluators.keeper import KeptMailbox
from robust_eval.evaluators.overridden import OverriddenExecutes
from robust_eval.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from robust_eval.evaluators.keeper import Keeper
    from robust_eval.evaluators.ledger import Retries
    from robust_eval.evaluators.tally import Tally


class Backend:
    """The hooks of a method, and the choice between its own way and an overridden ``execute``."""

    # The execute that stands for the class's own backend: any other one was overridden.
    _native_execute: ClassVar[Callable[..., Any]]

    num_workers: int

    def __init__(self, retries: Retries, tally: Tally, keeper: Keeper | None = None) -> None:
        self._tally = tally
        self._keeper = keeper
        self._arrivals: Arrivals = Mailbox(_unobserved) if self._is_overridden() else self._mailbox()
        self._retries = retries
        self._overridden: OverriddenExecutes | None = None
        self._finalizers: list[weakref.finalize[Any, Any]] = []
        if keeper is not None:
            self._on_drop(keeper.close_quietly)

    def _mailbox(self) -> Mailbox:
        """Make the place where gather finds what has settled: after it is stored, where it is."""
        if self._keeper is None:
            return Mailbox(self._tally.observe)
        return KeptMailbox(self._keeper, weakref.WeakMethod(self._settled), self._tally.observe)

    async def execute(self, job: Job) -> Job:
        """Run one job to its end; what subclasses override to run jobs in a way of their own.

        The evaluator calls it on an event loop of its own, for at most ``num_workers`` jobs at once. An
        override returns the job after ``job.set_output(output)``; an exception out of it fails that
        job alone. ``await super().execute(job)`` runs the job as the class itself would, limits and
        budget included; what follows it is not ended by the budget.

        Args:
            job: the job to run.

        Returns:
            The job, with its output or its failure.

        Raises:
            NotImplementedError: the class has no way of its own to run a job, and does not override this.
        """
        if self._overridden is None or not self._has_backend():
            raise NotImplementedError(
                f"{type(self).__name__} has no way of its own to run a job. "
                "Override `async def execute(self, job)`, or use Evaluator.create(...)."
            )
        return await self._overridden.through_backend(job, self._begin_alone)

    def _begin_alone(self, job: Job) -> None:
        self._begin([job], **job.__dict__.get("_options", {}))

    def _has_backend(self) -> bool:
        return type(self)._begin is not Backend._begin  # noqa: SLF001  our own

    def _is_overridden(self) -> bool:
        return type(self).execute is not type(self)._native_execute  # noqa: SLF001  our own

    def _dispatch(self, jobs: list[Job], options: Mapping[str, Any]) -> None:
        """Hand new jobs to the backend, or to the overridden ``execute``."""
        if not self._is_overridden():
            self._begin(jobs, **options)
            return
        if self._overridden is None:
            self._overridden = OverriddenExecutes(
                self,
                self.num_workers,
                self._retries,
                self._mailbox(),
                has_backend=self._has_backend(),
                begun=None if self._keeper is None else self._keeper.note_begin,
            )
            self._on_drop(self._overridden.close)
            self._overridden.set_budget(self._seconds_left())
        if options:
            for job in jobs:
                job._options = options  # type: ignore[attr-defined]  # noqa: SLF001  our own
        self._overridden.run(jobs)

    @property
    def _inbox(self) -> Arrivals:
        return self._arrivals if self._overridden is None else self._overridden.finished

    def _settled(self, item: Any) -> Job:
        """Turn what came out of `_inbox` into a job."""
        return item if isinstance(item, Job) else self._settle(item)

    def _change_budget(self) -> None:
        self._budget_changed()
        if self._overridden is not None:
            self._overridden.set_budget(self._seconds_left())

    def _stop(self) -> None:
        """Settle everything and end what runs; every step is bounded."""
        if self._overridden is not None:
            self._overridden.settle_all()
        self._shutdown()
        if self._overridden is not None:
            self._overridden.close()
        for finalizer in self._finalizers:
            finalizer.detach()

    def _on_drop(self, callback: Callable[..., Any], *args: Any) -> None:
        """Have something called when the evaluator is dropped or the interpreter ends, not closed.

        Args:
            callback: must not refer to the evaluator, or that will never be dropped.
            *args: what it is called with, for which the same holds.
        """
        self._finalizers.append(weakref.finalize(self, callback, *args))

    def _seconds_left(self) -> float | None:
        """Give what is left of the search's budget."""
        raise NotImplementedError

    def _check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options of ``submit`` before any job is made; a backend lets those pass that it knows."""
        for name, value in options.items():
            raise TypeError(f"{type(self).__name__} does not know the argument {name}={bounded_repr(value)}.")

    def _begin(self, jobs: list[Job], **_options: Any) -> None:
        """Take jobs, all of them, or raise and take none."""
        raise NotImplementedError(
            f"{type(self).__name__} cannot run {len(jobs)} job(s): use Evaluator.create(...), or a "
            "subclass with `async def execute(self, job)`."
        )

    def _settle(self, item: Any) -> Job:
        """Turn what arrived into its settled job. Must not raise; may be asked twice for one item."""
        job: Job = item
        return job

    @staticmethod
    def _kind_of(item: Any) -> str | None:
        """Give the kind of failure of what arrived, or ``None`` for a value. Must not raise."""
        failure = getattr(item, "failure", None)
        return None if failure is None else str(failure.kind)

    def _backend_stats(self) -> dict[str, Any]:
        """Describe the health of what runs the jobs."""
        return {}

    def _check_process(self) -> None:
        """Refuse to wait in a forked child of the driver, where nothing will ever arrive."""

    def _budget_changed(self) -> None:
        """Take over the search's new budget, ``_seconds_left()``."""

    def _shutdown(self) -> None:
        """Settle every job that was taken as ``cancelled``, and end everything; bounded."""


def _unobserved(_items: Iterable[Any]) -> bool:
    """What arrives from a backend is counted once the overridden ``execute`` is done with it."""
    return False


Backend._native_execute = Backend.execute  # noqa: SLF001  our own
