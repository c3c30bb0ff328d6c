"""Adds up what the entries of `sales:*` say, 100 at a time, and tries again if that fails."""


def add(record):
    execute('HINCRBY', 'sold', record['value']['item'], record['value']['pieces'])


GB('StreamReader', desc='totals').foreach(add).register(
    prefix='sales:*', batch=100, duration=1000, onFailedPolicy='retry', onFailedRetryInterval=5
)
