"""Makes installed requirements importable. Called after each installation, and when the interpreter starts."""

import importlib
import site
import sys
import zipfile


def use(site_packages, wheels):
    """Puts the folder first in the import path and forgets the modules that the wheels have brought anew.

    Modules that sessions have imported stay as they are there; a later import finds the new files.
    """
    if site_packages not in sys.path:
        sys.path.insert(0, site_packages)
        site.addsitedir(site_packages)
    importlib.invalidate_caches()
    fresh = set()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as files:
            fresh.update(name.split('/')[0].split('.')[0] for name in files.namelist())
    for name, module in list(sys.modules.items()):
        file = getattr(module, '__file__', None) or ''
        if name.split('.')[0] in fresh and file.startswith(site_packages):
            del sys.modules[name]
