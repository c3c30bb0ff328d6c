"""Functions with a user: whose rights code has in the server. docs/security.md, docs/architecture.md ("Whose rights").

`app` may do everything with keys of `app:`, and read those of `ro:`. With `RunAs owner` all code has the rights of who sent
it; `user=` gives one registration a user in any case.
"""

from __future__ import annotations

import json
from typing import Any, Callable

import pytest
import redis

from clusters import make_cluster
from helpers import Server, ServerDied, as_dict, wait_for_aof, wait_until

pytestmark = pytest.mark.matrix

StartServer = Callable[..., Server]
SECRET = "secret"
KEYS = ["~app:*", "%R~ro:*"]


@pytest.fixture(autouse=True)
def needs_users(request: pytest.FixtureRequest) -> None:
    if "6.2" in request.config.getoption("--server") and "too_old" not in request.node.name:
        pytest.skip("6.2 has no code with a user")


def admin(server: Server) -> redis.Redis:
    return server.client()


def set_user(server: Server, name: str = "app", *rules: str) -> None:
    rules = rules or (*KEYS, "&*", "+@all")
    admin(server).execute_command("ACL", "SETUSER", name, "reset", "on", f">{SECRET}", *rules)


def as_user(server: Server, name: str = "app", **options: Any) -> redis.Redis:
    return server.client(username=name, password=SECRET, **options)


@pytest.fixture
def owned(borrow_server: StartServer) -> Server:
    """A server whose code has the rights of who sent it, and the user `app`."""
    server = borrow_server(module_args=["RunAs", "owner"])
    set_user(server)
    return server


@pytest.fixture
def plain(borrow_server: StartServer) -> Server:
    """A server with the default, and the user `app`."""
    server = borrow_server()
    set_user(server)
    return server


def verbose(server: Server) -> dict[str, Any]:
    """The only registration, with what VERBOSE shows."""
    [entry] = admin(server).execute_command("RG.DUMPREGISTRATIONS", "VERBOSE")
    return as_dict(entry)


def data(server: Server, place: int = 0) -> dict[str, Any]:
    return server.registrations()[place]["RegistrationData"]


def acl_log(server: Server) -> list[dict[str, Any]]:
    return [as_dict(entry) for entry in admin(server).execute_command("ACL", "LOG")]


# A trigger that runs whatever command it is given, and answers with what came of it.
DOOR = """
def run(words):
    try:
        return str(execute(*words[1:]))
    except Exception as error:
        return 'refused: ' + str(error)
GB('CommandReader').map(run).register(trigger='door', mode={mode!r}{more})
"""


def door(server: Server, client: redis.Redis | None = None, mode: str = "sync", more: str = "") -> None:
    assert server.run(DOOR.format(mode=mode, more=more), client=client) == "OK"


def through(client: redis.Redis, *words: str | int) -> str:
    """What the trigger says about a command."""
    [reply] = client.execute_command("RG.TRIGGER", "door", *words)
    return str(reply)


# --- who made it is remembered ---


def test_who_made_it_is_shown_and_kept(plain: Server) -> None:
    door(plain, as_user(plain))
    assert (verbose(plain)["owner"], verbose(plain)["actsAs"]) == ("app", None)
    admin(plain).execute_command("DEBUG", "RELOAD")
    assert (verbose(plain)["owner"], verbose(plain)["actsAs"]) == ("app", None)


def test_a_named_user_is_shown_and_kept(plain: Server) -> None:
    door(plain, more=", user='app'")
    assert (verbose(plain)["owner"], verbose(plain)["actsAs"]) == ("default", "app")
    admin(plain).execute_command("DEBUG", "RELOAD")
    assert (verbose(plain)["owner"], verbose(plain)["actsAs"]) == ("default", "app")
    assert "NOPERM" in through(admin(plain), "GET", "other")


def test_it_is_kept_in_an_aof_file(start_server: StartServer) -> None:
    server = start_server(module_args=["RunAs", "owner"], args=["--appendonly", "yes", "--aof-use-rdb-preamble", "no"])
    set_user(server)
    door(server, as_user(server))
    admin(server).execute_command("BGREWRITEAOF")
    wait_for_aof(admin(server))
    server.restart()
    assert verbose(server)["owner"] == "app"
    assert "does not exist" in through(admin(server), "GET", "app:1"), "users are not in the file"
    set_user(server)
    assert through(admin(server), "SET", "app:1", 1) == "OK"


