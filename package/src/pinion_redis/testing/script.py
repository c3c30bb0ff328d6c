"""A script that runs in plain Python: what it has registered, and what it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Optional, Union

from .arguments import LOADS, SAVES, Call
from .builder import Registration
from .changes import Change, Saver, make
from .errors import GearsError
from .execute import FakeExecute, plain


@dataclass
class StubScript:
    """A script that ran in plain Python. Its own names are attributes, which a test may replace: functions of the script see that."""

    execute: FakeExecute
    globals: dict[str, Any] = field(default_factory=dict, repr=False)
    registrations: list[Registration] = field(default_factory=list)
    loaders: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """Prefix to the function that `read_through` got."""
    savers: dict[str, Saver] = field(default_factory=dict)
    """Prefix to what `write_behind` got; `.queue` of it are the changes that are not saved."""
    replies: list[Any] = field(default_factory=list)
    """What `override_reply` got."""
    logs: list[str] = field(default_factory=list)
    next_calls: list[tuple[Any, ...]] = field(default_factory=list)
    """What `call_next` got; it replies as `execute` does for the first argument `call_next`."""
    _begins: list[Callable[[], object]] = field(default_factory=list, init=False, repr=False)
    _changes: int = field(default=0, init=False, repr=False)

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__.get("globals", {})
        if name not in found:
            raise AttributeError(f"the script has no name {name!r}")
        return plain(found[name])

    def __setattr__(self, name: str, value: Any) -> None:
        names = self.__dict__.get("globals", {})
        if name in names or name not in _OWN:
            names[name] = value
        if name in _OWN:
            object.__setattr__(self, name, value)

    def fire(self, record: Any, registration: Optional[Union[int, str]] = None) -> list[Any]:
        """What a registration does with a record; see `Registration.fire`.

        `registration`: which one, by its place (from 0), its trigger, its prefix or its description. Without it the only one, or the only
        one that the record fits: `["name", ...]` its trigger, `{"key": ...}` its prefix.
        # Raises `LookupError`: none, or several.
        """
        if not self.registrations:
            others = [f"script.loaders[{prefix!r}](key)" for prefix in self.loaders]
            others += ["script.change(key, value), then script.save_changes()"] if self.savers else []
            hint = f" with GearsBuilder that a record could fire: call {', or '.join(others)}" if others else ""
            raise LookupError(f"the script registers nothing{hint}")
        if isinstance(registration, int):
            return self.registrations[registration].fire(record)
        if registration is not None:
            found = [one for one in self.registrations if registration in one.names()]
        elif len(self.registrations) == 1:
            found = self.registrations
        else:
            found = [one for one in self.registrations if one.fits(record)]
        if len(found) != 1:
            there = ", ".join(f"{place}: {' '.join(one.names())}" for place, one in enumerate(self.registrations))
            asked = f"are named {registration!r}" if registration is not None else "fit this record"
            raise LookupError(f"{len(found)} registrations {asked}: give fire one of them, registration=... ({there})")
        return found[0].fire(record)

    def change(
        self, key: Union[str, bytes], value: Any = None, *, event: Optional[str] = None, type: Optional[str] = None, db: int = 0
    ) -> int:
        """A client writes a key, or deletes it (`None`); returns how many registrations of `write_behind` are to save that.

        `value`: what the key holds then. `event`, `type`: where others are meant than those of a plain write of such a value.
        # Raises `LookupError`: the script has no `write_behind`.
        """
        if not self.savers:
            raise LookupError("the script has no write_behind that could save a change")
        change = make(self._changes, key, value, event=event, type=type, db=db)
        self._changes += 1
        wanting = [saver for saver in self.savers.values() if saver.wants(change)]
        for saver in wanting:
            saver.add(change)
        return len(wanting)

    def save_changes(self) -> list[list[Change]]:
        """Calls each `save` as the server does, with at most `batch` changes, the oldest first; returns what the calls got.

        # Raises what `save` raises: these changes stay, and come again with the next call, as in the server.
        """
        return [changes for saver in self.savers.values() for changes in saver.run()]

    def enlist(self, registration: Registration, on_registered: Optional[Callable[[], object]]) -> None:
        """`GearsBuilder.register` was called."""
        self.registrations.append(registration)
        self._note(on_registered)

    def half(self, call: Call, prefix: Any, function: Optional[Callable[..., Any]], given: dict[str, Any]) -> Any:
        """`read_through` or `write_behind` was called; without a function it returns the decorator.

        # Raises `GearsError` as the server does.
        """
        if function is None:
            call.check_prefix(prefix)  # a decorator without brackets has the function here
            return lambda function: self._half(call, prefix, function, given)
        return self._half(call, prefix, function, given)

    def _half(self, call: Call, prefix: Any, function: Callable[..., Any], given: dict[str, Any]) -> Callable[..., Any]:
        options = call.checked(prefix, function, given)
        if call is LOADS:
            if prefix in self.loaders:
                raise GearsError(f"{call.name}: prefix: expected one that has no loader yet, but a registration loads '{prefix}' already")
            self.loaders[prefix] = plain(function)
        elif call is SAVES:
            if prefix in self.savers:
                text = "expected one whose changes are not saved yet, but a registration saves"
                raise GearsError(f"{call.name}: prefix: {text} '{prefix}' already")
            self.savers[prefix] = Saver(prefix, plain(function), options)
        self._note(options.get("onRegistered"))
        return function

    def _note(self, on_registered: Optional[Callable[[], object]]) -> None:
        if on_registered:
            self._begins.append(on_registered)

    def begin(self, replaced: dict[str, Any]) -> None:
        """The script has ended well: some of its names are replaced, and what it gave as `onRegistered` is called."""
        others = {id(self.globals[name]): value for name, value in replaced.items() if name in self.globals}
        for name, value in replaced.items():
            setattr(self, name, value)
        begins, self._begins = self._begins, []
        for function in begins:
            others.get(id(function), function)()


_OWN = {one.name for one in fields(StubScript)}
