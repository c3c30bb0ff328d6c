"""A read-through cache with an async loader: thousands of misses wait on one thread. Source: `sourcePort` (6380)."""

import redis.asyncio


def connect():
    global source
    # Thousands of misses share 50 connections; without a pool that waits, the 101st of them would fail.
    pool = redis.asyncio.BlockingConnectionPool(port=int(gearsConfigGet('sourcePort', '6380')), decode_responses=True,
                                                max_connections=50, timeout=5)
    source = redis.asyncio.Redis(connection_pool=pool)


async def fetch(record):
    value = await source.get(record['key'])
    if value is not None:
        execute('SET', record['key'], value, 'EX', 60)
        override_reply(value)


GB('KeysReader', desc='read-through cache').foreach(fetch).register(
    prefix='user:*', commands=['get'], eventTypes=['keymiss'], mode='async_local', onRegistered=connect
)
