"""The bounded part of the killing of drivers."""

import subprocess
import sys

import pytest


@pytest.mark.ci
def test_twenty_five_drivers_killed_at_random_lose_nothing():
    """Nothing that settled is lost or run again, and each configuration ends with one outcome and one row."""
    # A program of its own: it forks, which a test runner with threads must not.
    command = [sys.executable, "-m", "stress.resume", "--kills", "25", "--seed", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "25 kills" in done.stdout