def test_a_promoted_replica_goes_by_it(owned: Server, start_server: StartServer) -> None:
    replica = start_server(module_args=["RunAs", "owner"], args=["--replicaof", "127.0.0.1", owned.port])
    wait_until(lambda: admin(replica).info("replication")["master_link_status"] == "up")
    door(owned, as_user(owned))
    wait_until(lambda: len(replica.registrations()) == 1)
    admin(replica).execute_command("REPLICAOF", "NO", "ONE")
    assert verbose(replica)["owner"] == "app"
    assert "does not exist" in through(admin(replica), "SET", "app:1", 1)
    set_user(replica)
    assert through(admin(replica), "SET", "app:1", 1) == "OK"
    assert "NOPERM" in through(admin(replica), "SET", "other", 1)


def test_a_registration_made_by_a_function_has_its_owner(owned: Server) -> None:
    script = """
    def make(r):
        GB('CommandReader').map(lambda r: 1).register(trigger='inner', mode='sync')
    GB('CommandReader').map(make).register(trigger='outer', mode='sync')
    """
    owned.run(script, client=as_user(owned))
    admin(owned).execute_command("RG.TRIGGER", "outer")
    owners = [as_dict(entry)["owner"] for entry in admin(owned).execute_command("RG.DUMPREGISTRATIONS", "VERBOSE")]
    assert owners == ["app", "app"]


def test_a_function_may_register_as_long_as_its_owner_may(owned: Server) -> None:
    script = """
    def make(r):
        GB('CommandReader').map(lambda r: 1).register(trigger='inner', mode='sync')
    GB('CommandReader').map(make).register(trigger='outer', mode='sync')
    """
    owned.run(script, client=as_user(owned))
    set_user(owned, "app", *KEYS, "+@all", "-rg.pyexecute")
    with pytest.raises(redis.ResponseError, match="no permissions to run the command 'rg.pyexecute'"):
        admin(owned).execute_command("RG.TRIGGER", "outer")
    assert len(owned.registrations()) == 1


# --- commands ---


@pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
def test_a_function_has_the_rights_of_its_owner(owned: Server, mode: str) -> None:
    door(owned, as_user(owned), mode)
    client = admin(owned)
    assert through(client, "SET", "app:1", "x") == "OK"
    assert through(client, "GET", "app:1") == "x"
    assert "no permissions to access the key 'other'" in through(client, "GET", "other")
    assert "no permissions to access the key 'ro:1'" in through(client, "SET", "ro:1", 1)
    assert through(client, "GET", "ro:1") == "None"


def test_all_rights_without_a_user(plain: Server) -> None:
    door(plain, as_user(plain))
    assert through(admin(plain), "SET", "other", 1) == "OK"


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_named_user_in_any_case(plain: Server, mode: str) -> None:
    door(plain, mode=mode, more=", user='app'")
    assert "NOPERM" in through(admin(plain), "SET", "other", 1)
    assert through(admin(plain), "SET", "app:1", 1) == "OK"


def test_what_no_user_may_do_is_refused_in_the_servers_words(owned: Server) -> None:
    door(owned, as_user(owned))
    assert "unknown command" in through(admin(owned), "NOSUCHTHING", "x").lower()
    assert "wrong number of arguments" in through(admin(owned), "GET")
    assert "wrong number of arguments" in through(admin(owned), "RENAME", "app:1")
    assert "wrong number of arguments" in through(admin(owned), "OBJECT", "ENCODING")


def test_rights_that_change_between_two_calls_of_one_execution(owned: Server) -> None:
    script = """
    def run(r):
        execute('SET', 'app:1', '1')
        execute('BLPOP', 'app:never', 1) if False else None
        execute('SET', 'app:2', '2')
    GB('CommandReader').map(run).register(trigger='t', mode='sync')
    """
    twice = """
    def run(words):
        first = execute('SET', 'app:1', '1')
        execute('ACL', 'SETUSER', 'app', '-set')
        try:
            execute('SET', 'app:1', '2')
        except Exception as error:
            return str(error)
    GB('CommandReader').map(run).register(trigger='twice', mode='sync')
    """
    owned.run(script, client=as_user(owned))
    owned.run(twice, client=as_user(owned))
    [reply] = admin(owned).execute_command("RG.TRIGGER", "twice")
    assert "no permissions to run the command 'set'" in reply
    assert admin(owned).get("app:1") == "1"
    with pytest.raises(redis.ResponseError, match="NOPERM"):
        admin(owned).execute_command("RG.TRIGGER", "t")


def test_a_user_that_ends_himself(owned: Server) -> None:
    script = """
    def run(words):
        execute('ACL', 'DELUSER', 'app')
        try:
            execute('GET', 'app:1')
        except Exception as error:
            return str(error)
    GB('CommandReader').map(run).register(trigger='t', mode='sync')
    """
    owned.run(script, client=as_user(owned))
    [reply] = admin(owned).execute_command("RG.TRIGGER", "t")
    assert "user 'app', who does not exist" in reply


