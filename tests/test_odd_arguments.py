"""What `read_through`, `write_behind` and `refresh` are given may be anything: objects with code of their own wherever Python looks at
them, lists that never end, numbers and texts that lie. The server goes on, and nothing is registered by half.

More of what objects may do is in test_user_code_everywhere.py.
"""

from __future__ import annotations

import textwrap
import time

import pytest
import redis

from figures import errors, figures
from helpers import Server, wait_until
from write_behind import drained, register

pytestmark = pytest.mark.matrix

READ_THROUGH = """commands ttl jitter negative_ttl stale refresh_ahead timeout on_error max_waiting max_loads max_load_time max_memory backoff max_backoff
breaker batch batch_wait user onRegistered desc""".split()
WRITE_BEHIND = """events batch interval coalesce backoff max_backoff max_tries dead_letter max_queue max_queue_bytes on_full full_timeout wait timeout ordered
max_save_time max_memory user onRegistered desc""".split()

# Each of them does what `mischief` says, wherever it is looked at.
ODD = """
import decimal
NAMES = ('__str__', '__repr__', '__eq__', '__hash__', '__bool__', '__iter__', '__len__', '__int__', '__float__', '__index__', '__lt__', '__getattr__',
         '__instancecheck__', '__contains__', '__getitem__', '__next__', '__length_hint__', '__format__', '__bytes__')

def odd(base):
    def method(self, *args):
        return mischief()
    return type('Odd', (base,), {name: method for name in NAMES})

def instances():
    for base, args in ((object, ()), (str, ('user',)), (int, (1,)), (float, (0.5,)), (list, (['get'],)), (tuple, ((1, 1.0),)), (bytes, (b'x',)),
                       (decimal.Decimal, (1,)), (dict, ({'a': 1},))):
        yield odd(base)(*args)
"""
MISCHIEF = {
    "raises": "def mischief(): raise ValueError('odd')",
    "exits": "import sys\ndef mischief(): sys.exit(1)",
    "lies": "def mischief(): return NotImplemented",
    "runs": "def mischief():\n    execute('INCR', 'looked')\n    execute('RG.DUMPREGISTRATIONS')\n    return 1",
    "registers": "def mischief():\n    read_through('inner:*', len)\n    return 1",
    "recurses": "def mischief(): return mischief()",
}


TRIES = """
said = []
for name in {names}:
    for number, value in enumerate(instances()):
        try:
            {call}(f'k:{{name}}:{{number}}:*', lambda x: None, **{{name: value}})
        except BaseException as error:
            said.append(type(error).__name__)
for value in instances():
    for arguments in ((value, len), ('k:*', value)):
        try:
            {call}(*arguments)
        except BaseException as error:
            said.append(type(error).__name__)
raise ValueError(f' {{len(said)}} were refused')
"""


@pytest.mark.parametrize("mischief", MISCHIEF)
@pytest.mark.parametrize("call", ["read_through", "write_behind"])
def test_arguments_with_code_of_their_own(server: Server, call: str, mischief: str) -> None:
    names = READ_THROUGH if call == "read_through" else WRITE_BEHIND
    said = errors(server, "\n".join([MISCHIEF[mischief], ODD, TRIES.format(call=call, names=names)]))
    assert "were refused" in said, said
    assert int(said.split(" were refused")[0].split()[-1]) > 50, said
    assert server.registrations() == [], "the script has failed, so nothing is registered"
    assert server.alive() and "panicked" not in server.log()


@pytest.mark.own_server
@pytest.mark.parametrize("call, name", [("read_through", "commands"), ("write_behind", "events")])
@pytest.mark.parametrize("endless", ["itertools.cycle(['get'])", "itertools.repeat('get')", "(name for name in itertools.cycle(['get']))"])
def test_names_that_never_end(server: Server, call: str, name: str, endless: str) -> None:
    begun = time.monotonic()
    said = errors(server, f"import itertools\n{call}('k:*', len, {name}={endless})")
    assert f"{call}: {name}: expected at most 1000 names" in said
    assert time.monotonic() - begun < 5


def test_commands_of_register_that_never_end(server: Server) -> None:
    said = errors(server, "import itertools\nGB().foreach(len).register(prefix='k:*', commands=itertools.repeat('get'), mode='sync')")
    assert "commands: expected at most 1000 names" in said


