#!python name=transfer
# Moves an amount between two accounts, or says why not; all or nothing, since nothing is written before all is checked.
from redisgears import register_function


@register_function
def transfer(keys, args):
    source, target, amount = *keys, int(args[0])
    if amount <= 0:
        flat_error('BADAMOUNT an amount is a positive number')
    balance = int(execute('HGET', source, 'balance') or 0)
    if balance < amount:
        flat_error(f'NOFUNDS {source} has only {balance}')
    execute('HINCRBY', source, 'balance', -amount)
    return {'source': balance - amount, 'target': execute('HINCRBY', target, 'balance', amount)}
