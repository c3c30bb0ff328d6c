"""One deployment: the script goes to the server as a whole, and what it changed is found out by looking before and after."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Optional

from .figures import Registration, registrations
from .connection import Server
from .errors import PinionError
from .scripts import Script


@dataclass
class Deployment:
    """What has changed."""

    id: str
    added: list[Registration] = field(default_factory=list)
    removed: list[Registration] = field(default_factory=list)
    renewed: list[Registration] = field(default_factory=list)
    """The same events as before, now with the new code."""
    results: Optional[list[Any]] = None
    """What a `run` in the script gave."""
    errors: list[str] = field(default_factory=list)
    """What failed in that run."""

    def warnings(self) -> list[str]:
        """Why something that is registered now may never fire."""
        return [f"{entry.reader} {entry.events()}: {text}" for entry in [*self.added, *self.renewed] for text in entry.warnings]

    def is_empty(self) -> bool:
        """True if the script registers nothing."""
        return not self.added and not self.renewed

    def is_loss(self) -> bool:
        """True if it registers nothing in the place of what was there."""
        return self.is_empty() and bool(self.removed)


def deploy(
    server: Server,
    script: Script,
    *,
    upgrade: bool = True,
    description: Optional[str] = None,
    force_requirements: bool = False,
    timeout: float = 0,
) -> Deployment:
    """Runs the script as the session of its id; on a failure nothing has changed.

    `timeout`: seconds to wait for packages and runs (0: for ever).
    # Raises `PinionError` with what the script raised.
    """
    before = _of_session(server, script.id)
    words: list[str] = ["RG.PYEXECUTE", script.text, "ID", script.id]
    words += ["UPGRADE"] if upgrade else []
    words += ["DESCRIPTION", description] if description else []
    words += ["FORCE_REINSTALL_REQUIREMENTS"] if force_requirements else []
    words += ["REQUIREMENTS", *script.requirements] if script.requirements else []
    try:
        reply = server.call(*words, timeout=timeout)
    except PinionError as error:
        raise _with_way_out(server, script.id, error) from None
    after = _of_session(server, script.id)
    deployment = Deployment(script.id)
    if isinstance(reply, list):
        if len(reply) != 2:
            raise PinionError(f"an answer of RG.PYEXECUTE was expected, got {reply!r}")
        deployment.results, deployment.errors = reply[0], [str(error) for error in reply[1]]
    known = Counter(entry.key() for entry in before)
    for entry in after:
        if known[entry.key()]:
            known[entry.key()] -= 1
            deployment.renewed.append(entry)
        else:
            deployment.added.append(entry)
    kept = {entry.id for entry in after}
    for entry in before:
        if entry.id not in kept and known[entry.key()]:
            known[entry.key()] -= 1
            deployment.removed.append(entry)
    return deployment


def _with_way_out(server: Server, own: str, error: PinionError) -> PinionError:
    """Where another session has the prefix, which one, and what to do: a file that was renamed is a session of another name."""
    refused = re.search(r"a registration (loads|saves) '(.+?)' already", str(error))
    if refused is None:
        return error
    reader = {"loads": "ReadThrough", "saves": "WriteBehind"}[refused[1]]
    holders = [
        entry.session
        for entry in registrations(server.stats())
        if entry.reader == reader and entry.arguments.get("prefix") == refused[2] and entry.session != own
    ]
    if not holders:
        return error
    text = f"session {holders[0]!r} {refused[1]} {refused[2]!r} already: deploy with --id {holders[0]} to replace it, or remove it before, `pinion rm {holders[0]}`"
    return type(error)(text)


def _of_session(server: Server, name: str) -> list[Registration]:
    return [entry for entry in registrations(server.stats()) if entry.session == name]
