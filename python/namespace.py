# Fills `__main__`: what it holds is visible in every script without import. Contract: docs/contract/python-api.md 1.2.
# Runs once, in `__main__` itself, when the interpreter starts.

import asyncio
import copy
import cProfile
import dis
import importlib
import io
import itertools
import logging
import opcode
import operator
import pickle
import pstats
import struct
import sys
import traceback
import types
import weakref
from asyncio import Future
from functools import partial
from io import StringIO
from threading import Thread

import redisgears
import redisgears as rg
from pinion_builder import GearsBuilder
from pinion_loop import GearsFuture, GearsSession, createFuture, loop, runCoroutine, setFutureException, setFutureResults
from pinion_read_through import Loaded, Sorted, read_through
from pinion_write_behind import write_behind
from redisgears import PyFlatExecution, gearsConfigGet, gearsCtx, getGearsSession, isAsyncAllow, isInAtomicBlock, log
from redisgears import refresh, registerGearsThread, setGearsSession
from redisgears import registerTimeEvent as registerTE
from redisgears import atomicCtx as atomic
from redisgears import callNext as call_next
from redisgears import config_get as configGet
from redisgears import executeCommand as execute
from redisgears import flatError as flat_error
from redisgears import gearsFutureCtx as gearsFuture
from redisgears import getCommand as get_command
from redisgears import getMyHashTag as hashtag
from redisgears import overrideReply as override_reply

GB = GearsBuilder


def Log(*args, **kwargs):
    """Deprecated: use log."""
    log('Log is deprecated, use log instead', level='warning')
    return log(*args, **kwargs)


def ConfigGet(*args):
    """Deprecated: use configGet."""
    log('ConfigGet is deprecated, use configGet instead', level='warning')
    return configGet(*args)


def GearsConfigGet(*args, **kwargs):
    """Deprecated: use gearsConfigGet."""
    log('GearsConfigGet is deprecated, use gearsConfigGet instead', level='warning')
    return gearsConfigGet(*args, **kwargs)


def dumps(value):
    """`cloudpickle.dumps`: pickles functions and classes of scripts by value."""
    import cloudpickle
    return cloudpickle.dumps(value)


def dump(value, file):
    """`cloudpickle.dump`."""
    import cloudpickle
    return cloudpickle.dump(value, file)


def loads(image):
    """`pickle.loads`, for pickles of any cloudpickle."""
    import pinion_serial
    return pinion_serial.loads(image)


def load(file):
    """`pickle.load`, for pickles of any cloudpickle."""
    import pinion_serial
    return pinion_serial.Reader(file).load()