def test_users_that_are_off_gone_and_there_again(owned: Server) -> None:
    door(owned, as_user(owned))
    client = admin(owned)
    client.execute_command("ACL", "SETUSER", "app", "off")
    assert "user 'app', who is off" in through(client, "GET", "app:1")
    client.execute_command("ACL", "SETUSER", "app", "on")
    assert through(client, "GET", "app:1") == "None"
    client.execute_command("ACL", "DELUSER", "app")
    assert "user 'app', who does not exist" in through(client, "GET", "app:1")
    set_user(owned)
    assert through(client, "GET", "app:1") == "None"


def test_failures_are_counted_and_told(owned: Server) -> None:
    script = "GB('CommandReader').map(lambda r: execute('SET', 'other', 1)).register(trigger='t', mode='sync')"
    owned.run(script, client=as_user(owned))
    before = admin(owned).info("rg")["rg_refused_for_acl"]
    with pytest.raises(redis.ResponseError):
        admin(owned).execute_command("RG.TRIGGER", "t")
    assert data(owned)["numFailures"] == 1
    assert "acts as user 'app', who has no permissions to access the key 'other'" in data(owned)["lastError"]
    assert admin(owned).info("rg")["rg_refused_for_acl"] == before + 1
    assert json.loads(admin(owned).execute_command("RG.STATS"))["commands"]["refused_for_acl"] == before + 1


def test_acl_log_names_the_function(owned: Server) -> None:
    door(owned, as_user(owned))
    admin(owned).execute_command("ACL", "LOG", "RESET")
    [registration] = owned.registrations()
    function = f"registration {registration['id']}"
    set_user(owned, "app", *KEYS, "+@all", "-incr", "resetchannels")
    through(admin(owned), "GET", "other")
    through(admin(owned), "INCR", "app:1")
    through(admin(owned), "PUBLISH", "news", "x")
    entries = {(entry["reason"], entry["object"], entry["username"]) for entry in acl_log(owned)}
    assert entries == {
        ("key", f"other ({function})", "app"),
        ("command", f"incr ({function})", "app"),
        ("channel", f"news ({function})", "app"),
    }


def test_commands_that_look_further_go_by_the_user(owned: Server) -> None:
    door(owned, as_user(owned))
    client = admin(owned)
    client.rpush("app:list", 1, 2)
    client.set("other:1", "hidden")
    assert "hidden" not in through(client, "SORT", "app:list", "BY", "nosort", "GET", "other:*")
    script = "return redis.call('GET', KEYS[1] .. ARGV[1])"
    assert "hidden" not in through(client, "EVAL", script, 1, "app:x", "")
    assert "hidden" not in through(client, "EVAL", "return redis.call('GET', 'other:1')", 0)
    assert through(client, "EVAL", "return redis.call('SET', 'app:2', '1')", 0) == "OK"


def test_in_transactions_and_scripts(owned: Server) -> None:
    door(owned, as_user(owned))
    client = admin(owned)
    with client.pipeline(transaction=True) as pipe:
        pipe.execute_command("RG.TRIGGER", "door", "GET", "other")
        pipe.execute_command("RG.TRIGGER", "door", "SET", "app:1", "1")
        first, second = pipe.execute()
    assert "NOPERM" in first[0] and second == ["OK"]
    reply = client.eval("return redis.call('RG.TRIGGER', 'door', 'GET', 'other')", 0)
    assert "NOPERM" in reply[0]


def test_an_atomic_block_gives_no_rights(owned: Server) -> None:
    script = """
    def run(words):
        with atomic():
            execute('SET', 'app:1', '1')
            try:
                execute('SET', 'other', '1')
            except Exception as error:
                return str(error)
    GB('CommandReader').map(run).register(trigger='t', mode='async_local')
    """
    owned.run(script, client=as_user(owned))
    [reply] = admin(owned).execute_command("RG.TRIGGER", "t")
    assert "NOPERM" in reply and admin(owned).exists("app:1", "other") == 1


def test_a_coroutine_goes_by_it(owned: Server) -> None:
    script = """
    import asyncio
    async def run(words):
        await asyncio.sleep(0.01)
        try:
            execute('SET', 'other', '1')
        except Exception as error:
            in_loop = str(error)
        def elsewhere():
            try:
                execute('SET', 'other', '1')
            except Exception as error:
                return str(error)
        return [in_loop, await asyncio.to_thread(elsewhere)]
    GB('CommandReader').map(run).register(trigger='t', mode='async_local', convertToStr=False)
    """
    owned.run(script, client=as_user(owned))
    [reply] = admin(owned).execute_command("RG.TRIGGER", "t")
    assert len(reply) == 2 and all("NOPERM" in text for text in reply)
    assert not admin(owned).exists("other")


