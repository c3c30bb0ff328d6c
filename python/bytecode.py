"""Recognises code that another minor version of Python has compiled. Embedded into the module and imported as
`pinion_bytecode`.

A pickle of a function holds its bytecode and does not say whose it is, and Python believes whatever it is given: bytecode
of another version ends the process. `check` is called for each code object that is made of its parts (`python/audit.rs`),
whoever makes it: pickle, cloudpickle of any version, `code.replace`.
"""

import dis
import functools
import opcode
import sys
import types

# Of each version: which opcodes there are (bit n: opcode n), and how many units of cache follow some of them.
_VERSIONS = {
    (3, 8): (0xF7FFFE7BC741FFFF7FFFEFBFFFBFC00003FDB9E7E, {}),
    (3, 9): (0x3F3C1FE7BC767FFFF7FEFCFFFFFBDF00003FDB9E7E, {}),
    (3, 10): (0x3F3D1FE7BE76FFFFFFFEFCFFFFFBDE0007FFDB9E7E, {}),
    (3, 11): (
        0x1F87D39BF5FFF7DFDFFFFFFFC0CF0307E003BC2009E07,
        {25: 4, 60: 1, 92: 1, 95: 4, 106: 4, 107: 2, 116: 5, 122: 1, 160: 10, 166: 1, 171: 4},
    ),
    (3, 12): (
        0x1F83C39EFFFFFFFFC7FFFFEA80CB030FE003BCE029A3F,
        {25: 1, 60: 1, 92: 1, 93: 1, 95: 4, 106: 9, 107: 1, 116: 4, 122: 1, 123: 1, 141: 1, 171: 3},
    ),
    (3, 13): (
        0x200000007FFFFFFFFFFFFFFFFFFFFFFFFFFFF7,
        {5: 1, 39: 1, 40: 3, 45: 1, 53: 3, 58: 1, 59: 1, 72: 1, 77: 1, 82: 9, 91: 4, 93: 1, 97: 1, 98: 1, 99: 1, 100: 1,
         104: 1, 108: 4, 117: 1},
    ),
}

# Names of instructions behind which nothing follows.
_ENDS = ('RETURN_VALUE', 'RETURN_CONST', 'RAISE_VARARGS', 'RERAISE')
# Since 3.11 all code has one, in front of what it does.
_BEGINS = {(3, 11): 151, (3, 12): 151, (3, 13): 149}
# What another version writes and this one never does, although it could: in 3.12 generators and coroutines end with it.
_NEVER = {(3, 11): bytes((173, 3, 119, 1))}


def _own():
    """The same for this Python, whose library knows."""
    known = sum(1 << number for name, number in opcode.opmap.items()
                if number < 256 and not name.startswith('INSTRUMENTED_'))
    entries = getattr(opcode, '_inline_cache_entries', {})
    pairs = entries.items() if isinstance(entries, dict) else enumerate(entries)
    numbers = ((opcode.opmap.get(key, 256) if isinstance(key, str) else key, count) for key, count in pairs)
    return known, {number: count for number, count in numbers if count and number < 256 and known >> number & 1}


_HERE = sys.version_info[:2]
_OWN = _own()
_OWN_BEGIN = opcode.opmap.get('RESUME')
_OWN_ENDS = {opcode.opmap[name] for name in _ENDS if name in opcode.opmap}
_OWN_JUMPS = {*opcode.hasjrel, *opcode.hasjabs}


def _starts(code, known, caches):
    """Where the instructions of `code` (bytes) start; None if they are not of the version with these opcodes."""
    if not code or len(code) % 2:
        return None
    starts, at = [], 0
    while at < len(code):
        number = code[at]
        if not known >> number & 1:
            return None
        starts.append(at)
        behind = at + 2 * (1 + caches.get(number, 0))
        # An instruction of the name CACHE is 0.
        if behind > len(code) or any(code[at + 2:behind:2]):
            return None
        if caches and number == 0:
            return None
        at = behind
    return starts


def _flows_well(code, starts):
    """Whether all jumps lead to an instruction, and the last instruction to no place behind it."""
    last = code[starts[-1]]
    if _OWN_BEGIN is not None and last not in _OWN_ENDS and last not in _OWN_JUMPS:
        return False
    return set(starts).issuperset(dis.findlabels(code))


def is_own(code):
    """Whether `code` (bytes) can be bytecode of this Python."""
    starts = _starts(code, *_OWN)
    if starts is None:
        return False
    if _OWN_BEGIN is not None and not any(code[at] == _OWN_BEGIN for at in starts):
        return False
    if _HERE in _NEVER and _NEVER[_HERE] in code:
        return False
    return _flows_well(code, starts)


def _makers(code, parts):
    """The names of the other versions that can have compiled `code` (bytes), whose code objects have so many `parts`."""
    names = []
    for version, opcodes in _VERSIONS.items():
        if version == _HERE or _parts(version) != parts:
            continue
        starts = _starts(code, *opcodes)
        begin = _BEGINS.get(version)
        if starts and (begin is None or any(code[at] == begin for at in starts)):
            names.append('%d.%d' % version)
    return names


def _parts(version):
    return 18 if version >= (3, 11) else 16


def refusal(name, makers):
    """The exception for code of the function `name`; `makers`: the versions (str) that may have made it."""
    made = f'Python {" or ".join(makers)}' if makers else 'another version of Python'
    return ValueError(
        f'the code of {name!r} was compiled by {made}, this is Python {_HERE[0]}.{_HERE[1]}: '
        'functions run only on the minor version that compiled them'
    )


def check(code, name):
    """Raises ValueError if the bytecode `code` of the function `name` is not of this Python."""
    if isinstance(code, bytes) and not is_own(code):
        raise refusal(name, _makers(code, _parts(_HERE)))


def _make_code(*arguments):
    """`types.CodeType`, as pickles call it: with as many arguments as code objects had in the version that made them."""
    parts = len(arguments)
    if parts != _parts(_HERE) and parts in (16, 18):
        code, name = arguments[6], arguments[11]
        if isinstance(code, bytes) and is_own(code):
            raise ValueError(
                f'the code of {name!r} was pickled by a cloudpickle that does not know Python {_HERE[0]}.{_HERE[1]}: '
                'whoever sends it needs a newer one (for 3.11: 2.1 or later)'
            )
        raise refusal(name, _makers(code, parts) if isinstance(code, bytes) else [])
    return types.CodeType(*arguments)


def guard(module):
    """Lets pickles that `module` (cloudpickle.cloudpickle) reads make code by `_make_code`: code with another number of
    parts is refused by its version, too. What pickles name stays where it is."""
    original = getattr(module, '_builtin_type', None)
    if original is None or getattr(original, '_pinion', False):
        return

    @functools.wraps(original)
    def builtin_type(name):
        return _make_code if name == 'CodeType' else original(name)

    builtin_type._pinion = True
    module._builtin_type = builtin_type
