"""Users are rows of PostgreSQL and hashes `user:<id>` here: what is missing is loaded, what changes is saved, in one table.

    create table users (
        id int primary key, name text not null, city text, age int, active boolean not null default true,
        last_id text collate "C" not null default '', gone boolean not null default false
    );

    redis-cli RG.CONFIGSET dsn postgresql://app:secret@127.0.0.1/shop
    redis-cli -X SCRIPT RG.PYEXECUTE SCRIPT ID users UPGRADE REQUIREMENTS 'psycopg[binary]' < both_halves_postgresql.py

RG.CONFIGSET holds until the server ends. For good: `loadmodule .../libpinion.so dsn postgresql://app:secret@127.0.0.1/shop` in its file.
`last_id` is the newest change that a row has, so a change that comes twice, or late, changes nothing; `gone` marks users who were deleted.
Whoever changes a row by SQL calls RG.REFRESH user:7 behind it; DEL user:7 would delete the row. A command that changes one field saves the others
as the cache has them, which is not older than `ttl`.
"""

import json
import threading

import psycopg
from psycopg.rows import dict_row

DEAD = 'users:dead'

# Values of hashes are texts: a boolean becomes 1 or 0.
LOAD = 'select name, city, age, active::int as active from users where id = %s and not gone'

# PostgreSQL reads the texts as what the columns are. Fields that the hash does not have are NULL, `active` is its default.
SAVE = """
    insert into users (id, name, city, age, active, last_id)
    values (%(number)s, %(name)s, %(city)s, %(age)s, coalesce(%(active)s::boolean, true), %(last_id)s)
    on conflict (id) do update set name = excluded.name, city = excluded.city, age = excluded.age, active = excluded.active,
        last_id = excluded.last_id, gone = false
    where users.last_id < excluded.last_id
"""
DELETE = 'update users set gone = true, last_id = %(last_id)s where id = %(number)s and last_id < %(last_id)s'

connections = threading.local()


def database():
    # One connection for each worker, made when it is first needed and anew when it was lost.
    connection = getattr(connections, 'one', None)
    if connection is None or connection.closed:
        # Statements that are prepared know the table as it was: after an ALTER TABLE they fail as long as the connection lives.
        # Without its own timeouts a connection that goes silent keeps its worker.
        options = {'autocommit': True, 'row_factory': dict_row, 'prepare_threshold': None,
                   'connect_timeout': 3, 'tcp_user_timeout': 5000, 'options': '-c statement_timeout=5000'}
        connections.one = connection = psycopg.connect(gearsConfigGet('dsn', 'dbname=shop'), **options)
    return connection


def ordered(change_id):
    """An id whose order as a text is that of its numbers."""
    milliseconds, sequence = change_id.split('-')
    return f'{int(milliseconds):015d}-{int(sequence):010d}'


def row(change):
    value = change['value'] or {}
    columns = {name: value.get(name) for name in ('name', 'city', 'age', 'active')}
    return {'number': int(change['key'].partition(':')[2]), 'last_id': ordered(change['id']), **columns}


@read_through('user:*', ttl=300, negative_ttl=10, timeout=5, desc='users of PostgreSQL')
def load(key):
    number = key.partition(':')[2]
    return database().execute(LOAD, [number]).fetchone() if number.isdecimal() else None  # None: there is no such user


@write_behind('user:*', batch=500, max_tries=3, max_backoff=5, dead_letter=DEAD, desc='users in PostgreSQL')
def save(changes):
    connection = database()
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(SAVE, [row(change) for change in changes if change['type'] is not None])
        cursor.executemany(DELETE, [row(change) for change in changes if change['type'] is None])


def dead_letters():
    """The stream of this server; each shard of a cluster has its own."""
    return f'{DEAD}{{{hashtag()}}}' if 'cluster_enabled:1' in execute('INFO', 'cluster') else DEAD


def again(_):
    """RG.TRIGGER users.again: saves what could not be saved, after the table or this script was mended. How many are left.

    In a cluster: redis-cli --cluster call 127.0.0.1:7001 RG.TRIGGER users.again --cluster-only-masters
    """
    left, stream = 0, dead_letters()
    for entry, fields in execute('XRANGE', stream, '-', '+'):
        letter = dict(zip(fields[::2], fields[1::2]))
        kind, value = letter['type'] or None, letter['value']
        try:
            save([{**letter, 'type': kind, 'value': json.loads(value) if kind == 'hash' else value}])
        except Exception as error:
            log(f"{letter['key']} cannot be saved: {error}", level='warning')
            left += 1
        else:
            execute('XDEL', stream, entry)
    return left


GB('CommandReader').map(again).register(trigger='users.again', mode='async_local')
