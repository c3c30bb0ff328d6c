# Writes a line to the server's log each time a client reads a key that does not exist.
def log_miss(record):
    log('missed: %s' % record['key'])


GB('KeysReader').foreach(log_miss).register(prefix='*', eventTypes=['keymiss'], mode='async_local')
