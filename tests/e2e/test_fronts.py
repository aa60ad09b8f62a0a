"""Several processes are one service: every one may be killed, and none outlives the others."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import artifacts
from tests.support.server import Server, create, wait_until

UNAVAILABLE = "urn:lstm-serve:problem:engine-unavailable"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with one model of each kind that matters here."""
    return artifacts.repository(tmp_path / "models", sum=artifacts.running_sum, language=artifacts.language)


@pytest.fixture
def server(tmp_path: Path, models: Path) -> Iterator[Server]:
    """An engine and one front end."""
    with Server(tmp_path, models, http_workers=1) as running:
        yield running


def alive(pid: int) -> bool:
    """Whether there is such a process; one that nobody has buried yet is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def post(client: httpx.Client, path: str, body: object) -> httpx.Response:
    """Send until there is an answer that is not "come again"."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = client.post(path, json=body)
            if answer.status_code != 503:
                return answer
            assert answer.json()["type"] == UNAVAILABLE
            assert answer.headers["retry-after"] == "1"
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["engine", "front"])
def test_whoever_is_killed_is_started_again(server: Server, kind: str) -> None:
    """After SIGKILL of a process a session goes on where it was, and a repeat gets the bytes that it got before."""
    with server.client() as client:
        session = create(client, "sum")
        first = client.post(f"{session}/steps", json={"inputs": [5], "position": 0})
        (killed,) = server.children(kind)
        os.kill(killed, signal.SIGKILL)
        again = post(client, f"{session}/steps", {"inputs": [5], "position": 0})
        assert again.content == first.content
        assert post(client, f"{session}/steps", {"inputs": [2], "position": 1}).json()["outputs"] == {"y": [7.0]}
        assert client.get(session).json()["position"] == 2
    assert killed not in server.children(kind)
    assert f"the process {kind}" in server.log
    assert "Traceback" not in server.log


def test_without_an_engine_nothing_is_applied(server: Server, tmp_path: Path) -> None:
    """While the engine cannot start every route says so, and a step moves nothing; then all goes on."""
    with server.client() as client:
        session = create(client, "sum")
        client.post(f"{session}/steps", json={"inputs": [5]})
        (tmp_path / "models").rename(tmp_path / "away")
        (engine,) = server.children("engine")
        os.kill(engine, signal.SIGKILL)
        wait_until(lambda: "the engine's process has gone" in server.log)
        for answer in (
            client.post(f"{session}/steps", json={"inputs": [1]}),
            client.get(session),
            client.get("/health/ready"),
        ):
            assert (answer.status_code, answer.json()["type"]) == (503, UNAVAILABLE)
        wait_until(lambda: "lstm-serve: no artifact in" in server.log)
        (tmp_path / "away").rename(tmp_path / "models")
        assert post(client, f"{session}/steps", {"inputs": [2], "position": 1}).json()["outputs"] == {"y": [7.0]}
        assert client.get("/health/ready").status_code == 200


async def test_what_the_engine_had_is_hung_up_on(server: Server) -> None:
    """Of requests that an engine took with it nobody says that nothing was applied: their connections break."""
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        session = (await client.post("/v1/sessions", json={"model": "sum"})).headers["location"]
        await client.post(f"{session}/steps", json={"inputs": [1]})  # the front end knows its model from here on
        (engine,) = server.children("engine")
        os.kill(engine, signal.SIGSTOP)
        before = await client.post("/v1/sessions/unknown/steps", json={"inputs": "nonsense", "oops": 1})
        assert before.status_code == 422  # not known to be unknown, but known to fit no model
        waiting = [
            asyncio.create_task(client.post(f"{session}/steps", json={"inputs": [1]})),
            asyncio.create_task(client.get(session)),
        ]
        done, _ = await asyncio.wait(waiting, timeout=0.3)
        assert not done
        os.kill(engine, signal.SIGKILL)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(outcome, httpx.TransportError) for outcome in outcomes] == [True, True]
    assert "Traceback" not in server.log


