"""No-op jobs a second through an evaluator."""

from stress.bench.functions import noop
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import throughput


def sample(peer: str, size: int) -> dict[str, float]:
    """All at once, after a hundred to warm up."""
    return throughput(peer, noop, size)


MEASUREMENT = Measurement(
    "no-op jobs through submit and gather, 20,000 at once, 2 workers, our budgets on",
    sample,
    {"ours": 20_000, "futures": 20_000, "deephyper": 2_000},
    {
        "rate": Figure(
            "jobs a second",
            "/s",
            targets=(
                Target("2x concurrent.futures", against=("futures",), factor=2.0),
                Target("20x DeepHyper", against=("deephyper",), factor=20.0),
            ),
        ),
        "cpu": Figure("CPU of all processes a call", "us", more_is_better=False),
    },
    note="DeepHyper gets 2,000 jobs, the others 20,000; concurrent.futures is called unchunked.",
)
