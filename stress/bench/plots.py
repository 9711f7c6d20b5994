"""The two plots of the performance page, from the JSON alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stress.bench import speed, speed_table, statistic
from stress.bench.speed.curve import LENGTHS_S

DOCS = Path(__file__).resolve().parents[2] / "docs"
CURVE, KILLS = (DOCS / path for path, _ in speed_table.PLOTS.values())
_LEAST_S = 1e-5
_SIZE = (7.0, 4.6)
# One picture for the light and for the dark mode of the page: nothing behind it, and what is not a curve in a grey
# that can be read on both.
_INK = "#7d8794"
_STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "savefig.transparent": True,
    "svg.hashsalt": "robust_eval",  # the same samples, the same file
}


def draw(samples: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> list[Path]:
    """Draw what there are samples for; give the files written."""
    import matplotlib as mpl

    mpl.use("svg")
    drawn = []
    with mpl.rc_context(_STYLE):
        if "curve" in samples:
            _draw_curve(samples["curve"])
            drawn.append(CURVE)
        if "deadline_idle" in samples:
            _draw_kills(samples)
            drawn.append(KILLS)
    return drawn


def _draw_curve(samples: Mapping[str, list[dict[str, Any]]]) -> None:
    from matplotlib import pyplot as plt

    measurement = speed.load("curve")
    figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
    lengths = [max(length, _LEAST_S) for length in LENGTHS_S]
    middle = {str(length): statistic.medians(samples, str(length)) for length in LENGTHS_S}
    for peer in samples:
        rates = [middle[str(length)].get(peer) for length in LENGTHS_S]
        axes.plot(lengths, rates, marker="o", label=speed_table.title_of(measurement, peer))
    ideal = [2 / length for length in LENGTHS_S[1:]]
    axes.plot(lengths[1:], ideal, ":", color=_INK, label="2 workers, no overhead")
    axes.set(xscale="log", yscale="log", xlabel="seconds that a job computes (0 at the left)", ylabel="jobs a second")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    figure.savefig(CURVE, metadata={"Date": None})
    plt.close(figure)


def _draw_kills(samples: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> None:
    from matplotlib import pyplot as plt

    names = [name for name in ("deadline_idle", "deadline_busy") if name in samples]
    figure, every = plt.subplots(1, len(names), figsize=_SIZE, layout="constrained", sharey=True, squeeze=False)
    for axes, name in zip(every[0], names, strict=True):
        for peer, taken in samples[name].items():
            late = sorted(value for one in taken for value in one["all_reported"])
            share = [(number + 1) / len(late) for number in range(len(late))]
            axes.step([max(value, 0.1) for value in late], share, label=speed_table.title_of(speed.load(name), peer))
        axes.set(xscale="log", xlabel="ms from deadline to report", title=name.replace("deadline_", "driver "))
    every[0][0].set_ylabel("share of kills")
    # Beside the curves: a legend among them would hide some.
    lines = every[0][0].get_lines()
    figure.legend(handles=lines, loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    figure.savefig(KILLS, metadata={"Date": None})
    plt.close(figure)
