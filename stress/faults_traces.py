"""Jobs that leave something behind: processes, threads, a changed worker, rubbish in its channels."""

import atexit
import contextlib
import ctypes
import gc
import io
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

from robust_eval import RunningJob
from stress.fault import failed_with, fault, own_value
from stress.faults_ending import hang

_GARBAGE = b"\xde\xad\xbe\xef" * 64
_BOMB_PROCESSES = 30


def note(job: RunningJob, pid: int) -> None:
    """Leave the id of a process that must be gone when the job settles."""
    with Path(f"{job['diary']}.pids").open("a") as file:
        file.write(f"{pid}\n")


def in_child(job: RunningJob, deed: Callable[[RunningJob], Any]) -> int:
    """Fork a child that leaves its process id in a file, does something and never comes back."""
    pid = os.fork()
    if pid == 0:
        try:
            note(job, os.getpid())
            deed(job)
        finally:
            os._exit(0)
    return pid


def _hang_in_own_session(job: RunningJob) -> None:
    os.setsid()
    hang()


def _hang_in_own_group(job: RunningJob) -> None:
    os.setpgrp()
    hang()


def _daemonize(job: RunningJob) -> None:
    os.setsid()
    in_child(job, hang)


def _hang_deaf(job: RunningJob) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    os.closerange(0, 1 << 16)
    hang()


@fault()
def leave_a_child(job: RunningJob) -> float:
    in_child(job, hang)
    return own_value(job)


@fault()
def leave_a_child_in_its_session(job: RunningJob) -> float:
    in_child(job, _hang_in_own_session)
    return own_value(job)


@fault()
def leave_a_child_in_its_group(job: RunningJob) -> float:
    in_child(job, _hang_in_own_group)
    return own_value(job)


@fault()
def leave_a_daemon(job: RunningJob) -> float:
    os.waitpid(in_child(job, _daemonize), 0)
    return own_value(job)


@fault()
def leave_a_deaf_child(job: RunningJob) -> float:
    in_child(job, _hang_deaf)
    return own_value(job)


@fault()
def leave_a_program(job: RunningJob) -> float:
    program = subprocess.Popen(["sleep", "3600"], start_new_session=True, env={})
    note(job, program.pid)
    return own_value(job)


@fault("crash")
def leave_a_daemon_and_die(job: RunningJob) -> None:
    os.waitpid(in_child(job, _daemonize), 0)
    os._exit(1)


@fault("timeout")
def leave_a_daemon_and_hang(job: RunningJob) -> None:
    os.waitpid(in_child(job, _daemonize), 0)
    hang()


@fault("exception")
def leave_a_child_and_raise(job: RunningJob) -> None:
    in_child(job, hang)
    raise ValueError


@fault()
def fork_and_return_twice(job: RunningJob) -> float:
    os.fork()
    return own_value(job)


@fault()
def fork_and_raise_in_the_child(job: RunningJob) -> float:
    if os.fork() == 0:
        raise ValueError
    return own_value(job)


@fault("timeout")
def explode_in_processes(job: RunningJob) -> None:
    for _ in range(_BOMB_PROCESSES // 2):
        in_child(job, _daemonize)
    hang()


@fault("timeout")
def answer_signals_with_children(job: RunningJob) -> None:
    def linger(_number: int, _frame: object) -> None:
        in_child(job, hang)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT, signal.SIGCHLD):
        signal.signal(number, linger)
    hang()


@fault()
def leave_shared_memory(job: RunningJob) -> float:
    segment = shared_memory.SharedMemory(create=True, size=1 << 16)
    segment.buf[0] = 1
    segment.close()
    return own_value(job)


@fault("crash")
def leave_shared_memory_and_die(job: RunningJob) -> None:
    shared_memory.SharedMemory(create=True, size=1 << 16)
    os._exit(1)


# -- what the next job must not meet


@fault()
def leave_threads(job: RunningJob) -> float:
    threading.Thread(target=hang, daemon=True).start()
    threading.Thread(target=hang, daemon=False).start()
    return own_value(job)


