"""How processes are started and what they load."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from typing import Any

import pytest
from children import in_child
from waiting import nothing_left

from robust_eval.processes import loading
from robust_eval.processes.loading import StartRefused
from robust_eval.processes.parcel import Memory, pack, store

OURS = list(sys.version_info[:2])
OTHER = [3, 4]
SHOW = (
    "import sys, json; from robust_eval.processes.loading import command; "
    "print(json.dumps(command(sys.executable, 'template', imports_site={site})))"
)


def command_of(*options: str, site: bool = False) -> list[str]:
    """The command that an interpreter with these options makes."""
    shown = subprocess.run(
        [sys.executable, *options, "-c", SHOW.format(site=site)], capture_output=True, text=True, check=True
    )
    command: list[str] = json.loads(shown.stdout)
    return command


SCRIPT = """
scale = 3
def triple(x):
    return scale * x
def outer():
    return lambda x: x
inner = outer()
"""


def bundle_of(obj: object) -> int:
    parcel = pack(obj)
    assert isinstance(parcel, bytes)
    memory = store([parcel], len(parcel))
    assert isinstance(memory, Memory)
    return memory.fd


# -- commands


def test_the_flags_of_the_interpreter_are_handed_on():
    """Optimisation, warnings and -X; site is left out unless it is asked for."""
    command = command_of("-O", "-W", "error", "-X", "utf8")
    assert command[0] == sys.executable
    flags = " ".join(command[1 : command.index("-c")])
    assert flags.startswith("-O")
    assert "-Werror" in flags
    assert "-X utf8" in flags
    assert flags.endswith("-S")
    with_site = command_of(site=True)
    assert "-S" not in with_site


def test_the_import_path_is_handed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The directory of an interactive session by its name, since a supervisor stands elsewhere; a deleted one as is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/some/where"])
    made = loading.command(sys.executable, "launch", imports_site=True)
    assert json.loads(made[-1]) == [str(tmp_path), "/some/where"]
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert json.loads(loading.command(sys.executable, "launch", imports_site=True)[-1]) == ["", "/some/where"]


def test_an_entry_that_no_import_would_look_at_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The import system passes over what is no string, and so do we."""
    monkeypatch.setattr(sys, "path", [tmp_path, None, "/some/where", b"/bytes"])
    assert json.loads(loading.command(sys.executable, "launch", imports_site=True)[-1]) == ["/some/where"]


def test_an_embedded_interpreter_needs_another_or_is_refused(monkeypatch: pytest.MonkeyPatch):
    """It does not know its own path, and may have no arguments."""
    monkeypatch.setattr(sys, "executable", None)
    monkeypatch.delattr(sys, "argv")
    assert loading.executable("/other/python") == "/other/python"
    assert loading.arguments() == []
    with pytest.raises(StartRefused, match="PYTHON_EXE"):
        loading.executable("")


def test_another_interpreter_keeps_its_own_packages(monkeypatch: pytest.MonkeyPatch):
    """It gets what is not of this installation, behind its own path, and none of this one's flags."""
    monkeypatch.setattr(sys, "path", ["/users/code", sys.prefix + "/lib/site-packages", sys.base_prefix + "/lib"])
    made = loading.command("/other/python", "template", imports_site=False)
    assert made[:2] == ["/other/python", "-c"]
    assert "sys.path[len(sys.path):] =" in made[2]
    assert json.loads(made[3]) == ["/users/code"]


def test_a_command_runs_main_of_its_module(tmp_path: Path):
    """With this process's import path, its arguments, and the helpers that site would have installed."""
    code = "def main(argv):\n    import sys\n    print(argv, 'site' in sys.modules, callable(exit))\n"
    module = tmp_path / "robust_eval_probe.py"
    module.write_text(code)
    made = [
        part.replace("robust_eval.processes.probe", module.stem)
        for part in loading.command(sys.executable, "probe", imports_site=False)
    ]
    made[-1] = json.dumps([str(tmp_path), *json.loads(made[-1])])
    shown = subprocess.run([*made, "one"], capture_output=True, text=True, check=True)
    assert shown.stdout == "['one'] True True\n"


