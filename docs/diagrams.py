"""Draws the tables of legal transitions, so that the documentation shows the states that the code has.

Called by `conf.py` when the documentation is built. Knows the tables and nothing else of the package.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
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


def write(transitions: Transitions[State], name: str, folder: Path) -> None:
    """Write `name`.svg, the diagram, and `name`.md, the table, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _draw(_labels(transitions), folder / f"{name}.svg")
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


def _draw(labels: Mapping[tuple[str, str], str], path: Path) -> None:
    graph = nx.DiGraph(list(labels))
    positions = _positions(graph)
    columns = 1 + max(x for x, _ in positions.values())
    rows = 1 + max(y for _, y in positions.values()) - min(y for _, y in positions.values())
    figure, axes = plt.subplots(figsize=(1.3 * columns + 2.8, 1.6 * rows + 0.6), layout="constrained")
    bent = [arrow for arrow in labels if _is_bent(arrow, graph, positions)]
    straight = [arrow for arrow in labels if arrow not in bent]
    for arrows, style in ((straight, "arc3"), (bent, "arc3,rad=0.28")):
        # The sizes are those of the text boxes below, which hide the nodes.
        nx.draw_networkx_edges(
            graph, positions, arrows, ax=axes, node_size=2600, arrowsize=14, edge_color="#64748b", connectionstyle=style
        )
        nx.draw_networkx_edge_labels(
            graph,
            positions,
            {arrow: labels[arrow] for arrow in arrows},
            ax=axes,
            font_size=8,
            rotate=False,
            verticalalignment="bottom",  # above a level arrow, which is short and would be hidden
            connectionstyle=style,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    _draw_states(axes, positions)
    axes.set_axis_off()
    axes.margins(0.07)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)


def _draw_states(axes: Axes, positions: Mapping[str, tuple[float, float]]) -> None:
    for state, (x, y) in positions.items():
        dashed = state == _ANY
        box = {
            "boxstyle": "round,pad=0.5",
            "facecolor": "white" if dashed else "#e0f2fe",
            "edgecolor": "#0369a1",
            "linestyle": "--" if dashed else "-",
        }
        axes.text(x, y, state, ha="center", va="center", fontsize=10, bbox=box, zorder=5)


def _is_bent(arrow: tuple[str, str], graph: nx.DiGraph, positions: Mapping[str, tuple[float, float]]) -> bool:
    """Whether a straight arrow would lie on another one or run through a state."""
    (x, y), (to_x, to_y) = positions[arrow[0]], positions[arrow[1]]
    return graph.has_edge(*reversed(arrow)) or (y == to_y and abs(x - to_x) > 1)


def _positions(graph: nx.DiGraph) -> dict[str, tuple[float, float]]:
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
