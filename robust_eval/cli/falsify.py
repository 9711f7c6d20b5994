"""`robust-eval falsify`."""

import os
from typing import Annotated

import typer

from robust_eval.cli.exits import Exit, told
from robust_eval.cli.extras import needs
from robust_eval.cli.target import function_of


def falsify(
    target: Annotated[str, typer.Argument(help="The run function, as module:function.")],
    space: Annotated[str, typer.Option(help="What configurations are like: a .json file, or module:name.")],
    *,
    max_examples: Annotated[int, typer.Option(min=1, help="Configurations to try before shrinking.")] = 200,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Jobs that run at a time.")] = (
        os.cpu_count() or 1
    ),
    job_timeout: Annotated[float, typer.Option(help="Seconds that a job may run.")] = 10.0,
    memory_limit: Annotated[
        str | None, typer.Option(help="Memory of a job with all its processes: 2GiB, or auto.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that all of it may take.")] = None,
    seed: Annotated[int, typer.Option(help="Another one tries other configurations.")] = 0,
) -> None:
    """Find the smallest configuration that fails, for each way to fail. Exits with 1 where one was found."""
    with needs("falsify"):
        from robust_eval.falsification import falsify as search  # noqa: PLC0415  another extra, needed only here
        from robust_eval.spaces import load_space  # noqa: PLC0415  as above
    with told():
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
