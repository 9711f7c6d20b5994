"""Draws the tables of legal transitions, so that the documentation shows the states that the code has.

Called by `conf.py` when the documentation is built. Knows the tables and nothing else of the package.
"""

import textwrap
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

import matplotlib as mpl
import networkx as nx

mpl.use("svg")
# The same tables give the same file.
mpl.rcParams["svg.hashsalt"] = "robust_eval"

from matplotlib import pyplot as plt  # noqa: E402  the backend is chosen first
from matplotlib.axes import Axes  # noqa: E402

State = TypeVar("State", bound=IntEnum)
Transitions = Mapping[tuple[State, str], State]

# A cause that leads from so many states to the same one is drawn once, from "several states".
_COMMON = 5
_ANY = "several states"
# So few states stand in one row, in the order in which the code names them: their arrows are arcs that cannot meet
# each other's labels. More states in a row would be too wide for a page.
_ONE_ROW = 5


@dataclass(frozen=True)
class _Palette:
    """The colours of one mode of the theme. The background itself is left transparent."""

    page: str
    arrow: str
    text: str
    state: str
    border: str


# An image cannot know which mode its page is in, so there is one for each, and the theme shows the right one. `page`
# is the theme's own background: a label hides the part of its arrow that it lies on.
_PALETTES = {
    "light": _Palette(page="#ffffff", arrow="#64748b", text="#0f172a", state="#e0f2fe", border="#0369a1"),
    "dark": _Palette(page="#131416", arrow="#8b98a9", text="#e2e8f0", state="#0c3a55", border="#38bdf8"),
}


def write(transitions: Transitions[State], name: str, folder: Path) -> None:
    """Write `name`-light.svg and `name`-dark.svg, the diagram, and `name`.md, the table, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    positions = _positions(transitions)
    for mode, palette in _PALETTES.items():
        _draw(_labels(transitions), positions, palette, folder / f"{name}-{mode}.svg")
    (folder / f"{name}.md").write_text(_table(transitions), encoding="utf-8")


def _name(state: IntEnum) -> str:
    return state.name.lower()


def _table(transitions: Transitions[State]) -> str:
    rows = [f"| {_name(state)} | {cause} | {_name(after)} |" for (state, cause), after in transitions.items()]
    return "\n".join(["| from | cause | to |", "|---|---|---|", *rows, ""])


def _labels(transitions: Transitions[State]) -> dict[tuple[str, str], str]:
    """The arrows, with all causes that lead the same way on one."""
    sources = Counter((cause, after) for (_, cause), after in transitions.items())
    arrows: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for (state, cause), after in transitions.items():
        common = sources[cause, after] >= _COMMON
        arrows[_ANY if common else _name(state), _name(after)][cause] = None
    return {arrow: "\n".join(causes) for arrow, causes in arrows.items()}


def _wrapped(label: str, width: int) -> str:
    return "\n".join(textwrap.fill(cause, width) for cause in label.split("\n"))


def _draw(
    labels: Mapping[tuple[str, str], str], positions: Mapping[str, tuple[float, float]], palette: _Palette, path: Path
) -> None:
    heights = {y for _, y in positions.values()}
    columns = 1 + max(x for x, _ in positions.values())
    rows = 1 + max(heights) - min(heights)
    one_row = rows == 1
    figure, axes = plt.subplots(figsize=(2.3 * columns, 4.4) if one_row else (1.5 * columns, 1.6 * rows))
    figure.subplots_adjust(0, 0, 1, 1)
    width, bend = (18, 0.5) if one_row else (8, 0.28)
    wrapped = {arrow: _wrapped(label, width) for arrow, label in labels.items()}
    bent = {arrow: label for arrow, label in wrapped.items() if _is_bent(arrow, labels, positions)}
    straight = {arrow: label for arrow, label in wrapped.items() if arrow not in bent}
    # A label stands above a level arrow, which is short and would be hidden, and on an arc, beside which others run.
    _draw_arrows(axes, positions, straight, palette, connectionstyle="arc3", verticalalignment="bottom")
    _draw_arrows(axes, positions, bent, palette, connectionstyle=f"arc3,rad={bend}", verticalalignment="center")
    _draw_states(axes, positions, palette)
    axes.set_axis_off()
    axes.margins(0.02)  # what stands out at the edges counts in the size of the picture all the same
    if one_row:
        axes.set_ylim(-1, 1)  # room for the arcs, which do not count as data
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _draw_arrows(
    axes: Axes,
    positions: Mapping[str, tuple[float, float]],
    labels: Mapping[tuple[str, str], str],
    palette: _Palette,
    *,
    connectionstyle: str,
    verticalalignment: str,
) -> None:
    graph = nx.DiGraph(list(labels))
    # The size is about that of the text boxes of the states, which hide the nodes.
    nx.draw_networkx_edges(
        graph,
        positions,
        ax=axes,
        node_size=2600,
        arrowsize=14,
        edge_color=palette.arrow,
        connectionstyle=connectionstyle,
    )
    nx.draw_networkx_edge_labels(
        graph,
        positions,
        labels,
        ax=axes,
        font_size=9,
        font_color=palette.text,
        rotate=False,
        verticalalignment=verticalalignment,
        connectionstyle=connectionstyle,
        bbox={"facecolor": palette.page, "edgecolor": "none", "pad": 0.8},
    )


def _draw_states(axes: Axes, positions: Mapping[str, tuple[float, float]], palette: _Palette) -> None:
    for state, (x, y) in positions.items():
        dashed = state == _ANY
        box = {
            "boxstyle": "round,pad=0.5",
            "facecolor": palette.page if dashed else palette.state,
            "edgecolor": palette.border,
            "linestyle": "--" if dashed else "-",
        }
        words = "\n".join(state.split())
        axes.text(x, y, words, ha="center", va="center", fontsize=11, color=palette.text, bbox=box, zorder=5)


def _is_bent(
    arrow: tuple[str, str], arrows: Container[tuple[str, str]], positions: Mapping[str, tuple[float, float]]
) -> bool:
    """Whether a straight arrow would lie on another one or run through a state."""
    (x, y), (to_x, to_y) = positions[arrow[0]], positions[arrow[1]]
    return arrow[::-1] in arrows or (y == to_y and abs(x - to_x) > 1)


def _positions(transitions: Transitions[State]) -> dict[str, tuple[float, float]]:
    graph = nx.DiGraph(list(_labels(transitions)))
    if len(graph) > _ONE_ROW:
        return _layers(graph)
    states = sorted({state for (before, _), after in transitions.items() for state in (before, after)})
    return {_name(state): (float(x), 0.0) for x, state in enumerate(states)}


def _layers(graph: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """A column for each distance from the first state, "several states" just before what it leads to."""
    first = next(iter(graph))
    column = nx.single_source_shortest_path_length(graph, first)
    layers: defaultdict[int, list[str]] = defaultdict(list)
    for state in graph:
        if state == _ANY or state not in column:
            continue
        layers[column[state]].append(state)
    positions = {
        state: (float(x), y) for x, states in layers.items() for state, y in zip(states, _spread(states), strict=True)
    }
    last = max(layers)
    rest = [state for state in graph if state not in positions and state != _ANY]
    positions |= {state: (float(last), -1.0 - number) for number, state in enumerate(rest)}
    if _ANY in graph:
        positions[_ANY] = (last - 1.0, min(y for _, y in positions.values()))
    return positions


def _spread(states: Iterable[str]) -> list[float]:
    count = len(list(states))
    return [(count - 1) / 2 - index for index in range(count)]
