"""The global generators of `random` and numpy in a worker.

Every honest draw moves them, so a generator that a job moved is given a fresh seed before the next job, and no process
is spent on it.
"""

import ctypes
import functools
import random
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeAlias

_STATE_WORDS = 624
_RANDOM_INDEX_OFFSET = 16

_Glimpse: TypeAlias = "ctypes.Array[ctypes.c_char]"
_GLIMPSE = ctypes.c_char * 16


def _seen(state: "_Glimpse | None") -> bytes:
    return b"" if state is None else state.raw


@functools.cache
def random_state() -> "_Glimpse | None":
    """The position and first words in the C object of `random`, if they are where CPython 3.11 keeps them.

    Looked for once, in the template, where workers are forked from one.
    """
    generator = random.Random(0)
    position = ctypes.c_int.from_address(id(generator) + _RANDOM_INDEX_OFFSET)
    seen = [position.value]
    generator.random()
    seen.append(position.value)
    state = generator.getstate()[1][-1]
    if seen == [_STATE_WORDS, state]:
        return _GLIMPSE.from_address(id(random._inst) + _RANDOM_INDEX_OFFSET)  # noqa: SLF001 - there is no other way
    return None


class Randomness:
    """The global generators of `random` and numpy.

    A Mersenne twister that drew or was seeded shows it in its position and the words of state beside that, which are
    read where they lie in memory: asking for the whole state would cost 11 us a job, and a new seed 16. The position
    alone would not do: it is the same after every seeding.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._numpy: Any = None
        self._random_state = random_state()
        self._numpy_state: _Glimpse | None = None
        self._reseed_random()
        if seed is not None:
            # Since version 2 numpy imports this when it is first used, which is after the seeding.
            with suppress(ImportError):
                import_module("numpy.random")
        self._find_numpy()

    def _find_numpy(self) -> None:
        self._numpy = sys.modules.get("numpy.random")
        if self._numpy is not None:
            with suppress(AttributeError, TypeError):
                legacy = self._numpy.mtrand._rand._bit_generator  # noqa: SLF001 - there is no public name for it
                address = legacy.ctypes.state_address
                # The position follows the last word of the state.
                self._numpy_state = _GLIMPSE.from_address(address + 4 * (_STATE_WORDS + 1) - ctypes.sizeof(_GLIMPSE))
            self._reseed_numpy()

    def _reseed_random(self) -> None:
        random.seed(self._seed)
        self._random_was = _seen(self._random_state)

    def _reseed_numpy(self) -> None:
        seed = None if self._seed is None else self._seed % 2**32
        with suppress(AttributeError, TypeError):
            self._numpy.seed(seed)
        self._numpy_was = _seen(self._numpy_state)

    def renew(self) -> None:
        """Give what moved since the last call a fresh seed; with a seed of the user's, leave it alone."""
        if self._seed is not None:
            return
        if self._random_state is None or self._random_state.raw != self._random_was:
            self._reseed_random()
        if self._numpy is None:
            if "numpy.random" in sys.modules:
                self._find_numpy()
        elif self._numpy_state is None or self._numpy_state.raw != self._numpy_was:
            self._reseed_numpy()
