"""Who deletes what: DEL of an `account:*` key is noted in a stream with its arguments, and refused for those on hold.

    SADD hold account:7      DEL account:7 is an error from now on
"""


def audit(words):
    keys = words[1:]
    held = [key for key in keys if execute('SISMEMBER', 'hold', key)]
    execute('XADD', 'audit', '*', 'command', ' '.join(map(str, words)), 'refused', ' '.join(held))
    if held:
        flat_error(f'ERR on hold: {" ".join(held)}')
    return call_next(*keys)  # what DEL itself answers


GB('CommandReader', desc='audit of DEL').map(audit).register(
    hook='del', keyprefix='account:', mode='sync', convertToStr=False
)
