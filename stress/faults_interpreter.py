"""Jobs that change the interpreter or the process that the next job would meet."""

import asyncio
import builtins
import contextlib
import ctypes
import decimal
import faulthandler
import gc
import locale
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from robust_eval import Job, RunningJob
from stress.fault import failed_with, fault, own_value
from stress.faults_ending import hang

_LONGER_THAN_A_BLINK_S = 0.002


def _refuse(*_args: object, **_kwargs: object) -> Any:
    raise OSError("not any more")


@fault()
def replace_builtins(job: RunningJob) -> float:
    for name in ("open", "print", "__import__", "len"):
        setattr(builtins, name, _refuse)
    return own_value(job)


@fault("exception", check=failed_with(exception_type="NameError"))
def remove_builtins(job: RunningJob) -> float:
    result = own_value(job)
    vars(builtins).clear()
    return result


@fault("crash", "exception", "unpicklable", "invalid")
def forget_all_modules_and_objects(job: RunningJob) -> float:
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("robust_eval"):
            vars(module).clear()
    return own_value(job)


@fault()
def clear_the_modules(job: RunningJob) -> float:
    sys.modules.clear()
    return own_value(job)


@fault()
def clear_the_import_path(job: RunningJob) -> float:
    sys.path.clear()
    sys.meta_path.clear()
    return own_value(job)


@fault()
def replace_the_hooks(job: RunningJob) -> float:
    sys.excepthook = threading.excepthook = sys.unraisablehook = sys.displayhook = _refuse
    return own_value(job)


@fault()
def set_a_profile_function(job: RunningJob) -> float:
    sys.setprofile(lambda *_: None)
    return own_value(job)


@fault()
def make_warnings_errors(job: RunningJob) -> float:
    warnings.simplefilter("error")
    return own_value(job)


@fault()
def change_the_locale(job: RunningJob) -> float:
    locale.setlocale(locale.LC_ALL, "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8")
    return own_value(job)


@fault()
def switch_faulthandler_off(job: RunningJob) -> float:
    faulthandler.disable()
    return own_value(job)


@fault("timeout", check=failed_with(stack=None))
def take_over_faulthandler(job: RunningJob) -> None:
    faulthandler.disable()
    for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
        faulthandler.unregister(number)
    hang()


@fault()
def leave_a_watchdog(job: RunningJob) -> float:
    faulthandler.dump_traceback_later(0.05, exit=True)
    return own_value(job)


@fault()
def set_other_alarms(job: RunningJob) -> float:
    signal.setitimer(signal.ITIMER_PROF, 0.005, 0.005)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.005, 0.005)
    return own_value(job)


@fault()
def set_a_wakeup_descriptor(job: RunningJob) -> float:
    _, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    return own_value(job)


@fault()
def handle_a_rare_signal(job: RunningJob) -> float:
    signal.signal(signal.SIGUSR2, _refuse)
    return own_value(job)


@fault()
def close_an_event_loop(job: RunningJob) -> float:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.close()
    return own_value(job)


@fault()
def leave_an_event_loop_running(job: RunningJob) -> float:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return own_value(job)


@fault()
def choose_a_start_method(job: RunningJob) -> float:
    multiprocessing.set_start_method("spawn")
    return own_value(job)


@fault()
def change_arithmetic(job: RunningJob) -> float:
    decimal.getcontext().prec = 3
    return own_value(job)


@fault()
def change_the_encoding_of_stdout(job: RunningJob) -> float:
    sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[attr-defined]
    return own_value(job)


@fault()
def detach_stdout(job: RunningJob) -> float:
    sys.stdout.detach()
    return own_value(job)


@fault()
def delete_stdout(job: RunningJob) -> float:
    del sys.stdout, sys.stderr, sys.stdin
    return own_value(job)


@fault()
def replace_os_environ(job: RunningJob) -> float:
    os.environ = {}  # type: ignore[assignment] # noqa: B003 - that is the fault
    return own_value(job)


