"""A real Redis server for tests: started, killed, paused and started again on the same port and folder."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

import pytest
import redis

START_LIMIT_S = 20.0


def needed(program: str = "redis-server") -> str:
    """The path of a program; the test is skipped, visibly, where it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """``redis-server`` in a folder, as a context manager. ``options``: of redis.conf, such as appendonly="yes"."""

    def __init__(self, folder: Path, **options: object) -> None:
        self._program = needed()
        self._folder = folder
        self.port = free_port()
        self._options = {"port": self.port, "bind": "127.0.0.1", "dir": folder, "save": ""} | options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where a store finds it."""
        return f"redis://127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        """A connection for looking inside."""
        return redis.Redis(port=self.port)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, and wait until it answers."""
        written = [
            part for name, value in self._options.items() for part in (f"--{name.replace('_', '-')}", str(value))
        ]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, *written], stdout=log, stderr=log)
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.RedisError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "redis.log").read_text()[-2000:]) from None
                time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send a signal: SIGSTOP pauses it, SIGCONT lets it go on."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL: no farewell."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
