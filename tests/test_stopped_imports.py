"""SyncTimeout and RG.ABORTEXECUTION never break off an import: what a module has half done cannot be done again."""

from __future__ import annotations

from typing import Callable

import pytest

from helpers import Server, wait_until

# As a C extension behaves: what is done once is done for ever, and a second time is refused.
MODULE = """
import builtins, time
if hasattr(builtins, '{name}_begun'):
    raise ImportError('cannot load module {name} more than once per process')
builtins.{name}_begun = True
open(__file__ + '.begun', 'w').close()
until = time.monotonic() + {seconds}
while time.monotonic() < until:
    pass
value = 'complete'
open(__file__ + '.ended', 'w').close()
"""


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    server = start_server()
    # What pickles functions is imported first: that takes a while and counts as the script's.
    server.run("GB('CommandReader').map(len).register(trigger='first')")
    server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    (server.dir / "slow.py").write_text(MODULE.format(name="slow", seconds=1))
    (server.dir / "outer_of_slow.py").write_text("import slow\nfrom slow import value\n")
    package = server.dir / "slow_package"
    package.mkdir()
    (package / "__init__.py").write_text("from . import part\nfrom .part import value\n")
    (package / "part.py").write_text(MODULE.format(name="part", seconds=1))
    server.run(f"import sys\nsys.path.insert(0, {str(server.dir)!r})")
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 250)
    return server


WAYS = {
    "at the top of a script": ("import slow", "slow"),
    "of a module that imports it": ("import outer_of_slow", "outer_of_slow"),
    "of a package": ("import slow_package", "slow_package"),
    "from import": ("from slow import value", "slow"),
    "by importlib": ("import importlib\nimportlib.import_module('slow')", "slow"),
    "by __import__": ("__import__('slow')", "slow"),
    "in a function": ("def f():\n    import slow\nf()", "slow"),
    "by a pickle": ("import pickle\npickle.loads(b'cslow\\nvalue\\n.')", "slow"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_script_is_stopped_behind_its_import(server: Server, way: str) -> None:
    script, module = WAYS[way]
    with pytest.raises(Exception, match="SyncTimeout"):
        server.run(script + "\nwhile True:\n    pass\n")
    assert "imports a module: it is stopped when the import has ended" in server.log()
    assert server.run(f"import {module}\nGB('ShardsIDReader').map(lambda x: {module}.value).run()") == [["complete"], []]


def test_in_a_sync_function(server: Server) -> None:
    server.run("""
        def f(x):
            import slow
            while True:
                pass
        GB('CommandReader').map(f).register(trigger='f', mode='sync')
        """)
    with pytest.raises(Exception, match="SyncTimeout"):
        server.client().execute_command("RG.TRIGGER", "f")
    assert server.run("import slow\nGB('ShardsIDReader').map(lambda x: slow.value).run()") == [["complete"], []]


def test_in_an_atomic_block(server: Server) -> None:
    said = server.run("""
        def f(x):
            with atomic():
                import slow
                while True:
                    pass
        GB('ShardsIDReader').map(f).run()
        """)
    assert "SyncTimeout" in str(said)
    assert server.run("import slow\nGB('ShardsIDReader').map(lambda x: slow.value).run()") == [["complete"], []]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_execution_that_is_aborted(server: Server, kind: str) -> None:
    id = server.run(
        f"""
        {kind} f(x):
            import slow
            while True:
                pass
        GB('ShardsIDReader').map(f).run()
        """,
        "UNBLOCKING",
    )
    # The module itself tells: the function may be stopped before its import begins, and as soon as that has ended.
    wait_until((server.dir / "slow.py.begun").exists, 10, "the import has begun")
    server.own.execute_command("RG.ABORTEXECUTION", id)
    wait_until((server.dir / "slow.py.ended").exists, 20, "the import has ended")
    assert server.run("import slow\nGB('ShardsIDReader').map(lambda x: slow.value).run()") == [["complete"], []]


def test_another_ones_import_is_waited_for(server: Server) -> None:
    """A script waits for the lock of a module that a worker imports."""
    server.run("def f(x):\n    import slow\nGB('ShardsIDReader').map(f).run()", "UNBLOCKING")
    wait_until((server.dir / "slow.py.begun").exists, 10, "the import has begun")
    try:
        server.run("import slow\nGB('CommandReader').map(lambda x: slow.value).register(trigger='v')")
    except Exception as error:
        assert "SyncTimeout" in str(error)
    assert server.run("import slow\nGB('ShardsIDReader').map(lambda x: slow.value).run()") == [["complete"], []]


def test_what_is_no_import_is_stopped_at_once(server: Server) -> None:
    """Also behind an import that has ended."""
    with pytest.raises(Exception, match="SyncTimeout"):
        server.run("import json\nwhile True:\n    pass\n")
    assert "imports a module" not in server.log()


def test_numpy_comes_whole(server: Server) -> None:
    numpy = server.run("import importlib.util\nlog(f'numpy: {importlib.util.find_spec(\"numpy\") is not None}')")
    assert numpy == "OK"
    if "numpy: True" not in server.log():
        pytest.skip("numpy is not in the server's environment")
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 10)
    try:
        server.run("import numpy\nwhile True:\n    pass\n")
    except Exception as error:
        assert "SyncTimeout" in str(error)
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 10000)
    assert server.run("import numpy\nGB('ShardsIDReader').map(lambda x: int(numpy.arange(4).sum())).run()") == [["6"], []]
