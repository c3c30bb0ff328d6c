"""The module `redisAI`, which scripts for RedisGears import. RedisAI is discontinued: every use says that it is not there.

Embedded into the module. Contract: docs/contract/python-api.md chapter 11.
"""

from redisgears import GearsError

_FUNCTIONS = """
createTensorFromValues createTensorFromBlob setTensorInKey msetTensorsInKeyspace getTensorFromKey mgetTensorsFromKeyspace
tensorToFlatList tensorGetDataAsBlob tensorGetDims createModelRunner modelRunnerAddInput modelRunnerAddOutput
modelRunnerRun modelRunnerRunAsync createScriptRunner scriptRunnerAddInput scriptRunnerAddInputList scriptRunnerAddOutput
scriptRunnerRun scriptRunnerRunAsync createDAGRunner
"""
_CLASSES = 'PyTensor PyGraphRunner PyTorchScriptRunner PyDAGRunner'

__all__ = [*_FUNCTIONS.split(), *_CLASSES.split()]


def _refuse(*args, **kwargs):
    raise GearsError('RedisAI is not loaded, it is not possible to use AI interface.')


def _function(name):
    def function(*args, **kwargs):
        _refuse()

    function.__name__ = function.__qualname__ = name
    function.__doc__ = 'Raises `gears.error`: RedisAI is not loaded.'
    return function


def _class(name):
    return type(name, (), {'__new__': _refuse, '__doc__': _refuse.__doc__, '__module__': __name__})


globals().update({name: _function(name) for name in _FUNCTIONS.split()})
globals().update({name: _class(name) for name in _CLASSES.split()})