def test_code_that_leaves_its_session_or_has_none(owned: Server) -> None:
    script = """
    import threading
    def tried():
        try:
            return str(execute('SET', 'other', '1'))
        except Exception as error:
            return str(error)
    def run(words):
        found = []
        thread = threading.Thread(target=lambda: found.append(tried()))
        thread.start()
        thread.join()
        redisgears.setGearsSession(None)
        return found + [tried()]
    import redisgears
    GB('CommandReader').map(run).register(trigger='t', mode='async_local', convertToStr=False)
    """
    owned.run(script, client=as_user(owned))
    [reply] = admin(owned).execute_command("RG.TRIGGER", "t")
    assert "a thread without a session" in reply[0] and "user 'app'" in reply[1]
    assert not admin(owned).exists("other")


def test_code_of_a_named_user_that_leaves_its_session(plain: Server) -> None:
    script = """
    import redisgears
    def run(words):
        redisgears.setGearsSession(None)
        return execute('SET', 'other', '1')
    async def wait(words):
        redisgears.setGearsSession(None)
        return execute('SET', 'other', '1')
    GB('CommandReader').map(run).register(trigger='t', mode='async_local', user='app')
    GB('CommandReader').map(wait).register(trigger='a', mode='async_local', user='app')
    GB('CommandReader').map(lambda r: execute('SET', 'own', '1')).register(trigger='free', mode='sync')
    """
    plain.run(script)
    for name in ("t", "a"):
        with pytest.raises(redis.ResponseError, match="NOPERM|keeps its session"):
            admin(plain).execute_command("RG.TRIGGER", name)
    assert admin(plain).execute_command("RG.TRIGGER", "free") == ["OK"], "the next function is itself again"
    assert not admin(plain).exists("other")


@pytest.mark.parametrize("place", ["__str__", "__repr__", "__bool__", "__eq__", "__hash__", "__iter__", "__del__"])
def test_user_code_wherever_python_looks_at_an_object(owned: Server, place: str) -> None:
    script = f"""
    class Thing:
        def {place}(self, *others):
            try:
                execute('SET', 'other', '1')
            except Exception as error:
                execute('RPUSH', 'app:seen', str(error))
            return {{'__str__': 'x', '__repr__': 'x', '__bool__': True, '__eq__': True, '__hash__': 1}}.get({place!r})
    def use(words):
        thing = Thing()
        str(thing), repr(thing), bool(thing), thing == thing
        try:
            hash(thing)
        except TypeError:
            pass
        try:
            iter(thing)
        except TypeError:
            pass
        del thing
        return 1
    GB('CommandReader').map(use).register(trigger='t', mode='sync')
    """
    owned.run(script, client=as_user(owned))
    admin(owned).execute_command("RG.TRIGGER", "t")
    seen = admin(owned).lrange("app:seen", 0, -1)
    assert seen and all("NOPERM" in text for text in seen)
    assert not admin(owned).exists("other")


# --- scripts and runs ---


def test_a_script_has_the_rights_of_who_sends_it(owned: Server) -> None:
    user = as_user(owned)
    assert owned.run("execute('SET', 'app:1', '1')", client=user) == "OK"
    with pytest.raises(redis.ResponseError, match="session .* acts as user 'app'.*'other'"):
        owned.run("execute('SET', 'other', '1')", client=user)
    assert owned.run("execute('SET', 'other', '1')") == "OK", "the default user may"


def test_a_run_has_the_rights_of_who_sends_it(owned: Server) -> None:
    admin(owned).mset({"app:1": "a", "ro:1": "b", "other": "c"})
    user = as_user(owned)
    results, errors = owned.run("GB().map(lambda r: r['value']).run('app:*')", client=user)
    assert (results, errors) == (["a"], [])
    results, errors = owned.run("GB().map(lambda r: r['value']).run('*')", client=user)
    assert "c" not in results and any("access the key 'other'" in error for error in errors)
    results, errors = owned.run("GB().foreach(lambda r: execute('SET', 'other', 'x')).run('app:*')", client=user)
    assert "NOPERM" in errors[0] and admin(owned).get("other") == "c"


@pytest.mark.parametrize("kind", ["string", "list", "hash", "set"])
def test_a_walk_reads_what_its_user_may_read(owned: Server, kind: str) -> None:
    client = admin(owned)
    for name in ("app:1", "other"):
        {
            "string": lambda: client.set(name, "v"),
            "list": lambda: client.rpush(name, "v"),
            "hash": lambda: client.hset(name, "f", "v"),
            "set": lambda: client.sadd(name, "v"),
        }[kind]()
    user = as_user(owned)
    count = "GB().map(lambda r: r['key']).run({!r})"
    assert owned.run(count.format("app:*"), client=user)[0] == ["app:1"]
    results, errors = owned.run(count.format("other"), client=user)
    assert results == [] and len(errors) == 1 and "access the key 'other'" in errors[0]
    results, errors = owned.run("GB().map(lambda r: r['key']).run('other', noScan=True)", client=user)
    assert results == [] and "access the key 'other'" in errors[0]


