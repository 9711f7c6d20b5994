"""The figures of a report, by plotly. Colours of text and grid are the page's: it has a dark and a light side."""

from __future__ import annotations

import math
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import plotly.graph_objects as go

from robust_eval.report.rows import outcomes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robust_eval.report.rows import Row

# Told apart on white and on black, and by people who do not see red and green alike.
COLOURS: Final = {
    "ok": "#3b9c76",
    "timeout": "#e69f00",
    "memory": "#9467bd",
    "crash": "#d6404e",
    "exception": "#e377c2",
    "invalid": "#8c6d31",
    "unpicklable": "#17a2b8",
    "startup": "#6b4f4f",
    "cancelled": "#9a9a9a",
    "lost": "#5b7fd1",
    "open": "#c8c8c8",
}
# Above this many jobs WebGL draws: SVG makes an element of each, and browsers become slow.
_MANY: Final = 3000
_FEW: Final = 300  # up to here jobs are counted one by one, and dots are large
_OBJECTIVE_COLOURS: Final = ("#4c8bd6", "#d98a2b", "#7a6fd0", "#2f9e8f")
_BEST_COLOURS: Final = ("#d6404e", "#8c4a00", "#4b2f8f", "#0f5f55")
_BINS: Final = 40
_MIB: Final = 1024 * 1024
_MOST_WORKER_TICKS: Final = 40
_MID_LUMINANCE: Final = 0.179  # black and white have the same contrast there


def _points(rows: Sequence[Row]) -> Any:
    return go.Scattergl if len(rows) > _MANY else go.Scatter


def _dot(rows: Sequence[Row]) -> int:
    return 8 if len(rows) <= _FEW else 5


def _figure(title_x: str, title_y: str, height: int = 340) -> Any:
    figure = go.Figure()
    figure.update_layout(
        height=height,
        margin={"l": 70, "r": 20, "t": 10, "b": 45},
        xaxis_title=title_x,
        yaxis_title=title_y,
        hovermode="closest",
        legend={"orientation": "h", "yref": "container", "y": 1.0, "yanchor": "top", "x": 0.0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return figure


def timeline(rows: Sequence[Row]) -> Any | None:
    """Draw every worker's jobs over time, coloured by outcome; ``None`` where nobody noted who ran what."""
    placed = [row for row in rows if row.worker is not None and row.begin is not None and row.end is not None]
    if not placed:
        return None
    workers = 1 + max(row.worker or 0 for row in placed)
    figure = _figure("seconds since the search began", "worker", 120 + min(560, 26 * workers))
    width = max(2, min(14, 420 // workers))
    for outcome in outcomes_of(placed):
        same = [row for row in placed if row.outcome == outcome]
        # A segment for each job: begin, end, and a gap.
        figure.add_trace(
            _points(placed)(
                x=[at for row in same for at in (row.begin, row.end, None)],
                y=[at for row in same for at in (row.worker, row.worker, None)],
                text=[text for row in same for text in (_hover(row), _hover(row), None)],
                mode="lines",
                line={"width": width, "color": COLOURS[outcome]},
                name=outcome,
                hoverinfo="text",
            )
        )
    ticks: dict[str, Any] = {"dtick": max(1, workers // _MOST_WORKER_TICKS + 1)}
    figure.update_yaxes(range=[workers - 0.4, -0.6], zeroline=False, **ticks)
    return figure


def ink_on(colour: str) -> str:
    """Give black or white, whichever can be read on a colour: by its luminance, as WCAG 2 weighs it."""
    red, green, blue = ((int(colour[at : at + 2], 16) / 255) ** 2.2 for at in (1, 3, 5))
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > _MID_LUMINANCE else "#ffffff"


def _hover(row: Row) -> str:
    took = "" if row.duration is None else f", {row.duration:.3g} s"
    return f"job {row.job_id}: {row.outcome}{took}"


def objectives(rows: Sequence[Row]) -> Any | None:
    """Draw each objective over time, and the best of it so far; ``None`` without any."""
    values = sorted((row for row in rows if row.objectives and row.end is not None), key=lambda row: row.end or 0.0)
    if not values:
        return None
    several = max(len(row.objectives) for row in values)
    figure = _figure("seconds since the search began", "objective")
    for number in range(several):
        those = [row for row in values if len(row.objectives) > number]
        name = "objective" if several == 1 else f"objective_{number}"
        colour, best_colour = (each[number % len(each)] for each in (_OBJECTIVE_COLOURS, _BEST_COLOURS))
        ends, objective = [row.end for row in those], [row.objectives[number] for row in those]
        figure.add_trace(
            _points(rows)(
                x=ends,
                y=objective,
                mode="markers",
                marker={"size": _dot(rows), "opacity": 0.7, "color": colour},
                text=[_hover(row) for row in those],
                name=name,
            )
        )
        best = list(accumulate(objective, max))
        figure.add_trace(
            go.Scatter(x=ends, y=best, mode="lines", line={"shape": "hv", "color": best_colour}, name=f"best {name}")
        )
    return figure


def memory(rows: Sequence[Row]) -> Any | None:
    """Draw the peak of each job against its limit; ``None`` where it was not measured."""
    measured = [row for row in rows if row.peak_memory is not None and row.end is not None]
    if not measured:
        return None
    figure = _figure("seconds since the search began", "peak memory, MiB")
    for outcome in outcomes_of(measured):
        same = [row for row in measured if row.outcome == outcome]
        figure.add_trace(
            _points(rows)(
                x=[row.end for row in same],
                y=[(row.peak_memory or 0) / _MIB for row in same],
                mode="markers",
                marker={"size": _dot(rows), "color": COLOURS[outcome], "opacity": 0.8},
                text=[_hover(row) for row in same],
                name=outcome,
            )
        )
    limits = sorted({row.memory_limit for row in measured if row.memory_limit})
    for limit in limits[:3]:
        figure.add_hline(limit / _MIB, line={"dash": "dash", "color": COLOURS["memory"]}, annotation_text="limit")
    figure.update_yaxes(rangemode="tozero")
    return figure


def durations(rows: Sequence[Row]) -> Any | None:
    """Draw how long jobs ran, by outcome; ``None`` where it was not measured."""
    measured = [row for row in rows if row.duration]
    if not measured:
        return None
    figure = _figure("seconds that a job ran", "jobs")
    # Milliseconds and hours; and where there are many jobs, one failure among thousands of values.
    decades = [math.log10(row.duration or 1.0) for row in measured]
    first, last = math.floor(min(decades)), max(math.floor(min(decades)) + 1, math.ceil(max(decades)))
    for outcome in outcomes_of(measured):
        same = [at for row, at in zip(measured, decades, strict=True) if row.outcome == outcome]
        bins = {"start": first, "end": last + 0.01, "size": (last - first) / _BINS}
        marker = {"color": COLOURS[outcome]}
        figure.add_trace(go.Histogram(x=same, name=outcome, marker=marker, xbins=bins, opacity=0.75))
    ticks = list(range(first, last + 1))
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{10.0**tick:g}" for tick in ticks])
    if len(measured) <= _FEW:
        highest = max(Counter(int((at - first) / (last - first) * _BINS) for at in decades).values())
        figure.update_yaxes(dtick=max(1, round(highest / 5)))
        figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    else:
        figure.update_yaxes(type="log", dtick=1)
        figure.update_layout(barmode="overlay")
    return figure
