"""Objects that functions use and scripts make: those of the usual libraries travel, and of the others the error names the variable.

Contract: docs/contract/python-api.md chapter 7; docs/functions.md.
"""

from __future__ import annotations

import ast
from typing import Callable

import pytest

from helpers import Server
from probes import script_error

# Each defines `check`, which gives the same wherever and however often it is loaded.
CASES = {
    'lru': """
from functools import lru_cache
@lru_cache(maxsize=7)
def fib(n): return n if n<2 else fib(n-1)+fib(n-2)
def check(): return fib(30), fib.cache_parameters()['maxsize']
""",
    'cache method': """
import functools
class C:
    @functools.cache
    def m(self, x): return x*2
    @functools.cached_property
    def p(self): return 5
c=C()
def check(): return c.m(2), c.p, C().m(4)
""",
    'single': """
import functools
@functools.singledispatch
def show(x): return 'o'
@show.register
def _(x: int): return 'i'+show('a')
@show.register(list)
def _l(x): return 'l'
def check(): return show(1), show([]), show('')
""",
    'singlemethod': """
import functools
class C:
    @functools.singledispatchmethod
    def show(self, x): return 'o'
    @show.register
    def _(self, x: int): return 'i'
def check(): return C().show(1), C().show('')
""",
    'locks': """
import threading, queue
l=threading.Lock(); r=threading.RLock(); e=threading.Event(); s=threading.Semaphore(2); c=threading.Condition(); q=queue.Queue(3); t=threading.local(); b=threading.Barrier(1); tm=threading.BoundedSemaphore(1)
def check():
    with l, r, c: pass
    e.set(); s.acquire(); q.put(1); t.x=1; b.wait()
    s.release(); r1=q.get(); return e.is_set(), r1, t.x
""",
    'ctxvar': """
import contextvars
v=contextvars.ContextVar('v', default=4); w=contextvars.ContextVar('w')
def check(): return v.get(), w.get(3)
""",
    'logger': """
import logging
log_=logging.getLogger('a.b'); ad=logging.LoggerAdapter(log_, {}); h=logging.StreamHandler(); h.setFormatter(logging.Formatter('%(message)s'))
def check():
    log_.info('x'); ad.info('y'); return log_.name, type(h).__name__
""",
    'regex': """
import re
p=re.compile('a+')
def check(): return p.match('aab').group()
""",
    'enum': """
import enum
class F(enum.Flag):
    A=1
    B=2
class S(str, enum.Enum):
    X='x'
def check(): return (F.A|F.B).value, S('x') is S.X
""",
    'slots dc': """
from dataclasses import dataclass
@dataclass(slots=True, frozen=True)
class D:
    a:int
    b:'D'=None
def check(): return repr(D(1,D(2)))
""",
    'abc': """
import abc
class B(abc.ABC):
    @abc.abstractmethod
    def f(self): ...
class C(B):
    def f(self): return super().__class__.__name__
def check(): return C().f()
""",
    'protocol': """
import typing
@typing.runtime_checkable
class P(typing.Protocol):
    def f(self)->int: ...
class C:
    def f(self): return 1
T=typing.TypeVar('T')
class G(typing.Generic[T]):
    pass
def check(): return isinstance(C(), P), str(G[int])[-6:]
""",
    'partial': """
import functools, operator
f=functools.partial(lambda a,b:a+b, 1); g=operator.itemgetter(0); h=functools.partialmethod
def check(): return f(2), g([5])
""",
    'collections': """
import collections, itertools, datetime, decimal, uuid, pathlib, random
d=collections.defaultdict(list); c=collections.Counter('aa'); k=itertools.count(3); z=datetime.timezone.utc; p=pathlib.Path('/x'); r=random.Random(3)
def check(): return d['x'], c['a'], next(k)>=3, str(z), str(p), 0<r.random()<1
""",
    'weakset': """
import weakref
class C: pass
keep=C()
w=weakref.WeakSet([keep])
def check(): return len(w)>=0
""",
    'excp': """
class E(Exception):
    def __init__(self, a): super().__init__(a); self.a=a
e=E(1)
def check(): return e.a, str(e)
""",
    'sys': """
import sys
out=sys.stdout; err=sys.stderr; m=sys.modules
def check(): return out is not None
""",
    'descr': """
class D:
    def __set_name__(self, o, n): self.n=n
    def __get__(self, i, o=None): return self.n
class C:
    x=D()
    @property
    def y(self): return self.x
    __slots__=('z',)
def check(): return C().y
""",
    'meta': """
class M(type):
    def __new__(m,n,b,d): d['k']=n; return super().__new__(m,n,b,d)
class C(metaclass=M):
    pass
class I:
    subs=[]
    def __init_subclass__(cls): I.subs.append(cls)
class J(I): pass
def check(): return C.k, [s.__name__ for s in I.subs]
""",
}
# What cannot travel, and the variable that the error must name.
REFUSED = {
    'generator': ("""
g=(i for i in range(3))
def check(): return next(g)
""", 'g'),
    'sqlite': ("""
import sqlite3
conn=sqlite3.connect(':memory:')
def check(): return conn.execute('select 1')
""", 'conn'),
    'file': ("""
f=open('/dev/null','w')
def check(): f.write('x')
""", 'f'),
    'weakref': ("""
import weakref
class C: pass
c=C(); wr=weakref.ref(c)
def check(): return wr()
""", 'wr'),
    'socket': ("""
import socket
s=socket.socket()
def check(): return s.fileno()
""", 's'),
    'pool': ("""
from concurrent.futures import ThreadPoolExecutor
pool=ThreadPoolExecutor(1)
def check(): return pool.submit(len,'')
""", 'pool'),
    'nested': ("""
import sqlite3
class Repo:
    def __init__(self): self.db=sqlite3.connect(':memory:')
repo=Repo()
def helper(): return repo.db
def check(): return helper()
""", 'repo'),
    'closure': ("""
def make():
    conn=open('/dev/null','w')
    return lambda: conn.write('')
check=make()
""", 'conn'),
    'dict': ("""
import socket
d={'a':[socket.socket()]}
def check(): return d
""", 'd'),
    'frame': ("""
import sys
fr=sys._getframe()
def check(): return fr
""", 'fr'),
    'sem': ("""
import multiprocessing
sem=multiprocessing.get_context('fork').Lock()
def check(): return sem
""", 'sem'),
    'a class that raises': ("""
class Odd:
    @property
    def __class__(self): raise ValueError('no class')
odd=Odd()
def check(): return odd
""", 'odd'),
}
REGISTER = "\nGB('CommandReader').map(lambda _: repr(check())).register(trigger='check', mode='sync')"


@pytest.mark.parametrize("case", CASES)
def test_they_work_where_they_are_loaded(start_server: Callable[..., Server], case: str) -> None:
    server = start_server()
    server.run(CASES[case] + "\nexecute('SET', 'here', repr(check()))")
    expected = [server.client().get("here")]
    server.run(CASES[case] + REGISTER)
    assert server.client().execute_command("RG.TRIGGER", "check") == expected
    for _ in range(2):
        server.client().execute_command("DEBUG", "RELOAD")
        assert [entry["RegistrationData"]["lastError"] for entry in server.registrations()] == [None]
        assert server.client().execute_command("RG.TRIGGER", "check") == expected


@pytest.mark.parametrize("case", REFUSED)
def test_the_error_names_the_variable(server: Server, case: str) -> None:
    source, name = REFUSED[case]
    error = script_error(server, source + REGISTER)
    last = error.rsplit("PicklingError: ", 1)[-1].replace("\\", "")
    assert f"'{name}'" in last and "Make it" in last, last
    assert server.registrations() == []
    assert isinstance(ast.literal_eval(error), list)