def test_a_walk_needs_the_commands_that_show_the_same(owned: Server) -> None:
    admin(owned).set("app:1", "v")
    set_user(owned, "app", *KEYS, "+@all", "-get")
    _, errors = owned.run("GB().run('app:*')", client=as_user(owned))
    assert "run the command 'get'" in errors[0]
    assert owned.run("GB('KeysOnlyReader').run('app:*')", client=as_user(owned))[0] == ["app:1"]
    set_user(owned, "app", *KEYS, "+@all", "-scan")
    for run in ("GB('KeysOnlyReader').run('*')", "GB().count().run('*')", "GB().run('*', readValue=False)"):
        _, errors = owned.run(run, client=as_user(owned))
        assert "run the command 'scan'" in errors[0]


def test_a_run_over_a_stream(owned: Server) -> None:
    for name in ("app:s", "other"):
        admin(owned).xadd(name, {"f": "v"}, id="1-1")
    run = "GB('StreamReader').map(lambda r: r['id']).run({!r})"
    assert owned.run(run.format("app:s"), client=as_user(owned)) == [["1-1"], []]
    results, errors = owned.run(run.format("other"), client=as_user(owned))
    assert results == [] and "NOPERM" in errors[0]


def test_a_run_in_a_function_has_its_user(plain: Server) -> None:
    admin(plain).mset({"app:1": "a", "other": "c"})
    script = """
    async def run(words):
        results, errors = await GB().map(lambda r: r['value']).run('*')
        return str(results) + str(errors)
    GB('CommandReader').map(run).register(trigger='t', mode='async_local', user='app')
    """
    plain.run(script)
    [reply] = admin(plain).execute_command("RG.TRIGGER", "t")
    assert "access the key 'other'" in reply and "'c'" not in reply


# --- events ---


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize("read_value", [True, False])
def test_events_of_keys_that_its_user_may_not_read(owned: Server, mode: str, read_value: bool) -> None:
    script = f"""
    def seen(r):
        execute('RPUSH', 'app:seen', r['key'] + ' ' + str(r.get('value')))
    GB().foreach(seen).register(prefix='*', eventTypes=['set'], mode={mode!r}, readValue={read_value})
    """
    owned.run(script, client=as_user(owned))
    client = admin(owned)
    client.set("app:1", "a")
    owned.wait_idle()
    client.set("ro:1", "b")
    owned.wait_idle()
    client.set("other", "hidden")
    owned.wait_idle()
    values = ("a", "b") if read_value else ("None", "None")
    assert client.lrange("app:seen", 0, -1) == [f"app:1 {values[0]}", f"ro:1 {values[1]}"]
    assert (data(owned)["numSuccess"], data(owned)["numFailures"]) == (2, 1)
    assert "access the key 'other'" in data(owned)["lastError"]


def test_a_missed_key(owned: Server) -> None:
    script = """
    def load(r):
        execute('SET', r['key'], 'loaded')
        override_reply('loaded')
    GB().foreach(load).register(prefix='*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
    """
    owned.run(script, client=as_user(owned))
    client = admin(owned)
    assert client.get("app:1") == "loaded"
    assert client.get("other") is None
    assert client.get("ro:1") is None and not client.exists("ro:1")
    owned.wait_idle()
    assert (data(owned)["numSuccess"], data(owned)["numFailures"]) == (1, 2)


STREAM = """
def seen(r):
    execute('RPUSH', 'app:seen', r['value']['n'])
GB('StreamReader').foreach(seen).register(prefix='*', mode={mode!r}, onFailedPolicy='continue', onFailedRetryInterval=1)
"""


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_stream_waits_for_its_users_rights(owned: Server, mode: str) -> None:
    owned.run(STREAM.format(mode=mode), client=as_user(owned))
    client = admin(owned)
    client.execute_command("ACL", "SETUSER", "app", "off")
    for number in range(3):
        client.xadd("app:s", {"n": str(number)})
    wait_until(lambda: data(owned)["numFailures"])
    wait_until(lambda: data(owned)["status"] == "WAITING_FOR_RETRY_ON_FAILURE")
    assert "user 'app', who is off" in data(owned)["lastError"]
    assert client.xlen("app:s") == 3 and not client.exists("app:seen"), "nothing is lost, whatever the policy"
    client.execute_command("ACL", "SETUSER", "app", "on")
    wait_until(lambda: client.lrange("app:seen", 0, -1) == ["0", "1", "2"])
    wait_until(lambda: client.xlen("app:s") == 0)


