"""The ten most frequent words of all texts, over all shards of a cluster: each counts its own, and only the counts travel."""

import re


def words(record):
    return re.findall(r'\w+', record['value'].lower())


(GB('KeysReader', desc='word count')
 .filter(lambda record: record['type'] == 'string')
 .flatmap(words)
 .countby()
 .sort(False, key=lambda group: (group['value'], group['key']))
 .limit(10)
 .map(lambda group: f"{group['key']} {group['value']}")
 .run('text:*'))
