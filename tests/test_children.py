"""Processes that functions start: their exit codes are true while the server saves, and they do not keep the server's sockets.

Spec: docs/functions.md, "Other processes".
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any, Callable

import pytest

from helpers import HOST, Server, wait_until
from probes import in_script, in_step

# As long as this runs, the server takes the exit status of every child it has.
SAVING = ["--rdb-key-save-delay", "20000"]


@pytest.fixture
def saving(start_server: Callable[..., Server]) -> Server:
    """A server in the middle of BGSAVE, until the test ends."""
    server = start_server(args=SAVING if "6.2" not in str(start_server) else [])
    for number in range(2000):
        server.client().set(f"key:{number}", number)
    server.client().bgsave()
    assert server.client().info("persistence")["rdb_bgsave_in_progress"] == 1
    return server


def still_saving(server: Server) -> bool:
    return server.client().info("persistence")["rdb_bgsave_in_progress"] == 1


WAIT = "import time; time.sleep(0.5)  # several rounds of the server's cron, which is what takes the status\n"
CODES = {
    "poll": WAIT.join(["import subprocess\np = subprocess.Popen(['sh', '-c', 'exit 3'])\n", "return p.poll(), p.wait()"]),
    "run": "import subprocess\nreturn [subprocess.run(['sh', '-c', f'sleep 0.{n}; exit {n}']).returncode for n in range(4)]",
    "killed": "import subprocess\np = subprocess.Popen(['sleep', '100'])\np.terminate()\n" + WAIT + "return p.wait(), p.poll()",
    "waitpid": "import os, subprocess\np = subprocess.Popen(['false'])\n" + WAIT + "return os.waitstatus_to_exitcode(os.waitpid(p.pid, 0)[1])",
    "os.fork": "import os\npid = os.fork()\nif pid == 0: os._exit(7)\n" + WAIT + "return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])",
    "asyncio": """
import asyncio
async def go():
    p = await asyncio.create_subprocess_exec('sh', '-c', 'echo said; exit 5', stdout=asyncio.subprocess.PIPE)
    out, _ = await p.communicate()
    return p.returncode, out
