"""The matrix as text: the whole table, and the short one of the README, each made from the JSON alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stress.bench import peers
from stress.bench.kept import Results
from stress.bench.verdict import REASONS

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "matrix-table.md"
README = ROOT / "README.md"
PASSED, UNKNOWN = "✓", "?"
Groups = Mapping[str, Sequence[str]]


def full(results: Results, faults: Sequence[str]) -> str:
    """One row a fault, one column a peer."""
    names = [name for name in peers.PEERS if name in results.versions]
    lines = [
        "| what two jobs of twenty do | " + " | ".join(peers.load(name).title for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
        *(f"| `{fault}` | " + " | ".join(_cell(results, name, fault) for name in names) + " |" for fault in faults),
        "| **passed** | " + " | ".join(_passed(results, name, faults) for name in names) + " |",
    ]
    return "\n".join(lines)


def short(results: Results, groups: Groups) -> str:
    """One row a peer, one column a group of faults: how many cells passed of how many."""
    names = [name for name in peers.PEERS if name in results.versions and name != "our_pool"]
    every = [fault for faults in groups.values() for fault in faults]
    lines = [
        "| | " + " | ".join(groups) + " | all |",
        "|---" * (len(groups) + 2) + "|",
        *(
            f"| {peers.load(name).title} | "
            + " | ".join(_passed(results, name, faults) for faults in [*groups.values(), every])
            + " |"
            for name in names
        ),
    ]
    return "\n".join(lines)


def _cell(results: Results, peer: str, fault: str) -> str:
    if results.versions[peer] is None:
        return "not installed"
    found = results.cells.get(peer, {}).get(fault)
    return UNKNOWN if found is None else found["letters"] or PASSED


def _passed(results: Results, peer: str, faults: Sequence[str]) -> str:
    if results.versions[peer] is None:
        return "not installed"
    found = results.cells.get(peer, {})
    known = [found[fault]["letters"] for fault in faults if fault in found]
    return f"{known.count('')}/{len(known)}"


def legend() -> str:
    """What the letters say."""
    return "\n".join(f"- `{letter}`: {reason}" for letter, reason in REASONS.items())


def obtained(results: Results) -> str:
    """Under which circumstances the table was made."""
    about = results.about
    versions = ", ".join(
        f"{peers.load(name).title} {version}"
        for name, version in results.versions.items()
        if version is not None and name not in peers.OURS and peers.load(name).distribution is not None
    )
    return (
        f"Obtained from {' to '.join(results.dates())} with `python -m stress.bench.matrix`, each cell on the day that "
        f"`matrix.json` says, on {about.get('cores')} cores, {about.get('system')}, Python {about.get('python')}; "
        f"{versions}."
    )


def page(results: Results, groups: Groups) -> str:
    """What `docs/peers.md` includes."""
    tables = (f"**{group}**\n\n{full(results, faults)}" for group, faults in groups.items())
    return "\n\n".join([f"`{PASSED}`: passed.\n\n{legend()}", *tables, obtained(results)]) + "\n"


def with_block(text: str, block: str, name: str) -> str:
    """The text with what stands between the two markers of that name replaced.

    Raises:
        ValueError: a marker is missing.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not (found and ended):
        msg = f"no {begin} ... {end} to write between"
        raise ValueError(msg)
    return f"{head}{begin}\n{block}\n{end}{tail}"


def write(results: Results, groups: Groups) -> None:
    """Write the docs' table and the README's block."""
    TABLE.write_text(page(results, groups), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(with_block(readme, short(results, groups), "matrix"), encoding="utf-8")
