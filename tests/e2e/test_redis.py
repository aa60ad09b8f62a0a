"""The service over a Redis that is killed, paused and cut off: nothing is lost, nothing hangs, all comes back."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support import artifacts
from tests.support.fakes import PATIENCE_S
from tests.support.redis import RedisServer
from tests.support.server import Server, create
from tests.support.tcp import Proxy

UNKNOWN, UNAVAILABLE = "urn:lstm-serve:problem:outcome-unknown", "urn:lstm-serve:problem:store-unavailable"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that keeps an append-only file."""
    options = {"appendonly": "yes", "appendfsync": "always", "requirepass": "open-sesame"}
    with RedisServer(tmp_path_factory.mktemp("redis"), password="open-sesame", **options) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(redis: RedisServer) -> Iterator[Proxy]:
    """The way to it."""
    with Proxy(redis.port) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, proxy: Proxy) -> Iterator[Server]:
    """The service over it."""
    repository = artifacts.repository(tmp_path_factory.mktemp("models"), adder=artifacts.running_sum)
    store = f"redis://:open-sesame@127.0.0.1:{proxy.port}"
    with Server(tmp_path_factory.mktemp("server"), repository, store=store, durability="fsync") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the service, which is ready."""
    with server.client() as connected:
        _becomes(connected, 200)
        yield connected


def _becomes(client: httpx.Client, status: int, warnings: int = 0) -> httpx.Response:
    """Wait until /health/ready answers so, with so many warnings, as it does by itself."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := client.get("/health/ready")).status_code != status or len(answer.json()["warnings"]) != warnings:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.02)
    return answer


def _add(client: httpx.Client, session: str, value: float, position: int | None = None) -> httpx.Response:
    at = {} if position is None else {"position": position}
    return client.post(f"{session}/steps", json={"inputs": [[value]], **at})


def _sum(answer: httpx.Response) -> float:
    assert answer.status_code == 200, answer.text
    return float(answer.json()["outputs"]["y"][-1])


def test_a_redis_that_is_killed_loses_nothing(client: httpx.Client, redis: RedisServer) -> None:
    """While it is away requests are refused with Retry-After; when it is back, all sessions are as acknowledged."""
    session = create(client, "adder")
    assert _sum(_add(client, session, 5)) == 5
    redis.kill()
    for _ in range(3):
        refused = _add(client, session, 1, position=1)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["type"] in (UNKNOWN, UNAVAILABLE)
    assert _becomes(client, 503).json()["status"] == "unavailable"
    assert client.post("/v1/sessions", json={"model": "adder"}).status_code == 503
    redis.start()
    _becomes(client, 200)
    assert _sum(_add(client, session, 1, position=1)) == 6


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_step_whose_answer_was_cut_off_is_applied_once(client: httpx.Client, proxy: Proxy, cut: str) -> None:
    """It may have been applied: the client is told so, and its repeat is answered as the first would have been."""
    session = create(client, "adder")
    assert _sum(_add(client, session, 5)) == 5
    proxy.cut = cut  # type: ignore[assignment]
    lost = _add(client, session, 1, position=1)
    proxy.cut = None
    assert (lost.status_code, lost.json()["type"], lost.headers["retry-after"]) == (503, UNKNOWN, "1")
    assert "position" in lost.json()["detail"]
    _becomes(client, 200)
    assert _sum(_add(client, session, 1, position=1)) == 6
    assert client.get(session).json()["position"] == 2


def test_a_redis_that_hangs_piles_nothing_up(client: httpx.Client, redis: RedisServer) -> None:
    """Every request is answered while it hangs, and the service is ready again when it goes on."""
    sessions = [create(client, "adder") for _ in range(8)]
    redis.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(8) as threads:
            refused = list(threads.map(lambda session: _add(client, session, 1, position=0), sessions * 8))
            made = list(threads.map(lambda _: client.post("/v1/sessions", json={"model": "adder"}), range(8)))
        assert {answer.status_code for answer in (*refused, *made)} == {503}
        _becomes(client, 503)
    finally:
        redis.signal(signal.SIGCONT)
    _becomes(client, 200)
    assert [_sum(_add(client, session, 1, position=0)) for session in sessions] == [1] * 8


def test_what_is_wrong_with_the_set_up_is_told(client: httpx.Client, redis: RedisServer, server: Server) -> None:
    """A policy that drops keys is named by /health/ready, which stays true, and no password is told anywhere."""
    with redis.client() as operator:
        operator.config_set("maxmemory-policy", "allkeys-lru")
        server.terminate()
        server.start()
        answer = _becomes(client, 200, warnings=1)
        scraped = client.get("/metrics").text
        operator.config_set("maxmemory-policy", "noeviction")
    assert ["allkeys-lru" in warning for warning in answer.json()["warnings"]] == [True]
    assert "lstm_serve_store_warnings 1.0" in scraped
    assert "allkeys-lru" in server.log
    assert "open-sesame" not in server.log + answer.text
