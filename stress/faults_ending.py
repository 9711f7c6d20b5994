"""Jobs that do not end, and processes that end when they should not."""

import contextlib
import ctypes
import gc
import itertools
import os
import re
import resource
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from robust_eval import RunningJob
from stress.fault import failed_with, fault, own_value

_NO_STACK = failed_with(stack=None, stack_missing="none within")


def hang(_job: object = None) -> NoReturn:
    """Never return, and do nothing."""
    while True:
        time.sleep(3600.0)


@fault("timeout", check=failed_with(stack="hang_in_python"))
def hang_in_python(job: RunningJob) -> None:
    while True:
        pass


@fault("timeout", check=failed_with(stack="hang_in_sleep"))
def hang_in_sleep(job: RunningJob) -> None:
    hang()


@fault("timeout", check=failed_with(stack="hang_in_c_with_the_gil"))
def hang_in_c_with_the_gil(job: RunningJob) -> None:
    ctypes.PyDLL(None).sleep(3600)


@fault("timeout", check=failed_with(stack="hang_in_a_c_loop"))
def hang_in_a_c_loop(job: RunningJob) -> None:
    sum(itertools.repeat(0))


@fault("timeout", check=failed_with(stack="hang_in_a_regular_expression"))
def hang_in_a_regular_expression(job: RunningJob) -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


@fault("timeout")
def hang_deaf_to_polite_signals(job: RunningJob) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hang()


@fault("timeout")  # without a stack, unless a thread of a library has them not masked
def hang_with_all_signals_masked(job: RunningJob) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    hang()


@fault("timeout", check=_NO_STACK)
def hang_with_all_signals_ignored(job: RunningJob) -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    hang()


@fault("timeout", check=_NO_STACK)
def stop_itself(job: RunningJob) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    hang()


@fault("timeout")
def catch_everything(job: RunningJob) -> None:
    while True:
        try:
            hang()
        except BaseException:  # noqa: BLE001, S112 - that is the fault
            continue


class _HangsInDel:
    def __del__(self) -> None:
        hang()


@fault("timeout", check=failed_with(stack="__del__"))
def hang_in_del(job: RunningJob) -> float:
    doomed = _HangsInDel()
    return own_value(job) + 0.0 * (doomed is None)


@fault("timeout")
def hang_in_del_of_a_cycle(job: RunningJob) -> float:
    doomed = _HangsInDel()
    doomed.itself = doomed  # type: ignore[attr-defined]
    del doomed
    gc.collect()
    return own_value(job)


@fault("timeout")
def hang_with_threads(job: RunningJob) -> None:
    for _ in range(8):
        threading.Thread(target=hang, daemon=False).start()
    hang()


@fault("timeout")
def hang_without_descriptors(job: RunningJob) -> None:
    os.closerange(0, 1 << 16)
    hang()


@fault("crash", check=failed_with(exit_code=1, signal=None))
def exit_with_1(job: RunningJob) -> None:
    os._exit(1)


@fault("crash", check=failed_with(exit_code=0, signal=None))
def exit_with_0(job: RunningJob) -> None:
    os._exit(0)


@fault("crash", check=failed_with(exit_code=3))
def exit_from_a_thread(job: RunningJob) -> None:
    threading.Thread(target=os._exit, args=(3,)).start()
    hang()


@fault("crash", check=failed_with(signal="SIGSEGV", stack="segfault"))
def segfault(job: RunningJob) -> None:
    ctypes.string_at(0)


@fault("crash", check=failed_with(signal="SIGABRT", stack="abort"))
def abort(job: RunningJob) -> None:
    os.abort()


@fault("crash", check=failed_with(signal="SIGKILL"))
def kill_itself(job: RunningJob) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@fault("crash", check=failed_with(signal="SIGTERM"))
def terminate_itself(job: RunningJob) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    hang()


@fault("crash", check=failed_with(signal="SIGKILL"))
def kill_its_group(job: RunningJob) -> None:
    os.killpg(0, signal.SIGKILL)


@fault("crash", check=failed_with(signal="SIGXCPU"))
def run_out_of_cpu_time(job: RunningJob) -> None:
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + 1, used + 2))
    while True:
        pass


# From 3.12 on the interpreter counts its C frames and raises RecursionError; before, the stack just ends.
@fault(*(("crash",) if sys.version_info < (3, 12) else ("crash", "exception")))
def overflow_the_c_stack(job: RunningJob) -> None:
    sys.setrecursionlimit(10**9)

    def deeper(_: object) -> Any:
        return next(map(deeper, (0,)))

    deeper(0)


@fault("exception", check=failed_with(exception_type="RecursionError"), local=True)
def recurse_without_end(job: RunningJob) -> float:
    return recurse_without_end(job)  # type: ignore[return-value]


@fault("exception", check=failed_with(exception_type="SystemExit"), local=True)
def sys_exit(job: RunningJob) -> None:
    sys.exit(3)


@fault("exception", check=failed_with(exception_type="KeyboardInterrupt"), local=True)
def keyboard_interrupt(job: RunningJob) -> None:
    raise KeyboardInterrupt


@fault("exception", check=failed_with(exception_type="KeyboardInterrupt"))
def interrupt_itself(job: RunningJob) -> None:
    with contextlib.suppress(ValueError):
        os.kill(os.getpid(), signal.SIGINT)
        hang()


@fault("exception", check=failed_with(exception_type="GeneratorExit"), local=True)
def generator_exit(job: RunningJob) -> None:
    raise GeneratorExit
