"""The group `scripts`: FCALL of functions in Python against the same in Lua, both on Valkey.

The side without the module runs Lua, which is part of the server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Optional

from harness import Failure, RedisBenchmark, Server
from scenarios import Goal, Scenario

# About 2 KB: what a function with real work reads, filters and sums.
DOCUMENT = json.dumps([{"name": f"item {number}", "price": number, "tags": ["a", "b"]} for number in range(40)])

LUA = """#!lua name=lib
server.register_function('one', function(keys, args) return 1 end)
server.register_function('get', function(keys, args) return server.call('GET', keys[1]) end)
server.register_function('sum', function(keys, args)
    local sum = 0
    for _, item in ipairs(cjson.decode(server.call('GET', keys[1]))) do
        if item.price % 2 == 0 then sum = sum + item.price end
    end
    return sum
end)
"""
PYTHON = """#!python name=lib
import json
from redisgears import register_function
register_function('one', lambda keys, args: 1)
register_function('get', lambda keys, args: execute('GET', keys[0]))
register_function('sum', lambda keys, args: sum(
    item['price'] for item in json.loads(execute('GET', keys[0])) if item['price'] % 2 == 0))
"""


@dataclass(frozen=True)
class Script(Scenario):
    """One function in both languages."""

    reply: Any = None

    def prepare(self, vanilla: Server, module: Server, around: Any = None) -> None:
        for server, code in ((vanilla, LUA), (module, PYTHON)):
            server.client.call("SET", "document", DOCUMENT)
            server.client.call("FUNCTION", "LOAD", "REPLACE", code)

    def check(self, vanilla: Server, module: Server, events: Optional[int] = None, runs: int = 0) -> None:
        for server in (vanilla, module):
            server.expect(self.vanilla.command, self.reply)
        if events:
            raise Failure(f"{runs} commands made {events} events")


def script(function: str, reply: Any, pipeline: int, goal: Goal, requests: int) -> Script:
    """FCALL of a function of both libraries."""
    command = RedisBenchmark(("FCALL", function, "1", "document"), pipeline, 1)
    return Script(
        f"fcall-{function}" if pipeline == 1 else f"fcall-{function}-{pipeline}",
        f"FCALL of a function in Python against one in Lua: `{function}`, pipeline {pipeline}",
        vanilla=command,
        module=command,
        requests=requests,
        goal=goal,
        group="scripts",
        only="valkey",
        reply=reply,
    )


SCRIPTS = {
    scenario.name: scenario
    for scenario in (
        script("one", 1, 1, Goal.everywhere(0.9), 100_000),
        script("one", 1, 16, Goal.everywhere(0.7), 500_000),
        script("get", DOCUMENT.encode(), 16, Goal(), 300_000),
        script("sum", sum(range(0, 40, 2)), 16, Goal.everywhere(1.0), 100_000),
    )
}
