"""Whether a cell passed, and if not, why: the rules of the comparison, the same for everyone.

A cell passes if every innocent job delivers its own right result and ran exactly once, the guilty ones are reported,
the pool is usable at once, and no process is left. Of ours the kind of failure must be right too; of a peer any error
will do, and so will the right result where it gets by without, say, pickling what does not pickle.
"""

from collections.abc import Mapping

from stress.bench.cell import Ended
from stress.bench.fault_cell import GUILTY, JOBS, MORE
from stress.bench.peers import OURS
from stress.fault import Fault

# One letter each, in this order; the legend of every table.
REASONS = {
    "i": "an innocent job failed or was lost",
    "g": "a guilty job was never reported, or delivered a wrong value",
    "k": "a failure of the wrong kind (asked of robust_eval alone)",
    "2": "a job ran twice",
    "u": "the pool did not run the next four jobs",
    "m": "the memory limit did not hold: 3 GiB were taken",
    "c": "closing it raised or did not end: its process had to be killed",
    "p": "processes were left behind",
    "s": "it did not start",
}


def judge(peer: str, fault: Fault, ended: Ended) -> str:
    """The letters of what went wrong; empty if nothing did."""
    told = ended.told()
    if "ready" not in told or any(verdicts != ["right"] for verdicts in told["ready"].values()):
        return "s"
    first, more = told.get("first", {}), told.get("more", {})
    wrong = {
        "i": any(first.get(str(x)) != ["right"] for x in range(JOBS) if x not in GUILTY),
        "g": not all(_reported(first.get(str(x)), fault, peer) for x in GUILTY),
        "k": peer in OURS and not all(_kind_is_right(first.get(str(x)), fault) for x in GUILTY),
        "2": any(count > 1 for count in told.get("runs", {}).values()),
        "u": any(more.get(str(x)) != ["right"] for x in MORE),
        "m": ended.how == "memory",
        "c": ended.how == "limit" or (ended.how == "ended" and "closed" not in told),
        "p": bool(ended.left),
    }
    if ended.how == "memory":  # it was killed for that; what it had not done yet is not held against it
        return "m"
    return "".join(letter for letter, is_so in wrong.items() if is_so)


def _reported(verdicts: list[str] | None, fault: Fault, peer: str) -> bool:
    """One outcome. A peer may report any error, or do the job rightly all the same; ours does as the catalogue says."""
    if verdicts is None or len(verdicts) != 1:
        return False
    if peer in OURS:
        return verdicts[0].startswith("failed") if fault.kinds else verdicts == ["right"]
    return verdicts[0].startswith("failed") or verdicts == ["right"]


def _kind_is_right(verdicts: list[str] | None, fault: Fault) -> bool:
    if verdicts is None or not fault.kinds:
        return True
    return all(verdict.split()[1] in fault.kinds for verdict in verdicts if verdict.startswith("failed"))


def innocent_right(first: Mapping[str, list[str]]) -> int:
    """How many of the innocent jobs delivered their own result."""
    return sum(first.get(str(x)) == ["right"] for x in range(JOBS) if x not in GUILTY)
