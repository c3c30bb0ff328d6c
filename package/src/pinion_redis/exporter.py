"""RG.STATS as metrics of Prometheus: read once for each scrape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Union

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .connection import Address, Server
from .errors import NotAllowed, PinionError

_REGISTRATION = ["shard", "registration", "session", "reader", "description"]
_ENDS = ("triggered", "succeeded", "failed", "aborted")
# Figures of readers that go up and down; all others only grow, and end in `_total` as they do in INFO.
_GAUGES = ("queued", "queuedBytes", "waiting", "loading", "failuresInRow")
_TIMES = ("MS", "US")
Family = Union[CounterMetricFamily, GaugeMetricFamily]


class StatsCollector(Collector):
    """Asks the shards when Prometheus asks. A connection lives until an error.

    `tell`: gets why there are no figures, each reason once until there are some again.
    """

    def __init__(self, address: Address, tell: Callable[[str], None]) -> None:
        self._address = address
        self._tell = tell
        self._told: set[str] = set()
        self._server: Union[Server, None] = None
        self._lock = threading.Lock()  # several scrapes may come at once

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked for at the start: the server may come later."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            try:
                self._server = self._server or Server(self._address)
                shards = self._server.stats()
                self._told.clear()
            except PinionError as error:
                if self._server:
                    self._server.close()
                self._server, shards = None, []
                self._tell_once(error)
        yield GaugeMetricFamily("pinion_up", "1 if all shards have answered.", value=1 if shards else 0)
        yield from metrics(shards)

    def _tell_once(self, error: PinionError) -> None:
        reason = str(error)
        if reason in self._told:
            return
        self._told.add(reason)
        if isinstance(error, NotAllowed):
            reason += f"; the exporter needs: {self._address.rights_for_stats()}"
        self._tell(reason)


def metrics(shards: list[dict[str, Any]]) -> Iterator[Metric]:
    """The metrics of documents of RG.STATS, one for each shard."""
    families: dict[str, Family] = {}

    def add(name: str, help: str, labels: dict[str, str], value: Any, *, counter: bool = False) -> None:
        if value is None:
            return
        if name not in families:
            families[name] = (CounterMetricFamily if counter else GaugeMetricFamily)(f"pinion_{name}", help, labels=list(labels))
        families[name].add_metric(list(labels.values()), float(value))

    for shard in shards:
        here = {"shard": shard["shard"]}
        add("info", "Versions.", {**here, **{name: shard[name] for name in ("pinion", "python", "role")}}, 1)
        for name, value in shard["memory"].items():
            add(f"memory_{name}_bytes", "Memory of the server and of Python in it.", here, value)
        add("lost_workers", "Workers that hang in calls which were given up.", here, shard["executions"]["lost_workers"])
        add("executions_queued", "Executions that no worker has begun.", here, shard["executions"]["queued"])
        for status, count in shard["executions"]["by_status"].items():
            add("executions_kept", "Executions that RG.DUMPEXECUTIONS shows.", {**here, "status": status}, count)
        for name, value in shard["commands"].items():
            add(f"commands_{name}", "Commands with functions, and refused ones.", here, value, counter=True)
        add("sessions", "Sessions that are in use.", here, len(shard["sessions"]))
        for name in ("links_connected", "messages_pending"):
            add(f"cluster_{name}", "Links to other shards.", here, shard["cluster"][name])
        for name in ("messages_sent", "messages_sent_bytes", "messages_received"):
            add(f"cluster_{name}", "Messages to other shards.", here, shard["cluster"][name], counter=True)
        add("cluster_shards", "Shards that this one knows.", here, len(shard["cluster"]["shards"]))
        for half in ("read_through", "write_behind"):
            for name, value in shard.get(half, {}).items():  # an older server has not both
                counter = name.endswith("_total")
                add(f"{half}_{name.removesuffix('_total') if counter else name}", f"See INFO rg_{half}.", here, value, counter=counter)
        for entry in shard["registrations"]:
            labels = {
                **here,
                "registration": entry["id"],
                **{name: entry[name] or "" for name in ("session", "reader", "description")},
            }
            for name in _ENDS:
                add(f"registration_{name}", "Executions of a registration.", labels, entry[name], counter=True)
            add("registration_pending", "Executions that no worker has begun.", labels, entry["pending"])
            add("registration_run_seconds", "Time that executions ran, in all.", labels, entry["run_total_ms"] / 1000, counter=True)
            for kind in ("run", "wait"):
                for point, us in entry[f"{kind}_us"].items():
                    help = "How long executions run, and wait for a worker."
                    add(f"registration_{kind}_{point}_seconds", help, labels, us / 1e6)
            add("registration_has_error", "1 if the last execution failed.", labels, int(entry["last_error"] is not None))
            add("registration_warnings", "Reasons why it may never fire.", labels, len(entry["warnings"]))
            for name, value in entry["figures"].items():
                if name == "breaker":
                    add("registration_breaker_open", "1 if no load is begun, or one only to try.", labels, int(value != "closed"))
                if isinstance(value, (int, float)):
                    counter = name not in _GAUGES and not name.endswith(_TIMES)
                    add(f"registration_{_snake(name)}", "A figure of this reader.", labels, value, counter=counter)
    yield from families.values()


def _snake(name: str) -> str:
    """`last_estimated_lag_ms` for `lastEstimatedLagMS`."""
    words = "".join(f"_{letter.lower()}" if letter.isupper() and not before.isupper() else letter.lower()
                    for before, letter in zip(f"_{name}", name))
    return words.strip("_")
