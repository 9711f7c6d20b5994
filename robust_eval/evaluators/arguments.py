"""Checks of what evaluators are given: each refusal names the value, what is allowed and the next step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from robust_eval.errors import InvalidArgument, InvalidArgumentType, bounded_repr
from robust_eval.storage.base import Storage
from robust_eval.storage.memory import MemoryStorage


def connected(storage: Storage | str | None) -> Storage:
    """Give the storage, or that of a URL, connected; a new `MemoryStorage` where there is none."""
    if storage is None:
        storage = MemoryStorage()
    if isinstance(storage, str):
        storage = Storage.from_url(storage)
    if not isinstance(storage, Storage):
        raise InvalidArgumentType(
            f"storage={bounded_repr(storage)} is a {type(storage).__name__}. "
            'Pass a robust_eval.storage.Storage, such as Storage.create(), or a URL such as "sqlite:///runs.db".'
        )
    return storage if storage.connected else storage.connect()


def known_search(storage: Storage, search_id: str | None) -> str:
    """Give the search, which must be in the storage; a new one where none is named."""
    if search_id is None:
        return storage.create_new_search()
    known = storage.load_all_search_ids()
    if search_id not in known:
        raise InvalidArgument(
            f"search_id={search_id!r} is not in the storage. Leave it out for a new search, or choose "
            f"one of {bounded_repr(known)}."
        )
    return search_id


def checked_configs(configs: Any) -> list[Mapping[str, Any]]:
    """Give the configurations as a list, each of them a mapping."""
    if isinstance(configs, Mapping | str | bytes) or not isinstance(configs, Iterable):
        raise InvalidArgumentType(
            f"configs={bounded_repr(configs)} is a {type(configs).__name__}. "
            "Pass a list of dicts, one for each job: submit([{...}])."
        )
    checked = list(configs)
    for number, config in enumerate(checked):
        if type(config) is not dict and not isinstance(config, Mapping):
            raise InvalidArgumentType(
                f"configs[{number}]={bounded_repr(config)} is a {type(config).__name__}. "
                "Each configuration is a dict; nothing was submitted."
            )
    return checked
