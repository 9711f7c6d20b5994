"""From what a pool delivers to settled jobs, in the thread that gathers.

Nothing here may raise: what a worker returned has been unpickled once in the worker, and what all the same does not
unpickle here costs its own job alone.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from robust_eval.errors import ASKED_TO_END
from robust_eval.failure import Failure, FailureKind
from robust_eval.processes.blame import describe_error, rebuilt
from robust_eval.processes.parcel import Landed, discard, needs_proof, open_parcel, unpack, view
from robust_eval.processes.pending import Done, Failed, Settled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from robust_eval.evaluators.arrivals import Arrivals
    from robust_eval.job import Job

_OWN_FRAMES = ("robust_eval/processes/", 'File "<string>", line 1 in <module>')
_WAITING_FRAMES = "robust_eval/command/"
_FRAME = "  File "
_MODULES = "Extension modules: "
_GIB = 2**30
_MIB = 2**20


class Settling:
    """The jobs that a pool has, by the numbers that it knows them by.

    Args:
        arrivals: where jobs go that never reach the pool.
        policy: the pool's, for the messages of failures.

    Attributes:
        created_at: the monotonic instant that the timestamps of jobs count from.
    """

    def __init__(self, arrivals: Arrivals, policy: Mapping[str, Any]) -> None:
        self._arrivals = arrivals
        self._policy = policy
        self._jobs: dict[int, Job] = {}
        self._unread: dict[int, list[bytes]] = {}
        self.created_at = 0.0

    def expect(self, number: int, job: Job) -> None:
        """The pool gets this job."""
        self._jobs[number] = job

    def job_id(self, number: int) -> str | None:
        """The id of a job, by the number that the pool knows it by."""
        job = self._jobs.get(number)
        return None if job is None else job.id

    def ids(self, numbers: Iterable[int]) -> dict[int, str]:
        """The ids of jobs that the pool gets, by their numbers."""
        return {number: self._jobs[number].id for number in numbers}

    def refuse(self, number: int, job: Job, failure: Failure) -> None:
        """The pool does not get this job: it failed here."""
        self._jobs[number] = job
        self._arrivals.put((number, failure))

    def record(self, number: int, value: bytes) -> None:
        """An intermediate value came, while the job runs. Called from the pool's thread.

        Plain numbers are on the job at once. What may run code of the user's waits for `settle`, where a hang or an
        exit is not that of the thread which every other outcome comes through.
        """
        job = self._jobs.get(number)
        if job is None:
            return
        if number in self._unread or needs_proof(value):
            self._unread.setdefault(number, []).append(value)
        else:
            with contextlib.suppress(Exception):  # what a worker sent is never trusted
                job.recorded.append(unpack(value))

    def _read_records(self, number: int, job: Job) -> None:
        for value in self._unread.pop(number, ()):
            try:
                budget, objective = unpack(value)
            except ASKED_TO_END:
                raise
            except BaseException:  # noqa: BLE001, S112 - the user's own objects; without it the job is as it is
                continue
            job.recorded.append((budget, objective))

    def settle(self, item: Settled | tuple[int, Failure]) -> Job:
        """The settled job. Asked again for one item, it gives the same job unchanged."""
        job = self._jobs[item[0]]
        if job.failure is not None or job.objective is not None:
            return job
        self._read_records(item[0], job)
        if isinstance(item, Done):
            self._on_done(job, item)
            self._place(job, item.begun_at, item.slot, item.memory_limit)
        elif isinstance(item, Failed):
            job.fail(failure_of(item, self._policy))
            info = item.info
            _measure(job, info.get("duration"), info.get("peak_memory"), info["attempts"])
            self._place(job, info.get("begun_at"), info.get("slot"), info["memory_limit"])
        else:
            job.fail(item[1])
        return job

    def _place(self, job: Job, begun_at: float | None, slot: int | None, memory_limit: int | None) -> None:
        """Note where and when the job ran: internal metadata, for reports and not for the CSV."""
        if begun_at is not None and slot is not None:
            job.metadata.update(_worker=slot, _begun=begun_at - self.created_at, _memory_limit=memory_limit)

    @staticmethod
    def _on_done(job: Job, done: Done) -> None:
        duration = done.ended_at - done.begun_at
        try:
            objective, metadata, observations = unpack(view(done.parcel))
            job.set_outcome(objective, metadata, observations)
        except ASKED_TO_END:  # a Ctrl-C of the driver's user; the next gather comes back to this job
            raise
        except BaseException as error:  # noqa: BLE001 - the user's __setstate__, which may raise SystemExit
            message = f"the result cannot be unpickled in the driver: {describe_error(error)}"
            job.fail(Failure("unpicklable", message, done.attempts, duration, done.peak_memory))
        _measure(job, duration, done.peak_memory, done.attempts)
        discard(done.parcel)


def _measure(job: Job, duration: float | None, peak_memory: int | None, attempts: int) -> None:
    job.metadata.update(duration=duration, peak_memory=peak_memory, attempts=attempts)


def failure_of(failed: Failed, policy: Mapping[str, Any]) -> Failure:
    """What happened, in the words of the user."""
    info = failed.info
    blamed = _fields(failed.blamed)
    kind: FailureKind = info["kind"]
    ended = blamed if "signal" in blamed else info  # an executable that the job ran, or its worker
    stack = _without_our_frames(info.get("stack"))
    return Failure(
        kind=kind,
        message=_message(kind, info, blamed, policy),
        attempts=info["attempts"],
        duration=info.get("duration"),
        peak_memory=info.get("peak_memory") or None,
        memory_limit=info["memory_limit"],
        acted=_acted(kind, info, blamed),
        stack=stack,
        stack_missing=_stack_missing(kind, info, stack),
        traceback=blamed.get("traceback"),
        exception_type=blamed.get("exception_type"),
        exception=rebuilt(blamed.get("exception")),
        signal=ended.get("signal") if kind == "crash" or info.get("oom_killed") else None,
        exit_code=ended.get("exit_code") if kind == "crash" else None,
        output_tail=info.get("output_tail", ""),
        unkilled_pids=tuple(info["unkilled_pids"]),
        late_result=_late(failed.late),
        lost=(info["cause"] or "worker") if kind == "lost" else None,
        value_repr=blamed.get("value_repr"),
    )


def _fields(blamed: Landed) -> dict[str, Any]:
    if not blamed:
        return {}
    try:
        fields = unpack(open_parcel(blamed))
    except Exception:  # noqa: BLE001 - what a worker sent is never trusted
        return {}
    return fields if isinstance(fields, dict) else {}


def _late(late: Landed) -> Any:
    if not late:
        return None
    try:
        objective, _, _ = unpack(open_parcel(late))
    except ASKED_TO_END:
        raise
    except BaseException:  # noqa: BLE001 - the user's own objects
        return None
    return objective


def _acted(kind: str, info: Mapping[str, Any], blamed: Mapping[str, Any]) -> str | None:
    if kind != "memory":
        return None
    return str(blamed.get("acted") or ("oom_killer" if info.get("oom_killed") else "memory_limit"))


def _stack_missing(kind: str, info: Mapping[str, Any], shown: str | None) -> str | None:
    if kind != "timeout" or shown is not None:
        return None
    if info.get("stack"):
        return "an executable was running, and only Python has such a stack"
    return str(info.get("stack_missing") or "the job ended by itself within its grace period")


def _without_our_frames(stack: str | None) -> str | None:
    """The stack without the frames that called the run function, and those at its top that wait for an executable."""
    if not stack:
        return None
    lines = [line for line in stack.splitlines() if not line.startswith(_MODULES)]
    shown = [line for line in lines if not any(frame in line for frame in _OWN_FRAMES)]
    waiting = [number for number, line in enumerate(shown) if _WAITING_FRAMES in line]
    if not waiting:
        return "\n".join(shown)
    shown = [line for number, line in enumerate(shown) if number > waiting[-1] or not line.startswith(_FRAME)]
    return "\n".join(shown) if any(line.startswith(_FRAME) for line in shown) else None


def _message(kind: str, info: Mapping[str, Any], blamed: Mapping[str, Any], policy: Mapping[str, Any]) -> str:
    """One sentence for the user."""
    words = _WORDS.get((kind, info["cause"])) or _WORDS.get((kind, "")) or blamed.get("message")
    detail = str(info.get("detail") or "")
    if kind == "memory" and not blamed:
        return _about_memory(info)
    if kind == "crash" and not blamed:
        return _about_crash(info, detail)
    if kind == "startup" and words is None:
        return f"no worker could be started, {policy['max_start_failures']} times in a row: {detail}".rstrip(": ")
    if kind == "timeout" and info.get("duration") is not None:
        return f"{words} (it ran {info['duration']:.3f} s)"
    if kind == "lost" or info["cause"] == "hosts":
        return f"{words}: {detail}" if detail else str(words)
    return str(words)


_WORDS = {
    ("timeout", ""): "the job did not finish within its job_timeout",
    ("timeout", "search"): "the budget of the search (set_timeout) ran out while the job ran",
    ("cancelled", ""): "the job was cancelled",
    ("cancelled", "closed"): "the evaluator was closed before the job had finished",
    ("cancelled", "search"): "the budget of the search (set_timeout) ran out before the job began",
    ("lost", "host"): "the host that ran the job was lost",
    ("startup", "hosts"): "no host is left that could run the job",
    ("lost", "supervisor"): "the supervisor process died while the job ran",
    ("lost", "template"): "the template process died, and with it the workers that it had forked",
    ("lost", "unresponsive"): "the worker did not begin the job",
    ("lost", "worker"): "its worker was killed for the job before it",
    ("startup", "stubborn"): "every worker is a process that SIGKILL does not end",
}


def _about_memory(info: Mapping[str, Any]) -> str:
    peak = info.get("peak_memory") or 0
    if info.get("oom_killed"):
        return f"the kernel's OOM killer ended the worker (peak seen: {_size(peak)})"
    return f"the job's process tree took {_size(peak)}, over its memory_limit of {_size(info['memory_limit'])}"


def _size(value: float) -> str:
    return f"{value / _GIB:.2f} GiB" if value >= _GIB else f"{value / _MIB:.1f} MiB"


def _about_crash(info: Mapping[str, Any], detail: str) -> str:
    if info["cause"] == "protocol":
        return f"the worker's channel carried something that is not of the protocol: {detail}"
    if info["cause"] == "headless":
        return "the main thread of the worker process ended while the job ran, and other threads of it went on"
    if info.get("channel_lost"):
        return "the job closed or replaced the descriptors of its worker's channel, so no result could be sent"
    if info.get("signal"):
        return f"the worker process was ended by {info['signal']} while the job ran"
    return f"the worker process ended with exit code {info.get('exit_code')} while the job ran"
