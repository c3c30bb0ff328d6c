# An outbox: each change of a user becomes an entry of a stream on the same shard, which other services read with a group of their own.
# The id of the change travels along: who reads an entry twice knows it.
import json

stream = None


def name():
    """The stream of this shard."""
    global stream
    stream = 'users:changed{%s}' % hashtag()


@write_behind('user:*', coalesce=False, onRegistered=name, desc='users for other services')
def publish(changes):
    for change in changes:
        execute('XADD', stream, 'MAXLEN', '~', '100000', '*', 'id', change['id'], 'key', change['key'], 'event', change['event'],
                'value', json.dumps(change['value']))
