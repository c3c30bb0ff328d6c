"""Processes that functions start: their exit codes are true while the server saves, and they do not keep the server's sockets.

Spec: docs/functions.md, "Other processes".
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, Callable

import pytest
import redis

from helpers import HOST, Server, wait_until
from probes import in_script, in_step

# As long as this runs, the server takes the exit status of every child it has.
SAVING = ["--rdb-key-save-delay", "20000"]


@pytest.fixture
def saving(start_server: Callable[..., Server]) -> Server:
    """A server in the middle of BGSAVE, until the test ends."""
    server = start_server(args=SAVING if "6.2" not in str(start_server) else [])
    server.client().mset({f"key:{number}": number for number in range(2000)})
    server.client().bgsave()
    assert server.client().info("persistence")["rdb_bgsave_in_progress"] == 1
    return server


def still_saving(server: Server) -> bool:
    return server.own.info("persistence")["rdb_bgsave_in_progress"] == 1


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


def test_a_thousand_programs_in_a_row(server: Server) -> None:
    body = """
    import os, subprocess
    before = len(os.listdir('/proc/self/fd'))
    ended = [subprocess.run(['sh', '-c', f'exit {n % 5}'], close_fds=False).returncode for n in range(1000)]
    return ended == [n % 5 for n in range(1000)], len(os.listdir('/proc/self/fd')) - before < 10
    """
    assert in_step(server, body) == (True, True)


def test_many_programs_that_nobody_has_waited_for_yet(server: Server) -> None:
    """Their ids stay theirs until then."""
    body = """
    import os, subprocess
    programs = [subprocess.Popen(['sh', '-c', f'exit {n % 7}']) for n in range(100)]
    handles = []
    for p in programs:
        with open(f'/proc/{p.pid}/stat') as file:
            while file.read().rpartition(')')[2].split()[0] != 'Z':
                file.seek(0)
        handles.append(os.pidfd_open(p.pid))
    for fd in handles:
        os.close(fd)
    return [p.wait() for p in programs] == [n % 7 for n in range(100)], len({p.pid for p in programs})
    """
    assert in_step(server, body) == (True, 100)


def test_threads_that_wait_for_one_child(server: Server) -> None:
    """One of them gets the status, the others an error, as usual."""
    body = """
    import os, subprocess, threading
    from concurrent.futures import ThreadPoolExecutor
    def wait(pid):
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            return 'none'
    seen = []
    for number in range(20):
        p = subprocess.Popen(['cat'], stdin=subprocess.PIPE)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(wait, p.pid) for _ in range(4)]
            p.stdin.close()
        seen.append(sorted(str(future.result()) for future in waiting))
        p.wait()
    return all(each == ['0', 'none', 'none', 'none'] for each in seen)
    """
    assert in_step(server, body)


def test_objects_that_start_programs_when_they_die(server: Server) -> None:
    """The garbage collector runs them in the middle of starting another one."""
    body = """
    import gc, subprocess
    ended = []
    class Last:
        def __init__(self): self.me = self
        def __del__(self): ended.append(subprocess.run(['sh', '-c', 'exit 4']).returncode)
    gc.set_threshold(5)
    try:
        for _ in range(30):
            Last()
            assert subprocess.run(['sh', '-c', 'exit 3']).returncode == 3
    finally:
        gc.set_threshold(700)
    gc.collect()
    return ended == [4] * 30
    """
    assert in_step(server, body)


def test_forking_while_other_threads_hold_locks(server: Server) -> None:
    """Those that start programs and wait for them."""
    body = """
    import os, subprocess, threading
    end = threading.Event()
    def busy():
        while not end.is_set():
            subprocess.run(['true'])
    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads: thread.start()
    codes = []
    try:
        for number in range(30):
            pid = os.fork()
            if pid == 0:
                os._exit(subprocess.run(['sh', '-c', f'exit {number}']).returncode)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    finally:
        end.set()
        for thread in threads: thread.join()
    return codes == list(range(30))
    """
    assert in_step(server, body)


@pytest.mark.parametrize("killed", ["Popen", "os.fork"])
def test_a_status_that_nobody_can_tell(server: Server, killed: str) -> None:
    """Whoever waits for the child was killed: it is alive until it ends, and the status is no success."""
    start = {
        "Popen": "pid = subprocess.Popen(['sleep', '0.5']).pid",
        "os.fork": "pid = os.fork()\nif pid == 0:\n    time.sleep(0.5)\n    os._exit(0)",
    }[killed].replace("\n", "\n    ")
    body = f"""
    import os, signal, subprocess, time
    {start}
    with open(f'/proc/{{pid}}/stat') as file:
        os.kill(int(file.read().rpartition(')')[2].split()[1]), signal.SIGKILL)
    alive = os.waitpid(pid, os.WNOHANG)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return alive, code, subprocess.run(['sh', '-c', 'exit 6']).returncode
    """
    assert in_step(server, body) == ((0, 0), 255, 6)


def test_without_the_process_that_starts_others(server: Server) -> None:
    """Where no Python program can be started, programs are the server's own children."""
    body = """
    import subprocess, sys
    import pinion_children
    kept, sys.executable = sys.executable, '/nowhere/python'
    pinion_children._nursery = None
    try:
        return subprocess.run(['sh', '-c', 'exit 9']).returncode
    finally:
        sys.executable = kept
    """
    assert in_step(server, body) == 9
    assert "programs are started by the server itself" in server.log()


def test_other_ways_to_start_programs(saving: Server) -> None:
    body = """
    import os
    started = os.spawnvp(os.P_WAIT, 'sh', ['sh', '-c', 'exit 8'])
    return os.system('exit 3'), os.system('kill -9 $$'), started
    """
    assert in_step(saving, body) == (3 * 256, 9, 8)
    assert still_saving(saving)


def test_more_descriptors_than_one_message_carries(server: Server) -> None:
    body = """
    import os, subprocess
    ends = [os.pipe() for _ in range(300)]
    try:
        shown = subprocess.run(['ls', '/proc/self/fd'], pass_fds=[w for _, w in ends], stdout=subprocess.PIPE).stdout.split()
    finally:
        for fd in sum(ends, ()): os.close(fd)
    return all(b'%d' % w in shown for _, w in ends)
    """
    assert in_step(server, body)


def descriptors(pid: int | str) -> set[str]:
    """What a process has open."""
    return {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}


def test_a_port_that_the_server_got_later(server: Server) -> None:
    """Functions that were registered before know it, too, where the server tells that it changes (7.0)."""
    if server.version < (7,):
        pytest.skip("the server does not tell")
    server.run("""
        import os, time
        def start(_):
            pid = os.fork()
            if pid == 0:
                time.sleep(30)
                os._exit(0)
            return pid
        GB('CommandReader').map(start).register(trigger='start', mode='sync')
        """)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    try:
        server.client().config_set("port", port)
    except redis.ResponseError:
        pytest.skip("this server keeps its port")
    client = redis.Redis(HOST, port, decode_responses=True)
    [pid] = client.execute_command("RG.TRIGGER", "start")
    try:
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        listening = {f"socket:[{line[9]}]" for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "0A"}
        assert listening & descriptors(server.process.pid)
        wait_until(lambda: not listening & descriptors(pid), 10, "the forked process has closed them")
    finally:
        os.kill(int(pid), signal.SIGKILL)
        client.config_set("port", server.port)
