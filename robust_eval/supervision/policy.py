"""What the user asked for, and the arithmetic of it: retries, backoff, how many jobs wait in an inbox."""

from dataclasses import dataclass

_BACKOFF_FIRST_S = 0.01
_BACKOFF_MOST_S = 5.0
_LONG_FOR_ITS_KIND = 2.0
_ROUNDS_LEFT = 2


@dataclass(frozen=True, slots=True)
class Policy:
    """The constants of one supervisor. Durations in seconds.

    Args:
        num_workers: slots, each with at most one live worker.
        spares: blank workers that stand ready to take a slot.
        max_retries: further attempts for a job that failed with a kind in `retry_on`.
        retry_on: failure kinds that are retried.
        grace_s: between the polite stop and the kill; 0 for none.
        dump_s: at most this long is waited for the stack dump.
        kill_timeout_s: a tree still there so long after SIGKILL settles its job as unkilled.
        start_timeout_s: a worker must be ready, or begin a job that waits in its inbox, within this time.
        leave_s: a worker that leaves by itself is killed after this time.
        max_tasks_per_child: jobs a worker runs before it is replaced; None for no bound.
        max_start_failures: start-ups that fail in a row before the pool is broken.
        hold_up_s: jobs behind one that has run for so long are taken back, unless such jobs take longer as a rule.
        max_depth: most jobs in one inbox, the running one included.
        depth_target_s: how much work should lie in an inbox.
        ahead_s: jobs of up to this mean duration have the next one in their inbox while many wait.
    """

    num_workers: int = 1
    spares: int = 1
    max_retries: int = 0
    retry_on: frozenset[str] = frozenset()
    grace_s: float = 0.0
    dump_s: float = 0.005
    kill_timeout_s: float = 10.0
    start_timeout_s: float = 60.0
    leave_s: float = 1.0
    max_tasks_per_child: int | None = None
    max_start_failures: int = 3
    hold_up_s: float = 0.005
    max_depth: int = 256
    depth_target_s: float = 0.002
    ahead_s: float = 0.2

    def retries(self, kind: str, attempts: int) -> bool:
        """Whether a job that failed with `kind` after `attempts` attempts is tried again."""
        return attempts <= self.max_retries and kind in self.retry_on

    def backoff_s(self, failures: int) -> float:
        """How long to wait after so many start-up failures in a row."""
        return min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30))

    def depth(self, mean_s: float, queued: int) -> int:
        """How many jobs of the mean duration `mean_s` an inbox should hold while so many wait.

        A worker with a second one need not wait for the supervisor, which is a part of a short job's time only, and
        where few jobs are left they are better not bound to a worker.
        """
        if mean_s * self.max_depth <= self.depth_target_s:
            return self.max_depth
        depth = max(1, int(self.depth_target_s / mean_s))
        if depth == 1 and mean_s <= self.ahead_s and queued >= _ROUNDS_LEFT * self.num_workers:
            return min(2, self.max_depth)
        return depth

    def patience_s(self, mean_s: float) -> float:
        """How long a job may hold up those behind it where jobs take `mean_s` in the mean."""
        return max(self.hold_up_s, _LONG_FOR_ITS_KIND * mean_s)
