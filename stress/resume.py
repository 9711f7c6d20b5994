"""Drivers killed with SIGKILL at random instants: `python -m stress.resume --kills 300`.

One search after the other. A driver resumes the search, submits what is not done, gathers and dumps; it is killed at a
random instant and another one takes its place, until one comes to the end. One in four is killed at any time from its
start on, the others once they gather. Seeded: the instants are drawn from the seed, what happens by then is
the machine's. Broken promises are listed:

- what was settled when a driver died stays settled with the same outcome, and is not run again;
- what `gather` gave is in the storage;
- in the end every configuration has exactly one job, one outcome and one row in the CSV file.
"""

import argparse
import csv
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from robust_eval import Evaluator, RunningJob, SqliteStorage

JOBS = 300
LONGEST_S = 0.2
START_S = 0.5
METHODS = ("process", "process", "thread")
_END_S = 60.0


def run(job: RunningJob, diary: str, turn: int) -> dict[str, Any]:
    """Leave a line, take a moment, and give a value that tells whose it is."""
    fd = os.open(diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{turn} {job['x']}\n".encode())
    os.close(fd)
    time.sleep(0.002)  # so that many are cut short
    if job["x"] % 10 == 0:
        raise ValueError(job["x"])
    return {"objective": float(job["x"]), "metadata": {"twice": 2 * job["x"]}}


def drive(folder: Path, method: str, turn: int) -> None:
    """Be one driver of the search in a folder, to its end."""
    storage = SqliteStorage(folder / "runs.db")
    limits = {
        "num_workers": 2,
        "storage": storage,
        "search_id": "0",
        "max_attempts": 10**6,
        "run_function_kwargs": {"diary": str(folder / "diary"), "turn": turn},
    }
    with Evaluator.create(run, method, limits) as evaluator, (folder / "given").open("a", buffering=1) as given:
        evaluator.resume()
        evaluator.submit([{"x": x} for x in range(JOBS)], skip_done=True)
        (folder / f"ready-{turn}").touch()
        while evaluator.num_jobs_gathered < evaluator.num_jobs_submitted:
            jobs = evaluator.gather("BATCH", 1)
            given.writelines(f"{job.config['x']}\n" for job in jobs)
            evaluator.dump_evals(log_dir=folder)
        evaluator.dump_evals(log_dir=folder)


class Search:
    """One search and its drivers.

    Args:
        folder: its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broken: list[str] = []
        self._turn = 0
        self._settled: dict[str, Any] = {}
        storage = SqliteStorage(folder / "runs.db").connect()
        storage.create_new_search()
        storage.close()

    def turn(self, method: str, lives_s: float, *, from_ready: bool) -> bool:
        """Let one driver live for so long, from its start or from when it is ready. True when it came to its end."""
        self._turn += 1
        pid = os.fork()
        if not pid:
            code = 1
            try:
                drive(self.folder, method, self._turn)
                code = 0
            finally:
                os._exit(code)
        finished = from_ready and self._wait(pid, _END_S, self.folder / f"ready-{self._turn}")
        finished = finished or self._wait(pid, lives_s)
        if not finished:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._look()
        return finished

    def _wait(self, pid: int, lives_s: float, ready: Path | None = None) -> bool:
        ends_at = time.monotonic() + lives_s
        while time.monotonic() < ends_at and not (ready and ready.exists()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                if status:
                    self.broken.append(f"driver {self._turn} ended with status {status}")
                return True
            time.sleep(0.001)  # a random instant, to a millisecond
        return False

    def _look(self) -> None:
        """Compare what the storage has with what was promised."""
        data = self._load()
        settled = {job_id: job for job_id, job in data.items() if job["out"] is not None}
        for job_id, before in self._settled.items():
            now = settled.get(job_id)
            if now is not None and before["metadata"]["timestamp_gather"] is None:  # to be gathered is no other outcome
                before["metadata"]["timestamp_gather"] = now["metadata"]["timestamp_gather"]
            if now != before:
                self.broken.append(f"the outcome of job {job_id} changed from {before} to {now}")
        done = {job["in"]["args"][0]["x"] for job in self._settled.values()}
        for turn, x in self._lines("diary"):
            if int(turn) == self._turn and int(x) in done:
                self.broken.append(f"driver {turn} ran x={x}, which had settled before")
        kept = {job["in"]["args"][0]["x"] for job in settled.values()}
        self.broken += [f"x={x} was gathered and is not kept" for (x,) in self._lines("given") if int(x) not in kept]
        self._settled = settled

    def finish(self) -> None:
        """Look at what a whole search has left."""
        data = self._load()
        counts = Counter(job["in"]["args"][0]["x"] for job in data.values())
        if counts != dict.fromkeys(range(JOBS), 1):
            self.broken.append(f"jobs of the configurations: {counts}")
        for job in data.values():
            x = job["in"]["args"][0]["x"]
            expected = ("F", "exception") if x % 10 == 0 else (float(x), None)
            if (job["out"], job.get("failure", {}).get("kind")) != expected:
                self.broken.append(f"x={x} has the outcome {job['out']}, {job.get('failure')}")
        with (self.folder / "results.csv").open(newline="") as file:
            rows = Counter(int(row["p:x"]) for row in csv.DictReader(file))
        if rows != dict.fromkeys(range(JOBS), 1):
            self.broken.append(f"rows of the configurations: {rows}")

    def _load(self) -> dict[str, Any]:
        storage = SqliteStorage(self.folder / "runs.db").connect()
        try:
            return storage.load_search("0")
        finally:
            storage.close()

    def _lines(self, name: str) -> list[list[str]]:
        """The whole lines of a file; the last one may be torn."""
        try:
            text = (self.folder / name).read_text()
        except FileNotFoundError:
            return []
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]


def play(kills: int, seed: int) -> tuple[list[str], int]:
    """Kill so many drivers; give the broken promises and the number of searches that came to their end."""
    rng = random.Random(seed)
    broken: list[str] = []
    searches = killed = 0
    while killed < kills:
        with tempfile.TemporaryDirectory() as folder:
            search = Search(Path(folder))
            finished = False
            while killed < kills and not finished:
                from_ready = rng.random() < 0.75
                lives_s = rng.uniform(0, LONGEST_S if from_ready else START_S)
                finished = search.turn(rng.choice(METHODS), lives_s, from_ready=from_ready)
                killed += not finished
            if not finished and not search.turn("process", _END_S, from_ready=False):
                search.broken.append("the last driver did not come to its end")
            search.finish()
            broken += search.broken
        searches += 1
    return broken, searches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begun_at = time.monotonic()
    broken, searches = play(arguments.kills, arguments.seed)
    print(*broken, sep="\n")  # noqa: T201  its report
    print(f"{arguments.kills} kills, {searches} searches, {time.monotonic() - begun_at:.0f} s, {len(broken)} broken")  # noqa: T201  its report
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
