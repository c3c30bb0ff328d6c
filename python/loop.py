"""The event loop of coroutines: one thread, one loop for all sessions. Embedded into the module and imported as
`pinion_loop`. Contract: docs/contract/python-api.md chapter 6.

Each coroutine runs in a context of its own, which knows the session: tasks that it makes inherit that.
"""

import asyncio
import collections.abc
import contextvars
import copyreg
import inspect
import os
import selectors
from collections import deque

import pinion_children
import redisgears

# The session object (redisgears.PyExecutionSession) of the code that runs, for threads that have none otherwise.
session = contextvars.ContextVar('pinion_session', default=None)

_AWAIT_IN_BLOCK = 'await is not allow inside atomic block'


class GearsFuture(asyncio.Future):
    """A future of the server's loop; may be set from any thread by setFutureResults and setFutureException."""

    def __repr__(self):
        return f'<GearsFuture {self._state.lower()}>'


def _the_loop():
    return loop


def _make_loop(kind):
    if kind == 'uvloop':
        try:
            import uvloop
            return uvloop.new_event_loop()
        except ImportError:
            redisgears.log('AsyncLoop is uvloop, but uvloop is not installed: asyncio is used', level='warning')
    return asyncio.SelectorEventLoop(_Selector())


class _Selector(selectors.DefaultSelector):
    """Waits for the loop. What ran before was no step of a coroutine, which ends its own blocks: a callback, or the end of an
    object."""

    def select(self, timeout=None):
        if redisgears.leaveAtomic():
            redisgears.log('the event loop was inside an atomic block: the block was ended', level='warning')
        return super().select(timeout)


loop = None
_waiting = deque()
_draining = False
# What the loop's thread is doing: the session object of the coroutine that runs now.
_running = None
# Somebody has raised an exception in the loop's thread because of what runs there.
_interrupted = False
# The tasks that were begun and have not ended.
_tasks = set()
_beats = [0, 0]


def prepare(kind):
    """Makes the loop; `kind`: 'asyncio' or 'uvloop'."""
    global loop
    loop = _make_loop(kind)
    loop.set_task_factory(_make_task)
    # A function that mentions `loop` means that of the server which it runs on.
    copyreg.pickle(type(loop), lambda _: (_the_loop, ()))


def run():
    """The life of the loop's thread. Whatever escapes from a callback must not end it."""
    asyncio.set_event_loop(loop)
    while True:
        try:
            loop.run_forever()
        except BaseException as error:
            redisgears.log(f'the event loop goes on after {error!r}', level='warning')


def _end_if_forked():
    """A process that was forked in a coroutine ends when it comes out of that: nothing here is the server's loop, and whatever it asked of
    the server could wait for ever for a thread that it does not have."""
    if pinion_children.forked:
        os._exit(0)


class _Driven(collections.abc.Coroutine):
    """A coroutine between the loop and the user's: it knows which session runs, and that no atomic block is left open while
    a coroutine waits."""

    __slots__ = ('_coroutine', '__weakref__')

    def __init__(self, coroutine):
        self._coroutine = coroutine

    def __getattr__(self, name):
        # What asyncio shows of a task: cr_code, cr_frame, __qualname__.
        return getattr(self._coroutine, name)

    def send(self, value):
        return self._step(self._coroutine.send, value)

    def throw(self, *error):
        return self._step(self._coroutine.throw, *error)

    def close(self):
        self._coroutine.close()

    def __await__(self):
        return self._coroutine.__await__()

    def _step(self, resume, *value):
        global _running, _interrupted
        while True:
            _running = session.get()
            try:
                waited = resume(*value)
            except StopIteration:
                _end_if_forked()
                if redisgears.leaveAtomic():
                    redisgears.log('a coroutine ended inside an atomic block: the block was ended', level='warning')
                raise
            except BaseException:
                _end_if_forked()
                redisgears.leaveAtomic()
                raise
            finally:
                _end_if_forked()
                _running = None
                if _interrupted:
                    _interrupted = False
                    # It may have come too late, and must hit nobody else.
                    try:
                        redisgears.letOut()
                    except BaseException:
                        pass
            if not redisgears.leaveAtomic():
                return waited
            resume, value = self._coroutine.throw, (Exception(_AWAIT_IN_BLOCK),)


