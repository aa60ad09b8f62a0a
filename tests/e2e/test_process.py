"""The life of the process: refusing to start, ending in order, losing its database for a while."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support import artifacts
from tests.support.server import Server, create


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with one model."""
    return artifacts.repository(tmp_path / "models", sum=artifacts.running_sum, language=artifacts.language)


def _refused(*options: str) -> str:
    """Run ``lstm-serve serve`` that must not start; the one sentence that it says."""
    done = subprocess.run(
        [sys.executable, "-m", "lstm_serve", "serve", "--port", "0", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done
    sentences = [line for line in done.stderr.splitlines() if line.startswith("lstm-serve: ")]
    assert len(sentences) == 1
    assert "Traceback" not in done.stderr
    return sentences[0]


class TestRefusals:
    def test_wrong_settings(self, models: Path) -> None:
        """A wrong setting stops the start and is named."""
        assert "--max-batch is '0', and has to be 1 or more" in _refused("--max-batch", "0")
        assert "--port is 'many', and has to be a whole number" in _refused("--port", "many")
        assert "default_ttl_s" in _refused("--default-ttl-s", "10", "--max-ttl-s", "5")
        assert "sqlite:PATH" in _refused("--store", "nowhere")

    def test_cuda_without_cuda(self, models: Path) -> None:
        """Who asked for CUDA and cannot have it is told why, and not served by the CPU in silence."""
        sentence = _refused("--model-repository", str(models), "--provider", "cuda")
        assert "provider=cuda cannot be used" in sentence

    @pytest.mark.parametrize("options", [[], ["--http-workers", "1"]], ids=["one-process", "front-end"])
    def test_no_model(self, tmp_path: Path, options: list[str]) -> None:
        """Without a single artifact that can be served the service refuses, and says what is wrong with the first."""
        (tmp_path / "m" / "1").mkdir(parents=True)
        assert "no artifact in" in _refused("--model-repository", str(tmp_path), *options)
        (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"nonsense")
        assert "not an ONNX model" in _refused("--model-repository", str(tmp_path))

    def test_a_store_that_is_no_database(self, models: Path, tmp_path: Path) -> None:
        """A file that is no session database is left alone."""
        other = tmp_path / "other.db"
        other.write_bytes(b"something else entirely" * 100)
        assert "session database" in _refused("--model-repository", str(models), "--store", f"sqlite:{other}")
        assert other.read_bytes() == b"something else entirely" * 100

    def test_a_port_in_use(self, models: Path, tmp_path: Path) -> None:
        """A port that somebody else has is an error with the address."""
        with Server(tmp_path, models) as server:
            port = server.url.rsplit(":", 1)[1]
            store = f"sqlite:{tmp_path}/b.db"
            for options in ([], ["--http-workers", "1"]):
                sentence = _refused("--model-repository", str(models), "--port", port, "--store", store, *options)
                assert f"127.0.0.1:{port}" in sentence


def test_nobody_is_called_home(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's usage reports are off: nothing is written into the home folder."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for switch in ("XDG_CACHE_HOME", "CI", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.delenv(switch, raising=False)
    with Server(tmp_path, models) as server, server.client() as client:
        client.post("/v1/models/sum/predict", json={"inputs": [[1]]})
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("workers", [0, 1], ids=["one-process", "front-end"])
class TestEnding:
    def test_sigterm(self, models: Path, tmp_path: Path, workers: int) -> None:
        """SIGTERM ends the process with status 0, and sessions go on in the next one."""
        with Server(tmp_path, models, http_workers=workers) as server:
            with server.client() as client:
                session = create(client, "sum")
                client.post(f"{session}/steps", json={"inputs": [5]})
            assert server.terminate() == 0
            server.start()
            with server.client() as client:
                answer = client.post(f"{session}/steps", json={"inputs": [2], "position": 1})
                assert answer.json()["outputs"] == {"y": [7.0]}

    @pytest.mark.parametrize("_", range(3))
    def test_sigterm_at_once(self, models: Path, tmp_path: Path, _: int, workers: int) -> None:
        """A signal that comes as soon as the server listens is not lost."""
        with Server(tmp_path, models, http_workers=workers) as server:
            assert server.terminate() == 0

    def test_sigterm_finishes_what_was_accepted(self, models: Path, tmp_path: Path, workers: int) -> None:
        """A request that runs when SIGTERM comes is answered, in whole."""
        with Server(tmp_path, models, http_workers=workers) as server:
            answers: list[httpx.Response] = []

            def generate() -> None:
                with server.client() as client:
                    body = {"text": "a", "max_steps": 1500}
                    answers.append(client.post("/v1/models/language/generate", json=body))

            thread = threading.Thread(target=generate)
            thread.start()
            with server.client() as client:
                while 'lstm_serve_generated_total{model="language"} 0.0' in client.get("/metrics").text:
                    time.sleep(0.005)
            assert server.terminate() == 0
            thread.join()
            assert (answers[0].status_code, answers[0].json()["steps"]) == (200, 1500)


def test_sigkill_in_a_stream(models: Path, tmp_path: Path) -> None:
    """After SIGKILL in the middle of a stream, the session stands at or just beyond what the client has seen."""
    with Server(tmp_path, models) as server:
        seen = 0
        with server.client() as client:
            session = create(client, "language")
            client.post(f"{session}/steps", json={"text": "hello"})
            body = {"max_steps": 2000, "stream": True, "seed": 4}
            try:
                with client.stream("POST", f"{session}/generate", json=body) as answer:
                    for line in answer.iter_lines():
                        seen += line.startswith("data: {")
                        if seen == 20:
                            os.kill(server.pid, signal.SIGKILL)
            except httpx.TransportError:
                pass
        server.kill()
        server.start()
        with server.client() as client:
            told = client.get(session).json()
            assert told["position"] >= 5 + seen >= 25
            assert told["last"]["position"] == 5
            assert len(told["last"]["outputs"]["tokens"]) == told["position"] - 5


class TestDatabaseTrouble:
    def test_locked(self, models: Path, tmp_path: Path) -> None:
        """While another process locks the database steps get 503 and move nothing; then they go on."""
        with Server(tmp_path, models) as server, server.client() as client:
            session = create(client, "sum")
            client.post(f"{session}/steps", json={"inputs": [1]})
            with sqlite3.connect(tmp_path / "sessions.db", isolation_level=None) as other:
                other.execute("BEGIN IMMEDIATE")
                answer = client.post(f"{session}/steps", json={"inputs": [10], "position": 1})
                assert answer.status_code == 503
                assert answer.json()["type"] == "urn:lstm-serve:problem:store-unavailable"
                assert "retry-after" in answer.headers
                assert client.get("/health/ready").status_code == 503
                assert client.post("/v1/sessions", json={"model": "sum"}).status_code == 503
                assert client.post("/v1/models/sum/predict", json={"inputs": [[1]]}).status_code == 200
                other.execute("ROLLBACK")
            other.close()
            assert client.get(session).json()["position"] == 1
            answer = client.post(f"{session}/steps", json={"inputs": [10], "position": 1})
            assert answer.json()["outputs"] == {"y": [11.0]}
            assert client.get("/health/ready").status_code == 200

    def test_full_disk(self, models: Path, tmp_path: Path) -> None:
        """While no file can grow steps get 503 and move nothing; as soon as there is room they go on."""
        with Server(tmp_path, models) as server, server.client() as client:
            session = create(client, "sum")
            client.post(f"{session}/steps", json={"inputs": [1]})
            written = (tmp_path / "sessions.db-wal").stat().st_size
            unlimited = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (written, resource.RLIM_INFINITY))
            for _ in range(3):
                answer = client.post(f"{session}/steps", json={"inputs": [10], "position": 1})
                assert answer.status_code == 503
                assert answer.json()["type"] == "urn:lstm-serve:problem:store-unavailable"
            assert client.get("/health/ready").status_code == 503
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, unlimited)
            answer = client.post(f"{session}/steps", json={"inputs": [10], "position": 1})
            assert answer.json()["outputs"] == {"y": [11.0]}
            assert client.get("/health/ready").status_code == 200

    def test_damaged_row(self, models: Path, tmp_path: Path) -> None:
        """A row with flipped bits is an error with a name; it is never served, nor replaced by zeros."""
        with Server(tmp_path, models) as server:
            with server.client() as client:
                session, other_session = create(client, "sum"), create(client, "sum")
                for s in (session, other_session):
                    client.post(f"{s}/steps", json={"inputs": [3]})
            server.terminate()
            with sqlite3.connect(tmp_path / "sessions.db") as db:
                db.execute("UPDATE sessions SET state=x'00000000' WHERE id=?", (session.rsplit("/", 1)[1],))
            db.close()
            server.start()
            with server.client() as client:
                answer = client.post(f"{session}/steps", json={"inputs": [1]})
                assert answer.status_code == 500
                assert answer.json()["type"] == "urn:lstm-serve:problem:undecodable-state"
                assert "checksum" in server.log
                assert client.delete(session).status_code == 204
                assert client.get(session).status_code == 410
                good = client.post(f"{other_session}/steps", json={"inputs": [1]})
                assert good.json()["outputs"] == {"y": [4.0]}
