"""Makes installed requirements importable. Called after each installation, and when the interpreter starts."""

import importlib
import importlib.machinery
import site
import sys
import zipfile

_IN_C = tuple(importlib.machinery.EXTENSION_SUFFIXES)


def use(site_packages, wheels):
    """Puts the folder into the import path and forgets the modules that the wheels have brought anew.

    It comes before other packages and behind the standard library: backports (enum34, dataclasses, typing) replace nothing
    there. Modules that sessions have imported stay as they are there; a later import finds the new files.
    """
    if site_packages not in sys.path:
        others = (place for place, path in enumerate(sys.path) if path.endswith(('site-packages', 'dist-packages')))
        sys.path.insert(next(others, len(sys.path)), site_packages)
        site.addsitedir(site_packages)
    importlib.invalidate_caches()
    fresh = set()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as files:
            fresh.update(name.split('/')[0].split('.')[0] for name in files.namelist())
    loaded = {}
    for name, module in list(sys.modules.items()):
        if name.split('.')[0] in fresh:
            loaded.setdefault(name.split('.')[0], {})[name] = getattr(module, '__file__', None) or ''
    for files in loaded.values():
        # What has modules in C is not imported twice, unless it was a requirement before.
        is_plain = not any(file.endswith(_IN_C) for file in files.values())
        for name, file in files.items():
            if file.startswith(site_packages) or is_plain and ('site-packages' in file or 'dist-packages' in file):
                del sys.modules[name]