@fault("exception", "crash", "invalid", "unpicklable")
def replace_the_clock(job: RunningJob) -> float:
    """As a library that freezes time for tests does: in every module that has it."""
    real = time.monotonic
    for module in list(sys.modules.values()):
        if getattr(module, "monotonic", None) is real:
            module.monotonic = lambda: 1.0  # type: ignore[attr-defined]
    return own_value(job)


@fault()
def dislike_comparisons(job: RunningJob) -> float:
    class Jealous:
        closed = False

        def __eq__(self, _other: object) -> bool:
            raise ValueError

        __hash__ = None  # type: ignore[assignment]

    sys.stdout = sys.stderr = Jealous()  # type: ignore[assignment]
    return own_value(job)


@fault()
def make_stdout_not_block(job: RunningJob) -> float:
    os.set_blocking(1, False)
    return own_value(job)


@fault()
def redirect_stdout(job: RunningJob) -> float:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    return own_value(job)


@fault()
def call_at_every_collection(job: RunningJob) -> float:
    gc.callbacks.append(_refuse)
    return own_value(job)


# -- of the process


@fault()
def limit_its_address_space(job: RunningJob) -> float:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return own_value(job)


@fault()
def limit_its_cpu_time(job: RunningJob) -> float:
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + 1, used + 1))
    return own_value(job)


@fault()
def limit_the_size_of_its_files(job: RunningJob) -> float:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return own_value(job)


@fault()
def be_nice(job: RunningJob) -> float:
    os.nice(5)
    return own_value(job)


@fault()
def choose_a_processor(job: RunningJob) -> float:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return own_value(job)


@fault()
def change_its_scheduler(job: RunningJob) -> float:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return own_value(job)


@fault()
def become_somebody_else(job: RunningJob) -> float:
    if os.getuid() == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    return own_value(job)


@fault()
def forbid_new_privileges_and_dumps(job: RunningJob) -> float:
    libc = ctypes.CDLL(None)
    dumpable, no_new_privileges, death_signal = 4, 38, 1
    libc.prctl(dumpable, 0, 0, 0, 0)
    libc.prctl(no_new_privileges, 1, 0, 0, 0)
    libc.prctl(death_signal, 0, 0, 0, 0)
    return own_value(job)


@fault()
def lock_its_memory(job: RunningJob) -> float:
    current_and_future = 3
    ctypes.CDLL(None).mlockall(current_and_future)
    return own_value(job)


@fault()
def be_the_last_choice_of_the_oom_killer(job: RunningJob) -> float:
    with contextlib.suppress(PermissionError):
        Path("/proc/self/oom_score_adj").write_text("-900")
    return own_value(job)


def _ended_by_the_kernel(job: Job) -> None:
    """seccomp(2): by SIGKILL where the process has one thread; else the calling thread alone ends, and 0 was seen."""
    failure = job.failure
    assert failure is not None
    assert failure.signal == "SIGKILL" or failure.exit_code == 0, failure.render()


@fault("crash", check=_ended_by_the_kernel)
def forbid_all_system_calls(job: RunningJob) -> None:
    set_seccomp, strict = 22, 1
    ctypes.CDLL(None).prctl(set_seccomp, strict, 0, 0, 0)
    os.getppid()


def _lost_its_main_thread(job: Job) -> None:
    assert job.failure is not None
    assert "main thread" in job.failure.message, job.failure.render()


@fault("crash", check=_lost_its_main_thread)
def end_its_main_thread(job: RunningJob) -> None:
    threading.Thread(target=hang, daemon=True).start()
    ctypes.CDLL(None).pthread_exit(None)


@fault("crash", "timeout", limits={"job_timeout": 1.0})
def write_into_its_own_memory(job: RunningJob) -> None:
    with open("/proc/self/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
        memory.seek(id(type(job)))
        memory.write(b"\xde\xad\xbe\xef" * 1000)
    hang()


@fault("exception", check=failed_with(exception_type="RuntimeError"))
def exhaust_threads(job: RunningJob) -> None:
    """Until there is no room for the stack of another one, which a limit makes soon."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29, resource.RLIM_INFINITY))
    while True:
        threading.Thread(target=hang, daemon=True).start()
