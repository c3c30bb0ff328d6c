"""What can go wrong for a caller of this package, each with the exit code that the command `pinion` ends with."""

from __future__ import annotations


class PinionError(Exception):
    """The text is one line for a person: what failed, and the way out."""

    exit_code = 1
    advice = ""
    """What the command `pinion` says behind the text, unless it is `pinion doctor`."""


class NoConnection(PinionError):
    """Nobody answers at the address, or not to this user."""

    exit_code = 3


class NotAllowed(PinionError):
    """The server knows this user, who may not run the command."""

    advice = "see `pinion doctor`"


class NoCommand(PinionError):
    """The server does not have the command."""

    advice = "see `pinion doctor`"


class NotFound(PinionError):
    """No registration, session or trigger of that name."""

    exit_code = 4
