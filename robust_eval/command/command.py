"""`Command`: an executable as a run function.

It fills in the templates, runs the process and reads the objective; who kills what, and when, is the evaluator's
business: the process is below its worker and dies with it.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from robust_eval.callbacks import Callback
from robust_eval.command import process
from robust_eval.command.parsing import CommandResult, Parse, parser_of
from robust_eval.command.scratch import Owner, Scratch, this_process
from robust_eval.command.template import Template
from robust_eval.errors import CommandFailed, InvalidArgument, InvalidArgumentType, bounded_repr
from robust_eval.limits import parse_count
from robust_eval.objective import standardize

if TYPE_CHECKING:
    import re

    from robust_eval.job import Job

Keep: TypeAlias = Literal["failed", "always", "never"]
_KEEP: Final[tuple[Keep, ...]] = get_args(Keep)
_OWN: Final = ("job_dir", "job_id")
_TAIL: Final = 4096
_SHELLS_SIGNAL: Final = 128
# Not kept, although the job has no result: it is nothing that the command did.
_NOT_ITS_FAULT: Final = ("cancelled",)


class Command(Callback):
    """A run function that runs an executable, for evaluators of every method.

    Each job gets a scratch directory, which is where the executable starts; input files are written there from
    templates. A parameter of the configuration is written ``{name}`` or ``{name:.3f}`` in every text here, a brace
    that stays ``{{`` or ``}}``; ``{job_dir}`` is the scratch directory and ``{job_id}`` the number of the job. No
    shell reads the arguments.

    An exit code that is not ok, or a signal, is a failure of kind ``crash`` with ``failure.exit_code`` or
    ``failure.signal``; an output in which the objective is not found is ``invalid``. With ``method="process"``,
    a limit kills the executable with everything that it started, launchers of MPI and their ranks included, and
    ``failure.output_tail`` has the end of what they printed, whatever ended them.

    Args:
        args: the program and its arguments, templates. A program with a ``/`` in it is looked up from the working
            directory of now, others on the ``PATH``.
        parse: how the objective is found in what was printed to stdout: by default JSON on the last line (anything
            that a run function may return); a regular expression whose last match counts, with the objective as its
            first group or the group called ``objective`` and other named groups as metadata; or a function of the
            `CommandResult`.
        files: input files by their names in the scratch directory: templates, or a `pathlib.Path` of one, which is
            read now.
        stdin: a template of what the executable reads from its stdin; nothing by default.
        cwd: a template of the directory that it starts in; the scratch directory by default.
        env: environment variables beside those of the worker, templates.
        scratch: the directory below which the scratch directories are made.
        keep: which of them stay: of jobs that ``"failed"`` (by whatever, limits included; ``job.metadata["job_dir"]``
            says where), ``"always"``, or ``"never"``.
        ok_exit_codes: the exit codes that are no failure.

    Raises:
        InvalidArgument: a template is not well formed, the program is not found, or another value is not allowed.
    """

    def __init__(
        self,
        args: Sequence[Any],
        *,
        parse: str | re.Pattern[str] | Parse | None = None,
        files: Mapping[str, str | Path] | None = None,
        stdin: str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, Any] | None = None,
        scratch: str | os.PathLike[str] = "scratch",
        keep: Keep = "failed",
        ok_exit_codes: Iterable[int] = (0,),
    ) -> None:
        self._args = _arguments(args)
        self._parse = parser_of(parse)
        self._files = {_checked_name(name): _file(name, text) for name, text in (files or {}).items()}
        self._stdin = None if stdin is None else Template(stdin, "stdin")
        self._cwd = None if cwd is None else Template(os.fspath(cwd), "cwd")
        self._env = {name: Template(value, f"env[{name!r}]") for name, value in (env or {}).items()}
        self._scratch = Scratch(Path(scratch).absolute())
        if keep not in _KEEP:
            raise InvalidArgument(f"keep={bounded_repr(keep)} is unknown. Choose one of {_KEEP}.")
        self._keep = keep
        self._ok = frozenset(parse_count("ok_exit_codes", code, minimum=0) for code in ok_exit_codes)
        self._names: dict[str, str] = {}
        self._swept = False

    def __repr__(self) -> str:
        return f"Command({list(map(str, self._args))})"

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to the driver stays there.
        return {**self.__dict__, "_names": {}, "_swept": False}

    # -- in the driver: directories are given out before the job begins, and taken back after its end

    def on_launch(self, job: Job) -> None:
        """Give the job a name for its directory, so that the driver finds it whatever becomes of the worker.

        Args:
            job: the job that is being submitted.
        """
        self._sweep_once()
        name = self._names[job.id] = self._scratch.name(job.id)
        job.run_kwargs = {**(job.run_kwargs or {}), "_scratch": (name, this_process())}

    def on_done(self, job: Job) -> None:
        """Keep the job's directory or remove it.

        Args:
            job: the job that is done; where its directory stays, ``job.metadata["job_dir"]`` says which it is.
        """
        name = self._names.pop(job.id, None)
        if name is None:
            return
        failed = job.failure is not None and job.failure.kind not in _NOT_ITS_FAULT
        if self._keeps(failed=failed):
            if kept := self._scratch.keep(name):
                job.metadata["job_dir"] = str(kept)
        elif job.failure is not None:  # else the worker has removed it
            self._scratch.remove(name)

    def _keeps(self, *, failed: bool) -> bool:
        return self._keep == "always" or (self._keep == "failed" and failed)

    def _sweep_once(self) -> None:
        if not self._swept:
            self._swept = True
            self._scratch.sweep()

    # -- in the worker

    def __call__(self, job: Mapping[str, Any], *, _scratch: tuple[str, Owner] | None = None, **more: Any) -> Any:
        """Run the executable for one configuration and give its objective.

        Args:
            job: the parameters.
            **more: further ones, such as what an evaluator's queue lends to the job.

        Returns:
            What ``parse`` found: anything that a run function may return.

        Raises:
            CommandFailed: the exit code is not ok, or a signal ended it.
            InvalidOutput: the objective is not in what it printed.
            InvalidArgument: a parameter is missing.
        """
        if _scratch is not None:
            return self._run_in(*_scratch, job, more)
        # No evaluator gave this call its directory: nobody else will take it back.
        self._sweep_once()
        name = self._scratch.name("call")
        failed = True
        try:
            output = self._run_in(name, this_process(), job, more)
            failed = False
        finally:
            if self._keeps(failed=failed):
                self._scratch.keep(name)
            else:
                self._scratch.remove(name)
        return output

    def _run_in(self, name: str, owner: Owner, job: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
        directory = self._scratch.open(name, owner)
        values = {**job, **more}
        if taken := [key for key in _OWN if key in values]:
            raise InvalidArgument(f"The parameters {taken} belong to Command: choose other names.")
        values |= {"job_dir": str(directory), "job_id": job["job_id"] if hasattr(job, "parameters") else name}
        for file_name, text in self._files.items():
            path = directory / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.fill(values), encoding="utf-8")
        argv = [each.fill(values) for each in self._args]
        cwd = directory if self._cwd is None else Path(self._cwd.fill(values))
        env = {**os.environ, **{key: text.fill(values) for key, text in self._env.items()}} if self._env else None
        ended = process.run(argv, cwd, env, None if self._stdin is None else self._stdin.fill(values))
        self._check(ended, argv[0])
        output = self._parse(CommandResult(ended.output, ended.code, directory, ended.duration))
        standardize(output)  # what is refused is refused while there still is something to look at
        if self._keep != "always":
            self._scratch.remove(name)
        return output

    def _check(self, ended: process.Ended, program: str) -> None:
        if ended.code in self._ok:
            return
        tail = ended.output[-_TAIL:]
        if ended.code < 0:
            name = _signal_name(-ended.code)
            raise CommandFailed(f"{program} was ended by {name}", name, None, tail)
        hint = f", which is not in ok_exit_codes={sorted(self._ok)}"
        if ended.code > _SHELLS_SIGNAL and (name := _signal_name(ended.code - _SHELLS_SIGNAL)).startswith("SIG"):
            hint = f", a launcher's word for {name}"
        raise CommandFailed(f"{program} ended with exit code {ended.code}{hint}", None, ended.code, tail)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _arguments(args: Any) -> list[Template]:
    if isinstance(args, str | bytes) or not isinstance(args, Sequence) or not args:
        raise InvalidArgumentType(
            f"args={bounded_repr(args)} is no list of arguments. No shell splits it: "
            'pass ["./solver", "--re={re}"], or shlex.split(...) of a text.'
        )
    templates = [Template(each, f"args[{index}]") for index, each in enumerate(args)]
    if templates[0].is_plain:
        templates[0] = Template(_program(templates[0].fill({})).replace("{", "{{").replace("}", "}}"), "args[0]")
    return templates


def _program(name: str) -> str:
    """Where a program is, so that it is found from the scratch directory too."""
    found = shutil.which(os.path.abspath(name) if "/" in name else name)  # noqa: PTH100  no symbolic link is resolved
    if found is None:
        where = f"from {Path.cwd()}" if "/" in name else "on the PATH"
        raise InvalidArgument(f"args[0]={name!r} is not found {where}, or is not executable.")
    return found if "/" in name else name


def _checked_name(name: str) -> str:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise InvalidArgument(f"files[{name!r}] is not inside the scratch directory. Pass a name such as 'in.cfg'.")
    return name


def _file(name: str, text: str | Path) -> Template:
    where = f"files[{name!r}]"
    if isinstance(text, Path):
        try:
            return Template(text.read_text(encoding="utf-8"), where)
        except OSError as error:
            raise InvalidArgument(f"{where}={str(text)!r} cannot be read: {error}") from error
    return Template(text, where)
