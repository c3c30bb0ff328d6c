"""`execute` of the stub mode, and how coroutines come to their end without the server's loop."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Optional, Union

Answer = Union[object, Callable[..., object]]
Answers = Mapping[Union[str, tuple[Any, ...]], Answer]


class FakeExecute:
    """`execute` of the stub mode.

    `answers`: a command's name, or the name and its first arguments in a tuple, to what it replies: a value, a function of the
    arguments, or an exception that is raised. The longest entry that fits counts; without one the reply is None.
    """

    def __init__(self, answers: Optional[Answers] = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[tuple[str, ...], Answer] = {}
        for command, answer in (answers or {}).items():
            self.answer(command, answer)

    def answer(self, command: Union[str, tuple[Any, ...]], answer: Answer) -> None:
        """From now on the command replies that."""
        words = command if isinstance(command, tuple) else (command,)
        self.answers[_words(words)] = answer

    def __call__(self, command: str, *arguments: object) -> Any:
        if not isinstance(command, str):
            raise TypeError(f"the name of a command must be a text, got {command!r}")
        call = (command, *map(_as_sent, arguments))
        self.calls.append(call)
        words = _words(call)
        fitting = [known for known in self.answers if words[: len(known)] == known]
        if not fitting:
            return None
        answer = self.answers[max(fitting, key=len)]
        if isinstance(answer, BaseException):
            raise answer
        return answer(*call[1:]) if callable(answer) else answer


def _words(call: Iterable[Any]) -> tuple[str, ...]:
    name, *rest = map(str, call)
    return (name.upper(), *rest)


def _as_sent(argument: object) -> object:
    """What a command gets: texts and bytes; anything else in its text form."""
    return argument if isinstance(argument, (str, bytes, bytearray)) else str(argument)


def ended(value: Any) -> Any:
    """What a function has returned; a coroutine is run to its end, unless this thread runs coroutines: then that one awaits it."""
    if not inspect.isawaitable(value):
        return value
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_wait(value))
    return value


async def _wait(awaitable: Any) -> Any:
    return await awaitable


def plain(value: Any) -> Any:
    """A coroutine function as one that a test can simply call; anything else as it is."""
    return _plain(value) if inspect.iscoroutinefunction(value) else value


@functools.cache  # asked twice, it is the same one
def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        return ended(function(*arguments, **options))

    return call
