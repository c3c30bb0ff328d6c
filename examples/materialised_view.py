"""A view that keeps itself: the total of each customer's orders, and the customers in the order of their totals.

    HSET order:1 customer ann amount 30
    ZRANGE totals 0 -1 REV WITHSCORES
"""

SEEN = 'totals:orders'  # what each order has contributed: 'customer|amount'


def keep(record):
    order, key = record['value'] or {}, record['key']
    customer, amount = order.get('customer'), order.get('amount')
    now = f'{customer}|{amount}' if customer and amount else None
    with atomic():  # the view is never seen half changed
        before = execute('HGET', SEEN, key)
        if before == now:
            return
        if before is not None:
            name, _, value = before.rpartition('|')
            if float(execute('ZINCRBY', 'totals', -float(value), name)) == 0:
                execute('ZREM', 'totals', name)
            execute('HDEL', SEEN, key)
        if now is not None:
            execute('ZINCRBY', 'totals', amount, customer)
            execute('HSET', SEEN, key, now)


GB('KeysReader', desc='totals of customers').foreach(keep).register(
    prefix='order:*', eventTypes=['hset', 'hdel', 'del', 'expired', 'evicted'], mode='async_local'
)
