"""The libraries in examples/scripts do what they say."""

from __future__ import annotations

import json

import pytest
import redis

from helpers import Server
from scripting import needs_engine
from servers import ROOT

pytestmark = pytest.mark.matrix


@pytest.fixture
def client(server: Server, request: pytest.FixtureRequest) -> redis.Redis:
    needs_engine(request.config)
    client = server.client(protocol=3)
    for example in sorted((ROOT / "examples/scripts").glob("*.py")):
        assert client.function_load(example.read_text()) == example.stem
    return client


def test_rate_limit(client: redis.Redis) -> None:
    assert [client.fcall("allow", 1, "u", 3, 100) for _ in range(4)] == [1, 1, 1, 0]
    assert client.fcall("allow", 1, "other", 3, 100) == 1
    # A window that is over lets calls in again.
    client.zadd("u", dict.fromkeys(client.zrange("u", 0, -1), 0))
    assert client.fcall("allow", 1, "u", 3, 100) == 1


def test_json_query(client: redis.Redis) -> None:
    items = [{"name": "pen", "price": 2}, {"name": "cup", "price": 7}, {"name": "pen", "price": 3}]
    client.set("order", json.dumps({"items": items}))
    assert client.execute_command("FCALL_RO", "price_of", 1, "order", "pen") == 5
    assert client.execute_command("FCALL_RO", "price_of", 1, "none", "pen") == 0


def test_transfer(client: redis.Redis) -> None:
    client.hset("a", "balance", 10)
    assert client.fcall("transfer", 2, "a", "b", 4) == {"source": 6, "target": 4}
    for amount, error in ((7, "NOFUNDS a has only 6"), (0, "BADAMOUNT an amount is a positive number")):
        with pytest.raises(redis.ResponseError, match=error):
            client.fcall("transfer", 2, "a", "b", amount)
    assert (client.hget("a", "balance"), client.hget("b", "balance")) == ("6", "4")
