"""No-op calls a second through the bare pool, beside every peer and a pipeline that supervises nothing."""

from stress.bench.functions import noop
from stress.bench.peers import BESIDE
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import throughput

SIZES = {
    "our_pool": 50_000,
    "our_executor": 20_000,
    "pipeline": 50_000,
    "plain_pipeline": 50_000,
    "relayed_pipeline": 50_000,
    "futures": 10_000,
    "mp_pool": 20_000,
    "pebble": 4_000,
    "deadpool": 4_000,
    "loky": 4_000,
    "mpire": 10_000,
    "joblib": 4_000,
    "billiard": 10_000,
    "pynisher": 100,
    "ray": 4_000,
    "dask": 1_000,
    "deephyper": 1_000,
}
PEERS = tuple(name for name in SIZES if name not in {"our_pool", *BESIDE})


def sample(peer: str, size: int) -> dict[str, float]:
    """All at once, after a hundred to warm up."""
    return throughput(peer, noop, size)


MEASUREMENT = Measurement(
    "no-op calls through the pool itself, 2 workers, our budgets on",
    sample,
    SIZES,
    {
        "rate": Figure(
            "calls a second",
            "/s",
            targets=(
                Target("4x concurrent.futures", against=("futures",), factor=4.0),
                Target("above every peer", against=PEERS),
                Target("a third of the bare pipeline", against=("pipeline",), factor=1 / 3),
                Target("a third of the bare pipeline, a message a call", against=("plain_pipeline",), factor=1 / 3),
                Target("a third of it through a third process", against=("relayed_pipeline",), factor=1 / 3),
            ),
        ),
        "cpu": Figure("CPU of all processes a call", "us", more_is_better=False),
    },
    note="The slower get fewer calls. Every call is submitted by itself, none in chunks; pynisher has one worker.",
)
