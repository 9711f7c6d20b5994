"""Seeded random walks over the pure core: `python -m stress.walk --steps 1000000 --seed N`.

A walk is a row of lives: each is one supervisor with a policy of its own, some hundred random moves
of the environment, the user and the clock, and an end: in half of the lives the environment
behaves until all is settled, then the pool is closed, in half among workers that cannot be killed. The
books of `stress.virtual` judge each step and `invariants.check` reads the state after it.
"""

import argparse
import random
import sys
import time
from collections import deque
from collections.abc import Iterator

from robust_eval.supervision.events import JobSpec
from robust_eval.supervision.policy import Policy
from stress.virtual import Move, World, calm, end, end_among_the_unkillable, helpful

LIFE = 400
_KINDS = ("exception", "timeout", "crash", "lost", "memory", "cancelled")
_FAULTS = (
    *("dies", "broken", "fails", "template_exits", "memory"),
    *("exception", "leftovers", "leaving", "mess"),
)
_MOST_LIVE = 9


class Failed(Exception):
    """A promise was broken; says where, so that the same seed leads there again."""


def any_policy(rng: random.Random) -> Policy:
    """Return a policy with small limits, so that each of them is met."""
    retry_on = frozenset(kind for kind in _KINDS if rng.random() < 0.4)
    return Policy(
        num_workers=rng.choice((1, 2, 2, 3)),
        spares=rng.choice((0, 1, 2)),
        max_retries=rng.choice((0, 1, 2)),
        retry_on=retry_on,
        grace_s=rng.choice((0.0, 0.0, 1.0)),
        dump_s=0.5,
        kill_timeout_s=3.0,
        start_timeout_s=rng.choice((2.0, 5.0)),
        leave_s=1.0,
        max_tasks_per_child=rng.choice((None, None, None, 1, 2, 3)),
        max_start_failures=rng.choice((2, 3, 5)),
        hold_up_s=rng.choice((0.25, 0.5, 1.0)),
        max_depth=rng.choice((1, 2, 4, 8)),
        depth_target_s=rng.choice((0.5, 5.0)),
    )


class Walker:
    """Chooses the moves of one life.

    Args:
        rng: where every choice comes from.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._goodwill = rng.choice((0.0, 0.3, 0.6))
        self._fault_rate = rng.choice((0.02, 0.1, 0.3))
        self._tick_rate = rng.choice((0.05, 0.2, 0.5))
        self._next_job_id = 0
        self.world = World(any_policy(rng))
        self.tail: deque[tuple[float, Move]] = deque(maxlen=30)

    def live(self, moves: int = LIFE) -> Iterator[int]:
        """Make moves, one at each step, then bring the life to its end."""
        for step in range(moves):
            self._make(self._choose())
            yield step
            if self.world.core.roster.sealed:  # a broken pool stays broken
                break
        if self._rng.random() < 0.5:
            calm(self.world)
        ending = self._rng.choice((end, end_among_the_unkillable))
        ending(self.world)

    def _make(self, move: Move) -> None:
        self.tail.append((self.world.now, move))
        self.world.make(move)

    def _choose(self) -> Move:
        rng, world = self._rng, self.world
        if rng.random() < 0.15:
            return self._user()
        if rng.random() < self._goodwill:
            return helpful(world)
        likely = [move for move in world.moves() if self._likely(move)]
        if not likely:
            return "waits", rng.choice((0.01, 0.1, 0.3))
        move = rng.choice(likely)
        if move == ("tick",) and rng.random() < 0.3:
            return "tick", rng.choice((0.01, 0.3, 2.0))
        return move

    def _likely(self, move: Move) -> bool:
        rate = self._fault_rate if move[0] in _FAULTS else self._tick_rate
        return move[0] not in (*_FAULTS, "tick") or self._rng.random() < rate

    def _user(self) -> Move:
        rng, world = self._rng, self.world
        choice = rng.random()
        live = [*world.specs.keys() - world.settled.keys()]
        if choice < 0.6 and len(live) < _MOST_LIVE:
            return self._submit()
        if choice < 0.7 and live:
            return rng.choice(("cancel", "withdraw")), rng.choice(live)
        if choice < 0.75:
            return "budget", rng.choice((None, None, 0.0, 1.0, 3.0))
        gone = [i for (name, *ids) in world.facts if name == "id" for i in ids]
        gone = [worker_id for worker_id in gone if worker_id not in world.processes]
        if choice < 0.8 and gone:
            return "late", rng.choice(gone), rng.randint(0, self._next_job_id)
        return "waits", rng.choice((0.01, 0.1, 0.3))

    def _submit(self) -> Move:
        timeouts = (None, 0.75, 1.0, 3.0)
        count = self._rng.randint(1, 4)
        first = self._next_job_id
        self._next_job_id += count
        ids = range(first, first + count)
        return "submit", *(JobSpec(job_id, self._rng.choice(timeouts)) for job_id in ids)


def walk(steps: int, seed: int) -> int:
    """Walk so many steps.

    Returns:
        How many steps were made.

    Raises:
        Failed: a promise was broken.
    """
    made = 0
    life = 0
    while made < steps:
        walker = Walker(random.Random(f"{seed}/{life}"))
        try:
            for _ in walker.live(min(LIFE, steps - made)):
                made += 1
        except Exception as error:
            tail = "\n".join(f"  {at:10.3f} {move}" for at, move in walker.tail)
            place = f"seed {seed}, step {made} (life {life})"
            raise Failed(f"{place}: {error!r}\nafter these moves:\n{tail}") from error
        life += 1
    return made


def main() -> int:
    """Walk as the command line says and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        made = walk(arguments.steps, arguments.seed)
    except Failed as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    took_s = time.monotonic() - started
    sys.stdout.write(
        f"seed {arguments.seed}: {made} steps in {took_s:.1f} s, {made / took_s:.0f} steps/s\nevery promise held\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
