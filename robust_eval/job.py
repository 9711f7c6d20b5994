"""A job as its driver sees it (`Job`) and as the run function sees it (`RunningJob`).

A driver may queue a million jobs and a worker makes a `RunningJob` for each, so both allocate what is
rarely asked for only when it is asked for.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, overload

from robust_eval.objective import FAIL_RETURN_VALUE, standardize
from robust_eval.plain import ATOMS, copy_of_plain

if TYPE_CHECKING:
    from robust_eval.failure import Failure
    from robust_eval.storage.base import Storage

Recorder: TypeAlias = Callable[[float, Any], None]


class JobStatus(enum.IntEnum):
    """Where a job is on its way, with DeepHyper's numbers."""

    READY = 0
    RUNNING = 1
    DONE = 2


def copy_config(config: Any) -> Any:
    """Give a copy of a configuration that nobody else can change.

    A flat dict of plain values, which is nearly every configuration, costs one shallow copy. What
    cannot be copied deeply (a lock, a generator) is copied shallowly: whether it can be evaluated is
    for the evaluator to say, of that job alone.
    """
    if type(config) is dict and ATOMS.issuperset(map(type, config.values())):
        return config.copy()
    try:
        return copy_of_plain(config)
    except ValueError:
        pass
    try:
        return copy.deepcopy(config)
    except Exception:  # noqa: BLE001  the user's code runs here
        return dict(config)


class Job:
    """One configuration on its way to one outcome.

    ``job[0], job[1]`` and ``config, objective = job`` give a copy of the configuration and the
    objective.

    Args:
        id: ``"search.job"``, as the storage gave it.
        config: the arguments for the run function; copied.
        run_function: what is to be evaluated.

    Attributes:
        rank: the MPI rank that ran the job, where there is one.
        failure: why the job has no result of its own; ``None`` for a job that delivered.
        observations: (budgets, objectives) where the run function returned them.
        run_kwargs: keyword arguments for the run function that belong to this job alone.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_metadata",
        "_objective",
        "_output",
        "_recorded",
        "config",
        "failure",
        "id",
        "observations",
        "rank",
        "run_function",
        "run_kwargs",
        "status",
        "submitted_at",
    )

    READY: ClassVar[JobStatus] = JobStatus.READY
    RUNNING: ClassVar[JobStatus] = JobStatus.RUNNING
    DONE: ClassVar[JobStatus] = JobStatus.DONE

    def __init__(self, id: str, config: Mapping[str, Any], run_function: Callable[..., Any] | None) -> None:  # noqa: A002  DeepHyper's name
        self.id = id
        self.config: Any = copy_config(config)
        self.run_function = run_function
        self.status = JobStatus.READY
        self.rank: int | None = None
        self.failure: Failure | None = None
        self.observations: list[Any] | None = None
        self.run_kwargs: dict[str, Any] | None = None
        self.submitted_at: float | None = None
        self._objective: Any = None
        self._metadata: dict[str, Any] | None = None
        self._output: Any = None
        self._recorded: list[tuple[float, Any]] | None = None

    def __repr__(self) -> str:
        rank = "" if self.rank is None else f", rank={self.rank}"
        return f"Job(id={self.id}{rank}, status={self.status.name}, config={self.config})"

    def _repr_html_(self) -> str:
        """What a notebook shows of the job."""
        from robust_eval.html_view import job_html  # noqa: PLC0415  workers do without it

        return job_html(
            self.id,
            self.status.name,
            self.config,
            objective=self.objective,
            metadata=self.metadata,
            failure=self.failure,
        )

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        yield copy_config(self.config)
        yield self.objective

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return (copy_config(self.config), self.objective)[index]

    @property
    def args(self) -> Any:
        """The configuration, under the name that newer DeepHyper uses."""
        return self.config

    @property
    def output(self) -> Any:
        """A dict of ``objective`` and ``metadata``; made when first asked for, and from then on what both are in."""
        if self._output is None:
            self._output = {"objective": self._objective, "metadata": self.metadata}
        return self._output

    @output.setter
    def output(self, output: Any) -> None:
        self._output = output
        self._objective = self._metadata = None

    @property
    def objective(self) -> Any:
        """What the run function returned as its objective, ``"F"`` for a failure, ``None`` before."""
        return self._objective if self._output is None else self._output["objective"]

    @property
    def result(self) -> Any:
        """The objective."""
        return self.objective

    @property
    def metadata(self) -> dict[str, Any]:
        """What is known about the run: timestamps in seconds since the evaluator, and the user's own."""
        if self._output is not None:
            metadata: dict[str, Any] = self._output["metadata"]
            return metadata
        if self._metadata is None:
            self._metadata = {"timestamp_submit": self.submitted_at, "timestamp_gather": None}
        return self._metadata

    @property
    def recorded(self) -> list[tuple[float, Any]]:
        """The (budget, objective) pairs recorded by the run function so far, in order."""
        if self._recorded is None:
            self._recorded = []
        return self._recorded

    def set_output(self, output: Any) -> None:
        """Take over what the run function returned.

        Args:
            output: anything that `robust_eval.objective.standardize` accepts.

        Raises:
            InvalidOutput: it does not; the job is unchanged.
        """
        self.set_outcome(*standardize(output))

    def set_outcome(self, objective: Any, metadata: Mapping[str, Any], observations: list[Any] | None) -> None:
        """Take over an output that is in its standard form already.

        A job that failed stays as it is: what an abandoned run still reports comes too late.

        Args:
            objective: a number, a tuple of numbers, or a text that begins with ``"F"``.
            metadata: added to what the job has.
            observations: ``[budgets, objectives]``; None where there are none.
        """
        if self.failure is not None:
            return
        self._set_objective(objective)
        self.metadata.update(metadata)
        self.observations = observations

    def fail(self, failure: Failure, objective: str = FAIL_RETURN_VALUE) -> None:
        """Make this job a failed one.

        Args:
            failure: why.
            objective: the value that stands for a failure.
        """
        self.failure = failure
        output = self._output
        if output is not None and not (isinstance(output, dict) and isinstance(output.get("metadata"), dict)):
            self.output = None  # an execute of the user's broke it
        self._set_objective(objective)

    def _set_objective(self, objective: Any) -> None:
        if self._output is None:
            self._objective = objective
        else:
            self._output["objective"] = objective

    def create_running_job(
        self,
        storage: Storage | None,
        stopper: Any,
        *,
        recorder: Recorder | None = None,
        stop_requested: Callable[[], bool] | None = None,
    ) -> RunningJob:
        """Make what the run function is called with.

        Args:
            storage: handed to the run function as it is.
            stopper: copied for this job, as in DeepHyper, and told its job where it wants to know.
            recorder: receives what is recorded; by default `recorded` grows.
            stop_requested: asked by ``stopped()``.

        Returns:
            The running job, with a copy of the configuration.
        """
        stopper = copy.deepcopy(stopper)
        running = RunningJob(
            self.id,
            copy_config(self.config),
            storage,
            stopper,
            recorder=self._record if recorder is None else recorder,
            stop_requested=stop_requested,
        )
        if stopper is not None and hasattr(stopper, "job"):
            stopper.job = running
        return running

    def _record(self, budget: float, objective: Any) -> None:
        self.recorded.append((budget, objective))


