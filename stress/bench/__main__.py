"""The whole speed table: `python -m stress.bench [--only NAME,NAME] [--quick]`.

Every sample is taken in a process of its own, ours and each peer in turn, round after round; medians stand in the
table. Writes `results/speed.json`, and the table and plots of docs/performance.md; `--quick` takes one sample of a
smaller size of each, only to see that everything runs, and writes nothing.
"""

import argparse
import compileall
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stress.bench import cell, kept, matrix_table, peers, plots, speed, speed_table
from stress.bench.cell import Limits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
FILE = kept.DIRECTORY / "speed.json"
RUNS = 5


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m stress.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(speed.NAMES), help="measurements, separated by commas")
    parser.add_argument("--peers", default=None, help="only these of those that take part")
    parser.add_argument("--runs", type=int, default=RUNS, help="samples of each")
    parser.add_argument("--quick", action="store_true", help="one small sample of each, written nowhere")
    parser.add_argument("--write-only", action="store_true", help="measure nothing, write the page from what is kept")
    return parser.parse_args(arguments)


def taking_part(name: str, wanted: str | None) -> dict[str, int]:
    """Who takes part in a measurement and is installed, with the sizes."""
    measurement = speed.load(name)
    return {
        peer: size
        for peer, size in measurement.sizes.items()
        if (wanted is None or peer in wanted.split(","))
        and (peer in measurement.titles or peers.version(peers.load(peer)) is not None)
    }


def take(name: str, options: argparse.Namespace, out: Any) -> dict[str, list[dict[str, Any]]]:
    """Take all samples of one measurement, in turn."""
    measurement, samples = speed.load(name), {}
    divisor = measurement.quick if options.quick else 1
    for number in range(1 if options.quick else options.runs):
        for peer, size in taking_part(name, options.peers).items():
            limits = Limits(run_s=measurement.limit_s)
            ended = cell.run("stress.bench.sample", [name, peer, str(max(1, size // divisor))], limits)
            figures = ended.told().get("figures")
            if figures is None:
                last = (ended.stderr.strip().splitlines() or [ended.how])[-1]
                out.write(f"{name} {number} {peer:>10}  FAILED: {ended.how} {last}\n")
            else:
                samples.setdefault(peer, []).append(figures)
                out.write(f"{name} {number} {peer:>10}  {_line(measurement, figures)}\n")
            out.flush()
    return samples


def _line(measurement: speed.Measurement, figures: dict[str, Any]) -> str:
    return ", ".join(
        f"{speed_table.number(figures[key])} {figure.unit}"
        for key, figure in measurement.figures.items()
        if key in figures
    )


def circumstances() -> dict[str, Any]:
    """Under which one measurement is taken."""
    return {**kept.machine(), "date": kept.today(), "load": f"{os.getloadavg()[0]:.1f}"}


def everything(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The content of the JSON file after each measurement; what is not measured now stays as it was."""
    content: dict[str, Any] = {"samples": {}, "about": {}}
    if FILE.exists() and not options.quick:
        content = json.loads(FILE.read_text(encoding="utf-8"))
    if options.write_only:
        yield content
        return
    content["versions"] = {name: peers.version(peers.load(name)) for name in peers.PEERS}
    for name in options.only.split(","):
        content["about"][name] = circumstances()
        content["samples"][name] = take(name, options, sys.stderr)
        yield content


def write(content: dict[str, Any]) -> None:
    """Write the page's table and its plots."""
    page = matrix_table.with_block(PAGE.read_text(encoding="utf-8"), speed_table.page(content), "speed")
    PAGE.write_text(page, encoding="utf-8")
    plots.draw(content["samples"])


def compile_as_installed() -> None:
    """Compile us, as pip has compiled the peers: a checkout has no bytecode where Python is asked to write none."""
    compileall.compile_dir(PAGE.parents[1] / "robust_eval", quiet=2)


def main(arguments: list[str]) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    compile_as_installed()
    content: dict[str, Any] = {}
    for content in everything(options):
        if not options.quick:
            FILE.parent.mkdir(parents=True, exist_ok=True)
            FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(speed_table.page(content) + "\n")
    if not options.quick:
        write(content)


if __name__ == "__main__":
    main(sys.argv[1:])
