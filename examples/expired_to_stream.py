"""Sessions that expire are noted in a stream, which other programs read with XREAD or a consumer group.

    SET session:7 ann EX 60      a minute later: XRANGE expired - +
"""


def note(record):
    execute('XADD', 'expired', 'MAXLEN', '~', 10000, '*', 'key', record['key'], 'event', record['event'])


GB('KeysReader', desc='expired sessions').foreach(note).register(
    prefix='session:*', eventTypes=['expired', 'evicted'], readValue=False, mode='async_local'
)
