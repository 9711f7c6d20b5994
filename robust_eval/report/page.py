"""The page: figures, failures and the table of jobs in one file that opens from disk, without any network."""

from __future__ import annotations

import html
import json
import math
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Final

from robust_eval.errors import InvalidArgument, RobustEvalError, bounded_repr
from robust_eval.report.rows import Row, groups_of, outcomes_of, rows_of

try:
    from plotly.offline import get_plotlyjs

    from robust_eval.report import figures
except ModuleNotFoundError as error:
    raise RobustEvalError(f"A report needs plotly: pip install 'robust-eval[report]' ({error}).") from error

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from robust_eval.job import Job

_MOST_GROUPS: Final = 100
_MOST_IDS: Final = 12
_MIB: Final = 1024 * 1024
_FIGURES: Final[tuple[tuple[str, str, Callable[[Sequence[Row]], Any], str], ...]] = (
    (
        "timeline",
        "Workers",
        figures.timeline,
        "It is not known who ran what: the process method tells.",
    ),
    ("objective", "Objective", figures.objectives, "No job has a numeric objective."),
    ("memory", "Memory", figures.memory, "Memory was not measured."),
    ("durations", "Durations", figures.durations, "Durations were not measured."),
)


def write_report(jobs: Iterable[Job], path: str | os.PathLike[str], title: str = "search") -> Path:
    """Write a page about a search.

    Args:
        jobs: all of its jobs.
        path: the file; it is replaced.
        title: what stands above.

    Returns:
        The file.

    Raises:
        InvalidArgument: it lies in no directory that exists.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InvalidArgument(f"path={bounded_repr(str(path))} lies in no directory that exists. Make it first.")
    rows = rows_of(jobs)
    drawn = {name: draw(rows) for name, _, draw, _ in _FIGURES}
    text = Template(_static("page.html")).substitute(
        title=html.escape(title),
        style=_static("page.css"),
        tiles="".join(_tiles(rows)),
        figures="".join(_places(drawn)),
        failures="".join(_failures(rows)),
        data=_json(_table(rows)),
        plots=_json({name: json.loads(each.to_json()) for name, each in drawn.items() if each is not None}),
        plotly=get_plotlyjs(),
        script=_static("page.js"),
    )
    path.write_text(text, encoding="utf-8")
    return path


def _static(name: str) -> str:
    return files("robust_eval.report").joinpath("static", name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON for inside a script element, which no text in it can end."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _tiles(rows: Sequence[Row]) -> Iterator[str]:
    yield _tile(f"{len(rows):,}", "jobs")
    for outcome, number in outcomes_of(rows).items():
        yield _tile(f"{number:,}", outcome, figures.COLOURS[outcome])
    ends = [row.end for row in rows if row.end is not None]
    if ends:
        yield _tile(_seconds(max(ends)), "took")
    best = [row.objectives[0] for row in rows if len(row.objectives) == 1]
    if best:
        yield _tile(f"{max(best):.6g}", "best objective")
    slots = {row.worker for row in rows if row.worker is not None}
    busy = sum(row.duration or 0.0 for row in rows if row.worker is not None)
    if slots and ends and max(ends) > 0:
        yield _tile(f"{min(1.0, busy / (len(slots) * max(ends))):.0%}", f"of {len(slots)} workers busy")


def _seconds(value: float) -> str:
    minutes, seconds = divmod(value, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:.0f} h {minutes:.0f} min"
    return f"{minutes:.0f} min {seconds:.0f} s" if minutes else f"{seconds:.3g} s"


def _tile(value: str, label: str, colour: str = "") -> str:
    style = f' style="border-color:{colour}"' if colour else ""
    return f'<div class="tile"{style}><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'


def _places(drawn: dict[str, Any]) -> Iterator[str]:
    for name, title, _, missing in _FIGURES:
        inside = f'<p class="none">{html.escape(missing)}</p>' if drawn[name] is None else ""
        yield f'<section class="figure"><h2>{title}</h2><div id="plot-{name}">{inside}</div></section>'


def _failures(rows: Sequence[Row]) -> Iterator[str]:
    groups = groups_of(rows)
    if not groups:
        yield '<p class="none">No job failed.</p>'
    for group in groups[:_MOST_GROUPS]:
        ids = ", ".join(group.job_ids[:_MOST_IDS]) + (", …" if len(group.job_ids) > _MOST_IDS else "")
        colour = figures.COLOURS[group.kind]
        yield (
            f'<details><summary><span class="kind" style="background:{colour};color:{figures.ink_on(colour)}">'
            f"{html.escape(group.kind)}</span> <b>{len(group.job_ids):,}</b> "
            f"<code>{html.escape(group.shared)}</code></summary>"
            f"<p>jobs {html.escape(ids)}; the first of them:</p>"
            f"<pre>{html.escape(group.example.render())}</pre></details>"
        )
    if len(groups) > _MOST_GROUPS:
        yield f"<p>{len(groups) - _MOST_GROUPS} more groups of fewer jobs.</p>"


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    """Columns and cells of the table, which the page's script draws page by page."""
    names = list(dict.fromkeys(name for row in rows for name in row.config))
    columns = ["job", "outcome", "objective", "seconds", "MiB", "worker", "began", *map(str, names), "message"]
    return {
        "columns": columns,
        "rows": [[*_cells(row), *(_cell(row.config.get(name)) for name in names), _message(row)] for row in rows],
        "outcomes": list(outcomes_of(rows)),
        "colours": figures.COLOURS,
    }


def _cells(row: Row) -> tuple[Any, ...]:
    objective: Any = row.objectives[0] if len(row.objectives) == 1 else ", ".join(map(str, row.objectives))
    memory = None if row.peak_memory is None else round(row.peak_memory / _MIB, 1)
    return (row.job_id, row.outcome, objective, _rounded(row.duration), memory, row.worker, _rounded(row.begin))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)


def _message(row: Row) -> str:
    return "" if row.failure is None else row.failure.message.partition("\n")[0]
