"""Child processes of functions. Embedded into the module and imported as `pinion_children`.

The server waits for any child while it saves (`waitpid(-1)`), and would take the exit status of those of functions. So these are
children of somebody else, who tells the status by a socket: programs (`subprocess`, `asyncio`, `multiprocessing`) are started by a
process of our own, see `nursery.py`; between the server and a process made by `os.fork` stands one that only waits. Both keep an
ended child as a zombie until its status was taken here: until then its id is nobody else's, and `pidfd_open` finds it.

No lock is held here: objects die anywhere in Python code, and may start a program then.

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
import types

import redisgears

NURSERY = ''  # the text of nursery.py
# As many descriptors as one message can carry.
_MAX_SENT = 250
# Of a child whose status nobody can tell any more; asyncio says the same.
_UNKNOWN = 255 << 8
# What the server handles: in a forked process it would only note that it is to shut down, or write its report of a crash into the log.
_SERVERS_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
_fork, _waitpid, _fork_exec = os.fork, os.waitpid, _posixsubprocess.fork_exec
# True in a process that was forked from the server.
forked = False
# Children that have not been waited for, by their ids.
_children = {}
# Where the server listens: ports, and the path of its socket.
_places = set()
_nursery = None


def listen_at(places):
    """Tells where the server listens."""
    global _places
    _places = set(places)


# --- waiting ---


class _Child:
    """The socket to the process that waits for a child. Whoever uses it keeps it open, also while another thread has finished."""

    def __init__(self, pid, teller):
        self.pid, self._teller = pid, teller

    def __del__(self):
        self._teller.close()

    def status(self, wait):
        """Its status, which stays to be told; None if it runs (only without `wait`)."""
        if not _readable(self._teller, wait):
            return None
        try:
            told = self._teller.recv(4, socket.MSG_PEEK)
        except ConnectionError:
            told = b''
        if len(told) == 4:
            return struct.unpack('i', told)[0]
        return self._unknown(wait)

    def _unknown(self, wait):
        """The process that waits for it was killed: when it has ended can be known, its status cannot."""
        try:
            process = os.pidfd_open(self.pid)
        except OSError:  # it has ended
            return _UNKNOWN
        try:
            return _UNKNOWN if _readable(process, wait) else None
        finally:
            os.close(process)

    def bury(self):
        """Its status was taken."""
        try:
            self._teller.sendall(b'.')
        except OSError:
            pass  # nobody waits for it any more


def _readable(fd, wait):
    look = select.poll()
    look.register(fd, select.POLLIN)
    return bool(look.poll(None if wait else 0))


def waitpid(pid, options, /):
    """`os.waitpid`, also for children that are somebody else's."""
    child = _children.get(pid)
    if child is None:
        return _waitpid(pid, options)
    status = child.status(not options & os.WNOHANG)
    if status is None:
        return 0, 0
    if _children.pop(pid, None) is None:  # another thread was faster
        raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
    child.bury()
    return pid, status


def system(command):
    """`os.system`, which waits in C."""
    process = subprocess.Popen(command, shell=True)
    process.returncode = waitpid(process.pid, 0)[1]
    return process.returncode


def fork():
    """`os.fork`; the new process is the child of one that waits for it."""
    if forked:
        return _fork()
    told, tell = socket.socketpair()
    between = _fork()
    if between:
        tell.close()
        _bury(between)
        pid = _receive(told, 4, 'the process could not be forked')
        [pid] = struct.unpack('i', pid)
        _children[pid] = _Child(pid, told)
        return pid
    try:
        pid = _fork()
    except OSError:
        os._exit(1)
    if pid == 0:
        told.close()
        tell.close()
        return 0
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        # Whoever reads from a pipe of the new process must see its end, and so must this one when nobody wants the status.
        for fd in _descriptors():
            if fd != tell.fileno():
                _close(fd)
        tell.sendall(struct.pack('i', pid))
        tell.sendall(struct.pack('i', _peek(pid, 0)))
        tell.recv(1)
    finally:
        os._exit(0)


