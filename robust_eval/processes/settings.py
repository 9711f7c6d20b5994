"""What a supervisor starts templates and workers with."""

from typing import Any, NamedTuple


class Settings(NamedTuple):
    """What templates and workers are started with. `alike`: a template's interpreter starts as the supervisor's did.

    `niceness`: the user's, for what the supervisor starts after it has raised its own priority. `shelf_bytes`: how much
    memory each worker may keep for its next large result.
    """

    argv: list[str]
    alike: bool
    environment: dict[str, str]
    init: dict[str, Any]
    bundle_fd: int
    ledger_fd: int
    worker_env: list[dict[str, str]]
    worker_seed: int | None
    max_tasks_per_child: int | None
    descriptor_limit: tuple[int, int] | None
    niceness: int
    shelf_bytes: int
