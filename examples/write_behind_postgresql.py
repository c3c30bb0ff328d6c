# Users are kept in PostgreSQL: hashes `user:<number>` become rows of the table users, deleted keys leave it.
# Where: RG.CONFIGSET database postgresql://shop:secret@127.0.0.1:5432/shop (what psycopg takes), until the server ends. For good:
# `loadmodule .../libpinion.so database postgresql://...` in its file. Needs the package psycopg.
# Where rows are loaded as well, take both_halves_postgresql.py: a loader has to know of rows that are marked.
#
#   create table users (key text primary key, name text, city text, last_id text collate "C" not null, gone boolean not null);
#
# The id of a change ascends for each key: a batch that is saved twice, or late, changes nothing. So a deleted key stays as a row that is
# marked; delete such rows when they are old enough.
import psycopg

connection = None  # the first batch connects

UPSERT = """
    insert into users (key, name, city, last_id, gone) values (%(key)s, %(name)s, %(city)s, %(id)s, %(gone)s)
    on conflict (key) do update set name = excluded.name, city = excluded.city, last_id = excluded.last_id, gone = excluded.gone
    where users.last_id < excluded.last_id
"""


def ordered(change_id):
    """An id whose order as a text is that of its numbers."""
    milliseconds, sequence = change_id.split('-')
    return f'{int(milliseconds):015d}-{int(sequence):010d}'


def row(change):
    value = change['value'] or {}
    return {'key': change['key'], 'name': value.get('name'), 'city': value.get('city'), 'id': ordered(change['id']),
            'gone': change['type'] is None}


@write_behind('user:*', batch=500, max_tries=3, dead_letter='users:dead', desc='users in PostgreSQL')
def save(changes):
    global connection
    if connection is None or connection.closed:
        # Shorter than max_save_time: without them a connection that goes silent keeps its worker.
        timeouts = {'connect_timeout': 5, 'tcp_user_timeout': 5000, 'options': '-c statement_timeout=5000'}
        connection = psycopg.connect(gearsConfigGet('database', 'dbname=shop'), prepare_threshold=None, **timeouts)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(UPSERT, [row(change) for change in changes])
