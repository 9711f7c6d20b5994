"""The house, held by reading the imports: who may know whom, and how large a room may grow."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "robust_eval"

# The one table: floors from the top down. A room is a module or a package with all that is in it. A
# module may import from its own room, from rooms beside it on its floor, and from floors below.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__init__", "__main__"),
    ("cli",),
    ("demo",),
    ("falsification", "command", "executor", "isolation", "integrations", "pytest_plugin"),
    ("calls", "spaces"),
    ("evaluators",),
    ("callbacks", "decorators", "memory_watch", "progress", "report", "results"),
    ("processes",),
    ("supervision",),
    ("job", "objective", "storage"),
    ("html_view", "places", "plain"),
    ("failure", "limits", "errors", "logs"),
)
# What the pure core must not know: the world.
IMPURE = {
    "asyncio",
    "ctypes",
    "datetime",
    "fcntl",
    "io",
    "logging",
    "mmap",
    "multiprocessing",
    "os",
    "pathlib",
    "psutil",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "threading",
    "time",
    "uuid",
}
# Optional dependencies and the only rooms that may import them.
OPTIONAL = {
    "typer": ("cli",),
    "rich": ("cli", "demo", "progress"),
    "scipy": ("demo",),
    "sklearn": ("demo",),
    "plotly": ("report",),
    "tqdm": ("callbacks",),
    "hypothesis": ("falsification", "spaces"),
    "optuna": ("integrations.optuna",),
    "joblib": ("integrations.joblib",),
    "deephyper": ("integrations.deephyper",),
    "pytest": ("pytest_plugin", "integrations.pytest"),
    "ray": ("evaluators.ray",),
    "mpi4py": ("evaluators.mpicomm",),
    "redis": ("storage.redis",),
}
MAX_MODULE_LINES = 399
MAX_FUNCTION_LINES = 39


@dataclass(frozen=True)
class Module:
    """One source file of the package, under its name below `robust_eval`."""

    path: Path

    @property
    def name(self) -> str:
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), filename=str(self.path))

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and absolute dotted name of everything that the module imports, wherever it does."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = ["robust_eval", *self.path.relative_to(PACKAGE).parent.parts]
        package = package[: len(package) - node.level + 1]
        return ".".join([*package, *([node.module] if node.module else [])])

    def where(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"


MODULES = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


def in_room(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def floor_of(name: str) -> int | None:
    """The floor of a module, counted from the top; None where no room bears its name."""
    for floor, rooms in enumerate(FLOORS):
        if any(in_room(name, room) for room in rooms):
            return floor
    return None


def own_imports(module: Module) -> Iterator[tuple[int, str]]:
    """Imports from this package, as names below `robust_eval`."""
    for line, name in module.imports():
        if in_room(name, "robust_eval"):
            yield line, name.removeprefix("robust_eval").removeprefix(".") or "__init__"


@every_module
def test_every_module_has_a_floor(module: Module):
    """No module stands outside the house."""
    assert floor_of(module.name) is not None


@every_module
def test_imports_run_downward(module: Module):
    """A floor knows only the floors below it; the roof's lazy exports are nobody's to import."""
    floor = floor_of(module.name)
    upward = [
        f"{module.where(line)} imports {name}"
        for line, name in own_imports(module)
        # A name of the package itself, such as its version, is not a room.
        if (below := floor_of(name)) is not None and below < floor
    ]
    assert not upward


def test_imports_make_no_circle():
    """Modules can be read in an order in which each knows only those read before."""
    names = {module.name for module in MODULES}
    edges = {
        module.name: {
            target
            for _, name in own_imports(module)
            for target in (name, name.rpartition(".")[0])
            if target in names and target != module.name and not in_room(module.name, target)
        }
        for module in MODULES
    }
    while ready := {name for name, below in edges.items() if not below & edges.keys()}:
        for name in ready:
            del edges[name]
    assert not edges


@pytest.mark.parametrize(
    "module",
    [module for module in MODULES if in_room(module.name, "supervision")],
    ids=lambda module: module.name,
)
def test_the_core_is_pure(module: Module):
    """The core is told the time and names its actions: it imports nothing of the world."""
    impure = [
        f"{module.where(line)} imports {name}" for line, name in module.imports() if name.partition(".")[0] in IMPURE
    ]
    assert not impure


@every_module
def test_optional_dependencies_stay_in_their_rooms(module: Module):
    """What may be missing on a user's machine is imported only where it is named."""
    strays = [
        f"{module.where(line)} imports {name}"
        for line, name in module.imports()
        if (rooms := OPTIONAL.get(name.partition(".")[0])) is not None
        and not any(in_room(module.name, room) for room in rooms)
    ]
    assert not strays


@every_module
def test_a_module_stays_small(module: Module):
    """One idea, under 400 lines."""
    assert len(module.path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body, neither the signature nor the docstring counted: those may be as long as they are helpful."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@every_module
def test_a_function_stays_small(module: Module):
    """Under 40 lines of body."""
    long = [
        f"{module.where(node.lineno)} {node.name}: {_length(node)} lines"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _length(node) > MAX_FUNCTION_LINES
    ]
    assert not long


@every_module
def test_a_module_opens_with_what_it_owns(module: Module):
    """Every module begins with a docstring."""
    assert ast.get_docstring(module.tree)
