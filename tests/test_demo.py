"""The demo: its simulations are honest numerics, and the sweep shows every cause of failure."""

import csv
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from robust_eval.demo import simulations, sweep


@pytest.mark.parametrize("method", ["LSODA", "Radau", "BDF", "RK45", "DOP853"])
def test_every_solver_finishes_the_oscillator_that_is_not_stiff(method: simulations.Solver):
    """At mu = 1 each method reaches the end with thousands of evaluations, not millions."""
    assert -20_000 < simulations.oscillator(method, 1.0) < -1_000


def test_stiffness_costs_the_explicit_method_more_and_the_implicit_one_no_more():
    """From mu = 10 to mu = 100, RK45 needs ten times as many evaluations and LSODA does not."""
    assert simulations.oscillator("RK45", 100.0) < 10 * simulations.oscillator("RK45", 10.0)
    assert simulations.oscillator("LSODA", 100.0) > 2 * simulations.oscillator("LSODA", 10.0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_solution_that_blows_up_is_an_error():
    """Outside the unstable cycle the solution ends in finite time, and the solver says where."""
    with pytest.raises(ArithmeticError, match=r"RK45 stopped at t=1\.2"):
        simulations.oscillator("RK45", -1.0, start=3.0)


def test_short_steps_stay_on_the_cycle_and_long_ones_diverge():
    """The cycle's amplitude is about 2; explicit Euler beyond its stability limit gives NaN."""
    assert abs(simulations.march(1.0, 1e-3)) < 2.2
    assert math.isnan(simulations.march(1000.0, 1e-3))


def test_polynomial_features_help_until_there_are_too_many():
    """With few columns a higher degree fits better, with many it only costs."""
    assert simulations.regression(5, 3) > simulations.regression(5, 1)
    assert simulations.regression(20, 3) < simulations.regression(5, 3)


def test_the_refused_allocation_is_a_memory_error():
    """A matrix larger than any machine is refused at once."""
    with pytest.raises(MemoryError):
        simulations.regression(60, 9)


def test_refinement_converges_to_the_exact_integral():
    """Halving the first cell reduces the error until only the other cells' error is left."""
    errors = [-simulations.quadrature(levels) for levels in (5, 10, 20, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(0.0288, abs=1e-3)


def test_a_mesh_beyond_the_smallest_float_is_an_error():
    """The middle of the first cell underflows to zero, where the integrand has no value."""
    with pytest.raises(ZeroDivisionError):
        simulations.quadrature(5_000)


def test_the_recursion_limit_is_given_back():
    """A simulation leaves the interpreter as it found it."""
    before = sys.getrecursionlimit()
    simulations.quadrature(2_000 // 4)
    assert sys.getrecursionlimit() == before


@pytest.mark.skipif(sys.platform != "linux", reason="the stack's size is another elsewhere")
def test_a_mesh_too_deep_overflows_the_stack():
    """The deepest configurations of the sweep end their interpreter with SIGSEGV."""
    script = "from robust_eval.demo.simulations import quadrature; quadrature(200_000)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert done.returncode == -11


def test_the_sweep_is_large_and_without_repetition():
    """At least 40 configurations, all different, the same each time."""
    configs = sweep.configurations()
    assert len(configs) >= 40
    assert len({tuple(config.items()) for config in configs}) == len(configs)
    assert configs == sweep.configurations()


def test_the_sweep_calls_the_simulation_that_is_named():
    """`run` hands each simulation its own arguments and no others."""
    job = {"simulation": "quadrature", "levels": 10, "job_id": 3}
    assert sweep.run(job) == simulations.quadrature(10)


@pytest.mark.unmeasured
def test_the_demo_reports_every_cause_and_ends_well(tmp_path: Path):
    """In a minute: exit code 0, a row for each configuration, every kind with its example, no process left."""
    done = subprocess.run(
        [sys.executable, "-c", "from robust_eval.cli import main; main()", "demo", "--workers", "2"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(sweep.configurations())
    kinds = Counter(row["m:failure"] for row in rows)
    assert kinds[""] >= 35
    assert {"timeout", "memory", "crash", "exception", "invalid"} <= kinds.keys()
    assert all((row["objective"] == "F") == bool(row["m:failure"]) for row in rows)
    # Where it hung: the stack's innermost lines are in the output.
    assert "_ivp" in done.stdout or "right_hand_side" in done.stdout
    assert "SIGSEGV" in done.stdout
    assert "0 processes left" in done.stdout
