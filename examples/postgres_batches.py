"""Rows of PostgreSQL, many at a time: the users that an MGET or many clients miss together are one query.

    redis-cli RG.CONFIGSET dsn postgresql://app:secret@127.0.0.1/shop  # until the server ends; for good see postgres_read_through.py
    redis-cli -X SCRIPT RG.PYEXECUTE SCRIPT ID postgres-batches UPGRADE REQUIREMENTS 'psycopg[binary]' < postgres_batches.py
"""

import threading

import psycopg

connections = threading.local()


def database():
    connection = getattr(connections, 'one', None)
    if connection is None or connection.closed:
        # Without its own timeouts a connection that goes silent keeps its worker.
        timeouts = {'connect_timeout': 3, 'tcp_user_timeout': 5000, 'options': '-c statement_timeout=5000'}
        connections.one = connection = psycopg.connect(gearsConfigGet('dsn', 'dbname=shop'), autocommit=True, prepare_threshold=None, **timeouts)
    return connection


@read_through('name:*', ttl=300, batch=100, batch_wait=0.002, desc='names of PostgreSQL')
def load(keys):
    numbers = [int(key.partition(':')[2]) for key in keys]
    rows = database().execute('SELECT id, name FROM users WHERE id = ANY(%s)', [numbers]).fetchall()
    return {f'name:{number}': name for number, name in rows}  # what is not in it does not exist
