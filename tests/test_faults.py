"""SIGKILL at any moment of a register, unregister or upgrade leaves the old state or the new one, with appendfsync always.

A model is told of each change before it is sent and of each reply; after a restart the server must have the state before the
last change or the one after it, and nothing in between.
"""

from __future__ import annotations

import ast
import random
import threading
from typing import Callable

import pytest
import redis

from helpers import Server, wait_until
from probes import AOF

# Session id to the prefixes of its registrations, in their order.
State = dict[str, list[str]]


def state_of(server: Server) -> State:
    state: State = {}
    for entry in server.registrations():
        session = ast.literal_eval(entry["PD"])["sessionName"]
        state.setdefault(session, []).append(entry["RegistrationData"]["args"]["regex"])
    return state


def identifiers(server: Server, session: str) -> list[str]:
    return [e["id"] for e in server.registrations() if ast.literal_eval(e["PD"])["sessionName"] == session]


class Changes:
    """Random changes of what is registered, one after the other, until the server is gone."""

    def __init__(self, server: Server, chance: random.Random, known: State) -> None:
        self.server = server
        self.chance = chance
        self.before = self.after = known
        self.done = 0
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        client = self.server.client()
        try:
            while True:
                self.change(client)
                self.before = self.after
                self.done += 1
        except redis.ConnectionError:
            pass
        except Exception as error:
            self.failure = error

    def change(self, client: redis.Redis) -> None:
        session = self.chance.choice("abc")
        state = {name: list(prefixes) for name, prefixes in self.before.items()}
        number = self.done
        if session in state and self.chance.random() < 0.4:
            at = self.chance.randrange(len(state[session]))
            identifier = identifiers(self.server, session)[at]
            del state[session][at]
            words = ["RG.UNREGISTER", identifier]
        else:
            prefixes = [f"{session}:{number}:{part}:*" for part in range(self.chance.randrange(1, 4))]
            script = "\n".join(f"GB('KeysReader').register('{prefix}', mode='sync')" for prefix in prefixes)
            words = ["RG.PYEXECUTE", script, "ID", session, "UPGRADE"]
            # A new registration stands last, whatever session it belongs to.
            state.pop(session, None)
            state[session] = prefixes
        self.after = {name: prefixes for name, prefixes in state.items() if prefixes}
        assert client.execute_command(*words) == "OK"


def check_kills(start_server: Callable[..., Server], kills: int, args: list[str], rewrites: bool) -> None:
    chance = random.Random(kills)
    server = start_server(args=args)
    known: State = {}
    total = 0
    for _ in range(kills):
        changes = Changes(server, chance, known)
        wanted = chance.randrange(1, 25)
        changes.thread.start()
        done = lambda: changes.done >= wanted or not changes.thread.is_alive()
        wait_until(done, 60, interval=chance.random() / 500)
        if rewrites and chance.random() < 0.3:
            server.client().bgrewriteaof()
        server.process.kill()
        changes.thread.join(10)
        assert not changes.thread.is_alive()
        assert changes.failure is None
        server.restart(kill=True)
        known = state_of(server)
        assert known in (changes.before, changes.after)
        total += changes.done
    assert total > kills


@pytest.mark.parametrize("preamble", ["yes", "no"])
def test_kills(start_server: Callable[..., Server], preamble: str) -> None:
    check_kills(start_server, 50, [*AOF, "--aof-use-rdb-preamble", preamble], rewrites=True)


@pytest.mark.soak
def test_many_kills(start_server: Callable[..., Server]) -> None:
    check_kills(start_server, 500, AOF, rewrites=True)
