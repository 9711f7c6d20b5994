"""The sweep of the demo: which configurations, under which limits, and the run function.

It shows nothing; `robust_eval.demo.show` does. The run function is importable by name, so workers need
nothing but this module.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Final

from robust_eval.demo import simulations

# Several times what the slowest honest configuration takes, and needs, on a busy laptop.
JOB_TIMEOUT_S: Final = 5.0
MEMORY_LIMIT: Final = "512MiB"

_STIFFNESS: Final = (1.0, 10.0, 100.0, 1e5)
_SOLVERS: Final = ("LSODA", "Radau", "BDF", "RK45", "DOP853")


def configurations() -> list[dict[str, Any]]:
    """Give the configurations of the sweep, always the same, in an order that mixes good and bad."""
    rows = [*_oscillators(), *_marches(), *_regressions(), *_quadratures()]
    # A stride that shares no factor with the length visits each once and keeps neighbours apart.
    stride = next(step for step in range(len(rows) // 3, len(rows)) if _coprime(step, len(rows)))
    return [rows[stride * index % len(rows)] for index in range(len(rows))]


def run(job: Mapping[str, Any]) -> float:
    """Run one simulation: the run function of the sweep.

    Args:
        job: ``simulation`` names a function of `robust_eval.demo.simulations`, the other keys are its
            arguments.

    Returns:
        The objective: more is better.
    """
    arguments = {name: job[name] for name in _ARGUMENTS[job["simulation"]] if name in job}
    simulation = getattr(simulations, job["simulation"])
    return float(simulation(**arguments))


_ARGUMENTS: Final = {
    "oscillator": ("method", "mu", "start"),
    "march": ("mu", "step"),
    "regression": ("columns", "degree"),
    "quadrature": ("levels",),
}


def _oscillators() -> Iterator[dict[str, Any]]:
    for mu, method in product(_STIFFNESS, _SOLVERS):
        yield {"simulation": "oscillator", "method": method, "mu": mu}
    for method in ("LSODA", "RK45", "BDF"):
        yield {"simulation": "oscillator", "method": method, "mu": -1.0, "start": 3.0}


def _marches() -> Iterator[dict[str, Any]]:
    for mu, step in ((1.0, 1e-3), (10.0, 1e-3), (1000.0, 1e-3)):
        yield {"simulation": "march", "mu": mu, "step": step}


def _regressions() -> Iterator[dict[str, Any]]:
    for columns, degree in product((5, 10, 20, 60), (1, 2, 3)):
        yield {"simulation": "regression", "columns": columns, "degree": degree}
    for columns, degree in ((60, 4), (60, 5), (20, 8), (60, 9)):
        yield {"simulation": "regression", "columns": columns, "degree": degree}


def _quadratures() -> Iterator[dict[str, Any]]:
    for levels in (5, 10, 20, 40, 80, 160, 320, 640, 5_000, 200_000, 400_000):
        yield {"simulation": "quadrature", "levels": levels}


def _coprime(step: int, length: int) -> bool:
    return all(length % factor or step % factor for factor in range(2, step + 1))
