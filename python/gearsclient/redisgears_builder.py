"""The server's side of the client library `gearsclient`, which RedisGears 1.2 shipped: its pickles name these classes and
functions. Embedded into the module, imported as `gearsclient.redisgears_builder` unless the library is installed.

Contract: docs/contract/python-api.md 10.1. What a client sends is a `GearsPipe` with its steps, which builds a function by `createAndRun`.
"""

__all__ = ['GearsRemoteBuilder', 'atomic', 'execute', 'gearsConfigGet', 'hashtag', 'log']


def execute(*args):
    import redisgears
    return redisgears.executeCommand(*args)


def log(msg, level='notice'):
    import redisgears
    redisgears.log(msg, level=level)


def gearsConfigGet(key, default=None):
    import redisgears
    value = redisgears.config_get(key)
    return default if value is None else value


def hashtag():
    import redisgears
    return redisgears.getMyHashTag()


class atomic:
    """`with atomic():`"""

    def __init__(self):
        import redisgears
        self._block = redisgears.atomicCtx()

    def __enter__(self):
        self._block.__enter__()
        return self

    def __exit__(self, *error):
        self._block.__exit__()


class _Step:
    """One call of a builder; the values of the parameters are the attributes that the client has set."""

    method, parameters = '', ()

    def AddToGB(self, builder):
        getattr(builder, self.method)(*(getattr(self, name) for name in self.parameters), **getattr(self, 'kargs', {}))


_STEPS = {
    'LocalGroupBy': ('localgroupby', 'extractor', 'reducer'),
    'Accumulate': ('accumulate', 'accumulator'),
    'Repartition': ('repartition', 'extractor'),
    'Map': ('map', 'callback'),
    'Foreach': ('foreach', 'callback'),
    'FlatMap': ('flatmap', 'callback'),
    'Filter': ('filter', 'callback'),
    'CountBy': ('countby', 'callback'),
    'Avg': ('avg', 'callback'),
    'Count': ('count',),
    'Distinct': ('distinct',),
    'Aggregate': ('aggregate', 'zero', 'seqOp', 'combOp'),
    'AggregateBy': ('aggregateby', 'extractor', 'zero', 'seqOp', 'combOp'),
    'Sort': ('sort', 'reverse'),
    'Limit': ('limit', 'count', 'offset'),
    'Run': ('run', 'arg', 'convertToStr', 'collect'),
    'Register': ('register', 'prefix', 'convertToStr', 'collect'),
}

for _name, (_method, *_parameters) in _STEPS.items():
    _class = f'GearsRemote{_name}Step'
    _body = {'method': _method, 'parameters': tuple(_parameters), '__module__': __name__}
    globals()[_class] = type(_class, (_Step,), _body)


class GearsPipe:
    """What a client sends: `reader`, `defaultArg` and `steps`, in their order."""

    def createAndRun(self, GB):
        builder = GB(self.reader, self.defaultArg)
        for step in self.steps:
            step.AddToGB(builder)


class GearsRemoteBuilder:
    """The client's builder; inside the server there is another one."""

    def __init__(self, *args, **kwargs):
        raise RuntimeError('GearsRemoteBuilder sends functions to a server; inside the server use GearsBuilder')