def _peek(pid, options):
    """What waitpid would say; the child stays. None if it has not ended (only with WNOHANG)."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | options)
    if ended is None:
        return None
    if ended.si_code == os.CLD_EXITED:
        return ended.si_status << 8
    return ended.si_status | (0x80 if ended.si_code == os.CLD_DUMPED else 0)


# Processes that end by themselves, which are the server's children.
_own = []


def _bury(pid):
    _own.append(pid)
    for ended in list(_own):
        try:
            if not _waitpid(ended, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            pass  # the server was faster
        if ended in _own:
            _own.remove(ended)


# --- starting programs ---


def fork_exec(*arguments):
    """`_posixsubprocess.fork_exec`, by the nursery."""
    (args, programs, close_fds, keep, cwd, env, stdin, _, _, stdout, _, stderr, _, report, restore, session, *rest) = arguments
    places, sent = {}, [report]
    given = [*((place, fd) for place, fd in enumerate((stdin, stdout, stderr)) if fd >= 0), *((fd, fd) for fd in keep if fd != report)]
    for place, fd in given:
        places[place] = len(sent)
        sent.append(fd)
    # A function that is to run in the child can run in a copy of this process only.
    if forked or len(sent) > _MAX_SENT or any(callable(argument) for argument in rest):
        return _fork_exec(*arguments)
    if sys.version_info >= (3, 11):
        group, gid, groups, uid, umask = rest[:5]
    else:
        group, (gid, groups, uid, umask) = -1, rest[:4]
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
    connection = _call_nursery()
    if connection is None:
        return _fork_exec(*arguments)
    try:
        text = pickle.dumps(order)
        socket.send_fds(connection, [struct.pack('I', len(text))], sent)
        connection.sendall(text)
        [pid] = struct.unpack('i', _receive(connection, 4, 'the process that starts others has ended'))
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
    except BaseException:
        connection.close()
        raise
    _children[pid] = _Child(pid, connection)
    return pid


def _call_nursery():
    """A connection to it, for one program; None if it cannot be had."""
    global _nursery
    for _ in range(3):
        called = _nursery
        if called is None:
            try:
                called = _make_nursery()
            except OSError as error:
                reason = error
                break
            if _nursery is None:  # another thread may have made one: this one ends by itself
                _nursery = called
        ours, theirs = socket.socketpair()
        try:
            # One message is sent as a whole: no lock is needed.
            socket.send_fds(called, [b'.'], [theirs.fileno()])
            theirs.close()
            _receive(ours, 1, 'the process that starts others has ended')
            return ours
        except ConnectionError as error:
            reason = error
            ours.close()
            if _nursery is called:
                _nursery = None
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
    redisgears.log(f'programs are started by the server itself, their exit codes may be lost: {reason}', level='warning')
    return None


def _receive(connection, length, otherwise):
    data = b''
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise ConnectionError(otherwise)
        data += more
    return data


def _make_nursery():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            # It closes whatever else it was given.
            command = [sys.executable or '', '-I', '-S', '-c', NURSERY, '3']
            place = (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)
            _bury(os.posix_spawn(command[0], command, os.environ, file_actions=[place], setsigmask=[]))
        except BaseException:
            ours.close()
            raise
    return ours


# --- in the child ---


def _after_fork():
    global forked, _nursery
    forked = True
    redisgears.becomeChild()
    for number in _SERVERS_SIGNALS:
        if signal.getsignal(number) is None:  # not Python's
            signal.signal(number, signal.SIG_DFL)
    _children.clear()
    _own.clear()
    _nursery = None
    for fd in _descriptors():
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode) and _is_servers(fd):
                os.close(fd)
        except OSError:
            pass


def _descriptors():
    try:
        return [int(name) for name in os.listdir('/proc/self/fd')]
    except OSError:
        return []


def _close(fd):
    try:
        os.close(fd)
    except OSError:
        pass  # it was that of the folder of descriptors


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
    os.fork, os.waitpid, os.system, _posixsubprocess.fork_exec = fork, waitpid, system, fork_exec
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
