# Users are kept in a file of SQLite, which Python brings along. Where: RG.CONFIGSET sqliteFile <path>.
# The id of a change ascends for each key: a batch that is saved twice, or late, changes nothing. So a deleted key stays as a row that is
# marked; delete such rows when they are old enough.
import sqlite3

connection = None  # the first batch opens it; one call at a time uses it, on whichever thread

TABLE = """
    create table if not exists users (key text primary key, name text, city text, last_id text not null, gone bool not null)
"""
UPSERT = """
    insert into users values (?, ?, ?, ?, ?)
    on conflict (key) do update set name = excluded.name, city = excluded.city, last_id = excluded.last_id, gone = excluded.gone
    where users.last_id < excluded.last_id
"""


def database():
    global connection
    if connection is None:
        opened = sqlite3.connect(gearsConfigGet('sqliteFile', 'users.sqlite'), timeout=5, check_same_thread=False)
        opened.execute(TABLE)
        connection = opened
    return connection


def ordered(change_id):
    """An id whose order as a text is that of its numbers."""
    milliseconds, sequence = change_id.split('-')
    return f'{int(milliseconds):015d}-{int(sequence):010d}'


def row(change):
    value = change['value'] or {}
    return change['key'], value.get('name'), value.get('city'), ordered(change['id']), change['type'] is None


@write_behind('user:*', batch=500, desc='users in SQLite')
def save(changes):
    connection = database()
    with connection:  # one transaction
        connection.executemany(UPSERT, [row(change) for change in changes])
