"""How many slots each host gets."""

import math
from collections.abc import Mapping


def divided(wanted: int | None, capacities: Mapping[str, int]) -> dict[str, int]:
    """Divide the slots that are wanted among hosts, as evenly as their room allows; None fills them."""
    shares: dict[str, int] = {}
    for index, (name, room) in enumerate(sorted(capacities.items(), key=lambda item: item[1])):
        share = room if wanted is None else min(room, math.ceil(wanted / (len(capacities) - index)))
        if wanted is not None:
            wanted -= share
        if share:
            shares[name] = share
    return shares
