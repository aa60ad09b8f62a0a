"""What an acknowledged step survives at each level of ``durability``, with real processes."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.errors import ServiceError
from service.stores.sqlite import SqliteStore
from tests.support import artifacts
from tests.support.server import Server, create
from tests.support.strace import Acknowledged, acknowledged, ended, parse, synced_bytes, under

STEPS = 12
LAST_WORDS_S = 30.0
LOG_HEADER = 32  # bytes of a log without any commit; SQLite syncs those at either level
traced = pytest.mark.skipif(shutil.which("strace") is None, reason="system calls are shown by strace, which is missing")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with one model."""
    return artifacts.repository(tmp_path / "models", sum=artifacts.running_sum)


@pytest.fixture(params=[0, 1], ids=["one-process", "front-end"])
def workers(request: pytest.FixtureRequest) -> int:
    """Whether another process speaks HTTP."""
    return int(request.param)


def stepped(client: httpx.Client, steps: int = STEPS) -> str:
    """A session that has made so many steps, each acknowledged: the sum of 1, 2, 3 and so on."""
    session = create(client, "sum")
    for i in range(steps):
        answer = client.post(f"{session}/steps", json={"inputs": [i + 1], "position": i})
        assert answer.status_code == 200, answer.text
    return session


def test_memory_keeps_nothing(tmp_path: Path, models: Path, workers: int) -> None:
    """Behind a kill the session is unknown; the log said so at the start, and readiness does."""
    with Server(tmp_path, models, durability="memory", http_workers=workers) as server:
        with server.client() as client:
            session = stepped(client)
            assert [
                "they end with this process" in told for told in client.get("/health/ready").json()["warnings"]
            ] == [True]
        assert server.log.count("they end with this process") == 1
        server.kill_all()
        server.start()
        with server.client() as client:
            answer = client.post(f"{session}/steps", json={"inputs": [1], "position": STEPS})
            assert (answer.status_code, answer.json()["type"]) == (404, "urn:lstm-serve:problem:unknown-session")
    assert not list(tmp_path.glob("sessions.db*"))


@pytest.mark.parametrize("durability", ["commit", "fsync"])
def test_a_kill_loses_nothing(tmp_path: Path, models: Path, workers: int, durability: str) -> None:
    """Every process is killed as soon as a step is acknowledged; the next one goes on from there."""
    with Server(tmp_path, models, durability=durability, http_workers=workers) as server:
        with server.client() as client:
            session = stepped(client)
        server.kill_all()
        server.start()
        with server.client() as client:
            answer = client.post(f"{session}/steps", json={"inputs": [1000], "position": STEPS})
            assert answer.json()["outputs"] == {"y": [1000.0 + STEPS * (STEPS + 1) / 2]}


class Traced:
    """A server under strace, and what its record says."""

    def __init__(self, folder: Path, models: Path, **settings: object) -> None:
        self.folder = folder
        self.log = folder / "sessions.db-wal"
        self._record = folder / "record"
        self._server = Server(folder, models, under(self._record), tune=False, **settings)

    def run(self) -> str:
        """Start, make steps and a few more acknowledged changes, kill; the path of the session."""
        with self._server as server:
            with server.client() as client:
                session = stepped(client)
                assert client.post(f"{session}/reset").status_code == 200
                assert client.delete(stepped(client, 1)).status_code == 204
                session = stepped(client)
            server.kill_all()
        return session

    @property
    def lines(self) -> list[str]:
        """The record, when strace has written its last word."""
        deadline = time.monotonic() + LAST_WORDS_S
        while not ended(lines := self._record.read_text(errors="replace").splitlines()):
            assert time.monotonic() < deadline, lines[-5:]
            time.sleep(0.05)
        return lines

    def acknowledged(self) -> Iterator[Acknowledged]:
        """Answers to requests that changed something, in their order."""
        told = acknowledged(parse(self.lines), self.log)
        assert len(told) == 3 + 2 * STEPS + 1 + 2
        return iter(told)


@traced
def test_fsync_reaches_the_disk_before_the_answer(tmp_path: Path, models: Path, workers: int) -> None:
    """In the order of system calls: the log is written, its sync returns, then the answer is sent; for every change."""
    server = Traced(tmp_path, models, durability="fsync", http_workers=workers)
    server.run()
    for told in server.acknowledged():
        assert (told.written, told.synced) == (True, True), told.words


@traced
def test_commit_does_not_wait_for_the_disk(tmp_path: Path, models: Path, workers: int) -> None:
    """With ``commit`` the log is written before the answer, and not synced: the same look tells the levels apart."""
    server = Traced(tmp_path, models, durability="commit", http_workers=workers)
    server.run()
    for told in server.acknowledged():
        assert (told.written, told.synced) == (True, False), told.words


@traced
@pytest.mark.parametrize(("durability", "kept"), [("fsync", True), ("commit", False)])
def test_a_power_cut(tmp_path: Path, models: Path, durability: str, kept: bool) -> None:
    """Cut the log to what was synced: with ``fsync`` all is there, with ``commit`` the last moments are not."""
    server = Traced(tmp_path, models, durability=durability)
    id = server.run().rsplit("/", 1)[1]
    sure = synced_bytes(parse(server.lines), server.log)
    assert (sure > LOG_HEADER) == kept
    with server.log.open("r+b") as log:
        log.truncate(sure)
    store = SqliteStore(tmp_path / "sessions.db", fsync=True)
    found = store.load([id])
    store.close()
    assert not any(isinstance(known, ServiceError) for known in found.values())
    assert [getattr(known, "position", None) for known in found.values()] == ([STEPS] if kept else [])
