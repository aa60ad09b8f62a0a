"""A server of our own on a given store and model repository, for measurements that need several."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.options import Address, address
from bench.shipped import wait_for


@dataclass(frozen=True)
class Server:
    """Where it listens, and its process."""

    address: Address
    pid: int

    def rss(self) -> int:
        """Bytes of memory that it holds and shares with no file."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024


@contextmanager
def serving(models: Path, store: Path) -> Iterator[Server]:
    """Start it, wait until it listens, stop it in the end."""
    command = [*(sys.executable, "-m", "lstm_serve", "serve", "--port", "0", "--store", f"sqlite:{store}")]
    command += ["--model-repository", str(models)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "server.log")
        with log.open("w") as told:
            process = subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True, env=os.environ)
        try:
            yield Server(address(wait_for(process, log)), process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
