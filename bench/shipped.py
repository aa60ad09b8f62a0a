"""The load generator against a server of its own, with the shipped models and SQLite commits in a fresh folder.

python -m bench.shipped [OPTIONS OF lstm-serve bench]
"""

import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LISTENING = re.compile(r"listening on (http://\S+)")


def main() -> int:
    """Start the server, measure, stop it; the exit status of the measurement."""
    program = [sys.executable, "-m", "lstm_serve"]
    with tempfile.TemporaryDirectory() as folder:
        store, models = f"sqlite:{Path(folder, 'sessions.db')}", str(ROOT / "model_repository")
        serve = [*program, "serve", "--port", "0", "--store", store, "--model-repository", models]
        log = Path(folder, "server.log")
        with log.open("w") as told:
            # Out of the group that Ctrl-C reaches: the measurement ends in order, and needs the server for that.
            server = subprocess.Popen(serve, stdout=told, stderr=told, start_new_session=True)
        try:
            url = wait_for(server, log)
            signal.signal(signal.SIGINT, lambda *_: None)
            return subprocess.run([*program, "bench", url, *sys.argv[1:]], check=False).returncode
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
