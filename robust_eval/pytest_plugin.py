"""The pytest plugin: `@pytest.mark.isolated(job_timeout=5, memory_limit="1GiB")`.

pytest loads this module in every run of everybody who has robust_eval installed, so it imports nothing else of the
package until a test has the mark. What runs such a test is in `robust_eval.integrations.pytest`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from robust_eval.integrations.pytest import Isolation

_MARK = "isolated"
_ALLOWED = ("job_timeout", "memory_limit")
_HELP = (
    "isolated(job_timeout=None, memory_limit=None): run the test, with all of its fixtures, in a supervised process "
    "of its own (robust_eval)"
)
_KEY: pytest.StashKey[Isolation] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the one option, for debuggers."""
    parser.getgroup("robust_eval").addoption(
        "--no-isolation",
        action="store_true",
        help="run tests marked as isolated in this process, without limits: for a debugger",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", _HELP)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse what cannot work before anything runs."""
    marked = [(item, mark) for item in items if (mark := item.get_closest_marker(_MARK)) is not None]
    for item, mark in marked:
        if mark.args or not set(mark.kwargs) <= set(_ALLOWED):
            given = [*map(repr, mark.args), *(f"{name}={value!r}" for name, value in mark.kwargs.items())]
            msg = (
                f"{item.nodeid}: isolated({', '.join(given)}) is not understood. Allowed are {' and '.join(_ALLOWED)}."
            )
            raise pytest.UsageError(msg)
    if marked and not config.option.no_isolation and (config.option.usepdb or config.option.trace):
        msg = (
            f"{marked[0][0].nodeid} runs in another process, which a debugger here cannot enter. "
            "Add --no-isolation to run it in this one."
        )
        raise pytest.UsageError(msg)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run an isolated test elsewhere; leave every other one to pytest."""
    mark = item.get_closest_marker(_MARK)
    if mark is None or item.config.option.no_isolation:
        return None
    isolation = item.config.stash.get(_KEY, None)
    if isolation is None:
        from robust_eval.integrations.pytest import Isolation  # noqa: PLC0415 - only for those who use it

        isolation = item.config.stash[_KEY] = Isolation(item.config)
    isolation.run(item, nextitem, **_limits(mark))
    return True


def _limits(mark: pytest.Mark) -> dict[str, Any]:
    return {name: mark.kwargs.get(name) for name in _ALLOWED}


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the processes."""
    if (isolation := config.stash.get(_KEY, None)) is not None:
        isolation.close()
