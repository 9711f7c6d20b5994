"""Three small simulations that are honest about nothing but numerics, and fail by themselves.

Each is ordinary numerical code: correct for reasonable parameters, and for others it hangs, eats the
machine's memory, overflows the C stack, diverges or raises, as such code does. Nothing here knows that
it is supervised, and nothing fails on purpose.
"""

import math
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from sklearn.datasets import make_friedman1
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

Cell: TypeAlias = tuple[float, float]
Solver: TypeAlias = Literal["LSODA", "Radau", "BDF", "RK45", "DOP853"]


def oscillator(method: Solver, mu: float, start: float = 2.0) -> float:
    """Solve the Van der Pol oscillator and give the negative number of evaluations that it took.

    For a large `mu` the problem is stiff: explicit methods take steps of about 1 / `mu`, so they run for
    hours, and nothing says so. With `mu` below zero the cycle is unstable and whatever starts outside it
    blows up in finite time: some methods notice and some go on with ever smaller steps.

    Args:
        method: a method of `scipy.integrate.solve_ivp`.
        mu: how non-linear the damping is.
        start: the position at time zero, at rest.

    Returns:
        Minus the evaluations of the right-hand side: more is better.

    Raises:
        ArithmeticError: the solver gave up before the end.
    """

    def right_hand_side(_time: float, state: NDArray[np.float64]) -> tuple[float, float]:
        position, speed = state
        return speed, mu * (1.0 - position * position) * speed - position

    end = max(40.0, 2.0 * mu)
    solution = solve_ivp(right_hand_side, (0.0, end), (start, 0.0), method=method, rtol=1e-6, atol=1e-8)
    if not solution.success:
        raise ArithmeticError(f"{method} stopped at t={solution.t[-1]:.4f}: {solution.message}")
    return -float(solution.nfev)


def march(mu: float, step: float) -> float:
    """Take explicit Euler steps along the same oscillator and give the position at the end.

    Args:
        mu: how non-linear the damping is.
        step: the length of a step; longer than about 1 / `mu` the iteration diverges.

    Returns:
        The position after 40 time units: finite where the steps are short enough, else NaN.
    """
    position, speed = 2.0, 0.0
    for _ in range(round(40.0 / step)):
        force = mu * (1.0 - position * position) * speed - position
        position, speed = position + step * speed, speed + step * force
    return position


def regression(columns: int, degree: int) -> float:
    """Fit a ridge regression on polynomial features and give its score on data held out.

    The number of features is the binomial of `columns` + `degree` over `degree`: a little more of either
    and the matrix no longer fits into any machine. Where the system promises the memory first, the
    process grows while scikit-learn fills the columns; where it does not, the allocation is refused.

    Args:
        columns: input columns, at least 5, of which five matter.
        degree: the highest total degree of the polynomial.

    Returns:
        The coefficient of determination, at most 1: more is better.
    """
    inputs, target = make_friedman1(n_samples=400, n_features=columns, noise=0.5, random_state=0)
    train, test, train_target, test_target = train_test_split(inputs, target, random_state=0)
    model = make_pipeline(PolynomialFeatures(degree), Ridge(alpha=1.0))
    model.fit(train, train_target)
    return float(model.score(test, test_target))


def quadrature(levels: int) -> float:
    """Integrate 1 / sqrt(x) over (0, 1] on a mesh refined towards zero, and give minus the error.

    The mesh is described recursively, each level a lazy refinement of the one before, so it needs no
    memory for cells; the author raised the recursion limit for deep meshes. But an iterator over
    iterators is read by recursion in C, which that limit does not guard: deep enough, the stack is gone.

    Args:
        levels: how often the cell at the singularity is halved.

    Returns:
        Minus the distance to the exact value, 2: more is better.

    Raises:
        ZeroDivisionError: the first cell is so short that its middle is zero.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 2 * levels + 1000))
    try:
        integral = math.fsum((right - left) / math.sqrt((left + right) / 2) for left, right in _refined(levels))
    finally:
        sys.setrecursionlimit(limit)
    return -abs(integral - 2.0)


def _refined(levels: int) -> Iterator[Cell]:
    if levels == 0:
        return iter([(0.0, 1.0)])
    return chain.from_iterable(map(_halved_at_zero, _refined(levels - 1)))


def _halved_at_zero(cell: Cell) -> tuple[Cell, ...]:
    left, right = cell
    if left > 0.0:
        return (cell,)
    middle = right / 2
    return (left, middle), (middle, right)
