"""What a measurement is: who takes part, how one sample is taken, and what its figures must reach."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Medians = Mapping[str, float]
Sample = Callable[[str, int], dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """What ours must reach: a bound, or a factor of the best of some others.

    Attributes:
        text: as it stands in the table.
        bound: an absolute one; None for a comparison.
        against: the others; those that were not measured are left out.
        factor: of the best of them.
    """

    text: str
    bound: float | None = None
    against: tuple[str, ...] = ()
    factor: float = 1.0

    def holds(self, ours: float, medians: Medians, *, more_is_better: bool) -> bool | None:
        """Whether it is reached; None where nothing was measured to compare with."""
        others = [medians[name] for name in self.against if name in medians]
        if self.bound is None and not others:
            return None
        best = max(others, default=0.0) if more_is_better else min(others, default=0.0)
        limit = self.factor * best if self.bound is None else self.bound
        return ours >= limit if more_is_better else ours <= limit


@dataclass(frozen=True)
class Figure:
    """One number of a sample."""

    title: str
    unit: str
    more_is_better: bool = True
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One module of this package.

    Attributes:
        title: what is measured, in one line.
        sample: takes one sample: who, and how much; gives its figures by name.
        sizes: who takes part, ours first, and with how much of whatever is counted.
        figures: what a sample gives.
        quick: by what sizes are divided for `--quick`.
        limit_s: how long one sample may take.
        note: how it is measured, as far as the title does not say it.
    """

    title: str
    sample: Sample
    sizes: Mapping[str, int]
    figures: Mapping[str, Figure]
    quick: int = 10
    limit_s: float = 120.0
    note: str = ""
    titles: Mapping[str, str] = field(default_factory=dict)
