"""One fault on one peer: `python -m stress.bench.fault_cell PEER FAULT REPORT`, run by `stress.bench.matrix`.

Twenty jobs on two workers, two of them guilty, then four more. What came of each is written down as it is known.
"""

import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stress.bench import peers
from stress.bench.cell import Report
from stress.bench.peers.contract import OutOfPatience
from stress.faults import CATALOGUE, Fault, behave, configuration

JOBS = 20
GUILTY = (3, 11)
MORE = range(JOBS, JOBS + 4)
_WARM_UP = range(1000, 1002)
HANG_TIMEOUT_S = 1.0
USUAL_TIMEOUT_S = 5.0
LONG_TIMEOUT_S = 60.0
_QUIET_S = 9.0
_MORE_S = 3.0
_CLOSE_S = 3.0


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """End the block after so long, whatever it waits for."""

    def give_up(*_: object) -> None:
        raise OutOfPatience

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except OutOfPatience:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def settings_for(fault: Fault) -> peers.Settings:
    """A careful user's: a timeout always, a memory limit where memory is what the fault is about."""
    memory_limit = fault.limits.get("memory_limit")
    timeout = HANG_TIMEOUT_S if "job_timeout" in fault.limits else USUAL_TIMEOUT_S
    # A timeout must not do a memory limit's work: on a slow machine it would.
    timeout = timeout if memory_limit is None else LONG_TIMEOUT_S
    return peers.Settings(num_workers=2, job_timeout=timeout, memory_limit=memory_limit)


def collect(session: peers.Session, configs: Sequence[dict[str, Any]], quiet_s: float) -> dict[int, list[str]]:
    """What came of each job: its number, and for each outcome "right", "wrong", or kind and text of its failure.

    It is over when nothing more has come for so long.
    """
    found: dict[int, list[str]] = {}
    try:
        with patience(quiet_s):
            for index, outcome in session.run(configs):
                signal.setitimer(signal.ITIMER_REAL, quiet_s)
                found.setdefault(configs[index]["x"], []).append(_verdict(outcome, configs[index]["x"]))
    except BaseException as error:  # noqa: BLE001 - a pool that breaks raises anything, in the driver what the job raised
        found[-1] = [f"the pool raised {type(error).__name__}"]
    return found


def _verdict(outcome: peers.Outcome, x: int) -> str:
    if outcome.error is not None:
        return f"failed {outcome.kind} {outcome.error}"
    value = outcome.value.get("objective") if isinstance(outcome.value, dict) else outcome.value
    return "right" if value == 2.0 * x else "wrong"


def main(peer_name: str, fault_name: str, report_path: str) -> None:
    """Run the cell."""
    report = Report(report_path)
    fault, peer = CATALOGUE[fault_name], peers.load(peer_name)
    directory = Path(tempfile.mkdtemp(prefix="cell"))
    diary = directory / "diary"
    try:
        session = peer.make(behave, settings_for(fault))
        # More than once: some count the start of their workers against the timeout of the first calls.
        for _ in range(3):
            warm = collect(session, [configuration(x, directory / "warm") for x in _WARM_UP], 20.0)
            if all(verdicts == ["right"] for verdicts in warm.values()):
                break
        report.say(ready=warm)
        configs = [configuration(x, diary, fault if x in GUILTY else None) for x in range(JOBS)]
        report.say(first=collect(session, configs, _QUIET_S))
        report.say(more=collect(session, [configuration(x, diary) for x in MORE], _MORE_S))
        report.say(runs=Counter(diary.read_text().split()))
        with patience(_CLOSE_S):
            session.close()
            report.say(closed=True)
    finally:
        report.say(ending=os.getpid())


if __name__ == "__main__":
    main(*sys.argv[1:])