def test_programs_that_a_job_starts_find_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What starts a Python with this one's options, as joblib does, is not told to leave `site` out, unless that is
    the user's own wish.
    """
    code = (
        "import subprocess, sys\ndef main(argv):\n"
        "    options = subprocess._args_from_interpreter_flags()\n"
        "    subprocess.run([sys.executable, *options, '-c', 'import pytest'], check=True)\n"
        "    print('-S' in options, sys.flags.no_site, sys.flags.utf8_mode)\n"
    )
    module = tmp_path / "robust_eval_probe.py"
    module.write_text(code)
    made = [
        part.replace("robust_eval.processes.probe", module.stem)
        for part in loading.command(sys.executable, "probe", imports_site=False)
    ]
    assert "-S" in made
    made[-1] = json.dumps([str(tmp_path), *json.loads(made[-1])])
    shown = subprocess.run([made[0], "-X", "utf8", *made[1:]], capture_output=True, text=True, check=True)
    assert shown.stdout == "False 0 1\n"
    monkeypatch.setattr(subprocess, "_args_from_interpreter_flags", lambda: ["-S"])
    theirs = loading.command(sys.executable, "probe", imports_site=False)
    assert theirs.count("-S") == 1
    assert not any("pretend_site" in part for part in theirs)


def test_site_is_needed_only_for_import_hooks(monkeypatch: pytest.MonkeyPatch):
    """An editable install's finder, or a measurement of coverage; Python's own and pytest's are none."""

    class Editable:
        """Stands for what a `.pth` file installs."""

    for name in [name for name in os.environ if name.startswith("COVERAGE_PROCESS_")]:
        monkeypatch.delenv(name)
    assert not loading.is_measured()
    # Other tests import packages that hook into imports, by classes as well as by instances.
    own = [finder for finder in sys.meta_path if "_pytest" in type(finder).__module__]
    monkeypatch.setattr(sys, "meta_path", [*own, BuiltinImporter, FrozenImporter, PathFinder])
    assert not loading.needs_site()
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable()])
    assert loading.needs_site()
    monkeypatch.undo()
    monkeypatch.setenv("COVERAGE_PROCESS_START", "1")
    assert loading.is_measured()
    assert loading.needs_site()


# -- bundles


def test_a_bundle_is_loaded_and_its_memory_closed():
    """Functions by value and by name."""
    with nothing_left():
        assert loading.load_bundle(bundle_of(lambda x: x + 1), OURS)(2) == 3
        assert loading.load_bundle(bundle_of(os.path.join), OURS) is os.path.join


def test_code_of_another_version_is_refused():
    """By name it would do; by value it would crash the interpreter."""
    with nothing_left():
        with pytest.raises(StartRefused, match=r"pickled by value with Python 3\.4 and PYTHON_EXE is Python 3"):
            loading.load_bundle(bundle_of(lambda x: x), OTHER)
        assert loading.load_bundle(bundle_of(os.path.join), OTHER) is os.path.join


@pytest.mark.parametrize(("initialised", "refused"), [(True, True), (False, False)])
def test_a_template_with_cuda_is_refused(monkeypatch: pytest.MonkeyPatch, initialised: bool, refused: bool):
    """A module that says what torch would say stands for it."""
    torch: Any = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_initialized=lambda: initialised)
    monkeypatch.setitem(sys.modules, "torch", torch)
    if refused:
        with pytest.raises(StartRefused, match="'torch' has CUDA initialised"):
            loading.refuse_cuda()
    else:
        loading.refuse_cuda()


def test_without_torch_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch):
    """Nothing is imported to find out."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    loading.refuse_cuda()
    assert "torch" not in sys.modules


# -- __main__


def script_function(source: str, name: str) -> Callable[..., Any]:
    """A function as it comes by value from a script: of `__main__`, with globals of its own."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(source, scope)  # noqa: S102 - as a script is run
    function: Callable[..., Any] = scope[name]
    return function


def test_main_holds_what_functions_of_a_script_refer_to():
    """Their names and their globals, and nothing that main had is lost."""

    def share() -> tuple[bool, object, bool, bool]:
        source = (
            "scale = 3\ndef triple(x):\n    return scale * x\ndef outer():\n    return lambda x: x\ninner = outer()"
        )
        triple = script_function(source, "triple")
        main = sys.modules["__main__"]
        main.__dict__["own"] = own = lambda: None
        own.__module__ = "__main__"
        own.__qualname__ = own.__name__ = "own_name"
        names = main.__name__, main.__spec__
        loading.share_main(triple)
        return (
            main.__dict__["triple"] is triple,
            main.__dict__["scale"],
            main.__dict__["own_name"] is own,
            (main.__name__, main.__spec__) == names,
        )

    assert in_child(share) == (True, 3, True, True)


class Faceless:
    """Raises when it is asked for its class, as a proxy of something that is gone does."""

    @property
    def __class__(self) -> Any:
        raise ReferenceError


def test_objects_that_do_not_tell_their_class_are_passed_over():
    """They may lie about in any module that the template imports."""
    kept = [Faceless()]
    loading.share_main(kept)
