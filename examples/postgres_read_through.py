"""Rows of PostgreSQL as hashes: HGETALL user:7 waits until the row with id 7 was read, and finds it in the cache from then on.

    create table users (id int primary key, name text not null, city text, active boolean not null default true);

    redis-cli RG.CONFIGSET dsn postgresql://app:secret@127.0.0.1/shop
    redis-cli -X SCRIPT RG.PYEXECUTE SCRIPT ID postgres-read-through UPGRADE REQUIREMENTS 'psycopg[binary]' < postgres_read_through.py

RG.CONFIGSET holds until the server ends. For good: `loadmodule .../libpinion.so dsn postgresql://app:secret@127.0.0.1/shop` in its file.
"""

import threading

import psycopg
from psycopg.rows import dict_row

# Values of a hash are texts and numbers: columns of other types are cast.
LOAD = 'SELECT name, city, active::int AS active FROM users WHERE id = %s'

connections = threading.local()


def database():
    # One connection for each worker, made when it is first needed and anew when it was lost.
    connection = getattr(connections, 'one', None)
    if connection is None or connection.closed:
        # Without its own timeouts a connection that goes silent keeps its worker.
        timeouts = {'connect_timeout': 3, 'tcp_user_timeout': 5000, 'options': '-c statement_timeout=5000'}
        connection = psycopg.connect(gearsConfigGet('dsn', 'dbname=shop'), autocommit=True, row_factory=dict_row, prepare_threshold=None, **timeouts)
        connections.one = connection
    return connection


@read_through('user:*', ttl=300, stale=3600, negative_ttl=10, timeout=5, desc='users of PostgreSQL')
def load(key):
    number = int(key.partition(':')[2])
    return database().execute(LOAD, [number]).fetchone()  # None: there is no such user
