"""Feature flags: is a feature on for this user? A fixed share of the users, always the same ones, or by name.

    HSET flag:search percent 25 users ann,ben
    RG.TRIGGER flag search cid           1 or 0
    RG.TRIGGER flags cid                 all features that are on for cid
"""

import zlib


def is_on(feature, user):
    flag = execute('HMGET', f'flag:{feature}', 'percent', 'users')
    if user in (flag[1] or '').split(','):
        return 1
    # The same user has another place for each feature, so that not always the same ones try what is new.
    return int(zlib.crc32(f'{feature}:{user}'.encode()) % 100 < int(flag[0] or 0))


def flag(words):
    return is_on(*words[1:3])


def flags(words):
    names = sorted(name.partition(':')[2] for name in execute('SMEMBERS', 'flags'))
    return [name for name in names if is_on(name, words[1])]


def note(record):
    execute('SADD' if record['event'] == 'hset' else 'SREM', 'flags', record['key'])


GB('CommandReader').map(flag).register(trigger='flag', mode='sync', convertToStr=False)
GB('CommandReader').flatmap(flags).register(trigger='flags', mode='sync', convertToStr=False)
GB('KeysReader', desc='the list of flags').foreach(note).register(
    prefix='flag:*', eventTypes=['hset', 'del', 'expired'], readValue=False, mode='sync'
)
