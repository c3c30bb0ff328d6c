"""A read-through cache with an async loader: thousands of misses wait on one thread. Needs `sourcePort` (default 6380)."""

import redis.asyncio


def connect():
    global source
    source = redis.asyncio.Redis(port=int(gearsConfigGet('sourcePort', '6380')), decode_responses=True)


async def fetch(record):
    value = await source.get(record['key'])
    if value is not None:
        execute('SET', record['key'], value, 'EX', 60)
        override_reply(value)


GB('KeysReader', desc='read-through cache').foreach(fetch).register(
    prefix='user:*', commands=['get'], eventTypes=['keymiss'], mode='async_local', onRegistered=connect
)
