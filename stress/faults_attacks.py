"""Jobs that turn against the processes and channels around them, and jobs that leave the usual ways of a process."""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from robust_eval import RunningJob
from stress.fault import failed_with, fault, own_value
from stress.faults_ending import hang
from stress.faults_traces import in_child, note

_POLITE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM, signal.SIGQUIT)


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _own_worker() -> Any:
    """The object that runs the job, from the frames below it."""
    from robust_eval.processes.worker import Worker

    frame = sys._getframe()
    while type(frame.f_locals.get("self")) is not Worker:
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_locals["self"]


def _sockets() -> list[int]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).startswith("socket:"):
                found.append(int(entry.name))
    return found


# -- relatives


@fault()
def ask_its_parent_to_end(job: RunningJob) -> float:
    for number in _POLITE:
        os.kill(os.getppid(), number)
    return own_value(job)


@fault()
def ask_its_grandparent_to_end(job: RunningJob) -> float:
    for number in _POLITE:
        os.kill(_parent_of(os.getppid()), number)
    return own_value(job)


@fault()
def stop_its_parent(job: RunningJob) -> float:
    os.kill(os.getppid(), signal.SIGSTOP)
    return own_value(job)


@fault("crash")
def stop_its_parent_and_die(job: RunningJob) -> None:
    os.kill(os.getppid(), signal.SIGSTOP)
    os._exit(1)


@fault("timeout")
def stop_its_parent_and_hang(job: RunningJob) -> None:
    while True:
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(0.01)


@fault("timeout")
def stop_its_grandparent_and_hang(job: RunningJob) -> None:
    os.kill(_parent_of(os.getppid()), signal.SIGSTOP)
    hang()


@fault("lost", pool={"max_retries": 9, "retry_on": ("lost",)}, reruns=True)
def kill_its_parent(job: RunningJob) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    hang()


@fault(pool={"max_retries": 3, "retry_on": ("lost",)}, reruns=True)
def kill_its_grandparent(job: RunningJob) -> float:
    """Once: whoever is killed by each attempt is given up, and the pool with it."""
    try:
        Path(f"{job['diary']}.{job['x']}").touch(exist_ok=False)
    except FileExistsError:
        return own_value(job)
    os.kill(_parent_of(os.getppid()), signal.SIGKILL)
    return hang()


@fault(pool={"max_retries": 9, "retry_on": ("crash",)}, reruns=True)
def kill_its_siblings(job: RunningJob) -> float:
    parent = os.getppid()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdigit() and int(entry.name) != os.getpid() and _parent_of(int(entry.name)) == parent:
                os.kill(int(entry.name), signal.SIGKILL)
    return own_value(job)


@fault("crash", check=failed_with(signal="SIGTERM"))
def terminate_its_group(job: RunningJob) -> None:
    os.killpg(0, signal.SIGTERM)
    hang()


# -- ways of a process


@fault("crash", "timeout", limits={"job_timeout": 5.0}, check=failed_with(exit_code=4))
def become_another_program(job: RunningJob) -> None:
    os.execv("/bin/sh", ["sh", "-c", "exit 4"])  # noqa: S606 - that is the fault


@fault("timeout")
def become_another_program_that_hangs(job: RunningJob) -> None:
    os.execv("/bin/sleep", ["sleep", "3600"])  # noqa: S606 - that is the fault


@fault("crash", check=failed_with(exit_code=0))
def go_on_in_a_child(job: RunningJob) -> float:
    if os.fork():
        os._exit(0)
    return own_value(job)


@fault("timeout")
def be_traced_by_its_parent(job: RunningJob) -> None:
    trace_me = 0
    ctypes.CDLL(None).ptrace(trace_me, 0, None, None)
    os.kill(os.getpid(), signal.SIGUSR1)
    hang()


@fault("timeout")
def trace_its_child(job: RunningJob) -> None:
    child = in_child(job, hang)
    seize = 0x4206
    ctypes.CDLL(None).ptrace(seize, child, None, None)
    hang()


@fault("crash", "timeout", limits={"job_timeout": 5.0})
def be_traced_by_its_daemon_and_die(job: RunningJob) -> None:
    """Its parent is told of its end after the tracer; and its own child's end, if that comes late, stops it before."""
    traced, seize = os.getpid(), 0x4206
    reading, writing = os.pipe()

    def trace(_job: object) -> None:
        ctypes.CDLL(None).ptrace(seize, traced, None, None)
        os.write(writing, b"x")
        hang()

    def daemonize(_job: object) -> None:
        os.setsid()
        in_child(job, trace)

    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    os.waitpid(in_child(job, daemonize), 0)
    os.read(reading, 1)
    os._exit(3)


