#!python name=rate_limit
# Allows so many calls in a sliding window: FCALL allow 1 <key> <calls> <seconds> gives 1 or 0.
import time

from redisgears import register_function


@register_function(description='1 while fewer than `calls` came in the last `seconds`')
def allow(keys, args):
    calls, seconds, now = int(args[0]), float(args[1]), time.time()
    execute('ZREMRANGEBYSCORE', keys[0], '-inf', now - seconds)
    if execute('ZCARD', keys[0]) >= calls:
        return 0
    execute('ZADD', keys[0], now, f'{now}-{execute("INCR", keys[0] + ":number")}')
    for key in (keys[0], keys[0] + ':number'):
        execute('PEXPIRE', key, int(seconds * 1000))
    return 1