@pytest.mark.own_server
@pytest.mark.parametrize("call, argument", [
    ("read_through", "ttl=Endless()"), ("read_through", "commands=Endless()"), ("read_through", "breaker=(Endless(), 1)"),
    ("write_behind", "events=Endless()"), ("write_behind", "dead_letter=Endless()"), ("write_behind", "max_save_time=Endless()"),
])  # fmt: skip
def test_arguments_whose_code_never_ends(server: Server, call: str, argument: str) -> None:
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 250)
    said = errors(server, f"class Endless:\n    def __repr__(self):\n        while True: pass\n    __iter__ = __repr__\n{call}('k:*', len, {argument})")
    assert "SyncTimeout" in said or "expected" in said, said
    assert server.registrations() == []


@pytest.mark.parametrize("call", ["read_through", "write_behind"])
def test_a_text_that_lies_about_its_length(server: Server, call: str) -> None:
    said = errors(server, f"class Text(str):\n    def __len__(self): return 5\n{call}(Text(''), len)")
    assert f"{call}: prefix: expected a str that is not empty" in said
    assert server.registrations() == []
    server.run(f"class Text(str):\n    def __len__(self): return 0\n    def __str__(self): return 'other'\n{call}(Text('k:*'), len)")
    assert figures(server)["args"]["prefix"] == "k:*", "what the text is counts, not what it says of itself"


@pytest.mark.parametrize("call", ["read_through", "write_behind"])
def test_a_registration_made_while_another_one_is_looked_at(server: Server, call: str) -> None:
    """`__iter__` of one argument registers the very same keys: the outer call is refused, and so is the script."""
    name = "commands" if call == "read_through" else "events"
    said = errors(server, f"""
class Names:
    def __iter__(self):
        {call}('k:*', len)
        return iter(['get'])
{call}('k:*', len, {name}=Names())
""")
    assert f"{call}: prefix: expected one" in said
    assert server.registrations() == []
    server.run(f"{call}('k:*', lambda x: None)")
    assert len(server.registrations()) == 1


def test_a_function_that_registers_odd_things_registers_nothing(server: Server) -> None:
    """Inside a function a registration takes effect at once: a refused one not at all."""
    server.run("\n".join([MISCHIEF["raises"], ODD, """
def work(words):
    said = []
    for call, names in ((read_through, ('commands', 'ttl', 'breaker', 'user', 'desc')), (write_behind, ('events', 'max_tries', 'dead_letter', 'user', 'desc'))):
        for name in names:
            for number, value in enumerate(instances()):
                try:
                    call(f'k:{name}:{number}', lambda x: None, **{name: value})
                except Exception as error:
                    said.append((name, number))
    return len(said)
GB('CommandReader').map(work).register(trigger='work', mode='async_local')
"""]))
    [refused] = server.client(socket_timeout=60).execute_command("RG.TRIGGER", "work")
    registered = [entry for entry in server.registrations() if entry["reader"] != "CommandReader"]
    assert int(refused) + len(registered) == 2 * 5 * 9, "each call has either registered or raised"
    for entry in server.registrations():
        server.client().execute_command("RG.UNREGISTER", entry["id"])
    assert server.registrations() == []


# --- what loaders return, and the keys of refresh ---

VALUES = {
    "a dict that changes while it is read": """
class Text(decimal.Decimal):
    def __str__(self):
        value[len(value)] = 1
        value.pop('a', None)
        return 'text'
value = {'a': Text(1), 'b': Text(2)}
""",
    "a sorted set that changes while it is read": """
class Text(decimal.Decimal):
    def __str__(self):
        value[len(value)] = 1
        return 'text'
value = Sorted({Text(1): 1, Text(2): 2})
""",
    "a score with code of its own": """
class Score(float):
    def __float__(self):
        value.clear()
        return 1.0
class Other:
    def __float__(self):
        value.clear()
        return 1.0
value = Sorted({'a': Other(), 'b': Score(1)})
""",
    "a list that changes while it is read": """
class Text(decimal.Decimal):
    def __str__(self):
        value.clear()
        return 'text'
value = [Text(1), Text(2), Text(3)]
""",
    "a set that changes while it is read": """
class Text(decimal.Decimal):
    def __str__(self):
        value.clear()
        return 'text'
value = {Text(1), Text(2), Text(3)}
""",
    "a class that lies": """
class Value:
    @property
    def __class__(self):
        value_of_class.append(1)
        return dict
value_of_class = []
value = Value()
""",
    "a class that raises": """
class Value:
    @property
    def __class__(self):
        raise ValueError('odd')
value = Value()
""",
    "a text that raises": """
class Text(decimal.Decimal):
    def __str__(self):
        raise ValueError('odd')
value = Text(1)
""",
    "a text that is none": """
class Text(decimal.Decimal):
    def __str__(self):
        return 5
value = Text(1)
""",
    "a lifetime with code of its own": """
class Seconds(float):
    def __float__(self): return float('nan')
    def __repr__(self): raise ValueError('odd')
value = Loaded('x', ttl=Seconds(5))
""",
    "a lifetime that is odd": """
class Seconds:
    def __repr__(self): raise ValueError('odd')
value = Loaded('x', ttl=Seconds())
""",
    "one that contains itself": "value = []\nvalue.append(value)\n",
    "a text that is no text": "value = '\\ud800'\n",
}


