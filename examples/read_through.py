# A cache that fills itself: a read of a missing user waits for one load, which many clients may share.
# The other server: RG.CONFIGSET sourceHost <host> sourcePort <port> (default 127.0.0.1, 6380).
import redis


def connect():
    global source
    source = redis.Redis(host=gearsConfigGet('sourceHost', '127.0.0.1'), port=int(gearsConfigGet('sourcePort', '6380')),
                         decode_responses=True, socket_timeout=5)


# Fresh for five minutes, served for another hour while the source is down; what does not exist is asked for every ten seconds.
@read_through('user:*', ttl=300, jitter=0.1, stale=3600, negative_ttl=10, refresh_ahead=0.2, timeout=5, breaker=(5, 10), batch=100,
              onRegistered=connect, desc='users from the other server')
def load_users(keys):
    pipeline = source.pipeline(transaction=False)
    for key in keys:
        pipeline.hgetall(key)
    return pipeline.execute()
