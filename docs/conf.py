"""The documentation's build: reads the package, draws the state diagrams, lists the public names."""

import inspect
import sys
from collections.abc import Iterator
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

HERE = Path(__file__).resolve().parent
GENERATED = HERE / "_generated"
sys.path[:0] = [str(HERE), str(HERE.parent)]

import diagrams  # noqa: E402  it lies beside this file

import robust_eval  # noqa: E402
from robust_eval.supervision.transitions import JOB_TRANSITIONS, WORKER_TRANSITIONS  # noqa: E402
from stress.faults import CATALOGUE  # noqa: E402

project = "robust_eval"
copyright = "the robust_eval authors"  # noqa: A001  Sphinx's name
release = version = installed_version("robust-eval")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_generated"]
default_role = "py:obj"  # what a docstring has in single backticks is a name: a link where this site has it

html_theme = "furo"
html_title = f"robust_eval {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def _reference(name: str) -> str:
    """The directive for one public name: its kind decides what is shown of it."""
    value = getattr(robust_eval, name)
    if inspect.isclass(value) and issubclass(value, BaseException):
        return f".. autoexception:: robust_eval.{name}\n   :show-inheritance:\n"
    if inspect.isclass(value):
        # The evaluator is put together from several rooms; who reads its page wants all of it there.
        inherited = "   :inherited-members:\n" if name == "Evaluator" else ""
        return f".. autoclass:: robust_eval.{name}\n   :members:\n   :show-inheritance:\n{inherited}"
    if callable(value):
        return f".. autofunction:: robust_eval.{name}\n"
    # A constant has no docstring of its own: autodoc would show that of its type.
    return f".. py:data:: robust_eval.{name}\n   :value: {value!r}\n"


# Where a public name is defined decides under which heading it stands.
SECTIONS = {
    "Evaluators": ("evaluators",),
    "Calls": ("executor", "isolation", "falsification"),
    "Jobs and failures": ("job", "failure"),
    "Callbacks and decorators": ("callbacks", "progress", "decorators"),
    "Executables": ("command",),
    "Storage": ("storage",),
    "Errors": ("errors",),
}


def _room(name: str) -> str:
    module = getattr(getattr(robust_eval, name), "__module__", "robust_eval.evaluators")
    return module.split(".")[1]


def _sections() -> Iterator[str]:
    names = [name for name in robust_eval.__all__ if not name.startswith("_")]
    unplaced = {_room(name) for name in names} - {room for rooms in SECTIONS.values() for room in rooms}
    if unplaced:
        raise ExtensionError(f"docs/conf.py: SECTIONS has no heading for names from {sorted(unplaced)}")
    for title, rooms in SECTIONS.items():
        yield f"{title}\n{'-' * len(title)}\n"
        yield from (_reference(name) for name in names if _room(name) in rooms)


def _catalogue() -> str:
    """The fault catalogue as a table: the entry, and what must be reported of it."""
    rows = [f"| `{fault.name}` | {_reported(fault.kinds)} |" for fault in CATALOGUE.values()]
    return "\n".join(["| what the job does | what is reported |", "|---|---|", *rows, ""])


def _reported(kinds: tuple[str, ...]) -> str:
    return " or ".join(f"`{kind}`" for kind in kinds) or "its own value: nothing else is harmed by it"


def generate(_app: Sphinx) -> None:
    diagrams.write(WORKER_TRANSITIONS, "worker", GENERATED)
    diagrams.write(JOB_TRANSITIONS, "job", GENERATED)
    (GENERATED / "catalogue.md").write_text(_catalogue(), encoding="utf-8")
    (GENERATED / "reference.rst").write_text("\n".join(_sections()), encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", generate)
