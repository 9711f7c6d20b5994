# ruff: noqa: NPY002 - the global generator of numpy is what is tested
"""What a job leaves behind is noticed. Each test runs in a forked child, whose state it may spoil."""

import builtins
import ctypes
import decimal
import faulthandler
import fcntl
import gc
import importlib
import locale
import multiprocessing
import os
import pickle
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.random  # a lazy import would move the generators that are looked at
import pytest
from children import Helper, in_child

from robust_eval.processes import hygiene
from robust_eval.processes import randomness as randomness_module
from robust_eval.processes.heard import Calls
from robust_eval.processes.hygiene import Baseline, Builtins
from robust_eval.processes.layout import STOP_SIGNAL
from robust_eval.processes.randomness import Randomness


def leave_a_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def leak_descriptors() -> None:
    for _ in range(hygiene._MOST_LEAKED_DESCRIPTORS):
        os.dup(0)


def stand_in_a_deleted_directory() -> None:
    os.mkdir("gone")  # noqa: PTH102
    os.chdir("gone")
    os.rmdir("../gone")  # noqa: PTH106


def close_stdout() -> None:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    baseline = Baseline(Builtins())
    assert baseline.changed() is None
    sys.stdout.close()
    assert baseline.changed() is not None


def replace_stdout_file() -> None:
    with open(os.devnull, "wb") as null:  # noqa: PTH123
        os.dup2(null.fileno(), 1)


def reopen_stdout() -> None:
    os.close(1)
    assert os.open(os.devnull, os.O_WRONLY) == 1


def reopen_all() -> None:
    os.closerange(0, 3)
    assert [os.open(os.devnull, os.O_RDWR) for _ in range(3)] == [0, 1, 2]


