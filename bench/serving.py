"""A server of our own on a given store and model repository, for as long as a measurement needs it."""

import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.options import Address, address

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "model_repository"
PROGRAM = (sys.executable, "-m", "lstm_serve")
LISTENING = re.compile(r"listening on (http://\S+)")


@dataclass(frozen=True)
class Server:
    """Where it listens, and its process."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> Address:
        """Where it listens."""
        return address(self.url)

    def rss(self) -> int:
        """Bytes of memory that it holds and shares with no file."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024


@contextmanager
def serving(
    models: Path, store: Path | str, further: Sequence[str] = (), program: Sequence[str] = PROGRAM
) -> Iterator[Server]:
    """Start it with these ``further`` options, wait until it serves, end it in order.

    ``store``: the path of SQLite's file, or a URL. ``program`` takes the words of ``lstm-serve``. SystemExit with what
    the server said where it does not start.
    """
    place = store if isinstance(store, str) else f"sqlite:{store}"
    command = [*program, "serve", "--port", "0", "--store", place, "--model-repository", str(models)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "server.log")
        with log.open("w") as told:
            # Out of the group that Ctrl-C reaches: the measurement ends in order, and needs the server for that.
            process = subprocess.Popen([*command, *further], stdout=told, stderr=told, start_new_session=True)
        try:
            yield Server(_reached(process, log), process)
        finally:
            process.terminate()
            process.wait()


def _reached(process: subprocess.Popen[bytes], log: Path) -> str:
    """The URL of the server once it listens, and accepts: front ends may need a moment longer."""
    while not (found := LISTENING.search(log.read_text())) or not _accepts(address(found[1])):
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.05)
    return found[1]


def _accepts(where: Address) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection((where.host, where.port)):
        return True
    return False
