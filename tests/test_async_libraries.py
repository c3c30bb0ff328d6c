"""Libraries for asyncio inside functions: aiohttp as client and server, uvloop as the loop of all coroutines."""

from __future__ import annotations

import ast
import asyncio
import threading
from typing import Any, Callable, Generator

import pytest

from helpers import Server, wait_until

# Both are in requirements-test.txt; a Python so new that there is no wheel of them has to do without.
web = pytest.importorskip("aiohttp.web")
pytest.importorskip("uvloop")

LOOPS = ["asyncio", "uvloop"]

# A server and a client of HTTP, a subprocess, futures and a run, on the loop of the module.
EVERYTHING = """
import ast
import asyncio
import aiohttp
import aiohttp.web

async def everything(words):
    async def hello(request):
        return aiohttp.web.Response(text='hello ' + request.query['name'])

    app = aiohttp.web.Application()
    app.router.add_get('/', hello)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, '127.0.0.1', 0).start()
    host, port = runner.addresses[0]
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        async with session.get(f'http://{host}:{port}/', params={'name': words[1]}) as response:
            text = await response.text()
    await runner.cleanup()
    process = await asyncio.create_subprocess_exec('echo', 'sub', stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    future = createFuture()
    setFutureResults(future, 5)
    count = await GB('ShardsIDReader').count().run()
    return [type(asyncio.get_running_loop()).__module__, text, output.decode(), await future, count[0][0]]

GB('CommandReader').map(everything).register(trigger='everything', mode='{mode}')
"""


@pytest.fixture(params=LOOPS)
def looping(request: pytest.FixtureRequest, borrow_server: Callable[..., Server]) -> Server:
    return borrow_server(module_args=["AsyncLoop", request.param])


def loop_of(server: Server) -> str:
    return "uvloop" if "uvloop" in server.module_args else "asyncio.unix_events"


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_libraries_work_inside_functions(looping: Server, mode: str) -> None:
    looping.run(EVERYTHING.replace("{mode}", mode))
    client = looping.client()
    expected = [loop_of(looping), "hello you", "sub\n", "5", "1"]

    def call() -> list[str]:
        [result] = client.execute_command("RG.TRIGGER", "everything", "you")
        return [str(part) for part in ast.literal_eval(result)]

    assert call() == expected
    client.execute_command("DEBUG", "RELOAD")
    assert call() == expected
    assert "uvloop is not installed" not in looping.log()


@pytest.fixture
def source() -> Generator[tuple[str, list[str]], None, None]:
    """An HTTP server outside: its address, and the names that it was asked for."""
    asked: list[str] = []

    async def price(request: Any) -> Any:
        asked.append(request.match_info["name"])
        await asyncio.sleep(0.02)
        if request.match_info["name"] == "none":
            raise web.HTTPNotFound()
        return web.json_response({"price": "price of " + request.match_info["name"]})

    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_get("/{name}", price)
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield "http://%s:%s" % runner.addresses[0], asked
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


CACHE = """
import aiohttp

async def connect():
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10), raise_for_status=True)

session = None

async def load(record):
    global session
    if session is None:
        session = await connect()
    name = record['key'].partition(':')[2]
    async with session.get('{address}/' + name) as response:
        value = (await response.json())['price']
    execute('SET', record['key'], value)
    override_reply(value)

GB('KeysReader').foreach(load).register(prefix='price:*', eventTypes=['keymiss'], commands=['get'], mode='{mode}')
"""


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_misses_are_loaded_over_http(looping: Server, source: tuple[str, list[str]], mode: str) -> None:
    address, asked = source
    looping.run(CACHE.replace("{address}", address).replace("{mode}", mode))
    raws = [looping.raw() for _ in range(50)]
    for number, raw in enumerate(raws):
        raw.send("GET", f"price:{number}")
    for number, raw in enumerate(raws):
        text = f"price of {number}".encode()
        assert raw.read() == b"$%d\r\n%s\r\n" % (len(text), text)
    client = looping.client()
    assert client.get("price:7") == "price of 7"
    assert sorted(asked, key=int) == [str(number) for number in range(50)]
    assert client.get("price:none") is None
    wait_until(lambda: "404" in str(looping.registrations()[0]["RegistrationData"]["lastError"]))
    # The session of before is gone with its globals; a new one is made.
    client.execute_command("DEBUG", "RELOAD")
    assert client.get("price:new") == "price of new"
    assert client.get("price:7") == "price of 7"
