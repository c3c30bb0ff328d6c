"""Rows of PostgreSQL as hashes: HGETALL user:7 waits until the row with id 7 was read, and finds it in the cache from then on.

    redis-cli RG.CONFIGSET dsn 'host=127.0.0.1 dbname=shop user=app'
    redis-cli -X SCRIPT RG.PYEXECUTE SCRIPT ID postgres-read-through UPGRADE REQUIREMENTS 'psycopg[binary]' < postgres_read_through.py
"""

import threading

import psycopg
from psycopg.rows import dict_row

connections = threading.local()


def database():
    # One connection for each worker, made when it is first needed and anew when it was lost.
    connection = getattr(connections, 'one', None)
    if connection is None or connection.closed:
        connection = psycopg.connect(gearsConfigGet('dsn', 'dbname=shop'), autocommit=True, row_factory=dict_row, connect_timeout=3)
        connections.one = connection
    return connection


@read_through('user:*', ttl=300, stale=3600, negative_ttl=10, timeout=5, desc='users of PostgreSQL')
def load(key):
    number = int(key.partition(':')[2])
    return database().execute('SELECT name, city FROM users WHERE id = %s', [number]).fetchone()  # None: there is no such user