def _make_task(loop, coroutine, **options):
    driven = _Driven(coroutine) if inspect.iscoroutine(coroutine) else coroutine
    return asyncio.Task(driven, loop=loop, **options)


async def _complete(coroutine, continuation, hold):
    try:
        value = await coroutine
    except BaseException as error:
        _end_if_forked()
        continuation.failed(error)
    else:
        _end_if_forked()
        continuation.done(value)
    finally:
        if hold is not None:
            hold.release()


def start(coroutine, continuation, scope, hold=None, delay=0):
    """Runs a coroutine on the loop in session `scope`, from any thread; `continuation` is told the end."""
    global _draining
    _waiting.append((coroutine, continuation, scope, hold, delay))
    redisgears.watchLoop()
    # What many threads start at one time is begun at one time: waking the loop costs a system call.
    if not _draining:
        _draining = True
        loop.call_soon_threadsafe(_drain)


def _begin(context, coroutine):
    task = context.run(loop.create_task, coroutine)
    # The loop itself does not keep a task: one that waits for a stream, which only it refers to, would be collected.
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    # One with a delay begins when nobody watches any more.
    redisgears.watchLoop()


def _drain():
    global _draining
    _draining = False
    while _waiting:
        coroutine, continuation, scope, hold, delay = _waiting.popleft()
        context = contextvars.Context()
        context.run(session.set, scope)
        begin = (_begin, context, _complete(coroutine, continuation, hold))
        if delay > 0:
            loop.call_later(delay, *begin)
        else:
            begin[0](*begin[1:])


class _Bridge:
    """Tells a future of `gearsFuture` how a coroutine ended, if there is one."""

    def __init__(self, future):
        self.future = future

    def done(self, value):
        if self.future is not None:
            self.future.resolve(value, None)

    def failed(self, error):
        if self.future is not None:
            self.future.resolve(None, error)
        else:
            redisgears.log(f'a coroutine of runCoroutine failed: {error!r}', level='warning')


def runs_here():
    """True in a coroutine of the server's loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def runCoroutine(cr, f=None, delay=0, s=None):
    """Runs the coroutine `cr` after `delay` seconds (float) in session `s` (default: the caller's).

    `f`, a future of `gearsFuture`, gets its value or its exception. A client that waits for the execution of the caller
    waits for the coroutine too. Where `cr` is no coroutine nothing is raised (so it is in RedisGears 1.2): `f` gets a
    TypeError, without `f` the log says it.
    """
    if not asyncio.iscoroutine(cr):
        _Bridge(f).failed(TypeError(f'runCoroutine: a coroutine was expected, got {cr!r}'))
        return
    start(cr, _Bridge(f), redisgears.getGearsSession() if s is None else s, redisgears.holdClient(), delay)


def createFuture():
    """A future that a coroutine can await, to be set by setFutureResults or setFutureException."""
    return GearsFuture(loop=loop)


def setFutureResults(f, value):
    """Sets the value of a future from any thread. A second value is ignored."""
    loop.call_soon_threadsafe(_set, f, 'set_result', value)


def setFutureException(f, error):
    """The same with an exception; anything else is wrapped into one."""
    error = error if isinstance(error, Exception) else Exception(str(error))
    loop.call_soon_threadsafe(_set, f, 'set_exception', error)


def _set(future, method, value):
    try:
        if not future.done():
            getattr(future, method)(value)
    except Exception as error:
        redisgears.log(f'a future could not be set: {error!r}', level='warning')


class GearsSession:
    """`with GearsSession(s):` makes `s` the session of this thread, and none afterwards."""

    def __init__(self, s):
        self.s = s

    def __enter__(self):
        redisgears.setGearsSession(self.s)
        return self

    def __exit__(self, *args):
        redisgears.setGearsSession(None)


def is_alive():
    """True if a coroutine was begun that has not ended, or waits to be begun now."""
    return bool(_tasks or _waiting)


def blocked():
    """Called every second while coroutines are alive. The session object whose code holds the loop up, `True` if that is
    nobody's known, `None` if the loop is well; `False` if no coroutine is alive any more."""
    if not is_alive():
        return False
    late = _beats[0] != _beats[1]
    if not late:
        _beats[0] += 1
        loop.call_soon_threadsafe(_beat)
        return None
    return _running or True


def _beat():
    _beats[1] = _beats[0]
    # Who was stopped in the middle of `start` may have woken nobody.
    _drain()
