"""Hits of linked commands behave as without the module: statistics, expiry, eviction data, client-side caching,
cluster, access rights. Misses count once. Contract: docs/linked-clients.md ("Cost"),
docs/contract/readers-and-events.md 10.7 to 10.9.
"""

from __future__ import annotations

from typing import Callable

import pytest
import redis

from helpers import Server, wait_until

pytestmark = pytest.mark.matrix

LINK = """
GB('KeysReader').foreach(lambda r: override_reply('fetched')).register(
    prefix='price:*', commands=['get', 'mget'], eventTypes=['keymiss'], mode='async_local')
"""
FETCHED = b"$7\r\nfetched\r\n"


def looks(server: Server) -> bool:
    """True if hits go natively: the server tells who sent a command, or it tells when it sleeps (7.0)."""
    return server.native_hits or server.version >= (7, 0)


def linked(server: Server) -> int:
    """How many commands went behind an inner one."""
    return server.own.info("rg")["rg_linked_commands"]


def test_only_misses_leave_the_servers_own_path(server: Server) -> None:
    server.run(LINK)
    client = server.client()
    client.set("price:1", "a")
    for _ in range(10):
        assert client.get("price:1") == "a"
        assert client.get("other") is None
    assert linked(server) == (0 if looks(server) else 10)
    assert client.get("price:2") == "fetched"
    assert linked(server) == (1 if looks(server) else 11)


def test_in_transactions_and_scripts_nothing_is_decided_early(server: Server) -> None:
    server.run(LINK)
    raw = server.raw()
    raw.call("SET", "price:1", "a")
    raw.call("MULTI")
    raw.call("GET", "price:1")
    raw.call("DEL", "price:1")
    raw.call("GET", "price:1")
    assert raw.call("EXEC") == b"*3\r\n$1\r\na\r\n:1\r\n$-1\r\n"
    server.wait_idle()
    assert server.registrations()[0]["RegistrationData"]["numTriggered"] == 1


def test_a_registration_for_other_events_needs_every_call(server: Server) -> None:
    server.run("""
        GB('KeysReader').foreach(lambda r: override_reply(r['event'])).register(
            prefix='*', commands=['get', 'getdel'], mode='async_local')
    """)
    client = server.client()
    client.set("k", "v")
    assert client.get("k") == "v"
    assert client.execute_command("GETDEL", "k") == "del"
    assert client.get("k") == "keymiss"


def test_hits_and_misses_count_once(start_server: Callable[..., Server]) -> None:
    plain, module = start_server(module=False), start_server()
    module.run(LINK)
    for server in (plain, module):
        client = server.client()
        client.set("price:1", "a")
        client.config_resetstat()
        for key in ("price:1", "price:1", "price:2", "other"):
            client.get(key)
        client.mget("price:1", "price:2", "price:3")
        client.set("price:e", "x", px=1)
        wait_until(lambda: client.info("keyspace").get("db0", {}).get("keys") == 1)
        client.get("price:e")
    counts = [
        {name: server.client().info("stats")[name] for name in ("keyspace_hits", "keyspace_misses", "expired_keys")}
        for server in (plain, module)
    ]
    assert counts[0] == counts[1]


def test_command_statistics(server: Server) -> None:
    server.run(LINK)
    client = server.client()
    client.set("price:1", "a")
    client.config_resetstat()
    for key in ("price:1", "price:1", "price:2", "other"):
        client.get(key)
    stats = client.info("commandstats")
    assert stats["cmdstat_get"]["calls"] == 4
    inner = {name: stat["calls"] for name, stat in stats.items() if "rg.inner" in name.lower()}
    assert list(inner.values()) == [1 if looks(server) else 3]


def test_an_expired_key_counts_as_missing(server: Server) -> None:
    server.run(LINK)
    client = server.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    client.set("price:1", "a", px=1)
    wait_until(lambda: client.pttl("price:1") < 0)
    assert client.get("price:1") == "fetched"


def test_the_look_of_the_filter_does_not_touch(server: Server) -> None:
    server.run(LINK)
    client = server.client()
    client.config_set("maxmemory-policy", "allkeys-lfu")
    client.config_set("lfu-log-factor", "0")
    client.set("price:1", "a")
    before = client.object("freq", "price:1")
    client.get("price:1")
    assert client.object("freq", "price:1") == before + 1