@fault()
def leave_a_program_by_posix_spawn(job: RunningJob) -> float:
    note(job, os.posix_spawn("/bin/sleep", ["sleep", "3600"], os.environ))
    return own_value(job)


@fault()
def leave_a_child_without_a_signal(job: RunningJob) -> float:
    """The raw clone() of a process that tells nobody of its end."""
    clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    pid = ctypes.CDLL(None).syscall(clone, 0, 0, 0, 0, 0)
    if pid == 0:
        hang()
    note(job, pid)
    return own_value(job)


@fault()
def leave_two_hundred_children(job: RunningJob) -> float:
    for _ in range(200):
        in_child(job, hang)
    return own_value(job)


@fault("timeout")
def leave_a_shell_that_respawns(job: RunningJob) -> None:
    script = "trap '' TERM INT HUP; while :; do sleep 3600 & sleep 0.01; done"
    note(job, subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True).pid)
    hang()


@fault("timeout", heavy=True)
def explode_exponentially(job: RunningJob) -> None:
    for _ in range(8):  # 256 processes, each of which hangs
        if os.fork() == 0:
            note(job, os.getpid())
    hang()


@fault()
def leave_a_printing_thread(job: RunningJob) -> float:
    def chatter() -> None:
        while True:
            os.write(1, b"chatter\n")

    threading.Thread(target=chatter, daemon=True).start()
    return own_value(job)


@fault()
def leave_a_printing_child(job: RunningJob) -> float:
    def chatter(_job: object) -> None:
        while True:
            os.write(1, b"chatter\n")

    in_child(job, chatter)
    return own_value(job)


@fault()
def open_a_named_pipe(job: RunningJob) -> float:
    path = Path(f"{job['diary']}.pipe{job['x']}")
    os.mkfifo(path)
    os.open(path, os.O_RDWR)
    path.unlink()
    return own_value(job)


@fault("timeout")
def wait_for_a_named_pipe(job: RunningJob) -> None:
    path = Path(f"{job['diary']}.pipe{job['x']}")
    os.mkfifo(path)
    os.open(path, os.O_RDONLY)


@fault("exception", "crash")
def exhaust_watches(job: RunningJob) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.inotify_init() >= 0:
        pass
    raise OSError(ctypes.get_errno(), "no more")


@fault("exception")
def pass_on_a_huge_environment(job: RunningJob) -> None:
    subprocess.run(["/bin/true"], env={"HUGE": "x" * (4 << 20)}, check=True)


# -- channels


@fault(pool={"max_retries": 3, "retry_on": ("crash", "lost"), "start_timeout": 8.0}, reruns=True)
def read_all_descriptors(job: RunningJob) -> float:
    """What lies in its inbox are the jobs after it."""
    for fd in _sockets():
        with contextlib.suppress(OSError):
            stolen = socket.socket(fileno=fd)
            with contextlib.suppress(OSError):
                while stolen.recv(1 << 20, socket.MSG_DONTWAIT):
                    pass
            stolen.detach()
    return own_value(job)


@fault("crash", "lost")
def shut_all_channels(job: RunningJob) -> dict[str, Any]:
    """A result that is too large to be held for a moment in the page has to go through them."""
    for fd in _sockets():
        with contextlib.suppress(OSError):
            mine = socket.socket(fileno=fd)
            with contextlib.suppress(OSError):
                mine.shutdown(socket.SHUT_RDWR)
            mine.detach()
    return {"objective": own_value(job), "metadata": {"large": "x" * (1 << 16)}}


@fault("crash", check=failed_with(message="protocol"))
def forge_reports_for_others(job: RunningJob) -> None:
    """Well-formed results for jobs that it does not run, one of them unknown."""
    from robust_eval.processes.parcel import pack_plain

    worker = _own_worker()
    now = time.monotonic()
    for job_id in (0, 1 << 40):
        worker._outbox.report((0, 0), pack_plain((0.0, {}, None)), job_id, (now, now, 0), held=False)
    hang()


@fault()
def announce_that_it_is_ready_again(job: RunningJob) -> float:
    from robust_eval.processes import wire

    worker = _own_worker()
    worker._outbox.send(wire.READY)
    worker._outbox.send(wire.START_FAILED, b"no")
    return own_value(job)


@fault()
def shrink_its_output_pipe(job: RunningJob) -> float:
    fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 4096)
    for _ in range(1000):
        sys.stdout.write("x" * 1000 + "\n")
    return own_value(job)


@fault()
def write_a_false_end_of_its_output(job: RunningJob) -> float:
    worker = _own_worker()
    os.write(1, worker._printed._marker + b"\0" * 8)
    return own_value(job)
