"""A process that starts programs for the server's functions and waits for them. Run by `children.py`, with the number of its
socket as the only argument. It ends when the server has ended and with it the last program.

Each message on that socket brings a connection. On it: `+` when it was taken, the order, the id of the process or the negative
number of an error, at the end its status. The ended process stays a zombie until the other side has taken that.
"""

import errno
import fcntl
import os
import pickle
import select
import signal
import socket
import struct
import sys

_SIGNALS = ('SIGPIPE', 'SIGXFZ', 'SIGXFSZ')
connection = socket.socket(fileno=int(sys.argv[1]))
# Whatever else the server has open is none of ours.
for name in os.listdir('/proc/self/fd'):
    if int(name) > 2 and int(name) != connection.fileno():
        try:
            os.close(int(name))
        except OSError:
            pass  # it was that of the folder
connection.set_inheritable(False)
wake, waken = os.pipe()
for fd in (wake, waken):
    os.set_blocking(fd, False)
# By the ids of programs that have not been waited for: who asked, and whether they were told the status.
callers, told = {}, set()
by_descriptor = {}
# The server may have thousands of descriptors open: select() takes no such numbers.
look = select.poll()


def receive(caller, length):
    data = b''
    while len(data) < length:
        more = caller.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def start(order, report, fds):
    """The process id of the program, or the negative number of an error. `fds`: what was sent, by its place, without `report`."""
    try:
        pid = os.fork()
    except OSError as error:
        return -error.errno
    if pid:
        return pid
    stage = 'noexec'
    try:
        places = {place: fds[number - 1] for place, number in order['places'].items()}
        # Out of the way of all places first.
        top = max([2, *places]) + 1
        report = high(report, top)
        places = {place: high(fd, top) for place, fd in places.items()}
        for place, fd in places.items():
            os.dup2(fd, place, inheritable=True)
        os.chdir(order['cwd'])
        if order['umask'] >= 0:
            os.umask(order['umask'])
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, order['mask'])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None:
                signal.signal(number, signal.SIG_DFL if order['restore'] else signal.SIG_IGN)
        if order['session']:
            os.setsid()
        if order['group'] is not None and order['group'] >= 0:
            os.setpgid(0, order['group'])
        if order['groups'] is not None:
            os.setgroups(order['groups'])
        if order['gid'] is not None:
            os.setregid(order['gid'], order['gid'])
        if order['uid'] is not None:
            os.setreuid(order['uid'], order['uid'])
        stage = ''
        env = dict(entry.split(b'=', 1) for entry in order['env'])
        failed = None
        for program in order['programs']:
            try:
                os.execve(program, order['args'], env)
            except OSError as error:
                if failed is None or error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    failed = error
        raise failed
    except OSError as error:
        os.write(report, f'OSError:{error.errno:x}:{stage}'.encode())
    except BaseException as error:
        os.write(report, f'SubprocessError:0:{error!r}'.encode())
    os._exit(255)


def high(fd, top):
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, top)


def serve(caller):
    """Starts what a new caller orders."""
    fds, pid = [], 0
    try:
        caller.sendall(b'+')
        head, fds, _, _ = socket.recv_fds(caller, 4, 253)
        for fd in fds:
            os.set_inheritable(fd, False)
        head += receive(caller, 4 - len(head))
        order = pickle.loads(receive(caller, *struct.unpack('I', head)))
        pid = start(order, *fds[:1], fds[1:])
        caller.sendall(struct.pack('i', pid))
    except (EOFError, OSError, struct.error):
        pass  # nobody is there any more; a program that runs is waited for
    finally:
        for fd in fds:
            os.close(fd)
    if pid > 0:
        callers[pid] = caller
        by_descriptor[caller.fileno()] = pid
        look.register(caller, select.POLLIN)
    else:
        caller.close()


def tell():
    """Tells the status of those that have ended."""
    for pid, caller in list(callers.items()):
        if pid in told:
            continue
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is None:
            continue
        status = ended.si_status
        if ended.si_code == os.CLD_EXITED:
            status <<= 8
        elif ended.si_code == os.CLD_DUMPED:
            status |= 0x80
        told.add(pid)
        if caller is None:
            bury(pid)
            continue
        try:
            caller.sendall(struct.pack('i', status))
        except OSError:
            pass  # nobody wants to know: the end of the connection comes next


def answered(fd):
    """The other side has taken the status, or has gone."""
    pid = by_descriptor.pop(fd)
    look.unregister(fd)
    callers[pid].close()
    callers[pid] = None
    if pid in told:
        bury(pid)


def bury(pid):
    os.waitpid(pid, 0)
    del callers[pid]
    told.discard(pid)


signal.pthread_sigmask(signal.SIG_SETMASK, [])
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.set_wakeup_fd(waken, warn_on_full_buffer=False)
listening = True
for fd in (connection.fileno(), wake):
    look.register(fd, select.POLLIN)
while callers or listening:
    ready = {fd for fd, _ in look.poll()}
    if wake in ready:
        try:
            os.read(wake, 1000)
        except BlockingIOError:
            pass
        tell()
    for fd in ready & by_descriptor.keys():
        answered(fd)
    if connection.fileno() in ready:
        try:
            message, fds, _, _ = socket.recv_fds(connection, 1, 1)
        except OSError:
            message, fds = b'', []
        if not message:
            listening = False
            look.unregister(connection)
        for fd in fds:
            os.set_inheritable(fd, False)
            serve(socket.socket(fileno=fd))
