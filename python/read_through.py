"""`read_through`: values that are loaded when a client misses them. Embedded into the module and imported as
`pinion_read_through`. Contract: docs/contract/read-through.md; what it does is in src/read_through/.
"""

import redisgears

__all__ = ['Loaded', 'Sorted', 'read_through']


class Sorted(dict):
    """A loader's value: a sorted set, `Sorted({member: score})`."""


class Loaded:
    """A loader's value with a lifetime of its own: `ttl` seconds, `None` for ever, `0` to answer without keeping it."""

    __slots__ = ('value', 'ttl')

    def __init__(self, value, ttl=None):
        self.value = value
        self.ttl = ttl

    def __repr__(self):
        return f'Loaded({self.value!r}, ttl={self.ttl!r})'


def read_through(prefix, loader=None, **options):
    """Loads keys that a client misses: `loader(key)` returns the value, which is stored and answers the client's command.

    A decorator, which returns the function, or a call. `prefix`: keys with this name, or with this beginning if it ends with
    `*`. Options: commands, ttl, jitter, negative_ttl, stale, refresh_ahead, timeout, on_error, max_waiting, max_loads,
    max_load_time, max_memory, backoff, max_backoff, breaker, batch, batch_wait, user, onRegistered, desc.
    Raises `gears.error` that names the argument.
    """
    if loader is not None:
        redisgears.registerReadThrough(prefix, loader, options)
        return loader
    redisgears.noteDecorator('read_through', prefix, False)

    def register(loader):
        redisgears.noteDecorator('read_through', prefix, True)
        redisgears.registerReadThrough(prefix, loader, options)
        return loader

    return register


redisgears.readThrough = read_through
redisgears.Loaded = Loaded
redisgears.Sorted = Sorted
