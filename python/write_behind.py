"""`write_behind`: changes of keys that are saved elsewhere. Embedded into the module and imported as `pinion_write_behind`.
Contract: docs/contract/write-behind.md; what it does is in src/write_behind/.
"""

import redisgears

__all__ = ['write_behind']


def write_behind(prefix, save=None, **options):
    """Saves changes of keys: `save(changes)` gets a list of dicts with id, key, db, event, type and value; it raises if it fails.

    A decorator, which returns the function, or a call. `prefix`: keys with this name, or with this beginning if it ends with
    `*`. Options: events, batch, interval, coalesce, backoff, max_backoff, max_tries, dead_letter, max_queue, max_queue_bytes,
    on_full, full_timeout, wait, timeout, ordered, max_save_time, max_memory, user, onRegistered, desc. Raises `gears.error` that names the argument.
    """
    if save is not None:
        redisgears.registerWriteBehind(prefix, save, options)
        return save
    redisgears.noteDecorator('write_behind', prefix, False)

    def register(save):
        redisgears.noteDecorator('write_behind', prefix, True)
        redisgears.registerWriteBehind(prefix, save, options)
        return save

    return register


redisgears.writeBehind = write_behind
