"""What Pinion brings along of Python. Embedded into the module and imported as `pinion_shipped`.

Modules of its own come before everything that is installed, under names that nobody else uses; packages that scripts and
clients expect to be there come behind everything: whoever installs them gets the installed ones.
"""

import importlib.util
import marshal
import sys


class _Finder:
    """`codes`: module names and their code, marshalled; a name with others below it is a package.

    It has no base class: those of `importlib.abc` bring along much that nothing else here needs.
    """

    def __init__(self, codes):
        self._codes = codes

    def find_spec(self, name, path=None, target=None):
        if name not in self._codes:
            return None
        parent = sys.modules.get(name.rpartition('.')[0])
        # A part of a package that is installed comes from there, or is not there.
        if parent is not None and getattr(parent.__spec__, 'loader', None) is not self:
            return None
        is_package = any(other.startswith(name + '.') for other in self._codes)
        return importlib.util.spec_from_loader(name, self, origin=f'<pinion>/{name}', is_package=is_package)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(marshal.loads(self._codes[module.__name__]), vars(module))


def install(own, fallbacks):
    """Makes modules importable; both are `{name: code, marshalled}`."""
    sys.meta_path.insert(0, _Finder(own))
    sys.meta_path.append(_Finder(fallbacks))
