"""Child processes of functions. Embedded into the module and imported as `pinion_children`.

The server waits for any child while it saves (`waitpid(-1)`), and would take the exit status of those of functions. So these are
children of somebody else, who tells the status by a pipe: programs (`subprocess`, `asyncio`, `multiprocessing`) are started by a
process of our own, see `nursery.py`; between the server and a process made by `os.fork` stands one that only waits.

A forked process has a copy of everything, the server's sockets too: it closes them, or clients of a server that has ended would
not see it. Forked processes start safely from `forkserver` only, so that is the default of `multiprocessing`.
"""

import _posixsubprocess
import errno
import multiprocessing
import os
import pickle
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import types

import redisgears

NURSERY = ''  # the text of nursery.py
_fork, _waitpid, _fork_exec = os.fork, os.waitpid, _posixsubprocess.fork_exec
# True in a process that was forked from the server.
forked = False
# The pipes that tell the status of children, by their ids.
_pipes = {}
# Where the server listens: ports, and the path of its socket.
_places = set()
_lock = threading.Lock()
_nursery = None


def listen_at(places):
    """Tells where the server listens."""
    global _places
    _places = set(places)


# --- waiting ---


def waitpid(pid, options, /):
    """`os.waitpid`, also for children that are somebody else's."""
    pipe = _pipes.get(pid)
    if pipe is None:
        return _waitpid(pid, options)
    try:
        if options & os.WNOHANG:
            look = select.poll()
            look.register(pipe, select.POLLIN)
            if not look.poll(0):
                return 0, 0
        told = os.read(pipe, 4)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        told = b''  # another thread was faster
    if _pipes.pop(pid, None) is not None:
        os.close(pipe)
    if len(told) != 4:
        raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
    return pid, *struct.unpack('i', told)


def fork():
    """`os.fork`; the new process is the child of one that waits for it."""
    if forked:
        return _fork()
    told, tell = os.pipe()
    between = _fork()
    if between:
        os.close(tell)
        pid = os.read(told, 4)
        if len(pid) != 4:
            os.close(told)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        [pid] = struct.unpack('i', pid)
        _pipes[pid] = told
        _bury(between)
        return pid
    try:
        pid = _fork()
    except OSError:
        os._exit(1)
    if pid == 0:
        os.close(told)
        os.close(tell)
        return 0
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    # Whoever reads from a pipe of the new process must see its end.
    os.closerange(0, tell)
    os.closerange(tell + 1, os.sysconf('SC_OPEN_MAX'))
    os.write(tell, struct.pack('i', pid))
    os.write(tell, struct.pack('i', _waitpid(pid, 0)[1]))
    os._exit(0)


# Processes between the server and forked ones, which end with these.
_between = []


def _bury(pid):
    _between.append(pid)
    for ended in list(_between):
        try:
            if _waitpid(ended, os.WNOHANG)[0]:
                _between.remove(ended)
        except ChildProcessError:
            _between.remove(ended)  # the server was faster


# --- starting programs ---


