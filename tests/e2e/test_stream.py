"""Streams that break: whatever was in flight, a client that repeats it gets every answer, and nothing is twice."""

import signal
from pathlib import Path

import pytest

from tests.support import artifacts
from tests.support.server import Server, create
from tests.support.websocket import ANSWER, CLOSE, Client, request

IN_FLIGHT, ROUNDS = 16, 8


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sums."""
    return artifacts.repository(tmp_path_factory.mktemp("models"), sum=artifacts.running_sum)


@pytest.mark.parametrize(("killed", "http_workers"), [("connection", 0), ("server", 0), ("connection", 1)])
def test_a_broken_stream_is_resumed(tmp_path: Path, repository: Path, killed: str, http_workers: int) -> None:
    """With sixteen in flight, whether the connection breaks or the server is killed, at whatever moment that is."""
    with Server(tmp_path, repository, http_workers=http_workers) as server:
        with server.client() as client:
            session = create(client, "sum")
        acknowledged = 0
        for n in range(ROUNDS):
            with Client(server.url, f"{session}/stream?in_flight={IN_FLIGHT}") as stream:
                acknowledged = talk(stream, acknowledged, answers=3 * n)
                if n == ROUNDS - 1:
                    wait_until_applied(server, session, acknowledged + IN_FLIGHT)
                if killed == "server":
                    server.kill()
            if killed == "server":
                server.start()
        with Client(server.url, f"{session}/stream?in_flight={IN_FLIGHT}") as stream:
            talk(stream, acknowledged, answers=0)
            answers = [stream.receive()[1] for _ in range(IN_FLIGHT)]
    assert [ANSWER.unpack_from(answer)[1] for answer in answers] == [1] * IN_FLIGHT  # all are repeats
    sums = [memoryview(answer)[ANSWER.size :].cast("B").cast("f")[0] for answer in answers]
    assert sums == [sum(range(position + 1)) for position in range(acknowledged, acknowledged + IN_FLIGHT)]


def talk(stream: Client, position: int, answers: int) -> int:
    """Keep sixteen in flight, from the first unanswered on; read so many answers, and tell where that leaves us."""
    sent = position
    for answered in range(answers + 1):
        while sent < position + IN_FLIGHT:
            stream.send(request(float(sent), position=sent))
            sent += 1
        if answered < answers:
            position += 1
            assert stream.position() == position
    return position


def wait_until_applied(server: Server, session: str, position: int) -> None:
    """Until the session stands there, whatever its stream was told."""
    with server.client() as client:
        while client.get(session).json()["position"] < position:
            pass


def test_a_server_that_ends_says_so(tmp_path: Path, repository: Path) -> None:
    """What it has read is answered, the stream is closed as going away, and the process ends well."""
    with Server(tmp_path, repository) as server:
        with server.client() as client:
            session = create(client, "sum")
        with Client(server.url, f"{session}/stream") as stream:
            stream.send(request(1))
            assert stream.position() == 1
            assert server._process is not None
            server._process.send_signal(signal.SIGTERM)
            opcode, payload = stream.receive()
            assert (opcode, payload[:2]) == (CLOSE, (1001).to_bytes(2, "big"))
            stream.socket.close()
        assert server._process.wait(timeout=30) == 0
