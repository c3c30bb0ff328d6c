"""Functions as bytes and back. Embedded into the module and imported as `pinion_serial`. Contract: docs/contract/python-api.md
chapter 7.

Imported when a function is first saved or loaded: cloudpickle takes a while to import. It is a copy of Pinion's own, by a name
of its own, which is also what its pickles name: whatever version users install or remove, what was stored loads.
"""

import importlib
import io
import pickle
import sys
import types

import pinion_bytecode
import pinion_cloudpickle as cloudpickle
import pinion_portable as portable

# What `Reader` finds in it by itself, nobody else looks at.
pinion_bytecode.guard(cloudpickle)

# Code objects fit one minor version of Python only; in another one they could crash it.
HEADER = b'py%d.%d\n' % sys.version_info[:2]
TEMPLATE = vars(sys.modules['__main__'])
GLOBALS = 'session globals'


def _reduce_code(code):
    """cloudpickle forgets the file that code came from, which tracebacks and profiles show."""
    make, arguments, *rest = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    named = (code.co_filename if argument == '<dynamic-code>' else argument for argument in arguments)
    return (make, tuple(named), *rest)
# Functions of cloudpickle that its pickles call, and no script does.
HELPERS = {'dynamic_subimport', 'instance'}


class Pickler(cloudpickle.Pickler):
    """Names the globals of the session instead of copying them: all its functions share them on the other side."""

    dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({**portable.REDUCERS, types.CodeType: _reduce_code})

    def __init__(self, file, session_globals):
        super().__init__(file)
        take_registered_modules()
        self._session_globals = session_globals
        self._stand_in = {'__name__': 'not_main'}
        self.globals_ref[id(session_globals)] = self._stand_in

    def persistent_id(self, obj):
        return GLOBALS if obj is self._stand_in else None

    def reducer_override(self, obj):
        reduced = super().reducer_override(obj)
        if not isinstance(obj, type) or not isinstance(reduced, tuple) or len(reduced) != 6:
            return reduced
        named = self._named_by(vars(obj).get('__annotations__'))
        if not named:
            return reduced
        make, arguments, state, *_ = reduced
        return make, arguments, (state, named, self._stand_in), None, None, restore_class

    def _dynamic_function_reduce(self, function):
        reduced = portable.function_reduce(function) or super()._dynamic_function_reduce(function)
        if function.__globals__ is not self._session_globals:
            return reduced
        make, arguments, (attributes, slots), *_ = reduced
        used = slots['__globals__'] | self._named_by(function.__annotations__)
        # What scripts get without import is there on the other side.
        used = {name: value for name, value in used.items() if not is_template(name, value)}
        return make, arguments, (attributes, slots | {'__globals__': used}), None, None, restore

    def _named_by(self, annotations):
        """The globals of the session that annotations name: whoever looks at them there needs these, too."""
        if not annotations:
            return {}
        names = set()
        portable.annotated_names(annotations.values(), names)
        known = self._session_globals
        return {name: known[name] for name in names if name in known and not is_template(name, known[name])}


class Reader(pickle.Unpickler):
    """Reads pickles of any cloudpickle, whichever is installed: earlier versions of Pinion used the installed one, clients use theirs."""

    def find_class(self, module, name):
        if name == 'subimport' and module.startswith(('cloudpickle', 'pinion_cloudpickle')):
            # `__import__` may come back without the module where another thread has just failed to import it.
            return importlib.import_module
        if module.startswith('cloudpickle') and (name.startswith('_') or name in HELPERS):
            found = getattr(cloudpickle, name, None)
            if found is not None:
                return found
        return super().find_class(module, name)


class Unpickler(Reader):
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


def take_registered_modules():
    """Modules that a script wants to have pickled by value: it tells the installed cloudpickle."""
    listed = getattr(sys.modules.get('cloudpickle'), 'list_registry_pickle_by_value', set)
    cloudpickle._PICKLE_BY_VALUE_MODULES = set(listed())


def adopt(session_globals, values):
    """Of the values that its functions and classes brought, a session keeps the first of each name."""
    for name, value in values.items():
        if name not in session_globals or is_template(name, session_globals[name]):
            session_globals[name] = value


def restore(function, state):
    """Sets up a loaded function."""
    attributes, slots = state
    adopt(function.__globals__, slots['__globals__'])
    cloudpickle._function_setstate(function, (attributes, slots | {'__globals__': {}}))


def restore_class(kind, state):
    """Sets up a loaded class whose annotations name globals of its session."""
    state, named, session_globals = state
    adopt(session_globals, named)
    cloudpickle._class_setstate(kind, state)


def dump(code, session_globals):
    """The bytes of a function with what it refers to. Raises what pickling raises, or PicklingError that names the variable."""
    file = io.BytesIO()
    file.write(HEADER)
    try:
        Pickler(file, session_globals).dump(code)
    except Exception as error:
        explained = portable.explain(code[0], lambda part: refusal(part, session_globals), is_template)
        if explained is None:
            raise
        raise explained from error
    return file.getvalue()


def refusal(obj, session_globals):
    """The error that keeps an object from being stored, if any."""
    try:
        Pickler(io.BytesIO(), session_globals).dump(obj)
    except Exception as error:
        return error
    return None


def load(image, session_globals):
    """What dump was given, in a session with these globals. ValueError if another Python made it."""
    if not image.startswith(HEADER):
        made_by = image[:20].split(b'\n')[0].decode(errors='replace').removeprefix('py')
        raise ValueError(f'it was saved by Python {made_by}, this is Python {HEADER[2:-1].decode()}')
    return Unpickler(io.BytesIO(image[len(HEADER):]), session_globals).load()


class Piece(io.BytesIO):
    """Takes so many bytes; behind them writing is an error."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def write(self, data):
        written = super().write(data)
        if self.tell() > self.limit:
            raise OverflowError('these are more than go into one message')
        return written


def pack(objects, limit):
    """The first records on their way to another shard: their bytes, how many they are, `[(place, exception), ...]` for those that cannot travel.

    They are all, or so many that they just pass `limit` bytes. What `pickle` knows by name travels by name; functions and classes of scripts
    travel by value.
    """
    try:
        piece = Piece(limit)
        pickle.Pickler(piece, 5).dump((True, objects))
        return piece.getvalue(), len(objects), []
    except Exception:
        return pack_each(objects, limit)


def pack_each(objects, limit):
    """`pack`, one by one: some of them need cloudpickle, cannot travel, or are too large for all of them to go at once."""
    packed, refused, size = [], [], 0
    for place, obj in enumerate(objects):
        if size > limit:
            return pickle.dumps((False, packed), 5), place, refused
        try:
            packed.append(cloudpickle.dumps(obj, 5))
            size += len(packed[-1])
        except Exception as error:
            refused.append((place, error))
    return pickle.dumps((False, packed), 5), len(objects), refused


def unpack(data):
    """The list of records that `pack` was given."""
    together, objects = pickle.loads(data)
    return objects if together else [loads(each) for each in objects]


def loads(image):
    """`pickle.loads`, see `Reader`."""
    return Reader(io.BytesIO(image)).load()
