"""What Pinion brings along as Python source. Embedded into the module and imported as `pinion_shipped`.

Modules of its own come before everything that is installed, under names that nobody else uses; packages that scripts and
clients expect to be there come behind everything: whoever installs them gets the installed ones.
"""

import importlib.abc
import importlib.util
import sys


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """`sources`: module names and their texts; a name with others below it is a package."""

    def __init__(self, sources):
        self._sources = sources

    def find_spec(self, name, path=None, target=None):
        if name not in self._sources:
            return None
        parent = sys.modules.get(name.rpartition('.')[0])
        # A part of a package that is installed comes from there, or is not there.
        if parent is not None and getattr(parent.__spec__, 'loader', None) is not self:
            return None
        is_package = any(other.startswith(name + '.') for other in self._sources)
        return importlib.util.spec_from_loader(name, self, origin=f'<pinion>/{name}', is_package=is_package)

    def exec_module(self, module):
        name = module.__name__
        exec(compile(self._sources[name], f'<pinion>/{name}', 'exec'), vars(module))


def install(own, fallbacks):
    """Makes modules importable; both are `{name: text}`."""
    sys.meta_path.insert(0, _Finder(own))
    sys.meta_path.append(_Finder(fallbacks))
