"""Where searches keep their jobs: in memory by default, in a file or on a server where they must last."""

import importlib
from typing import TYPE_CHECKING, Any

from robust_eval.storage.base import STORAGES, Storage
from robust_eval.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from robust_eval.storage.redis import RedisStorage
    from robust_eval.storage.sqlite import SqliteStorage

__all__ = ["STORAGES", "MemoryStorage", "RedisStorage", "SqliteStorage", "Storage"]

# Imported when they are first used: few drivers need both.
_LAZY = {"RedisStorage": "redis", "SqliteStorage": "sqlite"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        msg = f"module 'robust_eval.storage' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"robust_eval.storage.{_LAZY[name]}"), name)
