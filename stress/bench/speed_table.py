"""The speed figures as Markdown, which is also what the command prints; made from the JSON alone."""

from collections.abc import Mapping
from typing import Any

from stress.bench import peers, speed, statistic
from stress.bench.speed.measurement import Figure, Measurement

_MARKS = {True: "reached", False: "**not reached**", None: "not compared"}
# What `stress.bench.plots` draws beside the page, by the measurement that it is made of.
PLOTS = {
    "curve": ("performance-curve.svg", "Jobs a second against the length of a job"),
    "deadline_idle": ("performance-kills.svg", "How long after its deadline a job was reported"),
}
_LARGE, _SMALL = 1000, 10


def number(value: float) -> str:
    """Three digits or so."""
    if abs(value) >= _LARGE:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 10 * _SMALL else f"{value:.1f}" if abs(value) >= _SMALL else f"{value:.2f}"


def title_of(measurement: Measurement, peer: str) -> str:
    """The name of one who takes part."""
    return measurement.titles.get(peer) or peers.load(peer).title


def targets(samples: Mapping[str, statistic.Samples]) -> str:
    """One row a target: ours, what it must reach, whether it does."""
    lines = ["| what | ours | must reach | |", "|---|---|---|---|"]
    for name, taken in samples.items():
        measurement = speed.load(name)
        for figure, text, holds in statistic.judged(measurement, taken):
            key = next(key for key, other in measurement.figures.items() if other is figure)
            ours = statistic.medians(taken, key).get(next(iter(measurement.sizes)))
            shown = "?" if ours is None else f"{number(ours)} {figure.unit}"
            lines.append(f"| {measurement.title}: {figure.title} | {shown} | {text} | {_MARKS[holds]} |")
    return "\n".join(lines)


def one(name: str, samples: statistic.Samples, about: Mapping[str, Any]) -> str:
    """All figures of one measurement, the best first."""
    measurement = speed.load(name)
    parts = [f"### {measurement.title[0].upper()}{measurement.title[1:]}", _circumstances(samples, about)]
    parts += [measurement.note] if measurement.note else []
    parts += [_figure(measurement, samples, key, figure) for key, figure in measurement.figures.items()]
    return "\n\n".join(parts)


def _circumstances(samples: statistic.Samples, about: Mapping[str, Any]) -> str:
    """When and where, and how often: where one of the samples failed, there are fewer of that peer."""
    most = max(map(len, samples.values()), default=0)
    return (
        f"Taken on {about['date']} on {about['cores']} cores, {about['system']}, Python {about['python']}, load "
        f"{about['load']} at the start; {most} runs of each, one after the other in turn."
    )


def _figure(measurement: Measurement, samples: statistic.Samples, key: str, figure: Figure) -> str:
    middle = statistic.medians(samples, key)
    ours = next(iter(measurement.sizes))
    lines = [
        f"| {figure.title} | median | least to most | {title_of(measurement, ours)} is |",
        "|---|---|---|---|",
    ]
    for peer in sorted(middle, key=middle.__getitem__, reverse=figure.more_is_better):
        least, most = statistic.spread(samples[peer], key)
        times = "" if peer == ours or ours not in middle else _times(middle[ours], middle[peer], figure)
        lines.append(
            f"| {title_of(measurement, peer)} | {number(middle[peer])} {figure.unit} "
            f"| {number(least)} to {number(most)} | {times} |"
        )
    return "\n".join(lines)


def _times(ours: float, theirs: float, figure: Figure) -> str:
    return f"{statistic.ratio(ours, theirs, more_is_better=figure.more_is_better):.2f}x as good"


def page(content: Mapping[str, Any]) -> str:
    """The whole table with its circumstances; a line that says so where nothing was measured."""
    if not content["samples"]:
        return "Nothing was measured yet."
    about, samples = content["about"], content["samples"]
    known = {name: samples[name] for name in speed.NAMES if name in samples}
    versions = ", ".join(
        f"{peers.load(name).title} {version}"
        for name, version in content["versions"].items()
        if version is not None and name not in peers.OURS
    )
    command = f"Obtained with `python -m stress.bench`; {versions}."
    drawn = [f"![{text}]({path})" for name, (path, text) in PLOTS.items() if name in known]
    return "\n\n".join(
        [command, targets(known), *drawn, *(one(name, taken, about[name]) for name, taken in known.items())]
    )
