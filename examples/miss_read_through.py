# A read-through cache: a GET of a missing key waits until the value was fetched from another server, and returns it.
# The other server: RG.CONFIGSET sourceHost <host> sourcePort <port> (default 127.0.0.1, 6380).
import redis

source = None


def connect():
    global source
    if source is None:  # on first use, in the server that runs the function
        source = redis.Redis(host=gearsConfigGet('sourceHost', '127.0.0.1'), port=int(gearsConfigGet('sourcePort', '6380')),
                             decode_responses=True, socket_timeout=5)
    return source


def fetch_data(record):
    key = record['key']
    data = connect().get(key)
    if data is None:
        return  # the client gets its nil
    execute('set', key, data)
    override_reply(data)  # raises where the client cannot wait (MULTI, Lua): the value is stored for the next read


GB('KeysReader').foreach(fetch_data).register(prefix='*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
