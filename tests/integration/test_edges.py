"""The edges of the API: hostile bodies, clients that hang up, faults, and a shutdown in the middle of work."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.support.server import Server, create

MANY_STEPS = 1_000_000
GENERATE = "/v1/models/language/generate"


@pytest.fixture(scope="module", params=[0, 1], ids=["one-process", "front-end"])
def patient(
    tmp_path_factory: pytest.TempPathFactory, repository: Path, request: pytest.FixtureRequest
) -> Iterator[Server]:
    """A server that allows long work, and gives it one second at a shutdown."""
    settings = {"max_steps": MANY_STEPS, "drain_s": 1, "http_workers": request.param}
    with Server(tmp_path_factory.mktemp("patient"), repository, **settings) as running:
        yield running


def told(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, type and field of a problem."""
    document = answer.json()
    return answer.status_code, document["type"].rsplit(":", 1)[1], document.get("field")


def scraped(client: httpx.Client, line: str) -> float:
    """The value of one line of the metrics; 0 where there is none."""
    found = [row for row in client.get("/metrics").text.splitlines() if row.startswith(line + " ")]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/models/sum/predict", {"inputs": [["x"]] * 257}, "inputs"),
        ("/v1/models/language/predict", {"text": ["?"] * 257}, "text"),
        ("/v1/models/sum/predict", {"inputs": [["x"] * 1001] * 2}, "inputs"),
        ("/v1/models/sum/predict", {"inputs": [{"x": ["x"] * 1001}] * 2}, "inputs"),
        ("/v1/models/language/predict", {"text": ["?" * 1001] * 2}, "text"),
        ("/v1/models/language/generate", {"inputs": ["x"] * 2001}, "inputs"),
        ("/v1/models/language/generate", {"text": "?" * 2001}, "text"),
    ],
)
def test_what_is_too_much_is_refused_unseen(
    client: httpx.Client, path: str, body: dict[str, object], field: str
) -> None:
    """Sequences and steps are counted before any value is looked at: values that do not fit are not even noticed."""
    assert told(client.post(path, json=body)) == (413, "too-large", field)


def test_a_large_answer_is_refused_before_the_session_moves(patient: Server) -> None:
    """An answer that would hold up everybody while it is written is refused, and the session stays where it was."""
    with patient.client() as client:
        session = create(client, "language")
        wide = {"text": "a" * 20_000, "top_k": 29, "return": "all"}
        assert told(client.post(f"{session}/steps", json=wide)) == (413, "too-large", "top_k")
        assert client.get(session).json()["position"] == 0
        halves = {"text": ["a" * 10_000] * 2, "top_k": 29, "return": "all"}
        assert told(client.post("/v1/models/language/predict", json=halves)) == (413, "too-large", "top_k")
        assert client.post(f"{session}/steps", json={"text": "a" * 20_000, "top_k": 29}).status_code == 200


@pytest.mark.parametrize("route", ["steps", "predict", "generate", "reset of nobody"])
@pytest.mark.parametrize(
    "content",
    [b'{"inputs":{"\\ud800":[1]}}', b'{"inputs":[{"\\ud800":[1]}]}', '{"inputs":[1]}'.encode("utf-16"), b"", b"\xff"],
)
def test_every_body_is_read_by_one_parser(client: httpx.Client, route: str, content: bytes) -> None:
    """What is no JSON in UTF-8 is malformed on every route, whatever type the client gives it."""
    paths = {
        "steps": f"{create(client, 'sum')}/steps",
        "predict": "/v1/models/sum/predict",
        "generate": "/v1/models/language/generate",
        "reset of nobody": "/v1/sessions",
    }
    for kind in ("application/json", "text/plain"):
        answer = client.post(paths[route], content=content, headers={"content-type": kind})
        assert told(answer) == (400, "malformed-body", None)


def test_openapi_describes_every_body(client: httpx.Client) -> None:
    """Routes that read their bodies themselves are documented all the same."""
    paths = client.get("/openapi.json").json()["paths"]
    for path, name in (
        ("/v1/sessions", "CreateSession"),
        ("/v1/models/{model}/predict", "Predict"),
        ("/v1/models/{model}/generate", "GeneratePrompt"),
        ("/v1/sessions/{id}/generate", "GenerateSession"),
        ("/v1/sessions/{id}/steps", "Steps"),
    ):
        body = paths[path]["post"]["requestBody"]
        assert body["required"]
        assert body["content"]["application/json"]["schema"]["title"] == name


def test_a_wrong_method_is_told_the_right_one(client: httpx.Client) -> None:
    """405 carries Allow, as RFC 9110 demands."""
    answer = client.get("/v1/sessions/x/steps")
    assert told(answer)[:2] == (405, "wrong-method")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/models/sum/predict", "/v1/sessions/x/steps"])
def test_a_body_that_says_it_is_too_large_is_not_asked_for(server: Server, path: str) -> None:
    """413 comes at once, instead of a 100-continue; and it is counted."""
    with server.client() as client, _connected(server) as connection:
        before = scraped(client, 'lstm_serve_rejected_total{reason="too-large"}')
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\nexpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        assert scraped(client, 'lstm_serve_rejected_total{reason="too-large"}') == before + 1


def test_pipelined_clients_that_hang_up_leave_no_traces(server: Server) -> None:
    """Whatever a client sent ahead before it hung up is dropped quietly."""
    with server.client() as client:
        paths = [f"{create(client, 'sum')}/steps", "/v1/models/sum/predict"]
        for path in paths:
            body = json.dumps({"inputs": [1] * 1500} if path.endswith("steps") else {"inputs": [[1] * 1500]})
            request = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n{body}"
            for _ in range(10):
                with _connected(server) as connection:
                    connection.sendall(request.encode() * 3)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    time.sleep(0.002)
        assert client.post(f"{create(client, 'sum')}/steps", json={"inputs": [1]}).status_code == 200
        time.sleep(0.2)  # what was sent ahead is still at work
    assert "Traceback" not in server.log
    assert "ASGI callable" not in server.log


def _connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10.0)


def test_a_shutdown_tells_whoever_still_waits(patient: Server) -> None:
    """When the time for the shutdown is over, an answer is 503 and a stream ends with an error event."""
    prompt = {"text": "a", "max_steps": MANY_STEPS, "seed": 1}
    with patient.client() as client, patient.client() as other, _stream(client, prompt) as stream:
        lines = stream.iter_lines()
        next(lines)
        answers: list[httpx.Response] = []
        whole = threading.Thread(target=lambda: answers.append(other.post(GENERATE, json=prompt)))
        whole.start()
        time.sleep(0.2)  # the request has arrived
        stopping = threading.Thread(target=patient.terminate)
        stopping.start()
        events = [line for line in lines if line]
        for thread in (whole, stopping):
            thread.join()
    assert events[-2] == "event: error"
    assert json.loads(events[-1].removeprefix("data: "))["error"]["type"].endswith(":shutting-down")
    assert told(answers[0])[:2] == (503, "shutting-down")
    assert "Traceback" not in patient.log


def _stream(client: httpx.Client, prompt: dict[str, object]) -> AbstractContextManager[httpx.Response]:
    return client.stream("POST", GENERATE, json=prompt | {"stream": True})
