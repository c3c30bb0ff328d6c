"""A process that starts programs for the server's functions and waits for them. Run by `children.py`, with the number of its
socket as the only argument. It ends when the server has ended and with it the last program.
"""

import errno
import os
import pickle
import select
import signal
import socket
import struct
import sys

_SIGNALS = ('SIGPIPE', 'SIGXFZ', 'SIGXFSZ')
connection = socket.socket(fileno=int(sys.argv[1]))
connection.set_inheritable(False)
wake, waken = os.pipe()
for fd in (wake, waken):
    os.set_blocking(fd, False)
pipes = {}


def receive(length):
    data = b''
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def start(order, report, fds):
    """The process id of the program, or the negative number of an error. `fds`: what was sent, by its place."""
    try:
        pid = os.fork()
    except OSError as error:
        return -error.errno
    if pid:
        return pid
    stage = 'noexec'
    try:
        places = {place: fds[number - 2] for place, number in order['places'].items()}
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
    import fcntl
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, top)


def bury():
    """Tells the status of those that have ended."""
    while pipes:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        pipe = pipes.pop(pid, None)
        if pipe is not None:
            try:
                os.write(pipe, struct.pack('i', status))
            except OSError:
                pass  # nobody wants to know
            os.close(pipe)


signal.pthread_sigmask(signal.SIG_SETMASK, [])
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.set_wakeup_fd(waken, warn_on_full_buffer=False)
# The server may have thousands of descriptors open: select() takes no such numbers.
look = select.poll()
listening = True
for fd in (connection.fileno(), wake):
    look.register(fd, select.POLLIN)
while pipes or listening:
    ready = {fd for fd, _ in look.poll()}
    if wake in ready:
        try:
            os.read(wake, 1000)
        except BlockingIOError:
            pass
    bury()
    if connection.fileno() not in ready:
        continue
    try:
        head, fds, _, _ = socket.recv_fds(connection, 4, 250)
        for fd in fds:
            os.set_inheritable(fd, False)
        if not head:
            raise EOFError
        head += receive(4 - len(head))
        order = pickle.loads(receive(*struct.unpack('I', head)))
    except (EOFError, OSError):
        listening = False
        look.unregister(connection)
        continue
    report, tell, *others = fds
    pid = start(order, report, others)
    if pid > 0:
        pipes[pid] = tell
    for fd in (report, *others, *([] if pid > 0 else [tell])):
        os.close(fd)
    try:
        connection.sendall(struct.pack('i', pid))
    except OSError:
        pass  # the next look tells that nobody is there any more
