"""`robust-eval falsify`."""

import os
from typing import Annotated

import typer

from robust_eval.cli import values
from robust_eval.cli.exits import Exit, told
from robust_eval.cli.target import function_of


def falsify(
    target: Annotated[str, typer.Argument(help="The run function, as module:function.")],
    space: Annotated[str, typer.Option(help="What configurations are like: a .json file, or module:name.")],
    *,
    max_examples: Annotated[
        int, typer.Option(parser=values.count, metavar="N", help="Configurations to try before shrinking.")
    ] = 200,
    workers: Annotated[
        int, typer.Option("--workers", "-w", parser=values.count, metavar="N", help="Jobs that run at a time.")
    ] = os.cpu_count() or 1,
    job_timeout: Annotated[
        float, typer.Option(parser=values.seconds, metavar="SECONDS", help="How long a job may run.")
    ] = 10.0,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            parser=values.memory, metavar="SIZE", help="What a job may take with all its processes: 2GiB, or auto."
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(parser=values.seconds, metavar="SECONDS", help="How long all of it may take.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another one tries other configurations.")] = 0,
) -> None:
    """Find the smallest configuration that fails, for each way to fail.

    Configurations are tried in parallel and shrunk one at a time. What failed is kept in .hypothesis: the next search
    begins with it. The exit code is 1 where something was found.

    For example:

      robust-eval falsify model:train --space space.json --job-timeout 5

    where space.json has, for example, {"x": [0, 10], "mode": ["fast", "exact"]}: a range, and choices.
    """
    with told():
        from robust_eval.falsification import falsify as search  # noqa: PLC0415  another extra, needed only here
        from robust_eval.spaces import load_space  # noqa: PLC0415  as above

        run = function_of(target)
        found = search(
            run,
            load_space(space),
            max_examples=max_examples,
            num_workers=workers,
            job_timeout=job_timeout,
            memory_limit=memory_limit,
            timeout=timeout,
            seed=seed,
        )
    typer.echo(found.render())
    raise typer.Exit(Exit.SOME_FAILED if found else Exit.OK)
