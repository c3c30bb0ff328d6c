"""Chaos in a cluster of three masters and three replicas: random actions, clients that ask meanwhile, and a model that knows
what each of them must be told.

The keys never change, so each count and each sum has one right answer. A reply is that, or an error that says why; it comes
within `BOUND_S`; replies belong to the call that they answer. Deployments replace each other: a trigger gives a version that
was deployed, and not an older one than was known to be everywhere a while ago.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable

import redis

from clock import Clock, compiler
from clusters import Cluster, fail_over, is_linked, make_cluster, move_slot, node_id
from helpers import Server, as_dict, wait_until
from proxy import Proxy

KEYS = 300
SUM = sum(range(KEYS))
IDLE_MS = 3000
# The idle limit, a pause of its server, and a busy machine.
BOUND_S = 45
# How long a version may still be seen after a later one was acknowledged: shards that were away compare every three seconds.
STALE_S = 30
# How far a clock is set back at a time.
MOST_BACK_S = 40
# Writes while clients are paused end a server until that is mended elsewhere (fault C6): a failover on request pauses them, too,
# so that none begins while something is deployed.
PAUSES = True

COUNT_RUN = "GB('KeysReader').count().run('key:*')"
NAMES_RUN = "GB('KeysOnlyReader').count().run('key:*')"
SUM_RUN = (
    "GB('KeysReader').map(lambda r: int(r['value'])).repartition(lambda x: x)"
    ".aggregate(0, lambda a, x: a + x, lambda a, x: a + x).run('key:*')"
)
SLOW_RUN = "import time\nGB('KeysReader').foreach(lambda r: time.sleep(0.005)).count().run('key:*')"
DEPLOYED = """
GB('CommandReader').map(lambda r: '{version} ' + r[1]).register(trigger='version', mode='sync')
GB('CommandReader').map(lambda r: execute('CLUSTER', 'MYID') + ' ' + r[1]).register(trigger='everywhere')
"""


@dataclass
class Told:
    """What clients were told, for the report of a test."""

    right: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0

    def error(self, text: str) -> None:
        kind = " ".join(word for word in text.split() if not any(digit.isdigit() for digit in word))[:90]
        self.errors[kind] = self.errors.get(kind, 0) + 1


class Chaos:
    """One run of chaos. Make it, call `run`, then `settle` and `check`."""

    def __init__(self, start_server: Callable[..., Server], seed: int) -> None:
        self.random = random.Random(seed)
        # A master that is killed and back before its replica takes over goes on with its file, and the replica follows it: with `everysec` on
        # a busy disk up to two seconds of what the replica has acknowledged are gone.
        options = ["--appendonly", "yes", "--appendfsync", "always", "--cluster-allow-replica-migration", "no"]
        limits = ["ExecutionMaxIdleTime", IDLE_MS, "PythonInstallReqMaxIdleTime", IDLE_MS]
        # In front of each node: shards, replicas and clients that were sent on come through them; the nodes' bus does not.
        self.proxies = [Proxy() for _ in range(6)]
        # One node, so that the others are the majority: who was set back neither votes nor comes back for as long.
        self.clocks = {self.random.randrange(6): Clock()} if compiler() else {}
        self.cluster: Cluster = make_cluster(
            start_server, replicas=3, args=options, module_args=limits, proxies=self.proxies, clocks=self.clocks
        )
        self.cluster.fill({f"key:{number}": number for number in range(KEYS)})
        self.nodes = self.cluster.nodes
        self.announced = {proxy.port: node for proxy, node in zip(self.proxies, self.nodes)}
        self.told = Told()
        self.done: dict[str, int] = {}
        self.versions: list[tuple[int, float]] = []  # acknowledged ones, and when
        self.tried = 0
        # Those that are not moved.
        self.fixed_slots: set[int] = set()
        self._lock = threading.Lock()
        self._deploying: contextlib.AbstractContextManager[Any] = contextlib.nullcontext() if PAUSES else threading.Lock()
        self._stop = threading.Event()
        # What clients do, each in a thread of its own.
        self.work: list[Callable[[random.Random], None]] = [self.ask, self.ask, self.ask, self.deploy]

    # --- who is who ---

    def masters(self) -> list[Server]:
        """Those that say so themselves."""
        return [node for node in self.nodes if role(node) == "master"]

    def shard_mates(self) -> list[tuple[Server, Server]]:
        """Each master with its replica, where both are well."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(redis.RedisError):
                state = client_of(node).execute_command("ROLE")
                if state[0] == "slave" and state[3] == "connected" and int(state[2]) in self.announced:
                    found.append((self.announced[int(state[2])], node))
        return found

    def rejoin(self, pairs: list[tuple[Server, Server]]) -> None:
        """Makes a master without slots the replica of one that has none, as whoever runs the cluster would.

        Who was away while its slots went to several others stays a master, as replicas must not migrate here.
        """
        paired = {node for pair in pairs for node in pair}
        single = [node for node in self.masters() if node not in paired]
        with contextlib.suppress(redis.RedisError):
            empty = [node for node in single if not owned_slots(node)]
            for node, master in zip(empty, [node for node in single if node not in empty]):
                client_of(node).execute_command("CLUSTER", "REPLICATE", node_id(master))

    def is_well(self) -> bool:
        """Whether all shards have a replica with all data, and know each other."""
        pairs = self.shard_mates()
        self.rejoin(pairs)
        return len(pairs) == 3 and all(
            is_up(master) and size(master) == size(replica) and is_linked(master, 3) for master, replica in pairs
        )

    # --- actions ---

    def actions(self) -> list[Callable[[], None]]:
        chosen = [self.fail_over, self.fail_over_and_back, self.kill, self.kill, self.stop_for_a_while, self.cut_off, self.reshard, self.reload, self.refresh]
        chosen += [self.jump] * len(self.clocks)
        return [*chosen, self.pause] if PAUSES else chosen

    def fail_over(self) -> None:
        _, replica = self.random.choice(self.shard_mates())
        with self._deploying:
            fail_over(replica)

    def fail_over_and_back(self) -> None:
        master, replica = self.random.choice(self.shard_mates())
        with self._deploying:
            fail_over(replica)
        wait_until(lambda: (replica, master) in self.shard_mates(), 30, "the old master is a replica")
        time.sleep(self.random.random() * 2)
        with self._deploying:
            fail_over(master)

    def kill(self) -> None:
        victim = self.random.choice(self.random.choice(self.shard_mates()))
        victim.stop(kill=True)
        time.sleep(self.random.choice([0, 0.5, 6]) * self.random.random())
        victim.start(60)

    def stop_for_a_while(self) -> None:
        victim = self.random.choice(self.random.choice(self.shard_mates()))
        victim.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(self.random.choice([0.3, 1, 6]))
        finally:
            victim.process.send_signal(signal.SIGCONT)

    def cut_off(self) -> None:
        """The links of some nodes break, or nothing gets through for a while, as where a network fails; the nodes' bus goes on."""
        cut = self.random.sample(self.proxies, self.random.choice([1, 1, 2, 6]))
        how = self.random.choice([Proxy.drop, Proxy.cut, Proxy.hold])
        try:
            for proxy in cut:
                how(proxy)
            time.sleep(self.random.choice([0.1, 1, 6]) * self.random.random())
        finally:
            for proxy in cut:
                proxy.heal()

    def reshard(self) -> None:
        """Moves some slots with their keys, while nothing else happens but what clients do."""
        masters = [master for master, _ in self.shard_mates()]
        source, target = self.random.sample(masters, 2)
        slots = self.random.sample([slot for slot in owned_slots(source) if slot not in self.fixed_slots], 10)
        try:
            for slot in slots:
                move_slot(masters, source, target, slot)
        finally:
            # A failover that was asked for may have come in between: whoever moves slots has to look after them then.
            wait_until(lambda: all([self.is_settled(slot) for slot in slots]), 60, "the slots have owners")

    def is_settled(self, slot: int) -> bool:
        """Whether all masters see one owner of a slot; sees to it as `redis-cli --cluster fix` does."""
        with contextlib.suppress(redis.RedisError):
            masters = {node_id(node): node for node in self.masters()}
            seen = [owner_of(node, slot) for node in masters.values()]
            if len(set(seen)) == 1 and seen[0] in masters and not is_moving(masters.values(), slot):
                return True
            holders = [name for name, node in masters.items() if client_of(node).execute_command("CLUSTER", "COUNTKEYSINSLOT", slot)]
            claimed = [name for name in masters if name in seen]
            owner = (holders + claimed + list(masters))[0]
            for node in sorted(masters.values(), key=lambda node: node is not masters[owner]):
                client_of(node).execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
                client_of(node).execute_command("CLUSTER", "SETSLOT", slot, "NODE", owner)
        return False

    def reload(self) -> None:
        client_of(self.random.choice(self.masters()), timeout=60).execute_command("DEBUG", "RELOAD")

    def refresh(self) -> None:
        client_of(self.random.choice(self.masters()), timeout=60).execute_command("RG.REFRESHCLUSTER")

    def pause(self) -> None:
        client_of(self.random.choice(self.masters())).execute_command("CLIENT", "PAUSE", self.random.randrange(100, 1500), "WRITE")

    def jump(self) -> None:
        """Sets the clock of a node, forwards by minutes or backwards by less than one.

        Servers measure by it: one that was set back takes nothing for over until it is that late again (its cluster's state, WAIT, pauses).
        """
        for number, clock in self.clocks.items():
            with contextlib.suppress(redis.RedisError):
                client_of(self.nodes[number]).execute_command("CLIENT", "UNPAUSE")
            clock.jump(self.random.choice([self.random.uniform(60, 300), -self.random.uniform(5, MOST_BACK_S)]))

    # --- clients ---

    def ask(self, chosen: random.Random) -> None:
        """One call to some master, and a look at what it tells."""
        node = chosen.choice(self.nodes)
        if role(node) != "master":
            return
        word = str(chosen.randrange(1 << 40))
        script, right = chosen.choice([(COUNT_RUN, KEYS), (NAMES_RUN, KEYS), (SUM_RUN, SUM), (SLOW_RUN, KEYS), (None, None), ("version", None)])
        started = time.monotonic()
        try:
            client = client_of(node, timeout=BOUND_S)
            if right is not None:
                found, errors = client.execute_command("RG.PYEXECUTE", script)
                wrong = None if errors or found == [str(right)] else f"{script}: {found}"
                if errors:
                    return self.note_error(errors[0])
            elif script is None:
                found = sorted(client.execute_command("RG.TRIGGER", "everywhere", word))
                shards = {entry.split(" ")[0] for entry in found}
                fine = len(found) == len(shards) == 3 and all(entry.endswith(" " + word) for entry in found)
                wrong = None if fine else f"everywhere {word}: {found}"
            else:
                [found] = client.execute_command("RG.TRIGGER", "version", word)
                wrong = self.judge_version(found, word, started)
        except redis.exceptions.TimeoutError:
            wrong = f"no reply within {BOUND_S} s to {script}"
        except redis.ResponseError as error:
            return self.note_error(str(error))
        except redis.ConnectionError:
            # it was killed, which `check` looks at
            return
        # Who is no shard any more reads its own data only, and nothing is deployed to it: it was asked in vain.
        if wrong and not is_shard(node):
            return self.note_error("demoted")
        with self._lock:
            self.told.slowest_s = max(self.told.slowest_s, time.monotonic() - started)
            if wrong:
                self.told.wrong.append(f"{node.port} at {time.strftime('%H:%M:%S')}: {wrong}")
            else:
                self.told.right += 1

    def note_error(self, text: str) -> None:
        with self._lock:
            self.told.error(text)
            if not text.strip():
                self.told.wrong.append("an error without a text")

    def judge_version(self, found: str, word: str, started: float) -> str | None:
        version, _, echoed = found.partition(" ")
        with self._lock:
            old = [number for number, when in self.versions if when < started - STALE_S]
            fine = echoed == word and max(old, default=0) <= int(version) <= self.tried
        return None if fine else f"version {word}: {found}, known {self.versions[-3:]}, tried {self.tried}"

    def deploy(self, chosen: random.Random) -> None:
        """Puts the next version in the place of the last one."""
        node = chosen.choice(self.nodes)
        if role(node) != "master":
            return
        with self._lock:
            self.tried += 1
            version = self.tried
        try:
            client = client_of(node, timeout=BOUND_S)
            with self._deploying:
                reply = client.execute_command("RG.PYEXECUTE", DEPLOYED.format(version=version), "ID", "app", "UPGRADE")
        except redis.exceptions.TimeoutError:
            with self._lock:
                self.told.wrong.append(f"no reply within {BOUND_S} s to a deployment")
            return
        except redis.ConnectionError:
            return
        except redis.ResponseError as error:
            return self.note_error(str(error))
        if reply == "OK" and is_shard(node):
            with self._lock:
                self.versions.append((version, time.monotonic()))
        elif reply != "OK":
            self.note_error(str(reply[0]))

    # --- the whole ---

    def prepare(self) -> None:
        """Deploys what clients ask for."""
        wait_until(self.is_well, 60, "the cluster is well")
        while not self.versions:
            self.deploy(self.random)

    def run(self, seconds: float) -> None:
        """Lets things happen for `seconds`."""
        self.prepare()
        pairs = [(work, self.random.randrange(1 << 30)) for work in self.work]
        threads = [threading.Thread(target=self._repeat, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end and not self.told.wrong:
                action = self.random.choice(self.actions())
                # What an action waits for may not come because of the last one: what counts is that all is well then.
                with contextlib.suppress(redis.ConnectionError, redis.ResponseError, AssertionError):
                    action()
                self.done[action.__name__] = self.done.get(action.__name__, 0) + 1
                time.sleep(self.random.random())
                wait_until(self.is_well, 120 + MOST_BACK_S, f"the cluster is well after {action.__name__}", 0.05)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(2 * BOUND_S)

    def _repeat(self, work: Callable[[random.Random], None], seed: int) -> None:
        chosen = random.Random(seed)
        while not self._stop.wait(chosen.random() * 0.1):
            try:
                work(chosen)
            except Exception as error:  # noqa: BLE001 (told by the test)
                with self._lock:
                    self.told.wrong.append(f"{work.__name__}: {type(error).__name__}: {error}")
                return

    def close(self) -> None:
        """Ends the proxies."""
        for proxy in self.proxies:
            proxy.close()

    def check(self) -> None:
        """What must hold when everything has calmed down."""
        assert not self.told.wrong, "\n".join(self.told.wrong[:10])
        wait_until(self.is_well, 60, "the cluster is well")
        wait_until(lambda: len({registered(node) for node in self.nodes}) == 1, 60, "all nodes have the same registrations")
        masters = [master for master, _ in self.shard_mates()]
        for master in masters:
            client = client_of(master)
            for script, right in [(COUNT_RUN, KEYS), (NAMES_RUN, KEYS), (SUM_RUN, SUM)]:
                wait_until(lambda: client.execute_command("RG.PYEXECUTE", script) == [[str(right)], []], 30, script)
            assert len(client.execute_command("RG.TRIGGER", "everywhere", "x")) == 3
            version = int(client.execute_command("RG.TRIGGER", "version", "x")[0].split(" ")[0])
            assert self.versions[-1][0] <= version <= self.tried, self.deployed(version)
            wait_until(lambda: running(master) == [], 30, "no execution is left")
            assert client.info("clients")["blocked_clients"] == 0


    def deployed(self, version: int) -> str:
        """What there is to say about a version that should not be in force."""
        lines = [f"version {version} in force, acknowledged {self.versions[-5:]}, tried {self.tried}"]
        for node in self.nodes:
            lines.append(f"{node.port} {role(node)} {client_of(node).execute_command('RG.DUMPREGISTRATIONS', 'VERBOSE')}")
        return "\n".join(lines)


def client_of(node: Server, timeout: float = 10) -> redis.Redis:
    """A client that is kept with its thread: the calls of a test are many."""
    kept = _CLIENTS.__dict__.setdefault("clients", {})
    key = (node.port, timeout)
    if key not in kept:
        kept[key] = redis.Redis(host=node.host, port=node.port, decode_responses=True, protocol=2, socket_timeout=timeout)
        kept[key].set_retry(redis.retry.Retry(redis.backoff.NoBackoff(), 0))
    return kept[key]


_CLIENTS = threading.local()


def role(node: Server) -> str:
    """What a node says it is; empty if it does not answer."""
    try:
        return str(client_of(node).execute_command("ROLE")[0])
    except redis.RedisError:
        return ""


def is_shard(node: Server) -> bool:
    """Whether a node is a master with slots, as it sees it."""
    with contextlib.suppress(redis.RedisError):
        return role(node) == "master" and bool(owned_slots(node))
    return False


def is_up(node: Server) -> bool:
    with contextlib.suppress(redis.RedisError):
        return client_of(node).execute_command("CLUSTER INFO")["cluster_state"] == "ok"
    return False


def size(node: Server) -> int:
    return int(client_of(node).dbsize())


def owned_slots(node: Server) -> list[int]:
    """The slots of a master, as it sees them."""
    own = str(client_of(node).execute_command("CLUSTER MYID"))
    found: list[int] = []
    for first, last, master, *_ in node.client().execute_command("CLUSTER", "SLOTS"):
        if master[2] == own:
            found.extend(range(first, last + 1))
    return found


def owner_of(node: Server, slot: int) -> str:
    """The id of the master that has a slot, as a node sees it; empty if none has."""
    for first, last, master, *_ in node.client().execute_command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return str(master[2])
    return ""


def is_moving(nodes: Iterable[Server], slot: int) -> bool:
    """Whether a node imports or migrates a slot."""
    known = [entry for node in nodes for entry in client_of(node).execute_command("CLUSTER NODES").values()]
    return any(int(move["slot"]) == slot for entry in known for move in entry["migrations"])


def registered(node: Server) -> str:
    return " ".join(sorted(as_dict(entry)["id"] for entry in client_of(node).execute_command("RG.DUMPREGISTRATIONS")))


def running(node: Server) -> list[str]:
    entries = map(as_dict, client_of(node).execute_command("RG.DUMPEXECUTIONS"))
    return [entry["executionId"] for entry in entries if entry["status"] not in ("done", "aborted")]
