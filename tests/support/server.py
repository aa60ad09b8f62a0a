"""A real server process for tests: started, killed and started again on the same port and data folder."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import httpx

START_LIMIT_S = 60.0
_LISTENING = re.compile(rb"listening on (http://127\.0\.0\.1:(\d+))")


def wait_until(holds: Callable[[], object]) -> None:
    """Until something is so that has to become so."""
    deadline = time.monotonic() + START_LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


class Server:
    """``python -m service`` with the settings given as ``LSTM_SERVE_...``; used as a context manager.

    ``under``: words in front of the command. They must leave the process that is started ours.
    """

    def __init__(self, folder: Path, repository: Path, under: Sequence[str] = (), **settings: object) -> None:
        self._folder = folder
        self._under = under
        self._settings = {"port": 0, "model_repository": repository, "store": f"sqlite:{folder}/sessions.db"} | settings
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.terminate()

    @property
    def log(self) -> str:
        """What the server has written since it was last started."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def children(self, kind: str = "") -> list[int]:
        """Of a server of several processes those that run now besides ``pid``; ``kind``: "engine" or "front"."""
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in pids if f"service.fronts.{kind}" in _command(pid)]

    def start(self) -> None:
        """Start, and wait until it listens; the port stays the same from the second time on."""
        self.launch()
        deadline = time.monotonic() + START_LIMIT_S
        while not (found := _LISTENING.search(self._log.read_bytes())):
            if self.exited or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{self.log}")
            time.sleep(0.02)
        self.url = found[1].decode()
        self._settings["port"] = int(found[2])

    @property
    def exited(self) -> bool:
        """Whether the process has come to its end."""
        return self._process is not None and self._process.poll() is not None

    def launch(self) -> None:
        """Start, and wait for nothing."""
        environment = os.environ | {f"LSTM_SERVE_{k.upper()}": str(v) for k, v in self._settings.items()}
        with self._log.open("wb") as log:
            command = [*self._under, sys.executable, "-m", "service"]
            self._process = subprocess.Popen(command, env=environment, stderr=log, stdout=log, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL: no farewell."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def kill_all(self) -> None:
        """SIGKILL to every process of the server at once."""
        for pid in self.children():
            os.kill(pid, signal.SIGKILL)
        self.kill()

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=START_LIMIT_S)

    def client(self) -> httpx.Client:
        """A client of this server."""
        return httpx.Client(base_url=self.url, timeout=30.0)


def _command(pid: str) -> str:
    with contextlib.suppress(OSError):  # it has just ended
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def create(client: httpx.Client, model: str, **body: object) -> str:
    """A new session's path."""
    answer = client.post("/v1/sessions", json={"model": model, **body})
    assert answer.status_code == 201, answer.text
    return str(answer.headers["location"])
