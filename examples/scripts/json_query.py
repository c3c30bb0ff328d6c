#!python name=json_query
# Looks into JSON documents where they lie: FCALL_RO price_of 1 <key> <name> sums the prices of the items with this name.
import json

from redisgears import register_function


@register_function(flags=['no-writes'])
def price_of(keys, args):
    document = json.loads(execute('GET', keys[0]) or '{"items": []}')
    return sum(item['price'] for item in document['items'] if item['name'] == args[0])
