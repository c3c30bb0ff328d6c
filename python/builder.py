"""`GearsBuilder`, the class that scripts use: the steps of `gearsCtx` with the conveniences of the contract.

Embedded into the module and imported as `pinion_builder`. Contract: docs/contract/readers-and-events.md chapter 1,
docs/contract/python-api.md chapter 3.
"""

from operator import attrgetter

from redisgears import GearsError, PyFlatExecution

__all__ = ['GearsBuilder']


class GearsBuilder(PyFlatExecution):
    """A function over the records of a reader; every operation returns the builder itself.

    `reader`: the reader's name. `defaultArg`: what `run` reads when it gets no argument. `desc`: a text for
    RG.DUMPREGISTRATIONS. Raises `gears.error` for a wrong argument or an unknown reader.
    """

    def __new__(cls, reader='KeysReader', defaultArg='*', desc=None):
        self = super().__new__(cls, reader, desc)
        self.defaultArg = defaultArg
        return self

    def run(self, arg=None, convertToStr=True, collect=True, mode='async', **kargs):
        """Runs the function over the keys that match the glob `arg`, on a worker.

        `convertToStr`: each result becomes its `str()`. `collect`: results move to the shard that got the command.
        `mode`: 'async' (all shards) or 'async_local'. For the KeysReader: `noScan`, `readValue` (both bool).
        Raises `gears.error` that names the argument.
        """
        kargs['mode'] = mode
        return self._run(arg or self.defaultArg, bool(convertToStr), bool(collect), kargs)

    def register(self, prefix='*', convertToStr=True, collect=True, mode='async', onRegistered=None, **kargs):
        """Runs the function on each event of the reader and returns the registration's id (str).

        `prefix`: keys with this name, or with this beginning if it ends with `*`. `mode`: 'async', 'async_local' or
        'sync'. `onRegistered`: called without arguments when the registration is in force. For the KeysReader:
        `eventTypes`, `keyTypes`, `commands` (iterables of str), `readValue`, `inorder` (bool).
        Raises `gears.error` that names the argument.
        """
        kargs.update(prefix=prefix, mode=mode, onRegistered=onRegistered)
        return self._register(bool(convertToStr), bool(collect), kargs)

    def sort(self, reverse=True, *, key=None):
        """All records in ascending order, with `reverse=False` in descending order (so it is in RedisGears 1.2).

        `key`: a function of the record; records are compared by what it returns, and equal ones keep their order. Without
        it they must be comparable themselves. Raises `gears.error` if `key` cannot be called.
        """
        if key is None:
            return super().sort(reverse)
        if not callable(key):
            raise GearsError(f'sort key argument must be a function, got {key!r}')
        keyed = self.map(lambda record: Keyed(key(record), record))
        return super(GearsBuilder, keyed).sort(reverse).map(attrgetter('record'))

    def avg(self, extractor=float):
        """All records become the mean (float) of `extractor(record)`; no record if there was none."""
        return self.map(extractor).aggregate((0, 0), _add_value, _add_partial).map(_mean)


class Keyed:
    """A record that is compared by a key."""

    __slots__ = ('key', 'record')

    def __init__(self, key, record):
        self.key = key
        self.record = record

    def __lt__(self, other):
        return self.key < other.key


def _add_value(total, value):
    return total[0] + value, total[1] + 1


def _add_partial(total, partial):
    return total[0] + partial[0], total[1] + partial[1]


def _mean(total):
    return total[0] / total[1]
