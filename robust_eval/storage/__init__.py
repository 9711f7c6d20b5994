"""Where searches keep their jobs: one interface, in memory by default."""

from robust_eval.storage.base import STORAGES, Storage
from robust_eval.storage.memory import MemoryStorage

__all__ = ["STORAGES", "MemoryStorage", "Storage"]
