"""The load generator against a server of its own, with the shipped models and SQLite commits in a fresh folder.

python -m bench.shipped [OPTIONS OF lstm-serve bench]
"""

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "lstm_serve"]
_LISTENING = re.compile(r"listening on (http://\S+)")


def main() -> int:
    """Start the server, measure, stop it; the exit status of the measurement."""
    with tempfile.TemporaryDirectory() as folder, serving(ROOT / "model_repository", Path(folder)) as url:
        signal.signal(signal.SIGINT, lambda *_: None)
        return subprocess.run([*PROGRAM, "bench", url, *sys.argv[1:]], check=False).returncode


@contextmanager
def serving(models: Path, folder: Path) -> Iterator[str]:
    """A server of these models with its store and its log in a folder: its URL."""
    store, log = f"sqlite:{folder / 'sessions.db'}", folder / "server.log"
    serve = [*PROGRAM, "serve", "--port", "0", "--store", store, "--model-repository", str(models)]
    with log.open("w") as told:
        # Out of the group that Ctrl-C reaches: the measurement ends in order, and needs the server for that.
        server = subprocess.Popen(serve, stdout=told, stderr=told, start_new_session=True)
    try:
        yield wait_for(server, log)
    finally:
        server.terminate()
        server.wait()


def wait_for(server: subprocess.Popen[bytes], log: Path) -> str:
    """The URL of the server once it listens; SystemExit with what it said where it does not start."""
    while not (found := _LISTENING.search(log.read_text())):
        if server.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.05)
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
