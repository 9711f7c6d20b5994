"""Samples to figures: medians, spreads, and what became of the targets."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from stress.bench.speed.measurement import Figure, Measurement

Samples = Mapping[str, list[dict[str, Any]]]


def medians(samples: Samples, figure: str) -> dict[str, float]:
    """The median of one figure for everyone who has it."""
    found = {peer: [taken[figure] for taken in every if figure in taken] for peer, every in samples.items()}
    return {peer: statistics.median(values) for peer, values in found.items() if values}


def spread(samples: Iterable[Mapping[str, Any]], figure: str) -> tuple[float, float]:
    """The least and the most of one figure."""
    values = [taken[figure] for taken in samples if figure in taken]
    return min(values), max(values)


def ratio(ours: float, theirs: float, *, more_is_better: bool) -> float:
    """How many times better ours is; below 1 it is worse."""
    better, worse = (ours, theirs) if more_is_better else (theirs, ours)
    return better / worse if worse else float("inf")


def judged(measurement: Measurement, samples: Samples) -> list[tuple[Figure, str, bool | None]]:
    """Each target of a measurement, and whether ours, the first that takes part, reached it."""
    ours = next(iter(measurement.sizes))
    found = []
    for name, figure in measurement.figures.items():
        middle = medians(samples, name)
        for target in figure.targets:
            holds = target.holds(middle[ours], middle, more_is_better=figure.more_is_better) if ours in middle else None
            found.append((figure, target.text, holds))
    return found