def test_a_stream_breaks_with_its_engine(server: Server) -> None:
    """A reader of a stream learns that it is over, and the session has kept all that was read."""
    seen: list[str] = []
    with server.client() as client:
        session = create(client, "language")
        client.post(f"{session}/steps", json={"text": "hello"})
        (engine,) = server.children("engine")
        with pytest.raises(httpx.TransportError):
            _read(client, session, seen, lambda: os.kill(engine, signal.SIGKILL))
        told = post(client, f"{session}/steps", {"text": "x"}).json()
        assert told["position"] - 1 >= 5 + len(seen) >= 25


def _read(client: httpx.Client, session: str, seen: list[str], in_the_middle: Callable[[], None]) -> None:
    body = {"max_steps": 2000, "stream": True, "seed": 4}
    with client.stream("POST", f"{session}/generate", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                seen.append(line)
            if len(seen) == 20:
                in_the_middle()


def test_the_folder_of_the_sockets_may_go(server: Server) -> None:
    """Whoever tidies up temporary files costs a restart of the engine, not the service."""
    with server.client() as client:
        session = create(client, "sum")
        (engine,) = server.children("engine")
        shutil.rmtree(Path(f"/proc/{engine}/cmdline").read_text().split("\0")[3])
        os.kill(engine, signal.SIGKILL)
        assert post(client, f"{session}/steps", {"inputs": [2], "position": 0}).json()["outputs"] == {"y": [2.0]}
        assert client.get(session).json()["position"] == 1


def test_nobody_outlives_the_supervisor(server: Server) -> None:
    """When the supervisor is killed the others end by themselves, and a new service goes on with the sessions."""
    with server.client() as client:
        session = create(client, "sum")
        client.post(f"{session}/steps", json={"inputs": [5]})
    children = server.children()
    assert len(children) == 2
    folder = Path(Path(f"/proc/{children[0]}/cmdline").read_text().split("\0")[3])
    assert folder.exists()
    server.kill()
    wait_until(lambda: not any(map(alive, children)))
    assert not folder.exists()
    server.start()
    with server.client() as client:
        answer = client.post(f"{session}/steps", json={"inputs": [2], "position": 1})
        assert answer.json()["outputs"] == {"y": [7.0]}


@pytest.mark.parametrize("kind", ["engine", "front"])
def test_a_signal_while_it_starts(tmp_path: Path, models: Path, kind: str) -> None:
    """SIGTERM ends the service with status 0 also while a process is being started, and none is left behind."""
    server = Server(tmp_path, models, http_workers=1)
    server.launch()
    wait_until(lambda: server.children(kind))
    children = server.children()
    assert server.terminate() == 0
    assert not any(map(alive, children))
    assert "Traceback" not in server.log


def test_the_metrics_tell_of_all_processes(server: Server) -> None:
    """Requests, refusals and steps are counted once, wherever they were answered."""
    with server.client() as client:
        session = create(client, "sum")
        for _ in range(3):
            client.post(f"{session}/steps", json={"inputs": [1]})
        client.post(f"{session}/steps", json={"inputs": ["x"]})
        client.post(f"{session}/steps", json={"inputs": [1], "position": 1})
        client.post("/v1/sessions/unknown/steps", json={"inputs": [1]})
        told = client.get("/metrics").text.splitlines()
    steps = '{route="/v1/sessions/{id}/steps",status='
    for line in (
        'lstm_serve_steps_total{model="sum"} 3.0',
        f'lstm_serve_request_seconds_count{steps}"200"}} 3.0',
        f'lstm_serve_request_seconds_count{steps}"422"}} 1.0',
        f'lstm_serve_request_seconds_count{steps}"409"}} 1.0',
        f'lstm_serve_request_seconds_count{steps}"404"}} 1.0',
        'lstm_serve_rejected_total{reason="invalid-input"} 1.0',
        'lstm_serve_rejected_total{reason="position-conflict"} 1.0',
        'lstm_serve_rejected_total{reason="unknown-session"} 1.0',
    ):
        assert line in told
