"""What scripts and functions print goes to the server's log: the server's own output is nowhere, where it runs as a service.

Embedded into the module and imported as `pinion_output`.
"""

import io
import sys
import threading

import redisgears


class Log(io.TextIOBase):
    """A text stream whose lines become lines of the log, of whichever session prints them.

    `behind`: the process's own stream, for forked processes, and for whoever asks for a file descriptor. What is printed
    without an end of line waits for it, or for `flush`, for each thread apart.
    """

    encoding = 'utf-8'
    errors = 'backslashreplace'

    def __init__(self, behind, is_error):
        self._behind = behind
        self._is_error = is_error
        self._begun = threading.local()

    @property
    def buffer(self):
        return self._behind.buffer

    @property
    def name(self):
        return self._behind.name

    def fileno(self):
        return self._behind.fileno()

    def writable(self):
        return True

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError(f'write() argument must be str, not {type(text).__name__}')
        *lines, rest = (getattr(self._begun, 'text', '') + text).split('\n')
        self._begun.text = rest
        for line in lines:
            self._log(line, '\n')
        return len(text)

    def flush(self):
        rest, self._begun.text = getattr(self._begun, 'text', ''), ''
        if rest:
            self._log(rest, '')

    def __reduce__(self):
        """A function that holds the stream, in a handler of `logging`, means the one of wherever it is loaded."""
        return getattr, (sys, 'stderr' if self._is_error else 'stdout')

    def _log(self, line, end):
        if not redisgears.logPrinted(line, self._is_error):
            self._behind.write(line + end)
            self._behind.flush()


def install():
    """Puts the streams in the place of the interpreter's own ones, which may be absent."""
    for name, is_error in (('stdout', False), ('stderr', True)):
        if getattr(sys, name) is not None:
            setattr(sys, name, Log(getattr(sys, name), is_error))