def halve(limit: int) -> None:
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (soft // 2, hard))


def round_up() -> None:
    ctypes.CDLL("libm.so.6").fesetround({"x86_64": 0x800, "aarch64": 0x400000}[os.uname().machine])


def make_a_timer() -> None:
    monotonic = 1
    ctypes.CDLL(None).timer_create(monotonic, None, ctypes.byref(ctypes.c_void_p()))


def ignore_in_c() -> None:
    ctypes.CDLL(None).signal(int(signal.SIGCHLD), ctypes.c_void_p(1))


def leave_the_network() -> None:
    new_network = 0x40000000
    ctypes.CDLL(None).unshare(new_network)


def _not_blocking() -> int:
    _, writing = os.pipe()
    os.set_blocking(writing, False)
    return writing


QUICK: list[tuple[str, Callable[[], Any]]] = [
    ("environment", lambda: os.environ.update(LEFT_BY_A_JOB="1")),
    ("environment", lambda: os.environ.pop("PATH")),
    ("standard streams", lambda: setattr(sys, "stdout", sys.stderr)),
    ("threads", leave_a_thread),
    ("descriptors", leak_descriptors),
    ("descriptors", lambda: os.close(0)),
    ("working directory", lambda: os.chdir("..")),
    ("working directory", stand_in_a_deleted_directory),
    ("signal handlers", lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)),
    ("signal handlers", lambda: signal.signal(signal.SIGINT, lambda *_: None)),
    ("timers", lambda: signal.setitimer(signal.ITIMER_REAL, 1000.0)),
    ("signal mask", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])),
    ("recursion limit", lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1)),
    ("garbage collector", gc.disable),
    ("garbage collector", lambda: gc.set_threshold(1)),
    ("umask", lambda: os.umask(0o777)),
    ("trace function", lambda: sys.setprofile(lambda *_: None)),
    ("signal handlers", lambda: signal.signal(signal.SIGWINCH, signal.SIG_IGN)),
    ("timers", lambda: signal.setitimer(signal.ITIMER_PROF, 1000.0)),
    ("signal descriptor", lambda: signal.set_wakeup_fd(_not_blocking())),
    ("hooks", lambda: setattr(sys, "excepthook", print)),
    ("hooks", lambda: gc.callbacks.append(lambda *_: None)),
    ("faulthandler", lambda: faulthandler.enable() if not faulthandler.is_enabled() else faulthandler.disable()),
    ("output", lambda: sys.stdout.reconfigure(encoding="latin-1")),  # type: ignore[attr-defined]
    ("warnings", lambda: warnings.simplefilter("error", BytesWarning)),
    ("start method", lambda: multiprocessing.set_start_method("forkserver", force=True)),
    ("modules", sys.modules.clear),
    ("modules", sys.path.clear),
    ("modules", sys.meta_path.pop),
    ("modules", lambda: sys.meta_path.insert(0, object())),
    ("modules", lambda: sys.path_hooks.append(print)),
    ("resource limits", lambda: halve(resource.RLIMIT_NOFILE)),
    (
        "core modules" if sys.version_info < (3, 12) else "functions of core modules",
        lambda: setattr(os, "write", print),
    ),
    ("hidden hooks or threads", lambda: sys.addaudithook(lambda *_: None)),
    ("settings", lambda: socket.setdefaulttimeout(1.0)),
    ("settings", lambda: threading.stack_size(65536)),
    ("settings", lambda: sys.setswitchinterval(1.0)),
    ("arithmetic", round_up),
    ("arithmetic", lambda: setattr(decimal.getcontext(), "prec", 3)),
    ("timers of the kernel", make_a_timer),
    ("surroundings", leave_the_network),
    ("ignored signals", ignore_in_c),
    ("temporary directory", lambda: setattr(tempfile, "tempdir", "elsewhere")),
    ("signal handlers", lambda: signal.signal(STOP_SIGNAL, signal.SIG_IGN)),
    ("scheduling", lambda: os.nice(1)),
    ("scheduling", lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))),
]


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs may spoil the directory that they stand in."""
    monkeypatch.chdir(tmp_path)


def in_clean_child(function: Callable[[], Any]) -> Any:
    """As `in_child`, with standard input open and the streams of a worker."""

    def call() -> Any:
        with open(os.devnull, "rb") as null:  # noqa: PTH123
            os.dup2(null.fileno(), 0)
        sys.settrace(None)
        return function()

    return in_child(call)


@pytest.mark.parametrize(("name", "change"), QUICK, ids=lambda value: value if isinstance(value, str) else "")
def test_what_a_job_changed_is_named(name: str, change: Callable[[], Any]):
    """Nothing is named before, the change after."""

    def look() -> tuple[str | None, str | None]:
        multiprocessing.get_context()
        baseline = Baseline(Builtins())
        before = baseline.changed()
        change()
        return before, baseline.changed()

    assert in_clean_child(look) == (None, name)


def test_the_first_use_of_a_module_is_no_change():
    """A job that is the first to calculate with `decimal`, or to ask for a temporary file, changes nothing by that."""

    def look() -> list[str | None]:
        for name in ("decimal", "_decimal", "tempfile"):
            sys.modules.pop(name, None)
        baseline = Baseline(Builtins(), Calls())
        assert importlib.import_module("decimal").Decimal(1) / 3
        importlib.import_module("tempfile").gettempdir()
        return [baseline.changed(), baseline.changed_thoroughly()]

    assert in_clean_child(look) == [None, None]


def test_a_finder_that_a_module_brings_on_its_import_is_no_change(tmp_path: Any):
    """As `six` does; one that is there with no new module is the job's own."""
    (tmp_path / "with_finder.py").write_text("import sys\nsys.meta_path.append(object())\n")

    def look() -> list[str | None]:
        sys.path.insert(0, str(tmp_path))
        baseline = Baseline(Builtins(), Calls())
        importlib.import_module("with_finder")
        seen = [baseline.changed(), baseline.changed()]
        sys.meta_path.pop()
        return [*seen, baseline.changed()]

    assert in_clean_child(look) == [None, None, "modules"]


def test_a_start_method_that_was_only_used_can_still_be_chosen():
    """A lock of `multiprocessing` settles on the default; the next job may choose. What was chosen before stays."""

    def look() -> tuple[str | None, str | None, str]:
        multiprocessing.set_start_method(None, force=True)
        baseline = Baseline(Builtins())
        multiprocessing.get_context()
        used = baseline.changed()
        multiprocessing.set_start_method("fork")
        chosen = Baseline(Builtins())
        return used, chosen.changed(), multiprocessing.get_start_method(allow_none=True)

    assert in_clean_child(look) == (None, None, "fork")


