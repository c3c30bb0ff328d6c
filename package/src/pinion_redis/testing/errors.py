"""The exceptions of the stub mode."""

from __future__ import annotations


class NeedsServer(NotImplementedError):
    """The script does something that the stub mode cannot do: use the fixture `gears`."""

    @classmethod
    def by_name(cls, name: str) -> NeedsServer:
        """The error for something that is known by this name."""
        return cls(f"{name} needs a server: use the fixture `gears` instead of the stub mode")


class GearsError(Exception):
    """What the server raises as `gears.error`: it names the argument and what was expected."""


class GearsFlatError(RuntimeError):
    """What `flat_error` raises."""


class GearsForceStopped(Exception):
    """What a function gets that is stopped. Nothing stops one here."""
