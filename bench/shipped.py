"""The load generator against a server of its own, with the shipped models and SQLite commits in a fresh folder.

python -m bench.shipped [OPTIONS OF lstm-serve bench]
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.serving import PROGRAM, SHIPPED, serving


def main() -> int:
    """Start the server, measure, stop it; the exit status of the measurement."""
    with tempfile.TemporaryDirectory() as folder, serving(SHIPPED, Path(folder, "sessions.db")) as server:
        signal.signal(signal.SIGINT, lambda *_: None)
        return subprocess.run([*PROGRAM, "bench", server.url, *sys.argv[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
