"""The module that the functions and classes of scripts say they are from. Embedded into the module, imported as
`pinion_not_main`.

`dataclasses`, `typing` and others look for the names in an annotation in the module of a class, by `sys.modules`. Each
session has globals of its own, so the module shows those of the code that asks. By attribute it has none of them: what
looks for a function by its module and name must not find that of another session, and pickles it by value instead.
"""

import sys
import types

NAME = 'not_main'


class _Module(types.ModuleType):
    @property
    def __dict__(self):
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_globals.get('__name__') == NAME:
                return frame.f_globals
            frame = frame.f_back
        return {'__name__': NAME}


sys.modules[NAME] = _Module(NAME, 'What scripts define. Each session has names of its own.')