class RunningJob(MutableMapping[str, Any]):
    """What the run function receives: a mapping of its parameters, and the way to report progress.

    ``job["job_id"]`` is the number of the job in its search; it is not one of the keys and cannot be
    set. The object pickles, without its ties to the evaluator (``recorder``, ``stop_requested``).

    Args:
        id: ``"search.job"``; ``None`` for a job outside of any search.
        parameters: the configuration.
        storage: the evaluator's storage; by default a new `MemoryStorage`, made when it is read.
        stopper: decides when to stop, from what is recorded: ``observe``, ``stop``, ``objective``.
        recorder: called with each (budget, objective) that is recorded.
        stop_requested: a second voice in ``stopped()``.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_recorder",
        "_stop_requested",
        "_storage",
        "id",
        "obs",
        "parameters",
        "stopper",
    )

    def __init__(  # noqa: PLR0917  DeepHyper's signature
        self,
        id: str | None = None,  # noqa: A002  DeepHyper's name
        parameters: dict[str, Any] | None = None,
        storage: Storage | None = None,
        stopper: Any = None,
        recorder: Recorder | None = None,
        stop_requested: Callable[[], bool] | None = None,
    ) -> None:
        self.id = "0.0" if id is None else id
        self.parameters = {} if parameters is None else parameters
        self._storage = storage
        self.stopper = stopper
        self._recorder = recorder
        self._stop_requested = stop_requested
        self.obs: Any = None

    def __repr__(self) -> str:
        return f"RunningJob(id={self.id}, parameters={self.parameters})"

    def __getitem__(self, key: str) -> Any:
        if key == "job_id":
            return int(str(self.id).rpartition(".")[2])
        return self.parameters[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "job_id":
            raise KeyError('"job_id" belongs to the evaluator and cannot be set; choose another key.')
        self.parameters[key] = value

    def __delitem__(self, key: str) -> None:
        del self.parameters[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __reduce__(self) -> tuple[Any, ...]:
        state = (self.id, self.parameters, self._storage, self.stopper)
        return type(self), state, (self.__dict__, {"obs": self.obs})

    @property
    def storage(self) -> Storage:
        """The evaluator's storage; outside of an evaluator, a new one that knows only this job."""
        if self._storage is None:
            from robust_eval.storage.memory import MemoryStorage  # noqa: PLC0415  imported only by those who need it

            self._storage = MemoryStorage.holding(self.id)
        return self._storage

    def record(self, budget: float, objective: Any) -> None:
        """Report an intermediate objective.

        It reaches the evaluator at once and stays on the job even when the job is then killed.

        Args:
            budget: how much was spent on it so far (epochs, seconds, samples), growing.
            objective: what it was worth.
        """
        if self.stopper is not None:
            self.stopper.observe(budget, objective)
        self.obs = objective
        if self._recorder is not None:
            self._recorder(budget, objective)

    def stopped(self) -> bool:
        """Tell whether the run function should return what it has: the stopper or the budget says so."""
        if self.stopper is not None and self.stopper.stop():
            return True
        return self._stop_requested is not None and self._stop_requested()

    @property
    def objective(self) -> Any:
        """The last objective recorded; with a stopper, the one that the stopper stands for."""
        return self.obs if self.stopper is None else self.stopper.objective
