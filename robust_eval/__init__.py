"""Evaluate a black-box function over thousands of configurations and never be taken down by it.

Everything public is here; a name is imported when it is first used, so that `import robust_eval` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust_eval.callbacks import (
        Callback,
        CSVLoggerCallback,
        LoggerCallback,
        ProfilingCallback,
        SearchEarlyStopping,
        TqdmCallback,
    )
    from robust_eval.command import Command, CommandResult
    from robust_eval.decorators import profile, queued
    from robust_eval.errors import (
        CommandFailed,
        EvaluatorClosed,
        InternalError,
        InvalidArgument,
        InvalidArgumentType,
        InvalidOutput,
        JobCancelled,
        JobCrashed,
        JobFailed,
        JobInvalid,
        JobLost,
        JobMemoryExceeded,
        JobRaised,
        JobStartupFailed,
        JobStop,
        JobTimeout,
        JobUnpicklable,
        RemoteTraceback,
        RobustEvalError,
        SearchBroken,
        SearchStopped,
        StorageError,
        UnsupportedLimit,
    )
    from robust_eval.evaluators.base import Evaluator
    from robust_eval.evaluators.mpicomm import MPICommEvaluator
    from robust_eval.evaluators.process import ProcessPoolEvaluator
    from robust_eval.evaluators.ray import RayEvaluator
    from robust_eval.evaluators.registry import EVALUATORS
    from robust_eval.evaluators.serial import SerialEvaluator
    from robust_eval.evaluators.thread import ThreadPoolEvaluator
    from robust_eval.executor import RobustExecutor
    from robust_eval.failure import Failure
    from robust_eval.falsification import Falsification, Finding, falsify
    from robust_eval.isolation import call, isolated
    from robust_eval.job import Job, JobStatus, RunningJob
    from robust_eval.progress import ProgressCallback
    from robust_eval.storage import MemoryStorage, RedisStorage, SqliteStorage, Storage

__version__ = "0.1.0"

_WHERE = {
    "callbacks": (
        "CSVLoggerCallback",
        "Callback",
        "LoggerCallback",
        "ProfilingCallback",
        "SearchEarlyStopping",
        "TqdmCallback",
    ),
    "command": ("Command", "CommandResult"),
    "decorators": ("profile", "queued"),
    "errors": (
        "CommandFailed",
        "EvaluatorClosed",
        "InternalError",
        "InvalidArgument",
        "InvalidArgumentType",
        "InvalidOutput",
        "JobCancelled",
        "JobCrashed",
        "JobFailed",
        "JobInvalid",
        "JobLost",
        "JobMemoryExceeded",
        "JobRaised",
        "JobStartupFailed",
        "JobStop",
        "JobTimeout",
        "JobUnpicklable",
        "RemoteTraceback",
        "RobustEvalError",
        "SearchBroken",
        "SearchStopped",
        "StorageError",
        "UnsupportedLimit",
    ),
    "evaluators.base": ("Evaluator",),
    "evaluators.mpicomm": ("MPICommEvaluator",),
    "evaluators.process": ("ProcessPoolEvaluator",),
    "evaluators.ray": ("RayEvaluator",),
    "evaluators.registry": ("EVALUATORS",),
    "evaluators.serial": ("SerialEvaluator",),
    "evaluators.thread": ("ThreadPoolEvaluator",),
    "executor": ("RobustExecutor",),
    "failure": ("Failure",),
    "falsification": ("Falsification", "Finding", "falsify"),
    "isolation": ("call", "isolated"),
    "job": ("Job", "JobStatus", "RunningJob"),
    "progress": ("ProgressCallback",),
    "storage": ("MemoryStorage", "RedisStorage", "SqliteStorage", "Storage"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "EVALUATORS",
    "CSVLoggerCallback",
    "Callback",
    "Command",
    "CommandFailed",
    "CommandResult",
    "Evaluator",
    "EvaluatorClosed",
    "Failure",
    "Falsification",
    "Finding",
    "InternalError",
    "InvalidArgument",
    "InvalidArgumentType",
    "InvalidOutput",
    "Job",
    "JobCancelled",
    "JobCrashed",
    "JobFailed",
    "JobInvalid",
    "JobLost",
    "JobMemoryExceeded",
    "JobRaised",
    "JobStartupFailed",
    "JobStatus",
    "JobStop",
    "JobTimeout",
    "JobUnpicklable",
    "LoggerCallback",
    "MPICommEvaluator",
    "MemoryStorage",
    "ProcessPoolEvaluator",
    "ProfilingCallback",
    "ProgressCallback",
    "RayEvaluator",
    "RedisStorage",
    "RemoteTraceback",
    "RobustEvalError",
    "RobustExecutor",
    "RunningJob",
    "SearchBroken",
    "SearchEarlyStopping",
    "SearchStopped",
    "SerialEvaluator",
    "SqliteStorage",
    "Storage",
    "StorageError",
    "ThreadPoolEvaluator",
    "TqdmCallback",
    "UnsupportedLimit",
    "call",
    "falsify",
    "isolated",
    "profile",
    "queued",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        msg = f"module 'robust_eval' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"robust_eval.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
