"""node-redis and ioredis: the commands, and reads that a function answers, with RESP2 and RESP3."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Callable

import pytest

from environments import node_environment
from helpers import Server

SCRIPT = """
GB().foreach(lambda record: override_reply('loaded ' + record['key'])).register(
    'miss:*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='hgetall', keyprefix='h:', convertToStr=False)
GB('CommandReader').map(lambda x: len(x) - 1).register(trigger='count', convertToStr=False)
"""

NODE_REDIS = """
const { createClient } = require('redis');
const [port, protocol, script] = process.argv.slice(2);
(async () => {
  const client = await createClient({ url: `redis://127.0.0.1:${port}`, RESP: Number(protocol) }).connect();
  const call = (...words) => client.sendCommand(words);
  const got = {};
  got.register = await call('RG.PYEXECUTE', script, 'ID', 'node');
  await client.mSet({ 'k:1': 'a', 'k:2': 'b' });
  got.run = await call('RG.PYEXECUTE', "GB().map(lambda x: x['value']).sort().run('k:*')");
  got.miss = await client.get('miss:1');
  got.many = await Promise.all([client.get('miss:2'), client.get('k:1'), client.get('miss:3')]);
  got.transaction = await client.multi().get('k:1').get('miss:4').exec();
  await client.hSet('h:1', 'f', 'v');
  got.hook = { ...(await client.hGetAll('h:1')) };
  got.trigger = await call('RG.TRIGGER', 'count', 'x', 'y');
  got.registrations = (await call('RG.DUMPREGISTRATIONS')).length;
  got.error = await call('RG.GETRESULTS', 'nonsense').catch((error) => error.message);
  got.removed = await call('RG.UNREGISTERSESSION', 'node');
  console.log(JSON.stringify(got));
  await client.quit();
})();
"""

IOREDIS = """
const Redis = require('ioredis');
const [port, protocol, script] = process.argv.slice(2);
(async () => {
  const client = new Redis(Number(port), '127.0.0.1');
  const call = (...words) => client.call(...words);
  const got = {};
  got.register = await call('RG.PYEXECUTE', script, 'ID', 'node');
  await client.mset('k:1', 'a', 'k:2', 'b');
  got.run = await call('RG.PYEXECUTE', "GB().map(lambda x: x['value']).sort().run('k:*')");
  got.miss = await client.get('miss:1');
  got.many = (await client.pipeline().get('miss:2').get('k:1').get('miss:3').exec()).map((pair) => pair[1]);
  got.transaction = (await client.multi().get('k:1').get('miss:4').exec()).map((pair) => pair[1]);
  await client.hset('h:1', 'f', 'v');
  got.hook = await client.hgetall('h:1');
  got.trigger = await call('RG.TRIGGER', 'count', 'x', 'y');
  got.registrations = (await call('RG.DUMPREGISTRATIONS')).length;
  got.error = await call('RG.GETRESULTS', 'nonsense').catch((error) => error.message);
  got.removed = await call('RG.UNREGISTERSESSION', 'node');
  console.log(JSON.stringify(got));
  await client.quit();
})();
"""

EXPECTED = {
    "register": "OK",
    "run": [["a", "b"], []],
    "miss": "loaded miss:1",
    "many": ["loaded miss:2", "a", "loaded miss:3"],
    "transaction": ["a", None],
    "hook": {"f": "v"},
    "trigger": [2],
    "registrations": 3,
    "error": "execution plan does not exist",
    "removed": 3,
}


@pytest.mark.parametrize(
    "package, protocol, program",
    [("redis@5.9.0", 2, NODE_REDIS), ("redis@5.9.0", 3, NODE_REDIS), ("ioredis@5.8.2", 2, IOREDIS)],
    ids=["node-redis-RESP2", "node-redis-RESP3", "ioredis-RESP2"],
)
def test_commands(server: Server, package: str, protocol: int, program: str, call: Callable[..., str]) -> None:
    assert shutil.which("npm"), "npm is not on this machine: make setup-compat"
    folder = node_environment(package.replace("@", "-"), [package])
    path: Path = folder / "program.js"
    path.write_text(program)
    assert json.loads(call("node", path, server.port, protocol, SCRIPT)) == EXPECTED
