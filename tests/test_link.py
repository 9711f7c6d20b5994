"""The supervisor's channel to its template."""

import os
import select
import sys

import pytest

from robust_eval.processes import link
from robust_eval.processes.link import TemplateLink
from robust_eval.processes.settings import Settings


def test_a_template_that_is_dead_at_once_is_no_error_of_the_supervisor(monkeypatch: pytest.MonkeyPatch):
    """Killed before it was told what to do, it is noticed by its exit like any other."""

    def until_it_is_dead(pid: int, *_: object) -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(link.resource, "prlimit", until_it_is_dead)
    bundle_fd = os.open(os.devnull, os.O_RDONLY)
    template = TemplateLink(
        Settings([sys.executable, "-S", "-c", "raise SystemExit(5)"], {}, {}, bundle_fd, -1, [], None, None, (64, 64))
    )
    assert select.select([template.exit_fd], [], [], 10.0)[0]
    template.end(1.0)
    assert "exit code 5" in template.last_words()
    template.close()
    os.close(bundle_fd)