@pytest.mark.parametrize("batch", [False, True], ids=["", "batch"])
@pytest.mark.parametrize("value", VALUES)
def test_what_a_loader_returns(server: Server, value: str, batch: bool) -> None:
    """It answers or fails, and the next load is as good as ever."""
    returned = "{key: value for key in keys}" if batch else "value"
    body = textwrap.indent(f"import decimal\n{VALUES[value]}\nreturn {returned}", "    ")
    server.run(f"def load(keys):\n{body}\nread_through('odd:*', load, batch={5 if batch else 1})\nread_through('even:*', lambda key: 'fine')")
    client = server.client()
    for read in ("GET", "HGETALL", "LLEN"):
        try:
            client.execute_command(read, "odd:1")
        except redis.ResponseError as error:
            assert str(error).startswith(("LOADFAILED ", "WRONGTYPE ")), error
            assert "Aborted" not in str(error), "the load has told its own error"
    assert client.get("even:1") == "fine"
    assert "panicked" not in server.log()
    assert client.info("clients")["blocked_clients"] == 0


def test_a_text_that_never_ends(server: Server) -> None:
    """It is no part of the loader, and is stopped with it."""
    server.run("""
        def load(key):
            import decimal
            class Text(decimal.Decimal):
                def __str__(self):
                    while True: pass
            return Text(1)
        read_through('odd:*', load, max_load_time=0.3, backoff=0)
        read_through('even:*', lambda key: 'fine')
    """)
    client = server.client()
    for number in range(6):  # more than there are workers
        with pytest.raises(redis.ResponseError, match="LOADFAILED LoadTimedOut"):
            client.get(f"odd:{number}")
    assert client.get("even:1") == "fine"
    wait_until(lambda: all(entry[3] in ("done", "aborted") for entry in client.execute_command("RG.DUMPEXECUTIONS")))


def test_keys_in_a_batch_that_say_they_are_equal(server: Server) -> None:
    """The dict of a batch has keys whose `__eq__` and `__hash__` are the user's."""
    server.run("""
        class Key:
            def __init__(self, name): self.name = name
            def __hash__(self): return hash('k:1')
            def __eq__(self, other):
                answer.pop('other', None)
                execute('INCR', 'compared')
                return True
        answer = {Key('a'): 'first', 'other': 1}
        read_through('k:*', lambda keys: answer, batch=5)
    """)
    client = server.client()
    assert client.get("k:1") == "first"
    assert int(client.get("compared")) >= 1


@pytest.mark.parametrize("mischief", ["raises", "exits", "recurses"])
def test_keys_of_refresh_with_code_of_their_own(server: Server, mischief: str) -> None:
    server.run("\n".join([MISCHIEF[mischief], ODD, """
read_through('k:*', lambda key: 'v')
def work(words):
    said = []
    for value in instances():
        try:
            said.append(str(refresh('k:1', value)))
        except BaseException as error:
            said.append(type(error).__name__)
    return len(said)
GB('CommandReader').map(work).register(trigger='work', mode='async_local')
"""]))
    assert server.client(socket_timeout=60).execute_command("RG.TRIGGER", "work") == ["9"]
    wait_until(lambda: figures(server)["waiting"] == 0)
    assert "panicked" not in server.log()