def test_a_stream_of_others(owned: Server) -> None:
    owned.run(STREAM.format(mode="async_local"), client=as_user(owned))
    client = admin(owned)
    client.xadd("other", {"n": "1"})
    wait_until(lambda: data(owned)["numFailures"])
    assert "access the key 'other'" in data(owned)["lastError"]
    assert client.xlen("other") == 1 and client.xinfo_groups("other") == []


def test_a_stream_that_may_not_be_trimmed(owned: Server) -> None:
    set_user(owned, "app", *KEYS, "+@all", "-xtrim")
    owned.run(STREAM.format(mode="async_local"), client=as_user(owned))
    admin(owned).xadd("app:s", {"n": "1"})
    wait_until(lambda: data(owned)["numFailures"])
    assert "run the command 'xtrim'" in data(owned)["lastError"]


def test_a_time_event(owned: Server) -> None:
    script = """
    def tick():
        try:
            execute('SET', 'other', '1')
        except Exception as error:
            execute('RPUSH', 'app:seen', str(error))
    registerTE(1, tick{key})
    """
    owned.run(script.format(key=", 'app:event'"), client=as_user(owned))
    with pytest.raises(redis.ResponseError, match="access the key 'other:event'"):
        owned.run(script.format(key=", 'other:event'"), client=as_user(owned))
    client = admin(owned)
    wait_until(lambda: client.llen("app:seen"))
    client.execute_command("DEBUG", "RELOAD")
    client.delete("app:seen")
    wait_until(lambda: client.llen("app:seen"))
    assert "NOPERM" in client.lindex("app:seen", 0) and not client.exists("other")


# --- hooks ---


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_call_next_has_the_rights_of_the_functions_user(owned: Server, mode: str, protocol: int) -> None:
    script = """
    def instead(words):
        reply = call_next(*words[1:])
        try:
            execute('SET', 'other', 'x')
        except Exception as error:
            execute('RPUSH', 'app:seen', str(error))
        return reply
    GB('CommandReader').map(instead).register(hook='hgetall', mode={mode!r}, convertToStr=False)
    """
    client = owned.client(protocol=protocol)
    client.hset("app:h", "f", "v")
    client.hset("other:h", "f", "v")
    owned.run(script.replace("{mode!r}", repr(mode)), client=as_user(owned))
    assert client.hgetall("app:h") == {"f": "v"}
    assert "NOPERM" in admin(owned).lindex("app:seen", 0) and not admin(owned).exists("other")
    with pytest.raises(redis.ResponseError, match="access the key 'other:h'"):
        client.hgetall("other:h")
    assert data(owned)["numFailures"] == 1


def test_a_hook_neither_lends_nor_takes_its_clients_rights(owned: Server) -> None:
    """The client needs its own rights to the command, and gets none of the function's."""
    script = "GB('CommandReader').map(lambda r: execute('GET', 'app:1')).register(hook='hset', mode='sync')"
    admin(owned).set("app:1", "a")
    owned.run(script, client=as_user(owned))
    set_user(owned, "client", "~app:*", "+hset", "+rg.innerwritemore", "+rg.innerwrite")
    client = as_user(owned, "client")
    assert client.execute_command("HSET", "app:h", "f", "v") == "a"
    with pytest.raises(redis.ResponseError, match="(?i)noperm|no permissions"):
        client.execute_command("HSET", "other", "f", "v")
    set_user(owned, "client", "~app:*", "+get", "+rg.innerwritemore", "+rg.innerwrite")
    with pytest.raises(redis.ResponseError, match="(?i)noperm|no permissions"):
        as_user(owned, "client").execute_command("HSET", "app:h", "f", "v")


def test_hooks_and_links_in_a_functions_own_commands(owned: Server) -> None:
    """A command of code with a user goes through hooks of others; their functions have their own rights."""
    hook = "GB('CommandReader').map(lambda r: execute('INCR', 'admins')).register(hook='hset', mode='sync')"
    owned.run(hook)
    door(owned, as_user(owned))
    client = admin(owned)
    assert through(client, "HSET", "app:h", "f", "v") == "1"
    assert "NOPERM" in through(client, "HSET", "other", "f", "v") and client.get("admins") == "1"
    assert "NOPERM" in through(client, "INCR", "admins"), "the hook's rights end with it"
    # Who may not run the proxy command gets the plain one, as a client.
    set_user(owned, "app", *KEYS, "+@all", "-rg.innerread", "-rg.innerwrite", "-rg.innerwritemore")
    assert through(client, "HSET", "app:h2", "f", "v") == "1" and client.get("admins") == "1"
    assert client.hgetall("app:h2") == {"f": "v"}


