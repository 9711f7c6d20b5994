"""What the matrix has found so far: one JSON file, written anew after each cell."""

import json
import os
import platform
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "results"
MATRIX = DIRECTORY / "matrix.json"
_DIRECTORIES = re.compile(r"(?<![\w.])/(?:[\w.+@-]+/)+")


def machine() -> dict[str, Any]:
    """What a figure depends on, and no more than that."""
    return {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "system": platform.system()}


def today() -> str:
    """The date, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


@dataclass
class Results:
    """Cells by peer and fault, and under which versions and when they were found."""

    path: Path = MATRIX
    about: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)
    cells: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path = MATRIX) -> "Results":
        """What the file holds; nothing where there is none."""
        if not path.exists():
            return cls(path)
        return cls(path, **json.loads(path.read_text(encoding="utf-8")))

    def describe_machine(self, versions: dict[str, str | None]) -> None:
        """Note under which circumstances the next cells are found."""
        self.about = machine()
        self.versions |= versions
        for peer, version in versions.items():
            if version is None:
                self.cells.pop(peer, None)

    def knows(self, peer: str, fault: str) -> bool:
        """Whether the cell was found already; one that did not start is tried again."""
        return self.cells.get(peer, {}).get(fault, {"letters": "s"})["letters"] != "s"

    def keep(self, peer: str, fault: str, found: dict[str, Any]) -> None:
        """Write down one cell, and when it was found."""
        self.cells.setdefault(peer, {})[fault] = {**found, "date": today()}
        self.save()

    def dates(self) -> list[str]:
        """When cells were found, the first day and the last."""
        days = [found["date"] for cells in self.cells.values() for found in cells.values()]
        return sorted({min(days), max(days)}) if days else []

    def save(self) -> None:
        """Replace the file, whole. Where packages lay on this machine is nobody's business."""
        content = {"about": self.about, "versions": self.versions, "cells": self.cells}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".half")
        text = _DIRECTORIES.sub("", json.dumps(content, indent=1, sort_keys=True))
        half.write_text(text + "\n", encoding="utf-8")
        half.replace(self.path)
