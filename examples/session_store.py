"""Sessions of a web site: opened, looked at and closed by commands that are one step each, and gone after 30 quiet minutes.

    RG.TRIGGER session.open ann          the new session's name
    RG.TRIGGER session.user <session>    who it belongs to, and 30 minutes more; nil if it has ended
    RG.TRIGGER session.close ann         how many sessions of ann were ended
"""

import secrets

SECONDS = 30 * 60


def open_session(words):
    user, session = words[1], secrets.token_hex(24)  # a text that began with `-` would be an error reply
    execute('SET', f'session:{session}', user, 'EX', SECONDS)
    execute('SADD', f'sessions:{user}', session)
    execute('HSET', 'owners', session, user)
    return session


def user_of(words):
    return execute('GETEX', f'session:{words[1]}', 'EX', SECONDS)


def close_all(words):
    sessions = execute('SMEMBERS', f'sessions:{words[1]}')
    if not sessions:
        return 0
    execute('DEL', f'sessions:{words[1]}')
    execute('HDEL', 'owners', *sessions)
    return execute('DEL', *(f'session:{session}' for session in sessions))


def forget(record):
    session = record['key'].partition(':')[2]
    with atomic():
        user = execute('HGET', 'owners', session)
        if user is not None:
            execute('HDEL', 'owners', session)
            execute('SREM', f'sessions:{user}', session)


for name, function in [('open', open_session), ('user', user_of), ('close', close_all)]:
    GB('CommandReader').map(function).register(trigger=f'session.{name}', mode='sync', convertToStr=False)
GB('KeysReader', desc='expired sessions').foreach(forget).register(
    prefix='session:*', eventTypes=['expired'], readValue=False, mode='async_local'
)
