# An index that keeps itself: for each city the set of the persons who live there.
#   HSET person:1 name Ann city Oslo
#   SMEMBERS city:Oslo
PLACES = 'person-city'  # under which city each person stands in the index


def update(record):
    person = record['key']
    with atomic():  # nobody moves meanwhile
        city, before = execute('HGET', person, 'city'), execute('HGET', PLACES, person)
        if city == before:
            return
        if before is not None:
            execute('SREM', 'city:' + before, person)
        if city is None:  # deleted, expired, or without a city now
            execute('HDEL', PLACES, person)
        else:
            execute('SADD', 'city:' + city, person)
            execute('HSET', PLACES, person, city)


GB('KeysReader').foreach(update).register(prefix='person:*', keyTypes=['hash', 'empty'], readValue=False,
                                          mode='async_local')
