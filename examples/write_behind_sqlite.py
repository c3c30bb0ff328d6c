# Users are kept in a file of SQLite, which Python brings along. Where: RG.CONFIGSET sqliteFile <path>.
# Without marks for deleted keys: a row is replaced or deleted. So a batch that is made again saves the same once more, which is the same
# in the end, since changes of a key come in their order.
import sqlite3

connection = None  # the first batch opens it; one call at a time uses it, on whichever thread


def database():
    global connection
    if connection is None:
        opened = sqlite3.connect(gearsConfigGet('sqliteFile', 'users.sqlite'), timeout=5, check_same_thread=False)
        opened.execute('create table if not exists users (key text primary key, name text, city text)')
        connection = opened
    return connection


@write_behind('user:*', batch=500, desc='users in SQLite')
def save(changes):
    connection = database()
    with connection:  # one transaction
        for change in changes:
            if change['type'] is None:
                connection.execute('delete from users where key = ?', (change['key'],))
            else:
                value = change['value']
                connection.execute('insert or replace into users values (?, ?, ?)', (change['key'], value.get('name'), value.get('city')))