def test_a_linked_command_that_looks_further(owned: Server) -> None:
    """Behind a proxy command the function's user counts, too."""
    client = admin(owned)
    client.rpush("app:list", 1)
    client.set("other:1", "hidden")
    owned.run("GB().register(prefix='*', commands=['sort', 'lrange'], mode='async_local')")
    door(owned, as_user(owned))
    assert "hidden" not in through(client, "SORT", "app:list", "BY", "nosort", "GET", "other:*")
    assert through(client, "LRANGE", "app:list", 0, -1) == "['1']"


# --- read_through and write_behind ---


LOADER = """
@gears.read_through('*', backoff=0{more})
def load(key):
    return 'loaded ' + key
"""


def test_read_through_stores_with_the_rights_of_its_user(owned: Server) -> None:
    owned.run(LOADER.replace("gears.", "").format(more=""), client=as_user(owned))
    client = admin(owned)
    assert client.get("app:1") == "loaded app:1" and client.exists("app:1")
    for key in ("other", "ro:1"):
        with pytest.raises(redis.ResponseError, match="LOADFAILED.*NoPermission"):
            client.get(key)
        assert not client.exists(key)
    owned.wait_idle()
    assert data(owned)["numFailures"] == 2 and "'ro:1'" in data(owned)["lastError"]


def test_read_through_with_a_named_user(plain: Server) -> None:
    plain.run(LOADER.replace("gears.", "").format(more=", user='app'"))
    client = admin(plain)
    assert client.get("app:1") == "loaded app:1"
    with pytest.raises(redis.ResponseError, match="LOADFAILED"):
        client.get("other")
    client.execute_command("ACL", "DELUSER", "app")
    with pytest.raises(redis.ResponseError, match="LOADFAILED"):
        client.get("app:2")
    assert "does not exist" in data(plain)["lastError"]


def test_read_through_whose_user_may_not_use_the_command(owned: Server) -> None:
    set_user(owned, "app", *KEYS, "+@all", "-set")
    owned.run(LOADER.replace("gears.", "").format(more=""), client=as_user(owned))
    assert admin(owned).get("app:1") == "loaded app:1"
    assert not admin(owned).exists("app:1"), "it answers without being kept"


def test_refresh_by_a_function(owned: Server) -> None:
    owned.run(LOADER.replace("gears.", "").format(more=""))
    script = "GB('CommandReader').map(lambda r: refresh(r[1])).register(trigger='t', mode='async_local', convertToStr=False)"
    owned.run(script, client=as_user(owned))
    assert admin(owned).execute_command("RG.TRIGGER", "t", "app:1") == [1]
    with pytest.raises(redis.ResponseError, match="NOPERM"):
        admin(owned).execute_command("RG.TRIGGER", "t", "other")
    assert not admin(owned).exists("other")


def test_write_behind_reads_with_the_rights_of_its_user(plain: Server) -> None:
    script = """
    @write_behind('*', user='app', batch=1, backoff=0.05, max_backoff=0.05)
    def save(changes):
        for change in changes:
            log('saved ' + change['key'])
    """
    plain.run(script)
    client = admin(plain)
    client.set("app:1", "a")
    wait_until(lambda: "saved app:1" in plain.log())
    client.set("other", "hidden")
    wait_until(lambda: data(plain)["numFailures"])
    assert "access the key 'other'" in data(plain)["lastError"]
    assert "saved other" not in plain.log()
    set_user(plain, "app", "~*", "+@all")
    wait_until(lambda: "saved other" in plain.log(), message="the change has waited for the right")


# --- who may name a user ---


def test_a_user_may_name_himself(plain: Server) -> None:
    set_user(plain, "app", *KEYS, "+@all", "-acl")
    door(plain, as_user(plain), more=", user='app'")
    assert verbose(plain)["actsAs"] == "app"


def test_others_are_named_by_who_may_change_them(plain: Server) -> None:
    set_user(plain, "app", *KEYS, "+@all", "-acl")
    set_user(plain, "strong", "~*", "+@all")
    with pytest.raises(redis.ResponseError, match="user: expected your own user, or one that you may change"):
        door(plain, as_user(plain), more=", user='strong'")
    assert plain.registrations() == []
    set_user(plain, "app", *KEYS, "+@all", "-acl", "+acl|setuser")
    door(plain, as_user(plain), more=", user='strong'")
    assert through(admin(plain), "SET", "other", 1) == "OK"