return asyncio.new_event_loop().run_until_complete(go())""",
    "system": "import os\nreturn os.popen('exit 4').close()",
    "fork context": "import multiprocessing, os\np = multiprocessing.get_context('fork').Process(target=os._exit, args=(6,))\np.start()\n"
    + WAIT + "alive = p.is_alive()\np.join()\nreturn alive, p.exitcode",
    "spawn context": "import multiprocessing, os\np = multiprocessing.get_context('spawn').Process(target=os._exit, args=(6,))\np.start()\n"
    "p.join(20)\nreturn p.is_alive(), p.exitcode",
    "default context": "import multiprocessing, os\np = multiprocessing.Process(target=os._exit, args=(6,))\np.start()\np.join(20)\n"
    "return multiprocessing.get_start_method(), p.is_alive(), p.exitcode",
}
EXPECTED: dict[str, Any] = {
    "poll": (3, 3),
    "run": [0, 1, 2, 3],
    "killed": (-15, -15),
    "waitpid": 1,
    "os.fork": 7,
    "asyncio": (5, b"said\n"),
    "system": 4 * 256,
    "fork context": (False, 6),
    "spawn context": (False, 6),
    "default context": ("forkserver", False, 6),
}


@pytest.mark.matrix
@pytest.mark.parametrize("case", CODES)
def test_exit_codes_are_true_while_the_server_saves(saving: Server, case: str) -> None:
    assert in_step(saving, CODES[case]) == EXPECTED[case]
    assert still_saving(saving), "the server was not saving any more: nothing was tested"


def test_everything_else_of_a_program_is_as_usual(server: Server, tmp_path: Any) -> None:
    body = f"""
    import os, signal, subprocess, sys
    say = lambda *words, **options: subprocess.run(words, capture_output=True, text=True, **options).stdout.strip()
    missing = []
    for options in (dict(args=['/nowhere/program']), dict(args=['true'], cwd='/nowhere'), dict(args=['/etc/passwd'])):
        try:
            subprocess.Popen(**options)
        except OSError as error:
            missing.append((type(error).__name__, error.filename))
    r, w = os.pipe()
    passed = subprocess.run(['sh', '-c', f'echo through >/proc/self/fd/{{w}}'], pass_fds=[w]).returncode, os.read(r, 20)
    p = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    piped = p.communicate(b'in and out' * 10000)[0]
    try:
        subprocess.run(['sleep', '10'], timeout=0.1)
        late = None
    except subprocess.TimeoutExpired:
        late = 'late'
    session = subprocess.Popen(['sleep', '10'], start_new_session=True)
    os.killpg(session.pid, signal.SIGKILL)
    both = subprocess.run('echo a; echo b >&2', shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    prepared = subprocess.run(['true'], preexec_fn=lambda: None).returncode
    try:
        subprocess.check_call(['false'])
    except subprocess.CalledProcessError as error:
        failed = error.returncode
    return [
        say('pwd') == os.getcwd(), say('pwd', cwd='/'), say('printenv', 'A', env={{'A': 'b', 'PATH': os.environ['PATH']}}),
        missing, passed, len(piped), late, session.wait(), both, prepared, failed,
        say('sh', '-c', 'umask', umask=0o077) if sys.version_info >= (3, 9) else '0077',
        len(os.listdir('/proc/self/fd')) < 100,
    ]
    """
    missing = [("FileNotFoundError", "/nowhere/program"), ("FileNotFoundError", "/nowhere"), ("PermissionError", "/etc/passwd")]
    expected = [True, "/", "b", missing, (0, b"through\n"), 100000, "late", -9, b"a\nb\n", 0, 1, "0077", True]
    for where in (in_step, in_script):
        assert where(server, body) == expected


def test_many_at_once(server: Server) -> None:
    body = """
    import subprocess
    from concurrent.futures import ThreadPoolExecutor
    run = lambda n: subprocess.run(['sh', '-c', f'echo {n}; exit {n % 7}'], stdout=subprocess.PIPE)
    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(run, range(60)))
    return all(p.returncode == n % 7 and p.stdout == b'%d\\n' % n for n, p in enumerate(ended))
    """
    assert in_step(server, body)


def test_the_process_that_starts_others_may_be_killed(server: Server) -> None:
    body = """
    import os, signal, subprocess
    parent = int(subprocess.run(['sh', '-c', 'echo $PPID'], stdout=subprocess.PIPE).stdout)
    os.kill(parent, signal.SIGKILL)
    return parent != os.getpid(), [subprocess.run(['sh', '-c', 'exit 2']).returncode for _ in range(3)]
    """
    assert in_step(server, body) == (True, [2, 2, 2])


CHILDREN = {
    "fork context": "import multiprocessing, time\np = multiprocessing.get_context('fork').Process(target=time.sleep, args=(30,))\np.start()\nreturn p.pid",
    "os.fork": "import os, time\npid = os.fork()\nif pid == 0:\n    time.sleep(30)\n    os._exit(0)\nreturn pid",
    "Popen": "import subprocess\nreturn subprocess.Popen(['sleep', '30'], close_fds=False).pid",
    "Popen with a function": "import subprocess\nreturn subprocess.Popen(['sleep', '30'], close_fds=False, preexec_fn=lambda: None).pid",
    "default context": "import multiprocessing, time\np = multiprocessing.Process(target=time.sleep, args=(30,))\np.start()\nreturn p.pid",
}


@pytest.mark.matrix
@pytest.mark.parametrize("case", CHILDREN)
def test_children_do_not_keep_the_sockets(start_server: Callable[..., Server], case: str) -> None:
    server = start_server()
    other = socket.create_connection((HOST, server.port))
    other.sendall(b"CLIENT ID\r\n")
    number = int(other.recv(100)[1:])
    child = in_step(server, CHILDREN[case])
    try:
        server.client().execute_command("CLIENT", "KILL", "ID", number)
        other.settimeout(10)
        assert other.recv(1) == b"", "the client sees that it was killed"
        port = server.port
        server.stop()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            probe.listen()
        os.kill(child, 0)  # it was alive all the time
    finally:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_sockets_of_the_function_stay(server: Server) -> None:
    body = """
    import os, socket
    mine, yours = socket.socketpair()
    listener = socket.create_server(('127.0.0.1', 0))
    pid = os.fork()
    if pid == 0:
        mine.close()
        connection, _ = listener.accept()
        yours.sendall(connection.recv(10) + b' and back')
        os._exit(0)
    yours.close()
    with socket.create_connection(listener.getsockname()) as client:
        client.sendall(b'there')
        text = mine.recv(100)
        end = mine.recv(100)
    return text, end, os.waitpid(pid, 0)[1]
    """
    assert in_step(server, body) == (b"there and back", b"", 0)


def test_a_forked_process_is_not_the_server(server: Server) -> None:
    """Whatever its function does in the end; it cannot run commands."""
    body = """
    import os
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            execute('SET', 'x', '1')
        except Exception as error:
            os.write(w, str(error).encode())
        {0}
    os.close(w)
    return os.read(r, 100)[:32], os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), execute('EXISTS', 'x')
    """
    expected = b"this process was forked from the"
    for end, code in (("return 1", 0), ("raise ValueError('in the child')", 1)):
        assert in_step(server, body.format(end)) == (expected, code, 0)
    # A script goes on behind the function, and may not run commands either.
    assert in_script(server, body.format("return 1")) == (expected, 1, 0)
    assert "in the child" in server.log()
    server.run("""
        import os
        async def child():
            pid = os.fork()
            if pid == 0: return 1
            execute('SET', 'code', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        GB('ShardsIDReader').map(lambda _: child()).run()
        """)
    assert server.client().get("code") == "0"


def test_functions_of_scripts_run_in_other_processes(server: Server) -> None:
    script = """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    FACTOR = 3
    def triple(number): return number * FACTOR
    def work(_):
        with multiprocessing.Pool(2) as pool:
            first = pool.map(triple, range(4))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
            return first, list(pool.map(triple, range(2)))
    GB('ShardsIDReader').map(work).run()
    """
    assert server.run(script) == [["([0, 3, 6, 9], [0, 3])"], []]


def test_children_end_with_their_own_time(start_server: Callable[..., Server], tmp_path: Any) -> None:
    """The server ends at once although a program runs, and the program goes on."""
    server = start_server()
    mark = tmp_path / "mark"
    in_step(server, f"import subprocess\nreturn subprocess.Popen(['sh', '-c', 'sleep 1; touch {mark}']).pid")
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 20
    wait_until(mark.exists, timeout=20)
