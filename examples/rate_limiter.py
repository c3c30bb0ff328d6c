"""A rate limiter as a command, exact to the millisecond: how long must this caller wait?

    RG.TRIGGERONKEY limit <key> <calls> <seconds>    0: go ahead, else milliseconds until there is room
"""

import time


def limit(words):
    _, key, calls, seconds = words
    now, window = time.time_ns() // 1000, float(seconds) * 1e6
    # A function of mode sync has the server for itself: nobody comes between these commands.
    execute('ZREMRANGEBYSCORE', key, '-inf', now - window)
    if execute('ZCARD', key) < int(calls):
        execute('ZADD', key, now, f'{now}-{execute("INCR", key + ":number")}')
        execute('PEXPIRE', key, int(window / 1000) + 1)
        execute('PEXPIRE', key + ':number', int(window / 1000) + 1)
        return 0
    oldest = execute('ZRANGE', key, 0, 0, 'WITHSCORES')
    return max(1, int((float(oldest[1]) + window - now) / 1000))


GB('CommandReader', desc='rate limiter').map(limit).register(trigger='limit', mode='sync', convertToStr=False)
