"""Objects that cloudpickle leaves out, and which variable it is that keeps a function from being stored. Embedded into the
module and imported as `pinion_portable`.

What comes back is an object of its own: an empty cache, a lock that nobody holds. The functions of a session share it.
"""

import contextvars
import functools
import pickle
import threading
import types

import pinion_cloudpickle as cloudpickle

_DISPATCHER = functools.singledispatch(lambda _: None).__code__
# How many objects are tried before the search for the variable ends.
_MAX_TRIES = 300


def _by_name(obj):
    """Whether an object of a module can be found there by whoever loads it."""
    found = cloudpickle._lookup_module_and_qualname(obj)
    return found is not None and not cloudpickle._is_registered_pickle_by_value(found[0])


def _cached_reduce(function):
    if _by_name(function):
        return function.__qualname__
    options = function.cache_parameters()
    return _cached, (function.__wrapped__, options['maxsize'], options['typed'])


def _cached(function, maxsize, typed):
    return functools.lru_cache(maxsize, typed)(function)


def _variable_reduce(variable):
    try:
        default = (contextvars.Context().run(variable.get),)
    except LookupError:
        default = ()
    return _variable, (variable.name, *default)


def _variable(name, *default):
    return contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)


REDUCERS = {
    functools._lru_cache_wrapper: _cached_reduce,
    contextvars.ContextVar: _variable_reduce,
    type(threading.Lock()): lambda _: (threading.Lock, ()),
    type(threading.RLock()): lambda _: (threading.RLock, ()),
    threading.local: lambda _: (threading.local, ()),
}


def function_reduce(function):
    """How a function is stored that functools.singledispatch has made; None for all others."""
    if function.__code__ is not _DISPATCHER or _by_name(function):
        return None
    others = {kind: called for kind, called in function.registry.items() if kind is not object}
    return functools.singledispatch, (function.registry[object],), others, None, None, _register_all


def _register_all(function, others):
    for kind, called in others.items():
        function.register(kind, called)


def annotated_names(annotations, into):
    """Adds the names in annotations to a set: those that are text, as by `from __future__ import annotations`."""
    for annotation in annotations:
        text = getattr(annotation, '__forward_arg__', annotation)
        if not isinstance(text, str):
            annotated_names(getattr(annotation, '__args__', ()), into)
            continue
        try:
            code = compile(text, '<annotation>', 'eval')
        except (SyntaxError, ValueError):
            continue
        into.update(code.co_names)
        annotated_names([value for value in code.co_consts if isinstance(value, str) and value != text], into)


def explain(callable, refusal, is_known):
    """An error which says what it is in `callable` that cannot be stored; None if nobody can tell.

    `refusal(object)`: the error that storing it raises, or None. `is_known(name, value)`: true for globals that every script
    has.
    """
    way, culprit, reason = [], callable, None
    seen = set()
    while True:
        for label, part in _safe_parts(culprit, is_known):
            if id(part) in seen or len(seen) == _MAX_TRIES:
                continue
            seen.add(id(part))
            failed = refusal(part)
            if failed is not None:
                way, culprit, reason = [*way, label], part, failed
                break
        else:
            break
    if not way:
        return None
    kind = type(culprit)
    what = f'an object of {kind.__module__}.{kind.__qualname__}' if kind is not type else f'the class {culprit.__name__}'
    name = getattr(callable, '__qualname__', None) or type(callable).__qualname__
    return pickle.PicklingError(
        f'{name} uses {", ".join(way)}: {what}, which cannot be stored or sent to other servers ({reason}). '
        'Make it inside of the function when it is first needed, or in onRegistered, or import it from a module'
    )


def _safe_parts(obj, is_known):
    """What `_parts` gives, up to where the object itself raises: code of users runs wherever it is looked at."""
    try:
        yield from _parts(obj, is_known)
    except Exception:
        return


def _parts(obj, is_known):
    """What an object consists of, with words for each part."""
    if isinstance(obj, types.MethodType):
        yield 'its object', obj.__self__
        yield 'its function', obj.__func__
    elif isinstance(obj, functools.partial):
        yield 'its function', obj.func
        yield from ((f'argument {place}', value) for place, value in enumerate(obj.args))
        yield from ((f'argument {name!r}', value) for name, value in obj.keywords.items())
    elif isinstance(obj, functools._lru_cache_wrapper):
        yield 'its function', obj.__wrapped__
    elif isinstance(obj, types.FunctionType):
        names = cloudpickle._extract_code_globals(obj.__code__)
        for name in names:
            if name in obj.__globals__ and not is_known(name, obj.__globals__[name]):
                yield f'the global variable {name!r}', obj.__globals__[name]
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or ()):
            try:
                yield f'the variable {name!r} around it', cell.cell_contents
            except ValueError:
                pass  # not set yet
        yield from (('a default value', value) for value in obj.__defaults__ or ())
        yield from ((f'the default of {name!r}', value) for name, value in (obj.__kwdefaults__ or {}).items())
        yield from ((f'its attribute {name!r}', value) for name, value in vars(obj).items())
    elif isinstance(obj, dict):
        for key, value in list(obj.items()):
            yield 'a key', key
            yield f'[{key!r:.50}]', value
    elif isinstance(obj, (list, tuple, set, frozenset)):
        yield from ((f'[{place}]', value) for place, value in enumerate(list(obj)))
    elif isinstance(obj, type):
        if not _by_name(obj):
            yield from ((f'its attribute {name!r}', value) for name, value in list(vars(obj).items()))
            yield from ((f'its base {base.__name__}', base) for base in obj.__bases__)
    elif isinstance(obj, (staticmethod, classmethod)):
        yield 'its function', obj.__func__
    elif not _by_name(type(obj)):
        # What is inside of a library's object would tell nobody anything.
        yield from ((f'its attribute {name!r}', value) for name, value in list(getattr(obj, '__dict__', {}).items()))
        yield 'its class', type(obj)