@fault()
def leave_two_hundred_threads(job: RunningJob) -> float:
    for _ in range(200):
        threading.Thread(target=hang, daemon=True).start()
    return own_value(job)


@fault()
def leave_its_session(job: RunningJob) -> float:
    in_child(job, _hang_in_own_session)
    with contextlib.suppress(OSError):
        os.setsid()
    with contextlib.suppress(OSError):
        os.setpgrp()
    return own_value(job)


@fault()
def disown_orphans(job: RunningJob) -> float:
    subreaper = 36
    ctypes.CDLL(None).prctl(subreaper, 0, 0, 0, 0)
    os.waitpid(in_child(job, _daemonize), 0)
    return own_value(job)


@fault()
def change_the_environment(job: RunningJob) -> float:
    os.environ.clear()
    os.environ["NEW"] = "1"
    return own_value(job)


@fault()
def change_the_environment_behind_python(job: RunningJob) -> float:
    os.putenv("NEW", "1")
    os.unsetenv("PATH")
    return own_value(job)


@fault()
def end_every_later_fork(job: RunningJob) -> float:
    os.register_at_fork(after_in_child=lambda: os._exit(3))
    return own_value(job)


@fault()
def change_the_directory(job: RunningJob) -> float:
    directory = tempfile.mkdtemp()
    os.chdir(directory)
    os.rmdir(directory)  # noqa: PTH106
    return own_value(job)


@fault()
def change_the_umask(job: RunningJob) -> float:
    os.umask(0o777)
    return own_value(job)


@fault()
def change_signal_handlers(job: RunningJob) -> float:
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    return own_value(job)


@fault()
def set_an_alarm(job: RunningJob) -> float:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    return own_value(job)


@fault()
def mask_signals(job: RunningJob) -> float:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    return own_value(job)


@fault()
def lower_limits(job: RunningJob) -> float:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(1)
    time.sleep(0.002)  # what costs more to look at is looked at after jobs that are not over in a blink
    return own_value(job)


@fault()
def change_the_interpreter(job: RunningJob) -> float:
    gc.disable()
    sys.setrecursionlimit(99)
    sys.settrace(lambda *_: None)
    return own_value(job)


@fault()
def close_standard_streams(job: RunningJob) -> float:
    sys.stdout.close()
    sys.stderr.close()
    return own_value(job)


@fault()
def close_standard_descriptors(job: RunningJob) -> float:
    os.closerange(0, 3)
    return own_value(job)


@fault()
def replace_standard_streams(job: RunningJob) -> float:
    sys.stdout = sys.stderr = io.StringIO()
    return own_value(job)


@fault()
def seed_the_generators(job: RunningJob) -> float:
    random.seed(1)
    return own_value(job)


@fault()
def read_standard_input(job: RunningJob) -> float:
    assert sys.stdin.read() == ""
    assert os.read(0, 1) == b""
    return own_value(job)


@fault()
def leave_descriptors_open(job: RunningJob) -> float:
    for _ in range(50):
        os.open(os.devnull, os.O_RDONLY)
    return own_value(job)


@fault("timeout", check=failed_with(stack="hang"))
def leave_a_hanging_exit_handler(job: RunningJob) -> None:
    atexit.register(hang)
    hang()


# -- channels


@fault("crash", check=failed_with(message="channel"))
def close_all_descriptors(job: RunningJob) -> float:
    os.closerange(0, 1 << 16)
    return own_value(job)


@fault("crash", check=failed_with(message="channel"))
def replace_all_descriptors(job: RunningJob) -> float:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        with contextlib.suppress(OSError):
            os.dup2(null, fd)
    return own_value(job)


@fault("crash", check=failed_with(message="protocol"))
def write_garbage_everywhere(job: RunningJob) -> float:
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        with contextlib.suppress(OSError):
            os.set_blocking(fd, False)
            os.write(fd, _GARBAGE)
    return own_value(job)


@fault("exception")
def exhaust_descriptors(job: RunningJob) -> None:
    while True:
        os.open(os.devnull, os.O_RDONLY)
