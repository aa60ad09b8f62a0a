"""The balancer's configuration, run by HAProxy in front of replicas of the test."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.support.haproxy import haproxy

IDS = [f"{n:032x}" for n in range(60)]


class Replica(ThreadingHTTPServer):
    """Answers with its own name, and counts what it was asked; a path that ends in "breaks", or where it
    ``breaks``, ends the connection unanswered."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.asked: Counter[str] = Counter()
        self.breaks = False

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Replica

    def do_GET(self) -> None:  # the base class's name
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/health/ready":
            self.server.asked[self.path] += 1
        if "/breaks/" in self.path or (self.server.breaks and self.path != "/health/ready"):
            self.close_connection = True
            return
        body = self.server.name.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def replicas() -> Iterator[list[Replica]]:
    """Three replicas."""
    with ExitStack() as stack:
        yield [stack.enter_context(Replica(name)) for name in "abc"]


@pytest.fixture
def client(replicas: list[Replica], tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the balancer in front of them."""
    ports = [replica.server_port for replica in replicas]
    with haproxy(tmp_path, ports) as url, httpx.Client(base_url=url) as client:
        yield client


def test_a_session_stays_with_a_replica(client: httpx.Client) -> None:
    """Whatever is asked of a session goes to one replica; all replicas get their share of the sessions."""
    first = {id: client.post(f"/v1/sessions/{id}/steps").text for id in IDS}
    for id in IDS:
        assert client.get(f"/v1/sessions/{id}").text == first[id]
        assert client.post(f"/v1/sessions/{id}/generate?x=1").text == first[id]
    assert set(first.values()) == {"a", "b", "c"}


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/models/sine/predict", "/"])
def test_everything_else_goes_around(client: httpx.Client, path: str) -> None:
    """What is of no session goes to all replicas, in turn or by chance, as the version has it."""
    assert {client.post(path).text for _ in range(60)} == {"a", "b", "c"}


def test_a_replica_that_is_gone_moves_its_own_sessions_alone(client: httpx.Client, replicas: list[Replica]) -> None:
    """Where no connection comes about, another replica is asked; sessions of the others stay where they were."""
    first = {id: client.get(f"/v1/sessions/{id}").text for id in IDS}
    replicas[0].__exit__()
    for id in IDS:
        now = client.get(f"/v1/sessions/{id}", headers={"connection": "close"})
        assert now.status_code == httpx.codes.OK
        assert now.text == first[id] if first[id] != "a" else now.text in "bc"


@pytest.mark.parametrize(
    ("method", "body", "sent"),
    [
        ("POST", b'{"inputs": [1], "position": 7, "position": null}', 1),
        ("POST", b'{"inputs": [1], "position": 7,\n "position": null}', 1),
        ("POST", b'{"inputs": [1], "position": 7, "posit\\u0069on": null}', 1),
        ("POST", b'{"inputs": [1]}', 1),
        ("POST", b'{"inputs": [1], "position": null}', 1),
        ("POST", b'{"inputs": ["position"], "note": "\\"position\\": 1"}', 1),
        ("POST", b'{"inputs": [1], "position"', 1),
        ("POST", b"", 1),
        ("DELETE", b"", 1),
        ("POST", b'{"inputs": [1], "position": 7}', 3),
        ("POST", b'{"position":0,"inputs":[1]}', 3),
        ("GET", b"", 3),
    ],
)
def test_what_may_be_applied_twice_is_sent_once(
    client: httpx.Client, replicas: list[Replica], method: str, body: bytes, sent: int
) -> None:
    """No answer came: a step that names its position is tried elsewhere, as is what only reads, and nothing else."""
    assert _sent(client, replicas, method, "steps", body) == sent


def test_what_heeds_no_position_is_sent_once(client: httpx.Client, replicas: list[Replica]) -> None:
    """Whatever its body says."""
    assert _sent(client, replicas, "POST", "reset", b'{"position": 7}') == 1


def _sent(client: httpx.Client, replicas: list[Replica], method: str, what: str, body: bytes) -> int:
    """How often a request was sent to replicas that break over it; what the client is told then is looked at."""
    path = f"/v1/sessions/{IDS[0]}/breaks/{what}"
    answer = client.request(method, path, content=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (httpx.codes.BAD_GATEWAY, "1")
    assert answer.json()["type"] == "urn:lstm-serve:problem:outcome-unknown"
    return sum(replica.asked[path] for replica in replicas)


def test_a_step_with_a_position_is_answered_by_another_replica(client: httpx.Client, replicas: list[Replica]) -> None:
    """The client does not notice that the first one broke down over it."""
    path = f"/v1/sessions/{IDS[0]}/steps"
    first = client.post(path).text
    (broken,) = [replica for replica in replicas if replica.name == first]
    broken.breaks = True
    answer = client.post(path, content=b'{"inputs": [1], "position": 4}')
    assert (answer.status_code, answer.text != first) == (200, True)
    assert broken.asked[path] == 2


def test_no_replica(tmp_path: Path) -> None:
    """Without a replica the client is told to come again, by a problem like any other."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with haproxy(tmp_path, [closed.getsockname()[1]]) as url:
            answer = httpx.get(url + "/v1/models")
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:lstm-serve:problem:engine-unavailable"


def test_metrics_are_not_for_clients(client: httpx.Client, replicas: list[Replica]) -> None:
    """Prometheus asks the replicas themselves."""
    assert client.get("/metrics").status_code == httpx.codes.NOT_FOUND
    assert client.get("/%6detrics").status_code == httpx.codes.NOT_FOUND
    assert not any(replica.asked["/metrics"] for replica in replicas)