def fork_exec(*arguments):
    """`_posixsubprocess.fork_exec`, by the nursery."""
    (args, programs, close_fds, keep, cwd, env, stdin, _, _, stdout, _, stderr, _, report, restore, session, *rest) = arguments
    # A function that is to run in the child can run in a copy of this process only.
    if forked or any(callable(argument) for argument in rest):
        return _fork_exec(*arguments)
    if sys.version_info >= (3, 11):
        group, gid, groups, uid, umask = rest[:5]
    else:
        group, (gid, groups, uid, umask) = -1, rest[:4]
    told, tell = os.pipe()
    sent = [report, tell]
    places = {}
    for place, fd in ((0, stdin), (1, stdout), (2, stderr)):
        if fd >= 0:
            places[place] = len(sent)
            sent.append(fd)
    for fd in keep:
        if fd != report:
            places[fd] = len(sent)
            sent.append(fd)
    order = {
        'args': [os.fsencode(argument) for argument in args],
        'programs': list(programs),
        'cwd': os.fsencode(cwd if cwd is not None else os.getcwd()),
        'env': list(env) if env is not None else [key + b'=' + value for key, value in os.environb.items()],
        'places': places,
        'restore': bool(restore),
        'session': bool(session),
        'group': group,
        'gid': gid,
        'groups': groups,
        'uid': uid,
        'umask': umask,
        'mask': [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    }
    try:
        pid = _order(pickle.dumps(order), sent)
    except BaseException:
        os.close(told)
        raise
    finally:
        os.close(tell)
    _pipes[pid] = told
    return pid


def _order(text, fds):
    """Has the nursery start a program; its process id."""
    global _nursery
    with _lock:
        for attempt in (1, 2):
            if _nursery is None:
                _nursery = _make_nursery()
            try:
                socket.send_fds(_nursery, [struct.pack('I', len(text))], fds)
                _nursery.sendall(text)
                [pid] = struct.unpack('i', _receive(_nursery, 4))
                break
            except BaseException as error:
                # Nobody knows what it was told: it ends with its last child.
                _nursery.close()
                _nursery = None
                if attempt == 2 or not isinstance(error, (BrokenPipeError, ConnectionError, EOFError)):
                    raise
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid


def _receive(connection, length):
    data = b''
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError('the process that starts others has ended')
        data += more
    return data


def _make_nursery():
    ours, theirs = socket.socketpair()
    command = [sys.executable, '-I', '-S', '-c', NURSERY, str(theirs.fileno())]
    report, tell = os.pipe()
    keep = tuple(sorted((theirs.fileno(), tell)))
    rest = [False, False, *([-1] if sys.version_info >= (3, 11) else []), None, None, None, -1, None]
    rest += [True] if sys.version_info >= (3, 11) else []
    try:
        _fork_exec(
            [os.fsencode(word) for word in command], (os.fsencode(sys.executable),), True, keep, None, None,
            -1, -1, -1, -1, -1, -1, report, tell, *rest,
        )
        os.close(tell)
        tell = None
        if os.read(report, 1000):
            raise OSError(errno.ENOENT, f'{sys.executable} does not run')
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(report)
        if tell is not None:
            os.close(tell)
    return ours


# --- in the child ---


def _after_fork():
    global forked, _nursery
    forked = True
    redisgears.becomeChild()
    _pipes.clear()
    _between.clear()
    _nursery = None
    try:
        numbers = [int(name) for name in os.listdir('/proc/self/fd')]
    except OSError:
        return
    for fd in numbers:
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode) and _is_servers(fd):
                os.close(fd)
        except OSError:
            pass


def _is_servers(fd):
    look = socket.socket(fileno=fd)
    try:
        name = look.getsockname()
    finally:
        look.detach()
    return (name[1] if isinstance(name, tuple) and len(name) > 1 else name) in _places


# --- multiprocessing ---


def _reducer_override(_, obj):
    """Functions and classes of scripts travel to other processes by value."""
    if isinstance(obj, (types.FunctionType, type)) and getattr(obj, '__module__', None) == 'not_main':
        import cloudpickle
        return pickle.loads, (cloudpickle.dumps(obj),)
    return NotImplemented


def install(nursery):
    """Takes the places of Python's own functions; `nursery`: the text of nursery.py."""
    global NURSERY
    NURSERY = nursery
    os.fork, os.waitpid, _posixsubprocess.fork_exec = fork, waitpid, fork_exec
    subprocess._USE_POSIX_SPAWN = False
    if hasattr(subprocess, '_fork_exec'):
        subprocess._fork_exec = fork_exec
    if hasattr(subprocess, '_del_safe'):
        subprocess._del_safe.waitpid = waitpid
    poll = subprocess.Popen._internal_poll
    poll.__defaults__ = tuple(waitpid if value is _waitpid else value for value in poll.__defaults__)
    os.register_at_fork(after_in_child=_after_fork)
    contexts = multiprocessing.context
    contexts._default_context._default_context = contexts._concrete_contexts['forkserver']
    multiprocessing.reduction.ForkingPickler.reducer_override = _reducer_override
