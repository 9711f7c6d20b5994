"""Jobs that return in good order and leave something that goes off, or is met, in the time of another job."""

import _thread
import contextlib
import ctypes
import decimal
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from robust_eval import RunningJob
from robust_eval.processes.layout import DUMP_SIGNAL, STOP_SIGNAL
from stress.fault import Run, failed_with, fault, own_value
from stress.faults_ending import hang
from stress.faults_traces import in_child


def _refuse(*_args: object, **_kwargs: object) -> Any:
    raise OSError("not any more")


# -- garbage


class _Cycle:
    """Lives until it is collected, and then does something."""

    def __init__(self, deed: Callable[[], object]) -> None:
        self.itself = self
        self.deed = deed

    def __del__(self) -> None:
        self.deed()


@fault("crash", check=failed_with(exit_code=3))
def leave_a_cycle_that_exits(job: RunningJob) -> float:
    _Cycle(lambda: os._exit(3))
    return own_value(job)


@fault("timeout", check=failed_with(stack="__del__"))
def leave_a_cycle_that_hangs(job: RunningJob) -> float:
    _Cycle(hang)
    return own_value(job)


@fault("crash", check=failed_with(signal="SIGSEGV"))
def leave_a_cycle_that_crashes(job: RunningJob) -> float:
    _Cycle(lambda: ctypes.string_at(0))
    return own_value(job)


@fault("crash", check=failed_with(exit_code=3))
def leave_an_old_cycle_that_exits(job: RunningJob) -> float:
    """It has outlived collections, so that a look at what is young does not find it."""
    cycle = _Cycle(lambda: os._exit(3))
    kept = [[number] for number in range(50_000)]
    del cycle, kept
    time.sleep(0.005)
    return own_value(job)


@fault("crash", check=failed_with(exit_code=3))
def raise_with_a_cycle_that_exits(job: RunningJob) -> None:
    _Cycle(lambda: os._exit(3))
    raise ValueError


# -- functions that everybody uses, replaced


def _replacing(module: Any, name: str) -> Run:
    def run(job: RunningJob) -> float:
        setattr(module, name, _refuse)
        return own_value(job)

    run.__name__ = f"replace_{module.__name__}_{name}".replace(".", "_")
    return run


for _module, _name in (
    (contextlib, "suppress"),
    (multiprocessing.process, "Process"),
    (os, "getpid"),
    (os, "waitid"),
    (os, "waitpid"),
    (os, "write"),
    (os, "open"),
    (os, "dup"),
    (os, "close"),
    (time, "monotonic"),
    (pickle, "loads"),
    (pickle, "dumps"),
    (threading, "Thread"),
    (signal, "signal"),
    (random, "random"),
    (threading.Thread, "start"),
    (random.Random, "random"),
    (RunningJob, "record"),
):
    fault()(_replacing(_module, _name))


@fault()
def replace_a_loaded_module(job: RunningJob) -> float:
    sys.modules["json"] = os
    return own_value(job)


class _Finder:
    @staticmethod
    def find_spec(*_: object) -> None:
        raise ImportError


@fault()
def forbid_all_imports(job: RunningJob) -> float:
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type] # a finder as the protocol knows it
    return own_value(job)


@fault()
def unload_a_module(job: RunningJob) -> float:
    del sys.modules["json"]
    return own_value(job)


@fault()
def reopen_stdout_elsewhere(job: RunningJob) -> float:
    os.close(1)
    os.open(os.devnull, os.O_WRONLY)
    return own_value(job)


@fault()
def trace_all_new_threads(job: RunningJob) -> float:
    threading.settrace(_refuse)
    threading.setprofile(_refuse)
    return own_value(job)


@fault()
def add_an_audit_hook_that_raises(job: RunningJob) -> float:
    def hook(event: str, _args: object) -> None:
        if event == "open":
            _refuse()

    sys.addaudithook(hook)
    return own_value(job)


@fault()
def leave_a_raw_thread_that_crashes(job: RunningJob) -> float:
    def crash() -> None:
        time.sleep(0.01)
        ctypes.string_at(0)

    _thread.start_new_thread(crash, ())
    return own_value(job)


# -- how things are calculated and done


@fault()
def calculate_with_three_digits(job: RunningJob) -> float:
    decimal.getcontext().prec = 3
    return own_value(job)


