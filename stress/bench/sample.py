"""One sample of one measurement: `python -m stress.bench.sample NAME PEER SIZE REPORT`."""

import sys

from stress.bench import speed
from stress.bench.cell import Report


def main(name: str, peer: str, size: str, report_path: str) -> None:
    """Take it and write it down."""
    report = Report(report_path)
    report.say(ready=True)
    report.say(figures=speed.load(name).sample(peer, int(size)))


if __name__ == "__main__":
    main(*sys.argv[1:])