def test_a_limit_counts_from_the_next_command_on(server: Server) -> None:
    """In the same turn of the server's loop: the key is there when the filter looks, and evicted before the command runs."""
    server.run(LINK)
    raw, client = server.raw(), server.client()
    client.set("price:1", "a")
    client.config_set("maxmemory-policy", "allkeys-lru")
    for words in (("GET", "price:1"), ("CONFIG", "SET", "maxmemory", "1"), ("GET", "price:1")):
        raw.send(*words)
    assert [raw.read() for _ in range(3)] == [b"$1\r\na\r\n", b"+OK\r\n", FETCHED]
    client.config_set("maxmemory", "0")
    client.set("price:1", "b")
    assert client.get("price:1") == "b"


def test_a_command_that_does_not_touch_leaves_the_key_untouched(server: Server) -> None:
    server.run("""
        GB('KeysReader').foreach(lambda r: override_reply('fetched')).register(
            prefix='*', commands=['exists', 'ttl'], eventTypes=['keymiss'], mode='async_local')
    """)
    client = server.client()
    client.config_set("maxmemory-policy", "allkeys-lfu")
    client.config_set("lfu-log-factor", "0")
    client.set("k", "v")
    before = client.object("freq", "k")
    assert (client.execute_command("EXISTS", "k"), client.execute_command("TTL", "k")) == (1, -1)
    assert client.execute_command("EXISTS", "k", "missing") == "fetched"
    assert client.object("freq", "k") == before


def test_client_side_caching(server: Server) -> None:
    server.run(LINK)
    raw, client = server.raw(), server.client()
    client.set("price:1", "a")
    raw.call("HELLO", 3)
    raw.call("CLIENT", "TRACKING", "ON")
    assert raw.call("GET", "price:1") == b"$1\r\na\r\n"
    client.set("price:1", "b")
    assert raw.read() == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$7\r\nprice:1\r\n"
    assert raw.call("GET", "price:2") == FETCHED
    client.set("price:2", "b")
    assert raw.read() == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$7\r\nprice:2\r\n"


def test_a_fetched_key_is_invalidated_before_the_reply(server: Server) -> None:
    server.run("""
        def fetch(record):
            execute('SET', record['key'], 'stored')
            override_reply('stored')

        GB('KeysReader').foreach(fetch).register(prefix='*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
    """)
    raw = server.raw()
    raw.call("HELLO", 3)
    raw.call("CLIENT", "TRACKING", "ON")
    raw.send("GET", "k")
    assert raw.read() == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"
    assert raw.read() == b"$6\r\nstored\r\n"
    assert raw.call("GET", "k") == b"$6\r\nstored\r\n"
    server.client().set("k", "new")
    assert raw.read() == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"


def user(server: Server, *rules: str) -> redis.Redis:
    server.client().execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", "+client", "+hello", *rules)
    return server.client(username="limited", password="secret")


def test_a_user_with_the_command_only(server: Server) -> None:
    server.run(LINK)
    server.client().set("price:1", "a")
    limited = user(server, "+get", "~price:*")
    if server.native_hits:
        assert limited.get("price:1") == "a"
        assert limited.get("price:2") is None  # served, but not linked
        assert server.client().info("rg")["rg_unlinked_for_acl"] == 1
        with pytest.raises(redis.exceptions.NoPermissionError):
            limited.get("other")
    else:
        if looks(server):
            assert limited.get("price:1") == "a"
        with pytest.raises(redis.exceptions.NoPermissionError, match="rg.innerread|RG.INNERREAD"):
            limited.get("price:2")


def test_a_user_with_the_inner_command_too(server: Server) -> None:
    server.run(LINK)
    server.client().set("price:1", "a")
    limited = user(server, "+get", "+rg.innerread", "~price:*")
    assert limited.get("price:1") == "a"
    assert limited.get("price:2") == "fetched"
    with pytest.raises(redis.exceptions.NoPermissionError):
        limited.get("other")
    with pytest.raises(redis.exceptions.NoPermissionError):
        limited.mget("price:1", "price:2")


