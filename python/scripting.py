"""Scripts of the server's EVAL and FUNCTION LOAD: how code becomes functions. Embedded into the module and imported as
`pinion_scripting`. Contract: docs/contract/scripting-engine.md; what calls it is in src/scripting/.
"""

import ast
import re
import sys
import threading
import types

import redisgears

__all__ = ['register_function']

LIBRARY = '<library>'
BODY = '<script>'
NAME = re.compile(r'[A-Za-z0-9_]+', re.ASCII)
ADDRESS = re.compile(r' at 0x[0-9a-fA-F]+')
NOT_LOADING = 'register_function is for libraries that FUNCTION LOAD loads; elsewhere, use register of a builder'

# What the library that is being loaded has declared, and the thread that loads it.
_declared = None
_loader = None


def register_function(name=None, function=None, *, description=None, flags=()):
    """Makes a function one that FCALL can call: `function(keys, args)`, two lists of `str` (`bytes` where it is not UTF-8).

    A decorator, with or without arguments, or a call. `name`: letters, digits and underscores (default: the function's own);
    `description`: `str`; `flags`: a list of 'no-writes', 'allow-oom', 'allow-stale', 'no-cluster', 'allow-cross-slot-keys'.
    Returns the function. Raises `gears.error` that names the argument.
    """
    if callable(name) and function is None:
        name, function = None, name
    if name is not None and not isinstance(name, str):
        raise redisgears.GearsError(f'name: a str was expected, not {type(name).__name__}')
    if description is not None and not isinstance(description, str):
        raise redisgears.GearsError(f'description: a str was expected, not {type(description).__name__}')
    if description is not None and description.encode(errors='replace') != description.encode(errors='surrogatepass'):
        raise redisgears.GearsError(f'description: a str of characters that UTF-8 has was expected, not {description!r}')
    known = redisgears.scriptFlags()
    if isinstance(flags, (str, bytes)) or not isinstance(flags, (list, tuple, set, frozenset)):
        raise redisgears.GearsError(f'flags: a list of texts was expected, such as {sorted(known)}')
    bits = 0
    for flag in flags:
        if not isinstance(flag, str) or flag not in known:
            raise redisgears.GearsError(f'flags: unknown flag {flag!r}; known are {", ".join(known)}')
        bits |= known[flag]

    def declare(function):
        if _declared is None or _loader != threading.get_ident():
            raise redisgears.GearsError(NOT_LOADING)
        if not callable(function):
            raise redisgears.GearsError(f'function: a function was expected, not {type(function).__name__}')
        if getattr(getattr(function, '__code__', None), 'co_flags', 0) & 0x280:
            raise redisgears.GearsError('function: FCALL answers at once, so a function for it cannot be async')
        known_as = getattr(function, '__name__', '') if name is None else name
        if not NAME.fullmatch(known_as):
            raise redisgears.GearsError(f'name: only letters, digits and underscores are allowed, not {known_as!r}')
        if known_as in _declared:
            raise redisgears.GearsError(f'name: the library has registered {known_as} already')
        _declared[known_as] = (known_as, description, bits, function, size_of(function))
        return function

    return declare if function is None else declare(function)


def load_library(code, scope):
    """Runs the code of a library in the globals `scope`. A list of (name, description, flags, function, bytes)."""
    global _declared, _loader
    _declared, _loader = {}, threading.get_ident()
    try:
        exec(compile(code, LIBRARY, 'exec', dont_inherit=True), scope)
        declared = list(_declared.values())
    finally:
        _declared = _loader = None
    if not declared:
        raise redisgears.GearsFlatError('No functions registered: the library calls register_function for none')
    return declared


def load_body(code, scope):
    """Makes a function of the code of EVAL, which is its body; its names KEYS and ARGV are lists. (name, None, 0, function, bytes)."""
    tree = ast.parse(code, BODY)
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == '__future__']
    body = [node for node in tree.body if node not in future] or [ast.Pass()]
    shell = ast.parse('def script(KEYS, ARGV):\n pass', BODY)
    shell.body[0].body = body
    shell.body[:0] = future
    exec(compile(ast.fix_missing_locations(shell), BODY, 'exec', dont_inherit=True), scope)
    function = scope.pop('script')
    if function.__code__.co_flags & 0x2a0:
        raise redisgears.GearsFlatError('the code of EVAL cannot be a generator or a coroutine: it answers at once')
    return ('script', None, 0, function, size_of(function))


def size_of(function):
    """About the memory of a function's code, in bytes."""
    total, left = sys.getsizeof(function), [getattr(function, '__code__', None)]
    while left:
        code = left.pop()
        if isinstance(code, types.CodeType):
            total += sys.getsizeof(code) + len(code.co_code) + sum(map(sys.getsizeof, code.co_names))
            left.extend(code.co_consts)
        elif code is not None:
            total += sys.getsizeof(code)
    return total


def explain(error, traceback, name):
    """The text of an error reply for what a script raised: code word, text, function and line."""
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        text = f'<unprintable {kind}>'
    if isinstance(error, redisgears.GearsFlatError):
        return text if has_code(text) else f'ERR {text}'
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename in (LIBRARY, BODY):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    if isinstance(error, SyntaxError) and error.filename in (LIBRARY, BODY):
        text, line = error.msg, error.lineno
    place = ', '.join(filter(None, (name, f'line {line}' if line else None)))
    place = f' ({place})' if place else ''
    text = ADDRESS.sub('', text)
    if isinstance(error, redisgears.GearsError):
        return f'{text}{place}' if has_code(text) else f'ERR {text}{place}'
    return f'ERR {kind}: {text}{place}' if text else f'ERR {kind}{place}'


def has_code(text):
    """True for the text of an error that begins with a code word, as the server's do."""
    word = text.split(' ', 1)[0]
    return len(word) > 1 and word.isascii() and word.isupper() and word.isalnum()


redisgears.register_function = register_function
