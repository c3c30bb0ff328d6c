# Fetches a missed key from another server and stores it: the first read gives nil, the next one the value.
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
    if data is not None:
        execute('set', key, data)


GB('KeysReader').foreach(fetch_data).register(prefix='*', eventTypes=['keymiss'], mode='async_local')