def test_a_user_with_the_category(server: Server) -> None:
    server.run(LINK)
    limited = user(server, "+@read", "~*")
    if server.native_hits:
        assert limited.get("price:2") == "fetched"


def test_a_user_without_the_command(server: Server) -> None:
    server.run(LINK)
    server.client().set("price:1", "a")
    limited = user(server, "+mget", "~*")
    for key in ("price:1", "price:2", "other"):
        with pytest.raises(redis.exceptions.NoPermissionError):
            limited.get(key)
    assert server.registrations()[0]["RegistrationData"]["numTriggered"] == 0


def test_a_user_with_the_command_only_in_a_transaction(server: Server) -> None:
    server.run(LINK)
    limited = user(server, "+get", "+mget", "+multi", "+exec", "~price:*")
    pipe = limited.pipeline(transaction=True).get("price:1").mget("price:1", "price:2")
    if server.native_hits:
        assert pipe.execute() == [None, [None, None]]
    else:
        with pytest.raises(redis.ResponseError, match="(?i)rg.innerread"):
            pipe.execute()


def test_what_is_known_of_rights_ends_when_they_change(server: Server) -> None:
    """Who may do everything is asked for once: by ACL, also in a transaction, and by AUTH that is over."""
    server.run(LINK)
    if not server.native_hits:
        pytest.skip("this server does not tell who sent a command: it checks the rights itself")
    admin, limited = server.client(), user(server, "+@all", "~*", "&*")

    def is_linked(client: redis.Redis) -> bool:
        before = server.own.info("rg")["rg_unlinked_for_acl"]
        reply = client.get("price:1")
        unlinked = server.own.info("rg")["rg_unlinked_for_acl"] - before
        assert (reply, unlinked) in (("fetched", 0), (None, 1))
        return reply is not None

    assert is_linked(limited) and is_linked(limited)
    admin.execute_command("ACL", "SETUSER", "limited", "-rg.innerread")
    assert not is_linked(limited)
    admin.execute_command("Acl", "SETUSER", "limited", "+@all")
    assert is_linked(limited)

    raw = server.raw()
    raw.call("MULTI")
    raw.call("ACL", "SETUSER", "limited", "-rg.innerread")
    assert is_linked(limited), "it is only queued"
    raw.call("EXEC")
    assert not is_linked(limited)
    assert is_linked(admin)

    for words in (("AUTH", "limited", "secret"), ("HELLO", "2", "AUTH", "limited", "secret")):
        other = server.raw()
        assert other.call("GET", "price:1") == FETCHED
        other.call(*words)
        assert other.call("GET", "price:1") == b"$-1\r\n"
        other.call("RESET")
        assert other.call("GET", "price:1") == FETCHED
        other.call("MULTI")
        other.call(*words)
        other.call("EXEC")
        assert other.call("GET", "price:1") in (FETCHED, b"$-1\r\n")
        who = other.call("ACL", "WHOAMI")
        assert other.call("GET", "price:1") == (FETCHED if b"default" in who else b"$-1\r\n")


def test_a_user_with_some_keys_only_is_asked_about_each(server: Server) -> None:
    server.run(LINK)
    limited = user(server, "+@all", "~price:1", "&*")
    for _ in range(3):
        assert limited.get("price:1") == "fetched"
        with pytest.raises(redis.exceptions.NoPermissionError, match="(?i)key"):
            limited.get("price:2")


def test_the_inner_command_gives_no_rights(server: Server) -> None:
    server.run(LINK)
    server.client().set("price:1", "a")
    limited = user(server, "+rg.innerread", "+eval", "~*")
    for key in ("price:1", "price:2"):
        with pytest.raises(redis.exceptions.NoPermissionError, match="'get'"):
            limited.get(key)
        with pytest.raises(redis.ResponseError):
            limited.eval("return redis.call('get', KEYS[1])", 1, key)
    assert server.registrations()[0]["RegistrationData"]["numTriggered"] == 0


