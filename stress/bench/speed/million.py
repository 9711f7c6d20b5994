"""A million queued jobs: does a job cost more among many."""

from stress.bench.functions import noop
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import finish, session

_FEWER = 100


def sample(peer: str, size: int) -> dict[str, float]:
    """The time a job among so many by that among a hundredth of them, both on the same warm pool."""
    few = size // _FEWER
    with session(peer, noop, [{"x": 0}] * few) as opened:
        few_s = min(finish(opened, [{"x": x} for x in range(few)]) for _ in range(3)) / few
        many_s = finish(opened, [{"x": x} for x in range(size)]) / size
    return {"ratio": many_s / few_s, "rate": 1 / many_s}


MEASUREMENT = Measurement(
    "1,000,000 jobs queued at once against 10,000",
    sample,
    {"our_pool": 1_000_000, "ours": 1_000_000},
    {
        "ratio": Figure(
            "time a job, of the time among 10,000",
            "x",
            more_is_better=False,
            targets=(Target("1.3x", bound=1.3),),
        ),
        "rate": Figure("jobs a second at 1,000,000", "/s"),
    },
    limit_s=400.0,
)
