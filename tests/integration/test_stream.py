"""`WS /v1/sessions/{id}/stream` against a running server, as a client meets it."""

import json
import struct

import httpx
import pytest

from tests.support.server import Server, create
from tests.support.websocket import ANSWER, BINARY, CLOSE, TEXT, Client, frame, handshake, request


def test_a_conversation(client: httpx.Client, server: Server) -> None:
    """JSON and binary messages take turns; what one has said, the other and HTTP go on from."""
    session = create(client, "sum")
    with Client(server.url, f"{session}/stream") as stream:
        assert stream.status == 101
        stream.send('{"inputs": [1, 2], "return": "all"}')
        opcode, told = stream.receive()
        answer = json.loads(told)
        assert (opcode, answer["position"], answer["outputs"]) == (TEXT, 2, {"y": [[1.0], [3.0]]})
        stream.send(request(4, 8, position=2, flags=1))
        opcode, told = stream.receive()
        assert opcode == BINARY
        assert ANSWER.unpack_from(told)[:5] == (0, 0, 0, 2, 4)
        assert struct.unpack_from("<2f", told, ANSWER.size) == (7, 15)
        again = client.post(f"{session}/steps", json={"inputs": [4, 8], "position": 2, "return": "all"})
        assert again.json()["outputs"] == {"y": [[7.0], [15.0]]}
        assert again.headers["idempotent-replayed"] == "true"


def test_text_and_symbols(client: httpx.Client, server: Server) -> None:
    """A language model is asked in text, and answers a binary message by log-probabilities and tokens."""
    session = create(client, "language")
    with Client(server.url, f"{session}/stream") as stream:
        stream.send('{"text": "ab", "top_k": 2, "position": 0}')
        told = json.loads(stream.receive()[1])
        with Client(server.url, f"{create(client, 'language')}/stream") as other:
            tokens = client.get("/v1/models/language").json()["vocabulary"]
            other.send(request(*(tokens.index(symbol) for symbol in "ab"), top_k=2, code="q"))
            payload = other.receive()[1]
    assert ANSWER.unpack_from(payload)[2:5] == (2, 2, 2)
    assert struct.unpack_from("<2f2B", payload, ANSWER.size) == pytest.approx(
        (*told["outputs"]["logprobs"], *told["outputs"]["tokens"])
    )


def test_many_in_flight_keep_their_order(client: httpx.Client, server: Server) -> None:
    """More than are taken at a time: the rest waits where it is."""
    session = create(client, "sum")
    with Client(server.url, f"{session}/stream?in_flight=64") as stream:
        for position in range(500):
            stream.send(request(1, position=position))
        assert [stream.position() for _ in range(500)] == list(range(1, 501))
        stream.socket.sendall(frame(CLOSE, b"\x03\xe8"))
        assert stream.receive() == (CLOSE, b"\x03\xe8")
    assert client.get(session).json()["position"] == 500


@pytest.mark.parametrize(
    ("path", "headers", "status", "kind"),
    [
        ("/v1/sessions/nobody/stream", {}, 404, "unknown-session"),
        ("/v1/streams", {}, 404, "unknown-path"),
        ("{session}/stream", {"Sec_WebSocket_Version": "8"}, 426, "upgrade-required"),
        ("{session}/stream", {"Sec_WebSocket_Key": "short"}, 400, "bad-handshake"),
        ("{session}/stream?in_flight=65", {}, 422, "invalid-input"),
        ("{session}/stream", {"Upgrade": ""}, 426, "upgrade-required"),
    ],
)
def test_refused_handshakes(
    client: httpx.Client, server: Server, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    """The answer is a problem, like all others."""
    path = path.format(session=create(client, "sum"))
    with Client(server.url, path, Connection="close" if "Upgrade" in headers else "Upgrade", **headers) as stream:
        assert stream.status == status
        assert json.loads(stream.body())["type"].endswith(kind)
    assert b"application/problem+json" in stream.head
    if status == 426:
        assert b"sec-websocket-version: 13" in stream.head


def test_a_session_that_is_gone(client: httpx.Client, server: Server) -> None:
    """No stream is opened to it, and one that was open is closed."""
    session = create(client, "sum")
    with Client(server.url, f"{session}/stream") as stream:
        client.delete(session)
        stream.send(request(1))
        assert json.loads(stream.receive()[1])["status"] == 410
        assert stream.receive()[1][:2] == (4410).to_bytes(2, "big")
    with Client(server.url, f"{session}/stream") as stream:
        assert (stream.status, json.loads(stream.body())["reason"]) == (410, "deleted")


def test_a_stream_on_a_connection_that_was_used_before(client: httpx.Client, server: Server) -> None:
    """By plain requests."""
    session = create(client, "sum")
    with Client(server.url, f"{session}/none", Upgrade="", Connection="") as stream:
        assert stream.status == 404
        stream.socket.sendall(handshake(f"{session}/stream"))
        head = b""
        while b"\r\n\r\n" not in head and (more := stream.socket.recv(1)):
            head += more
        assert b"101 Switching Protocols" in head
        stream._rest = b""
        stream.send(request(1))
        assert stream.position() == 1


def test_what_is_too_large_is_closed_with_its_code(client: httpx.Client, server: Server) -> None:
    """A message may be as large as a body."""
    with Client(server.url, f"{create(client, 'sum')}/stream") as stream:
        stream.socket.sendall(frame(BINARY, bytes(100_001)))
        assert stream.receive()[1][:2] == (1009).to_bytes(2, "big")
        assert stream.socket.recv(1) == b""  # and that is the end, without the client's part


def test_streams_are_counted_and_described(client: httpx.Client, server: Server) -> None:
    """Handshakes and messages by their status; the route is in the OpenAPI document."""
    with Client(server.url, f"{create(client, 'sum')}/stream") as stream:
        stream.send(request(1))
        stream.position()
    told = client.get("/metrics").text
    for status in (101, 200):
        assert f'lstm_serve_request_seconds_count{{route="/v1/sessions/{{id}}/stream",status="{status}"}}' in told
    assert "WebSocket" in client.get("/openapi.json").json()["paths"]["/v1/sessions/{id}/stream"]["get"]["description"]
