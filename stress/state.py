"""What a job must find as its predecessors found it."""

import decimal
import faulthandler
import gc
import hashlib
import json
import locale
import os
import random
import re
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np

from robust_eval import RunningJob
from robust_eval.processes.layout import COOKIE

_BUILTINS = {name: __builtins__[name] for name in ("open", "print", "__import__", "len")}  # type: ignore[index]
_FUNCTIONS = {"write": os.write, "open": os.open, "getpid": os.getpid, "dup": os.dup, "waitpid": os.waitpid}
_OF_CLASSES = ((threading.Thread, "start"), (random.Random, "random"), (RunningJob, "record"))
_MONOTONIC = time.monotonic
_METHODS = {(class_, name): getattr(class_, name) for class_, name in _OF_CLASSES}
_LIMITS = ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC", "STACK")
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


def worker_state() -> str:
    """The state of this process in one line, the same in every worker that no job has changed."""
    gc.collect()  # what a job left to be collected must not go off in the time of this one
    return repr({**_of_the_process(), **_of_the_interpreter(), **_of_the_arithmetic()})


def _of_the_process() -> dict[str, object]:
    (umask,) = re.findall(r"Umask:\s+(\d+)", Path("/proc/self/status").read_text())
    # A supervisor that follows a dead one marks its own with a name of its own.
    environment = sorted(item for item in os.environ.items() if item[0] != COOKIE)
    return {
        "directory": os.getcwd(),  # noqa: PTH109
        "environment": hashlib.sha256(repr(environment).encode()).hexdigest()[:8],
        "umask": umask,
        "handled": [n for n in signal.valid_signals() if signal.getsignal(n) not in {signal.SIG_DFL, signal.SIG_IGN}],
        "masked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "timers": [signal.getitimer(timer) for timer in _TIMERS],
        "kernel timers": Path("/proc/self/timers").read_text(),
        "limits": [resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in _LIMITS],
        "scheduling": (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.sched_getaffinity(0)),
        "user": (os.getresuid(), os.getresgid()),
        "files": [os.readlink(f"/proc/self/fd/{fd}").partition("[")[0] for fd in range(3)],  # noqa: PTH115 - as it stands
        "blocking": [os.get_blocking(fd) for fd in range(3)],
    }


def _of_the_interpreter() -> dict[str, object]:
    hooks = (sys.excepthook is sys.__excepthook__, sys.unraisablehook is sys.__unraisablehook__)
    stdout, stderr = sys.stdout, sys.stderr
    return {
        "threads": threading.active_count(),
        "collector": (gc.isenabled(), len(gc.callbacks)),
        "recursion": sys.getrecursionlimit(),
        "traced": (type(sys.gettrace()), type(sys.getprofile())),
        "hooks": (*hooks, threading.excepthook is threading.__excepthook__),
        "streams": [(type(stream).__name__, stream.closed, stream.encoding) for stream in (stdout, stderr)],
        "builtins": [name for name, value in _BUILTINS.items() if __builtins__[name] is not value],  # type: ignore[index]
        "modules": (sys.modules.get("os") is os, sys.modules.get("json") is json, bool(sys.path), bool(sys.meta_path)),
        "methods": [name for (class_, name), method in _METHODS.items() if getattr(class_, name) is not method],
        "warnings": [entry for entry in warnings.filters if entry[0] == "error"],
        "locale": locale.setlocale(locale.LC_ALL),
        "faulthandler": faulthandler.is_enabled(),
        "functions": [name for name, function in _FUNCTIONS.items() if getattr(os, name) is not function],
        "clock": time.monotonic is _MONOTONIC,
        "sockets": socket.getdefaulttimeout(),
        "new threads": (threading.stack_size(), sys.getswitchinterval(), _starts_threads()),
        "digits": sys.get_int_max_str_digits(),
    }


def _starts_threads() -> bool:
    thread = threading.Thread(target=len, args=("",))
    thread.start()
    thread.join()
    return True


def _of_the_arithmetic() -> dict[str, object]:
    one, little = 1.0, 2.0**-60
    return {
        "decimal": decimal.getcontext().prec,
        "numpy": sorted(np.geterr().items()),
        "rounding": (one + little, one - little),
    }
