# Users are kept in MariaDB or MySQL: hashes `user:<number>` become rows of the table users, deleted keys leave it.
# Where: RG.CONFIGSET mariadbHost <host> mariadbPort <port> mariadbUser <user> mariadbPassword <password> mariadbDatabase <database>.
# Needs the package pymysql.
#
#   create table users (`key` varbinary(255) primary key, name text, city text, last_id varchar(30) character set ascii not null, gone bool not null);
import pymysql

connection = None  # the first batch connects

UPSERT = """
    insert into users (`key`, name, city, last_id, gone) values (%(key)s, %(name)s, %(city)s, %(id)s, %(gone)s)
    on duplicate key update name = if(last_id < values(last_id), values(name), name), city = if(last_id < values(last_id), values(city), city),
        gone = if(last_id < values(last_id), values(gone), gone), last_id = greatest(last_id, values(last_id))
"""


def ordered(change_id):
    """An id whose order as a text is that of its numbers."""
    milliseconds, sequence = change_id.split('-')
    return f'{int(milliseconds):015d}-{int(sequence):010d}'


def row(change):
    value = change['value'] or {}
    return {'key': change['key'], 'name': value.get('name'), 'city': value.get('city'), 'id': ordered(change['id']),
            'gone': change['type'] is None}


@write_behind('user:*', batch=500, max_tries=3, dead_letter='users:dead', desc='users in MariaDB')
def save(changes):
    global connection
    if connection is None:
        connection = pymysql.connect(host=gearsConfigGet('mariadbHost', '127.0.0.1'), port=int(gearsConfigGet('mariadbPort', '3306')),
                                     user=gearsConfigGet('mariadbUser', 'shop'), password=gearsConfigGet('mariadbPassword', ''),
                                     database=gearsConfigGet('mariadbDatabase', 'shop'), charset='utf8mb4', connect_timeout=5,
                                     read_timeout=5, write_timeout=5)
    try:
        with connection.cursor() as cursor:
            cursor.executemany(UPSERT, [row(change) for change in changes])
        connection.commit()
    except Exception:
        connection.close()
        connection = None
        raise