def test_cluster_redirections(start_server: Callable[..., Server]) -> None:
    server = start_server(args=["--cluster-enabled", "yes"])
    raw = server.raw()
    assert raw.call("GET", "a{06S}").startswith(b"-CLUSTERDOWN")
    raw.call("CLUSTER", "ADDSLOTSRANGE" if server.is_valkey or server.version >= (7,) else "ADDSLOTS", 0, 8191)
    raw.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
    wait_until(lambda: b"cluster_state:ok" in raw.call("CLUSTER", "INFO"))
    server.run("""
        GB('KeysReader').foreach(lambda r: override_reply('fetched')).register(
            prefix='*', commands=['get', 'mget'], eventTypes=['keymiss'], mode='async_local')
    """)
    # The slot of {06S} is 0, that of {foo} 12182.
    assert raw.call("GET", "a{06S}") == FETCHED
    assert raw.call("GET", "{foo}").startswith((b"-CLUSTERDOWN", b"-MOVED"))
    assert raw.call("MGET", "a{06S}", "{foo}").startswith(b"-CROSSSLOT")
    assert raw.call("MGET", "a{06S}", "b{06S}") == FETCHED


def test_cluster_of_two(start_server: Callable[..., Server]) -> None:
    """MOVED, ASKING during a migration, and READONLY on a replica, as without the module."""
    first, second, replica = (start_server(args=["--cluster-enabled", "yes"]) for _ in range(3))
    for server in (first, second, replica):
        assert server.run(LINK.replace("price:*", "*")) == "OK"
    one, two, three = first.raw(), second.raw(), replica.raw()
    one.call("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    two.call("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
    name = lambda raw: raw.call("CLUSTER", "MYID").split(b"\r\n")[1]
    for epoch, (server, raw) in enumerate([(second, two), (replica, three)], 2):
        raw.call("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        one.call("CLUSTER", "MEET", server.host, server.port)
    for raw in (one, two, three):
        wait_until(lambda raw=raw: b"cluster_state:ok" in raw.call("CLUSTER", "INFO"), 20)
        wait_until(lambda raw=raw: raw.call("CLUSTER", "NODES").count(b" connected") == 3, 20)
    wait_until(lambda: three.call("CLUSTER", "REPLICATE", name(one)) == b"+OK\r\n")
    wait_until(lambda: replica.own.info("replication").get("master_link_status") == "up", 20)

    # The slot of {06S} is 0, that of {foo} 12182.
    assert one.call("GET", "{foo}") == b"-MOVED 12182 127.0.0.1:%d\r\n" % second.port
    assert two.call("GET", "{foo}") == FETCHED
    assert two.call("MGET", "{foo}", "{06S}").startswith(b"-CROSSSLOT")

    one.call("SET", "{06S}", "v")
    wait_until(lambda: replica.own.dbsize() == 1)
    moved = b"-MOVED 0 127.0.0.1:%d\r\n" % first.port
    assert (three.call("GET", "{06S}"), three.call("GET", "a{06S}")) == (moved, moved)
    three.call("READONLY")
    assert (three.call("GET", "{06S}"), three.call("GET", "a{06S}")) == (b"$1\r\nv\r\n", b"$-1\r\n")

    two.call("CLUSTER", "SETSLOT", 0, "IMPORTING", name(one))
    one.call("CLUSTER", "SETSLOT", 0, "MIGRATING", name(two))
    assert one.call("GET", "{06S}") == b"$1\r\nv\r\n"
    assert one.call("GET", "a{06S}") == b"-ASK 0 127.0.0.1:%d\r\n" % second.port
    two.call("ASKING")
    assert two.call("GET", "a{06S}") == FETCHED
    assert two.call("GET", "a{06S}") == moved


def test_a_linked_command_looks_at_no_more_keys_than_its_user_may(server: Server) -> None:
    """SORT finds further keys while it runs, and asks for the rights to them then."""
    server.run("GB('KeysReader').register(prefix='*', commands=['sort'], eventTypes=['keymiss'], mode='async_local')")
    client = server.client()
    client.rpush("list:1", "a")
    client.set("secret:a", "s")
    sort = ("SORT", "list:1", "BY", "nosort", "GET", "secret:*")
    assert client.execute_command(*sort) == ["s"]
    limited = user(server, "+sort", "+rg.innerwritemore", "~list:*")
    assert limited.execute_command("SORT", "list:1", "ALPHA") == ["a"]
    with pytest.raises(redis.exceptions.ResponseError, match="GET option of SORT denied|No permissions"):
        limited.execute_command(*sort)