def test_what_a_module_sets_on_its_import_is_no_change(tmp_path: Any):
    """As scikit-learn does; what the job itself sets is one, of the same name, too."""
    (tmp_path / "setting_on_import.py").write_text(
        "import os\nos.environ.update(SET_ON_IMPORT='1', SHORT='1')\ndel os.environ['SHORT']\n"
    )

    def look() -> list[str | None]:
        sys.path.insert(0, str(tmp_path))
        baseline = Baseline(Builtins(), Calls().listen())
        importlib.import_module("setting_on_import")
        seen = [baseline.changed()]
        os.environ["SET_ON_IMPORT"] = "2"
        return [*seen, baseline.changed(), Baseline(Builtins()).changed()]

    assert in_clean_child(look) == [None, "environment", None]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one CPU has one affinity")
def test_a_processor_chosen_is_noticed():
    """The next job would have to share it."""

    def look() -> str | None:
        baseline = Baseline(Builtins())
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return baseline.changed()

    assert in_clean_child(look) == "scheduling"


def mask_as_early_as_imported() -> None:
    importlib.import_module("masking_early").mask()


NOTED: list[tuple[str, Callable[[], Any]]] = [
    ("signal handlers", lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)),
    ("signal mask", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])),
    ("timers", lambda: signal.setitimer(signal.ITIMER_REAL, 1000.0)),
    ("timers", lambda: signal.alarm(1000)),
    ("signal descriptor", lambda: signal.set_wakeup_fd(_not_blocking())),
    ("umask", lambda: os.umask(0o777)),
    ("umask", lambda: importlib.import_module("posix").umask(0o777)),
    ("umask", mask_as_early_as_imported),
    ("locale", lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8")),
    ("scheduling", lambda: os.nice(1)),
    ("scheduling", lambda: os.setpriority(os.PRIO_PROCESS, 0, 1)),
    ("scheduling", lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))),
    ("working directory", lambda: os.chdir("..")),
    ("resource limits", lambda: halve(resource.RLIMIT_NOFILE)),
    ("resource limits", lambda: halve(resource.RLIMIT_SIGPENDING)),
    ("standard files", replace_stdout_file),
    ("standard files", reopen_stdout),
    ("standard files", reopen_all),
    ("standard files", lambda: os.set_blocking(0, False)),
    ("standard files", lambda: fcntl.fcntl(0, fcntl.F_SETFL, os.O_NONBLOCK)),
    ("environment", lambda: os.putenv("BEHIND_OS_ENVIRON", "1")),
    ("environment", lambda: os.unsetenv("PATH")),
]