def test_a_function_may_name_what_its_own_user_may(plain: Server) -> None:
    set_user(plain, "app", *KEYS, "+@all", "-acl")
    set_user(plain, "strong", "~*", "+@all")
    script = """
    def make(words):
        GB('CommandReader').map(lambda r: 1).register(trigger='inner', mode='sync', user=words[1])
    GB('CommandReader').map(make).register(trigger='outer', mode='sync', user='app')
    """
    plain.run(script)
    with pytest.raises(redis.ResponseError, match="user: expected your own user"):
        admin(plain).execute_command("RG.TRIGGER", "outer", "strong")
    admin(plain).execute_command("RG.TRIGGER", "outer", "app")
    assert len(plain.registrations()) == 2


@pytest.mark.parametrize("given, expected", [("'nobody'", "user: expected the name of a user"), ("7", "user argument must be")])
def test_users_that_are_none(plain: Server, given: str, expected: str) -> None:
    with pytest.raises(redis.ResponseError, match=expected):
        door(plain, more=f", user={given}")
    for call in ("read_through('k:*'", "write_behind('k:*'"):
        with pytest.raises(redis.ResponseError, match="user: expected"):
            plain.run(f"{call}, user={given})(lambda x: None)")
    assert plain.registrations() == []


# --- options ---


def test_an_option_with_another_word(start_server: StartServer) -> None:
    for option in ("RunAs", "RegistrationPolicy"):
        with pytest.raises(ServerDied, match=f"{option}: expected '(all|allow)' or '(owner|deny)', got 'nobody'"):
            start_server(module_args=[option, "nobody"])


def test_it_is_refused_where_the_server_is_too_old(start_server: StartServer, request: pytest.FixtureRequest) -> None:
    if "6.2" not in request.config.getoption("--server"):
        pytest.skip("this server has what is needed")
    with pytest.raises(ServerDied, match="RunAs: expected 'all', got 'owner': this server does not let modules"):
        start_server(module_args=["RunAs", "owner"])
    server = start_server()
    with pytest.raises(redis.ResponseError, match="user: expected none, got 'default'"):
        server.run("GB('CommandReader').register(trigger='t', user='default')")


def test_the_option_cannot_be_changed_at_run_time(owned: Server) -> None:
    door(owned, as_user(owned))
    [reply] = admin(owned).execute_command("RG.CONFIGSET", "RunAs", "all")
    assert "not configurable at runtime" in str(reply)
    with pytest.raises(redis.ResponseError):
        admin(owned).execute_command("CONFIG", "SET", "rg.run-as", "all")
    assert "NOPERM" in through(admin(owned), "GET", "other")


# --- several shards ---


@pytest.fixture
def owned_cluster(start_server: StartServer) -> Any:
    """Three shards whose code has its owner's rights. The user `app` is on all of them."""
    cluster = make_cluster(start_server, module_args=["RunAs", "owner"])
    for node in cluster.nodes:
        set_user(node)
    return cluster


def test_runs_over_shards(owned_cluster: Any) -> None:
    first, *others = owned_cluster.nodes
    count = "GB('ShardsIDReader').map(lambda x: execute('GET', 'app:{' + hashtag() + '}') or 'none').run()"
    results, errors = first.run(count, client=as_user(first))
    assert (results, errors) == (["none"] * 3, [])
    foreign = "GB('ShardsIDReader').map(lambda x: execute('GET', 'other:{' + hashtag() + '}')).run()"
    results, errors = first.run(foreign, client=as_user(first))
    assert results == [] and len(errors) == 3 and all("NOPERM" in error for error in errors)
    admin(others[0]).execute_command("ACL", "DELUSER", "app")
    results, errors = first.run(count, client=as_user(first))
    assert results == ["none"] * 2 and len(errors) == 1 and "user 'app', who does not exist" in errors[0]


def test_registrations_on_shards_that_lack_the_user(owned_cluster: Any) -> None:
    first, second, third = owned_cluster.nodes
    admin(third).execute_command("ACL", "DELUSER", "app")
    door(first, as_user(first), "async_local")
    for node in (first, second, third):
        wait_until(lambda: len(node.registrations()) == 1)
        assert verbose(node)["owner"] == "app"
    assert through(admin(second), "PING") in ("PONG", "True")
    assert "does not exist" in through(admin(third), "PING")
    set_user(third)
    assert through(admin(third), "PING") in ("PONG", "True")


def test_a_walk_over_shards(owned_cluster: Any) -> None:
    client = owned_cluster.client()
    for number in range(30):
        client.set(f"app:{number}", number)
    first = owned_cluster.nodes[0]
    results, errors = first.run("GB().map(lambda r: r['key']).run('app:*')", client=as_user(first))
    assert len(results) == 30 and errors == []
    for number in range(30):
        client.set(f"other:{number}", number)
    results, errors = first.run("GB().map(lambda r: r['key']).run('*')", client=as_user(first))
    assert len(errors) == 3 and not [key for key in results if key.startswith("other")]
