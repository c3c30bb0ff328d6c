"""Functions as bytes and back. Contract: docs/contract/python-api.md chapter 7.

Imported when a function is first saved or loaded: cloudpickle takes a while to import.
"""

import collections
import io
import pickle
import sys
import types

import cloudpickle
from cloudpickle.cloudpickle import _function_setstate

# Code objects fit one minor version of Python only; in another one they could crash it.
HEADER = b'py%d.%d\n' % sys.version_info[:2]
TEMPLATE = vars(sys.modules['__main__'])
GLOBALS = 'session globals'


def _reduce_code(code):
    """cloudpickle forgets the file that code came from, which tracebacks and profiles show."""
    make, arguments, *rest = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    named = (code.co_filename if argument == '<dynamic-code>' else argument for argument in arguments)
    return (make, tuple(named), *rest)


class Pickler(cloudpickle.Pickler):
    """Names the globals of the session instead of copying them: all its functions share them on the other side."""

    dispatch_table = collections.ChainMap({types.CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)

    def __init__(self, file, session_globals):
        super().__init__(file)
        self._session_globals = session_globals
        self._stand_in = {'__name__': 'not_main'}
        self.globals_ref[id(session_globals)] = self._stand_in

    def persistent_id(self, obj):
        return GLOBALS if obj is self._stand_in else None

    def _dynamic_function_reduce(self, function):
        reduced = super()._dynamic_function_reduce(function)
        if function.__globals__ is not self._session_globals:
            return reduced
        make, arguments, (attributes, slots), *_ = reduced
        # What scripts get without import is there on the other side.
        used = {name: value for name, value in slots['__globals__'].items() if not is_template(name, value)}
        return make, arguments, (attributes, slots | {'__globals__': used}), None, None, restore


class Unpickler(pickle.Unpickler):
    """Gives functions the globals of their session."""

    def __init__(self, file, session_globals):
        super().__init__(file)
        self._session_globals = session_globals

    def persistent_load(self, pid):
        if pid != GLOBALS:
            raise pickle.UnpicklingError(f'unknown reference {pid!r}')
        return self._session_globals


def is_template(name, value):
    """Whether a global variable is what every script has."""
    return name in TEMPLATE and TEMPLATE[name] is value


def restore(function, state):
    """Sets up a loaded function. Of the values that its functions brought, a session keeps the first of each name."""
    attributes, slots = state
    session_globals = function.__globals__
    for name, value in slots['__globals__'].items():
        if name not in session_globals or is_template(name, session_globals[name]):
            session_globals[name] = value
    _function_setstate(function, (attributes, slots | {'__globals__': {}}))


def dump(code, session_globals):
    """The bytes of a function with what it refers to. Raises what pickling raises."""
    file = io.BytesIO()
    file.write(HEADER)
    Pickler(file, session_globals).dump(code)
    return file.getvalue()


def load(image, session_globals):
    """What dump was given, in a session with these globals. ValueError if another Python made it."""
    if not image.startswith(HEADER):
        made_by = image[:20].split(b'\n')[0].decode(errors='replace').removeprefix('py')
        raise ValueError(f'it was saved by Python {made_by}, this is Python {HEADER[2:-1].decode()}')
    return Unpickler(io.BytesIO(image[len(HEADER):]), session_globals).load()


def pack(objects):
    """The bytes of records on their way to another shard, and `[(place, exception), ...]` for those that cannot travel.

    What `pickle` knows by name travels by name; functions and classes of scripts travel by value.
    """
    try:
        return pickle.dumps((True, objects), 5), []
    except Exception:
        return pack_each(objects)


def pack_each(objects):
    """`pack`, one by one: some of them need cloudpickle, or cannot travel."""
    packed, refused = [], []
    for place, obj in enumerate(objects):
        try:
            packed.append(cloudpickle.dumps(obj, 5))
        except Exception as error:
            refused.append((place, error))
    return pickle.dumps((False, packed), 5), refused


def unpack(data):
    """The list of records that `pack` was given."""
    together, objects = pickle.loads(data)
    return objects if together else [pickle.loads(each) for each in objects]
