"""A server that is told to end serves on for a while, not ready any more, so that balancers leave it in peace."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support import artifacts
from tests.support.server import Server, create, wait_until


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with one model."""
    return artifacts.repository(tmp_path / "models", sum=artifacts.running_sum)


@pytest.mark.parametrize("http_workers", [0, 1])
def test_a_lame_duck_serves_on(tmp_path: Path, models: Path, http_workers: int) -> None:
    """After SIGTERM it is not ready, and serves; the second SIGTERM ends it, however long it would have gone on."""
    settings = {"http_workers": http_workers, "lame_duck_s": 3600, "drain_s": 1}
    with Server(tmp_path, models, **settings) as server, server.client() as client:
        session = create(client, "sum")
        assert client.get("/health/ready").status_code == 200
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: client.get("/health/ready").status_code == 503)
        told = client.get("/health/ready").json()
        assert (told["status"], "about to shut down" in told["problems"][0]) == ("unavailable", True)
        assert client.get("/health/live").status_code == 200
        assert client.post(f"{session}/steps", json={"inputs": [5]}).json()["outputs"] == {"y": [5.0]}
        with server.client() as new:  # a connection of its own
            assert new.post(f"{session}/steps", json={"inputs": [2]}).json()["outputs"] == {"y": [7.0]}
        assert not server.exited
        assert server.terminate() == 0
        assert "Traceback" not in server.log


@pytest.mark.parametrize("http_workers", [0, 1])
def test_a_lame_duck_ends_by_itself(tmp_path: Path, models: Path, http_workers: int) -> None:
    """When its time is over."""
    with Server(tmp_path, models, http_workers=http_workers, lame_duck_s=0.3) as server:
        assert server.terminate() == 0
        assert "closed" in server.log
        assert "Traceback" not in server.log


def test_a_lame_duck_keeps_its_processes(tmp_path: Path, models: Path) -> None:
    """One that is killed meanwhile is started again."""
    with Server(tmp_path, models, http_workers=1, lame_duck_s=3600) as server, server.client() as client:
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: client.get("/health/ready").status_code == 503)
        (front,) = server.children("front")
        os.kill(front, signal.SIGKILL)
        wait_until(lambda: server.children("front") not in ([], [front]))
        wait_until(lambda: "about to shut down" in _told(server))
        (engine,) = server.children("engine")
        os.kill(engine, signal.SIGKILL)
        wait_until(lambda: server.children("engine") not in ([], [engine]))
        wait_until(lambda: "models" in _told(server))
        assert "about to shut down" in _told(server)


def _told(server: Server) -> str:
    """What it says of its readiness; "" where nobody listens."""
    with suppress(httpx.TransportError), server.client() as client:
        return client.get("/health/ready").text
    return ""