# --- users ---


def test_a_user_that_is_deleted_while_its_clients_wait_for_room(server: Server, source: Server) -> None:
    database = register(server, source, "max_queue=2, coalesce=False")
    database.fail(1_000_000)
    client = server.client()
    client.mset({"user:1": "a", "user:2": "b"})
    client.execute_command("ACL", "SETUSER", "ann", "on", "nopass", "~*", "&*", "+@all")
    raws = [server.raw() for _ in range(6)]
    for raw in raws[:3]:
        assert raw.call("AUTH", "ann", "x") == b"+OK\r\n"
    for number, raw in enumerate(raws):
        raw.send("SET", f"user:{10 + number}", "waits")
    waiting = lambda: client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_room"]  # noqa: E731
    wait_until(lambda: waiting() == 6)
    assert client.execute_command("ACL", "DELUSER", "ann") == 1
    wait_until(lambda: waiting() == 3)
    database.fail(0)
    assert [raw.read() for raw in raws[3:]] == [b"+OK\r\n"] * 3
    drained(server)
    assert client.exists("user:10", "user:11", "user:12") == 0
    assert set(database.rows()) == {"user:1", "user:2", "user:13", "user:14", "user:15"}
    assert client.info("clients")["blocked_clients"] == 0


def test_a_user_that_loses_his_rights_while_he_waits_for_room(server: Server, source: Server) -> None:
    database = register(server, source, "max_queue=2, coalesce=False")
    database.fail(1_000_000)
    client = server.client()
    client.mset({"user:1": "a", "user:2": "b"})
    client.execute_command("ACL", "SETUSER", "bob", "on", "nopass", "~*", "&*", "+@all")
    raw = server.raw()
    assert raw.call("AUTH", "bob", "x") == b"+OK\r\n"
    raw.send("SET", "user:10", "waits")
    wait_until(lambda: client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_room"] == 1)
    client.execute_command("ACL", "SETUSER", "bob", "-set")
    database.fail(0)
    assert raw.read().startswith(b"-NOPERM")
    drained(server)
    assert set(database.rows()) == {"user:1", "user:2"} and client.exists("user:10") == 0
    client.execute_command("ACL", "DELUSER", "bob")


def test_a_saver_whose_user_is_deleted_goes_on_when_he_is_back(server: Server, source: Server) -> None:
    client = server.client()
    client.execute_command("ACL", "SETUSER", "saver", "on", "nopass", "~*", "&*", "+@all")
    database = register(server, source, "user='saver', backoff=0.01, max_backoff=0.05")
    client.set("user:1", "a")
    drained(server)
    client.execute_command("ACL", "DELUSER", "saver")
    client.set("user:1", "b")
    wait_until(lambda: figures(server)["saveFailures"] >= 2)
    assert (database.row("user:1"), figures(server)["queued"]) == ("a", 1)
    client.execute_command("ACL", "SETUSER", "saver", "on", "nopass", "~*", "&*", "+@all")
    drained(server)
    assert database.row("user:1") == "b"
    client.execute_command("ACL", "DELUSER", "saver")


# --- memory ---


def test_loads_at_the_memory_limit_are_answered_and_not_kept(server: Server) -> None:
    server.run("""
        read_through('k:*', lambda keys: {key: {'field': 'x' * 1000} for key in keys}, batch=10, ttl=60)
        read_through('one:*', lambda key: 'value', stale=5, ttl=5)
    """)
    client = server.client()
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    try:
        raws = [server.raw() for _ in range(20)]
        for number, raw in enumerate(raws):
            raw.send("HGET", f"k:{number}", "field")
        assert {raw.read() for raw in raws} == {b"$1000\r\n" + b"x" * 1000 + b"\r\n"}
        assert client.get("one:1") == "value"
        assert client.execute_command("RG.REFRESH", "one:1") in (0, 1)
        assert client.dbsize() == 0
        assert figures(server)["notStored"] >= 20
        # Some go away before their value has come.
        gone = [server.raw() for _ in range(5)]
        for number, raw in enumerate(gone):
            raw.send("HGETALL", f"k:gone:{number}")
            raw.close()
        wait_until(lambda: figures(server)["waiting"] == 0)
    finally:
        client.config_set("maxmemory", 0)
    assert client.get("one:1") == "value" and client.exists("one:1") == 1
