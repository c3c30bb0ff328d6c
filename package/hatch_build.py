"""Puts the module's files into the wheel and gives it the tag of their Python.

$PINION_FILES is a folder with libpinion.so and pinion-cp<XY>.so (see scripts/dist.py). Without it the package is pure Python, for
those who have a module of their own.
"""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PinionBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling once for the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = os.environ.get("PINION_FILES")
        if not folder or version == "editable":
            return
        files = sorted(Path(folder).glob("*.so"))
        builds = [found[1] for file in files if (found := re.fullmatch(r"pinion-(cp3\d+)\.so", file.name))]
        if len(builds) != 1 or "libpinion.so" not in {file.name for file in files}:
            raise ValueError(f"{folder} must hold libpinion.so and one pinion-cp<XY>.so, found {[f.name for f in files]}")
        platform = re.sub(r"[-.]", "_", sysconfig.get_platform())
        build_data["pure_python"] = False
        build_data["tag"] = f"{builds[0]}-{builds[0]}-{platform}"
        for file in files:
            build_data["force_include"][str(file)] = f"pinion_redis/{file.name}"