@pytest.mark.parametrize(("name", "change"), NOTED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_call_that_is_heard_of_is_followed_by_a_look(
    name: str, change: Callable[[], Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    """After a job as short as can be: none of this is looked at after jobs that made no such call."""
    (tmp_path / "masking_early.py").write_text("from os import umask\ndef mask():\n    umask(0o777)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def look() -> list[str | None]:
        calls = Calls().listen()
        importlib.import_module("masking_early")
        baseline = Baseline(Builtins(), calls)
        before = baseline.changed()
        change()
        return [before, baseline.changed()]

    assert in_clean_child(look) == [None, name]


def test_what_a_job_puts_back_costs_no_worker():
    """It is looked at once, and not again after the jobs that follow."""

    def look() -> tuple[str | None, bool, str | None]:
        calls = Calls().listen()
        baseline = Baseline(Builtins(), calls)
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, before)
        os.environ["FOR_A_WHILE"] = "1"
        del os.environ["FOR_A_WHILE"]
        return baseline.changed(), calls.passing, baseline.changed()

    assert in_clean_child(look) == (None, False, None)


def test_what_no_call_told_of_is_seen_after_a_long_job():
    """As what code in C has changed."""

    def look() -> tuple[bool, bool]:
        unheard = os.umask
        baseline = Baseline(Builtins(), Calls().listen())
        unheard(0o777)
        return baseline.is_changed(0.0), baseline.is_changed(2 * hygiene.LONG_S)

    assert in_clean_child(look) == (False, True)


def test_functions_that_are_listened_to_pickle_and_keep_their_names():
    """Under the name that they have everywhere, so that one travels to a process where nobody listens."""

    def look() -> tuple[object, str]:
        Calls().listen()
        return pickle.loads(pickle.dumps(os.umask)) is os.umask, os.umask.__name__

    assert in_clean_child(look) == (True, "umask")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_noticed():
    """The next job would not have its permissions."""

    def look() -> str | None:
        baseline = Baseline(Builtins())
        os.seteuid(65534)
        return baseline.changed()

    assert in_clean_child(look) == "user"


def test_a_pipe_that_does_not_block_any_more_is_noticed():
    """The next job would lose most of what it prints."""

    def look() -> tuple[str | None, str | None]:
        _, writing = os.pipe()
        os.dup2(writing, 1)
        baseline = Baseline(Builtins())
        before = baseline.changed()
        os.set_blocking(1, False)
        return before, baseline.changed()

    assert in_clean_child(look) == (None, "standard files")


def replace_environ() -> None:
    os.environ = {}  # type: ignore[assignment] # noqa: B003 - that is the fault


class Jealous:
    """Is not to be compared."""

    def __eq__(self, _other: object) -> bool:
        raise ValueError

    __hash__ = None  # type: ignore[assignment]


SPOILS: dict[str, Callable[[], Any]] = {
    "stdout_detached": sys.stdout.detach,
    "stdout_deleted": lambda: delattr(sys, "stdout"),
    "environ_replaced": replace_environ,
    "hook_that_cannot_be_compared": lambda: setattr(sys, "excepthook", Jealous()),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
def test_what_cannot_even_be_looked_at_is_a_change(spoil: Callable[[], Any]):
    """The check itself does not raise: the job has its own value, and its worker is replaced."""

    def look() -> tuple[bool, bool]:
        baseline = Baseline(Builtins())
        before = baseline.is_changed(1.0)
        spoil()
        return before, baseline.is_changed(1.0)

    assert in_clean_child(look) == (False, True)


def test_builtins_come_back_and_count_as_a_change():
    """A worker needs them to report, and is then replaced."""

    def look() -> tuple[bool, object, str | None]:
        kept = Builtins()
        baseline = Baseline(kept)
        kept.restore()
        before = baseline.changed()
        vars(builtins).clear()
        kept.restore()
        return before is None, len("two") == 3, baseline.changed()

    assert in_clean_child(look) == (True, True, "builtins")


def test_a_watchdog_left_armed_is_called_off():
    """A watchdog of faulthandler would end the process in the middle of another job."""

    def look() -> str:
        faulthandler.dump_traceback_later(0.05, exit=True)
        assert not Baseline(Builtins()).is_changed(0.0)
        time.sleep(0.2)  # what is tested is that nothing happens
        return "alive"

    assert in_clean_child(look) == "alive"


def test_a_closed_stream_is_noticed():
    """The next job could not print."""
    assert in_clean_child(close_stdout) is None


def test_a_closed_standard_file_is_noticed():
    """The next file that is opened would take its number."""

    def look() -> str | None:
        baseline = Baseline(Builtins())
        os.close(1)
        return baseline.changed_thoroughly()

    assert in_clean_child(look) == "standard files"


def test_an_honest_job_changes_nothing():
    """What restores, draws, computes, keeps a file or two, and waits for its children is not replaced."""

    def look() -> tuple[str | None, str | None]:
        baseline = Baseline(Builtins())
        random.random()
        np.random.random()
        directory = os.getcwd()  # noqa: PTH109
        os.chdir("/")
        os.chdir(directory)
        kept = os.dup(0)
        subprocess.run([sys.executable, "-S", "-c", ""], check=True)
        thread = threading.Thread(target=random.random)
        thread.start()
        thread.join()
        return baseline.changed(), baseline.changed_thoroughly() if kept else None

    assert in_clean_child(look) == (None, None)


# -- random state


def test_a_generator_that_moved_gets_a_fresh_seed():
    """A draw, a seed and a restored state: the next job never meets what the last one left."""

    def look() -> list[bool]:
        randomness, renewed = Randomness(None), []
        for spoil in (random.random, lambda: random.seed(1), lambda: random.setstate(random.Random(2).getstate())):
            spoil()
            left = random.getstate()
            randomness.renew()
            renewed.append(random.getstate() != left)
        for spoil in (np.random.random, lambda: np.random.seed(1), lambda: np.random.normal(size=700)):
            spoil()
            left = np.random.get_state()[1].tolist()
            randomness.renew()
            renewed.append(np.random.get_state()[1].tolist() != left)
        return renewed

    assert in_child(look) == [True] * 6


def test_a_generator_that_did_not_move_keeps_its_state():
    """A seed costs more than many a job."""

    def look() -> bool:
        randomness = Randomness(None)
        before = random.getstate(), np.random.get_state()[1].tolist()
        randomness.renew()
        return before == (random.getstate(), np.random.get_state()[1].tolist())

    assert in_child(look)


def test_forked_workers_draw_different_numbers():
    """Each seeds itself from the system, numpy's generator too."""

    def draw() -> tuple[float, float]:
        Randomness(None)
        return random.random(), float(np.random.random())

    drawn = [in_child(draw) for _ in range(3)]
    assert len(set(drawn)) == 3
    assert len({number for pair in drawn for number in pair}) == 6


def test_a_seed_of_the_user_is_used_once():
    """Two workers of one seed draw the same, and a job goes on where the last one stopped."""

    def draw() -> tuple[list[float], list[float]]:
        randomness = Randomness(2**32 + 7)
        ours, theirs = [], []
        for _ in range(2):
            ours.append(random.random())
            theirs.append(float(np.random.random()))
            randomness.renew()
        return ours, theirs

    first, second = in_child(draw), in_child(draw)
    assert first == second
    assert len(set(first[0])) == len(set(first[1])) == 2
    assert first[1] == np.random.RandomState(7).random_sample(2).tolist()


def test_where_the_state_is_not_where_it_was_every_job_gets_a_seed():
    """An interpreter that keeps its generators elsewhere costs time and no randomness."""

    def look() -> list[bool]:
        randomness_module._RANDOM_INDEX_OFFSET = 24
        randomness = Randomness(None)
        randomness._numpy_state = None
        ours, theirs = random.getstate(), np.random.get_state()[1].tolist()
        randomness.renew()
        return [
            randomness._random_state is None,
            random.getstate() != ours,
            np.random.get_state()[1].tolist() != theirs,
        ]

    assert in_child(look) == [True, True, True]


def test_a_bit_generator_of_the_user_s_own_is_no_obstacle():
    """Without `state_address` or `seed` there is nothing to look at, and nothing raises."""

    class Nothing:
        seed = None
        mtrand = None

    def look() -> bool:
        sys.modules["numpy.random"] = Nothing()
        randomness = Randomness(None)
        randomness.renew()
        return randomness._numpy_state is None

    assert in_child(look)


NUMPY_LATER = """
import random, sys
from robust_eval.processes.randomness import Randomness
assert "numpy" not in sys.modules
randomness = Randomness({seed})
{then}
print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("seed", "then"),
    [
        ("None", "randomness.renew()\nassert randomness._numpy is None"),
        ("None", "import numpy.random as n\nn.seed(1)\nrandomness.renew()\nassert n.random() != 0.417022004702574"),
        ("1", "import numpy.random as n\nassert n.random() == 0.417022004702574"),
    ],
)
def test_numpy_may_come_later_or_never(seed: str, then: str):
    """Found when a job has imported it; with a seed of the user's it is seeded before."""
    with Helper(NUMPY_LATER.format(seed=seed, then=then)) as helper:
        assert helper.read() == "done"


def test_without_numpy_a_seed_is_for_random_alone():
    """What is not installed is not missed."""

    def look() -> bool:
        for name in [name for name in sys.modules if name.partition(".")[0] == "numpy"]:
            del sys.modules[name]
        sys.modules["numpy"] = None  # type: ignore[assignment] # makes its import fail
        randomness = Randomness(5)
        randomness.renew()
        return random.random() == random.Random(5).random()

    assert in_child(look)


def test_reading_the_state_in_place_reads_the_state():
    """The glimpse of the C objects holds the position that the generators themselves report."""

    def look() -> bool:
        randomness = Randomness(None)
        random.random()
        np.random.random()
        ours, theirs = randomness._random_state, randomness._numpy_state
        assert ours is not None
        assert theirs is not None
        words = ctypes.c_int * 4
        return (
            words.from_buffer_copy(ours)[0] == random.getstate()[1][-1]
            and words.from_buffer_copy(theirs)[-1] == np.random.get_state()[2]
        )

    assert in_child(look)


def test_after_a_call_that_changes_the_rare_it_is_looked_at():
    """Python tells of such calls, also where they were made before the baseline; without one nobody looks."""

    def look() -> tuple[str | None, ...]:
        deaf = Baseline(Builtins(), Calls())
        os.chdir("/")
        unheard = deaf.changed()
        heard = Baseline(Builtins(), Calls().listen())
        sys.audit("open", "x", "r", 0)
        unheard_of = heard.changed()
        os.chdir("/tmp")
        return unheard, unheard_of, heard.changed()

    assert in_clean_child(look) == (None, None, "working directory")
