"""redis-py 5, 6, 7 and 8, with RESP2 and RESP3: the commands, and reads that a function answers.

One program runs under each release and prints what it got; what it must print is the same for all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest

from environments import python_environment
from helpers import Server

PROGRAM = '''
import asyncio, json, sys
import redis
import redis.asyncio

port, protocol = int(sys.argv[1]), int(sys.argv[2])
r = redis.Redis(port=port, protocol=protocol, decode_responses=True)
got = {"release": redis.__version__.split(".")[0]}


def error(*words):
    try:
        r.execute_command(*words)
    except redis.ResponseError as error:
        return str(error)


r.mset({"k:1": "a", "k:2": "b"})
got["run"] = r.execute_command("RG.PYEXECUTE", "GB().map(lambda x: x['value']).sort().run('k:*')")
got["bytes"] = [v.decode() for v in redis.Redis(port=port, protocol=protocol).execute_command(
    "RG.PYEXECUTE", "GB().map(lambda x: x['value']).sort().run('k:*')")[0]]
got["register"] = r.execute_command("RG.PYEXECUTE", """
def load(record):
    override_reply('loaded ' + record['key'])
GB().foreach(load).register('miss:*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
GB('CommandReader').map(lambda x: {'args': x[1:]}).register(trigger='echo', convertToStr=False)
GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='hgetall', keyprefix='h:', convertToStr=False)
""", "ID", "compat")
got["miss"] = r.get("miss:1")
got["pipeline"] = r.pipeline(
    transaction=False).get("k:1").get("miss:2").execute()
got["transaction"] = r.pipeline().get("k:1").get("miss:3").execute()
reply = r.execute_command("RG.TRIGGER", "echo", "x", "y")
got["trigger"] = [list(map(list, part.items())) if isinstance(part, dict) else part for part in reply]
r.hset("h:1", mapping={"f": "v"})
got["hook"] = r.hgetall("h:1")
got["registrations"] = len(r.execute_command("RG.DUMPREGISTRATIONS"))
got["session"] = r.execute_command("RG.PYDUMPSESSIONS")[0][1]
execution = r.execute_command("RG.PYEXECUTE", "GB('ShardsIDReader').run()", "UNBLOCKING")
got["blocking"] = r.execute_command("RG.GETRESULTSBLOCKING", execution)
got["error"] = error("RG.PYEXECUTE", "GB().map('x')").splitlines()[-1][-60:]
got["unknown"] = error("RG.GETRESULTS", "nonsense")
got["info"] = r.info("rg")["rg_nregistrations"]
got["removed"] = r.execute_command("RG.UNREGISTERSESSION", "compat")


async def work():
    c = redis.asyncio.Redis(port=port, protocol=protocol, decode_responses=True)
    results = await asyncio.gather(*(c.execute_command(
        "RG.PYEXECUTE", "GB('PythonReader').run(lambda: (x for x in [%d]))" % n) for n in range(5)))
    await c.aclose()
    return results

got["async"] = asyncio.run(work())
print(json.dumps(got))
'''


def expected(protocol: int) -> dict[str, Any]:
    return {
        "run": [["a", "b"], []],
        "bytes": ["a", "b"],
        "register": "OK",
        "miss": "loaded miss:1",
        "pipeline": ["a", "loaded miss:2"],
        "transaction": ["a", None],
        # A dict is a map for RESP3 and a flat array for RESP2.
        "trigger": [[["args", ["x", "y"]]] if protocol == 3 else ["args", ["x", "y"]]],
        "hook": {"f": "v"},
        "registrations": 3,
        "session": "compat",
        "blocking": [["1"], []],
        "error": "gears.error: map argument must be a function\\n']",
        "unknown": "execution plan does not exist",
        "info": 3,
        "removed": 3,
        "async": [[[str(n)], []] for n in range(5)],
    }


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("release", [5, 6, 7, 8])
def test_commands(
    server: Server, release: int, protocol: int, call: Callable[..., str], script: Callable[[str, str], Path]
) -> None:
    # With the parser in C for one of them.
    python = python_environment(f"redis-{release}", [f"redis{'[hiredis]' if release == 5 else ''}>={release},<{release + 1}"])
    got = json.loads(call(python, script("program.py", PROGRAM), server.port, protocol))
    assert got.pop("release") == str(release)
    shown = expected(protocol)
    got["error"], shown["error"] = got["error"][-40:], shown["error"][-40:]
    assert got == shown
