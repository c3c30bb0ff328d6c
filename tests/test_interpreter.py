"""The embedded interpreter: which Python it is, what functions can import, how it starts, fails and stops.

Contract: issue "key-miss tutorial" item 2; docs/contract/commands.md 5.2 (PythonVenv is our own option).
"""

import os
import signal
import sys

import pytest

from helpers import Server, ServerDied
from probes import error_of, in_script, in_step, last_line, raised, start


@pytest.mark.parametrize("where", [in_script, in_step])
def test_packages_of_the_environment_can_be_imported(server, where):
    body = """
        import numpy, ssl, sqlite3, redis, cloudpickle, pickle
        square = lambda number: number * number
        return [
            int(numpy.arange(5).dot(numpy.arange(5))),
            ssl.create_default_context().check_hostname,
            sqlite3.connect(':memory:').execute('select 1 + 1').fetchone()[0],
            redis.Redis(port=1).connection_pool.connection_kwargs['port'],
            pickle.loads(cloudpickle.dumps(square))(3),
        ]
        """
    assert where(server, body) == [30, True, 2, 1, 9]


def test_the_prefix_is_a_virtual_environment(server):
    body = "import sys, os\nreturn [sys.prefix != sys.base_prefix, os.path.exists(sys.prefix + '/pyvenv.cfg')]"
    assert in_script(server, body) == [True, True]


def test_the_executable_is_the_environments_python(server):
    body = """
        import os, subprocess, sys
        code = 'import sys; print(sys.prefix, sys.version_info[:2])'
        text = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=20).stdout
        here = f'{sys.prefix} {sys.version_info[:2]}'
        return [os.path.dirname(sys.executable) == sys.prefix + '/bin', text.strip(), here]
        """
    in_bin, of_executable, of_server = in_step(server, body)
    assert in_bin
    assert of_executable == of_server


@pytest.mark.own_server
def test_the_log_tells_version_and_prefix(server):
    version, prefix = in_script(server, "import platform, sys\nreturn platform.python_version(), sys.prefix")
    lines = [line for line in server.log().splitlines() if version in line]
    assert any(prefix in line for line in lines), "one line with both"


def test_another_environment_can_be_given(start_server, tmp_path):
    link = tmp_path / "an environment"
    link.symlink_to(sys.prefix)
    server = start_server(python_env=link)
    assert os.path.samefile(in_script(server, "import sys, cloudpickle\nreturn sys.prefix"), link)


@pytest.mark.parametrize("kind", ["missing", "a file", "empty"])
def test_an_unusable_environment_is_refused_with_its_name(start_server, tmp_path, kind):
    path = tmp_path / f"env-{kind.split()[-1]}"
    if kind == "a file":
        path.touch()
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(ServerDied) as died:
        start_server(python_env=path)
    text = str(died.value)
    assert any(str(path) in line for line in text.splitlines() if "loadmodule" not in line)
    assert "ended with status 1;" in text  # it left by itself, no crash


def test_the_environment_variables_of_python_do_not_matter(start_server, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    assert in_step(start_server(), "import cloudpickle, json\nreturn 1") == 1


@pytest.mark.matrix
def test_functions_have_the_environment_of_the_server(start_server, monkeypatch):
    """Valkey 8.1 and later hide it from modules."""
    monkeypatch.setenv("PINION_TEST", "seen")
    look = "import os, subprocess\nchild = subprocess.run(['printenv', 'PINION_TEST'], capture_output=True, text=True)"
    assert in_step(start_server(), f"{look}\nreturn os.environ.get('PINION_TEST'), child.stdout") == ("seen", "seen\n")


def test_the_directory_of_the_server_does_not_matter(server):
    directory, path = in_script(server, "import os, sys, cloudpickle\nreturn os.getcwd(), sys.path")
    assert os.path.samefile(directory, server.dir)
    assert not {"", ".", directory} & set(path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_server(server, number):
    server.run("import signal, threading")
    server.disconnect()
    server.process.send_signal(number)
    assert server.wait_exit() == 0


@pytest.mark.parametrize("body", ["while True: pass", "import time; time.sleep(1000)", "while True: execute('PING')"])
def test_running_functions_do_not_keep_the_server_alive(server, body):
    start(server, f"def loop(record):\n    {body}\nGB('KeysReader').map(loop).run('k', noScan=True)")
    server.stop(timeout=10)


@pytest.mark.parametrize(
    "use",
    [
        "redisAI.createTensorFromValues('FLOAT', [1], [1.0])",
        "redisAI.modelRunnerRunAsync(None)",
        "redisAI.createDAGRunner()",
        "redisAI.PyTensor()",
        "redisAI.tensorToFlatList(t=1)",
    ],
)
def test_redis_ai_is_not_there(server: Server, use: str) -> None:
    text = "gears.error: RedisAI is not loaded, it is not possible to use AI interface."
    assert raised(server, f"import redisAI\n{use}") == text
    server.run(f"import redisAI\nGB('CommandReader').map(lambda r: {use}).register(trigger='t')")
    assert last_line(error_of(server, "t", command="RG.TRIGGER")) == text


def test_integers_of_any_length_become_digits(server: Server) -> None:
    run = "GB('PythonReader').run(lambda: (n for n in [10 ** 5000]), convertToStr={})"
    for convert in (True, False):
        [[digits], []] = server.run(run.format(convert))
        assert digits == "1" + "0" * 5000
