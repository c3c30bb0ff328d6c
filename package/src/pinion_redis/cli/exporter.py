"""`pinion exporter`: figures and rules for Prometheus, and a dashboard for Grafana."""

from __future__ import annotations

import signal
import threading
from importlib.resources import files
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry, start_http_server

from pinion_redis.cli.options import address_options
from pinion_redis.cli.output import note, warn
from pinion_redis.connection import Address
from pinion_redis.errors import PinionError
from pinion_redis.exporter import StatsCollector


@address_options
def command(
    address: Address,
    listen: Annotated[str, typer.Option("--listen", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help="Where Prometheus asks for /metrics.")] = 9121,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Print a Grafana dashboard (JSON) and exit.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="Print alert rules for Prometheus (YAML) and exit.")] = False,
) -> None:
    """Serve the figures of all shards to Prometheus. A server that is away shows as pinion_up 0."""
    if dashboard or rules:
        print((files("pinion_redis") / ("grafana.json" if dashboard else "prometheus.yml")).read_text(encoding="utf-8"), end="")
        return
    registry = CollectorRegistry()
    registry.register(StatsCollector(address, lambda reason: warn(f"pinion_up is 0: {reason}")))
    try:
        server, thread = start_http_server(port, listen, registry)
    except OSError as error:
        raise PinionError(f"cannot listen on {listen}:{port}: {error.strerror}; choose another with --port") from None
    note(f"figures of {address.shown()} at http://{listen}:{port}/metrics; Ctrl-C ends it")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    server.shutdown()
    thread.join()