@fault()
def make_numpy_raise(job: RunningJob) -> float:
    np.seterr(all="raise")
    return own_value(job)


@fault()
def round_up(job: RunningJob) -> float:
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[os.uname().machine]
    ctypes.CDLL("libm.so.6").fesetround(upward)
    return 2.0 * job["x"]


@fault()
def make_sockets_impatient(job: RunningJob) -> float:
    socket.setdefaulttimeout(1e-6)
    return own_value(job)


@fault()
def give_threads_a_small_stack(job: RunningJob) -> float:
    threading.stack_size(32768)
    return own_value(job)


@fault()
def switch_threads_rarely(job: RunningJob) -> float:
    sys.setswitchinterval(100.0)
    sys.set_int_max_str_digits(640)
    return own_value(job)


@fault()
def ignore_our_signals(job: RunningJob) -> float:
    signal.signal(STOP_SIGNAL, signal.SIG_IGN)
    signal.signal(DUMP_SIGNAL, signal.SIG_IGN)
    return own_value(job)


@fault()
def set_a_timer_of_the_kernel(job: RunningJob) -> float:
    """One that `getitimer` does not know; its signal would end the next job."""
    libc, monotonic, in_an_hour = ctypes.CDLL(None), 1, (ctypes.c_long * 4)(0, 0, 3600, 0)
    timer = ctypes.c_void_p()
    libc.timer_create(monotonic, None, ctypes.byref(timer))
    libc.timer_settime(timer, 0, in_an_hour, None)
    time.sleep(0.002)  # what costs more to look at is looked at after jobs that are not over in a blink
    return own_value(job)


@fault()
def leave_its_root_directory(job: RunningJob) -> float:
    if os.getuid() == 0:
        os.chroot(os.path.dirname(job["diary"]))  # noqa: PTH120
        os.chdir("/")
    time.sleep(0.002)  # as above
    return own_value(job)


@fault()
def leave_the_network(job: RunningJob) -> float:
    new_network = 0x40000000
    ctypes.CDLL(None).unshare(new_network)
    time.sleep(0.002)  # as above
    return own_value(job)


# -- signals for its elders that few programs know


def _send_rare_signals(pid: int) -> None:
    for number in (*range(signal.SIGRTMIN, signal.SIGRTMAX + 1), signal.SIGIO, signal.SIGSYS, signal.SIGTRAP):
        os.kill(pid, number)


@fault()
def send_its_parent_rare_signals(job: RunningJob) -> float:
    _send_rare_signals(os.getppid())
    return own_value(job)


@fault()
def send_its_grandparent_rare_signals(job: RunningJob) -> float:
    with open(f"/proc/{os.getppid()}/stat") as file:  # noqa: PTH123
        _send_rare_signals(int(file.read().rpartition(")")[2].split()[1]))
    return own_value(job)


# -- processes and files


@fault()
def use_a_manager_and_close_it(job: RunningJob) -> float:
    """Nothing is wrong with it; the directory of its socket goes with the job."""
    with multiprocessing.Manager() as manager:
        assert manager.list([1, 2])[1] == 2
    return own_value(job)


def _use_joblib() -> None:
    """As scikit-learn's `n_jobs` does; the workers stay, and large arrays lie in files of /dev/shm."""
    from joblib import Parallel, delayed

    parts = Parallel(n_jobs=2, max_nbytes=1000)(delayed(np.sum)(np.ones(10_000)) for _ in range(4))
    assert parts == [10_000.0] * 4


@fault(heavy=True)
def leave_the_workers_of_joblib(job: RunningJob) -> float:
    _use_joblib()
    return own_value(job)


@fault("timeout", limits={"job_timeout": 5.0}, heavy=True)
def hang_with_the_workers_of_joblib(job: RunningJob) -> None:
    _use_joblib()
    hang()


@fault()
def leave_a_fork_server(job: RunningJob) -> float:
    """With the directory of its socket, which the interpreter would remove at an exit."""
    multiprocessing.get_context("forkserver").Process(target=hang).start()
    return own_value(job)


@fault()
def leave_a_child_that_never_stays(job: RunningJob) -> float:
    """It forks and ends, again and again, so that whoever looks for it finds the one before."""

    def run(_job: object) -> None:
        ends_at = time.monotonic() + 30.0
        while time.monotonic() < ends_at:
            if os.fork():
                os._exit(0)

    in_child(job, run)
    return own_value(job)
