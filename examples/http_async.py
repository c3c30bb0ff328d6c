"""The same by a coroutine: a thousand misses wait for a slow service on one thread, and no worker is occupied.

    redis-cli RG.CONFIGSET site http://127.0.0.1:8000
    redis-cli -X SCRIPT RG.PYEXECUTE SCRIPT ID http-async UPGRADE REQUIREMENTS aiohttp < http_async.py
"""

import asyncio

import aiohttp

session = None


async def connected():
    global session
    if session is None or session.closed:  # made on the loop's thread, where it is used
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100), timeout=aiohttp.ClientTimeout(total=5))
    return session


@read_through('quote:*', ttl=30, stale=300, negative_ttl=5, desc='quotes of the site')
async def load(key):
    site = gearsConfigGet('site', 'http://127.0.0.1:8000')
    async with (await connected()).get(f"{site}/{key.partition(':')[2]}") as answer:
        if answer.status == 404:
            return None
        answer.raise_for_status()
        return await answer.text()
