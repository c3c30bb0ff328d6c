"""How much memory objects take, for `max_memory`. Embedded into the module and imported as `pinion_sizes`."""

from collections import deque
from gc import get_referents
from sys import getsizeof

from pinion_read_through import Loaded

# What is in these counts, too. Other objects count as they say themselves: what they refer to may be anybody's.
_CONTAINERS = (list, tuple, dict, set, frozenset, deque, Loaded)
_PLAIN = frozenset((str, bytes, int, float, bool, type(None)))


def size_of(objects):
    """Counts a list of objects, which is empty afterwards: `(bytes, how many objects)`. Each object counts once."""
    seen = set()
    total = 0
    while objects:
        item = objects.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        kind = type(item)
        total += getsizeof(item, 0)
        if kind not in _PLAIN and issubclass(kind, _CONTAINERS):
            # The class of one that Python code has made is among what it refers to.
            objects.extend(part for part in get_referents(item) if part is not kind)
            if issubclass(kind, dict):
                # Keys that are all texts are not among what it refers to, as far as Python's garbage collector is concerned.
                objects.extend(dict.keys(item))
    return total, len(seen)
