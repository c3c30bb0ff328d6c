"""Runs the pip of another environment in this one: `run_pip.py FOLDER ARGUMENTS...`, FOLDER being where pip is imported from.

Nothing else of that folder is seen here. pip's own option `--python` does the same with one more process, and is not known
to older ones.
"""

import runpy
import sys
from importlib.machinery import PathFinder

FOLDER = sys.argv.pop(1)


class PipOnly:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [FOLDER], target) if name == "pip" else None


sys.meta_path.insert(0, PipOnly)
runpy.run_module("pip", run_name="__main__", alter_sys=True)
