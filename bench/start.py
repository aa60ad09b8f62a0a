"""From the start of the process to the first answered step, with the shipped models and SQLite in a fresh folder.

    python -m bench.start [--rounds 7]

The ways to start the server take turns; medians are told, and the imports by package, from Python's -X importtime.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from bench.options import address
from bench.processor import cpu_seconds, server_processes
from bench.serving import LISTENING, PROGRAM, ROOT, SHIPPED

SERVICE, SERVE = [sys.executable, "-m", "service"], [*PROGRAM, "serve"]
WAYS = {
    "python -m service": SERVICE,
    "lstm-serve serve": SERVE,
    "lstm-serve serve --http-workers 1": [*SERVE, "--http-workers", "1"],
}
_LOADED = re.compile(r"loaded .* in (\S+) s ")
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
_SHOWN = 8


@dataclass(frozen=True)
class Start:
    """One start, in seconds: until it listened, of that the models; until the first answer, and CPU time until then."""

    listened: float
    models: float
    answered: float
    cpu: float


def start(way: list[str], folder: str) -> Start:
    """Start a server, make a session, send it a step, and end the server."""
    settings = {"PORT": "0", "STORE": f"sqlite:{folder}/sessions.db", "MODEL_REPOSITORY": str(SHIPPED)}
    environment = os.environ | {f"LSTM_SERVE_{name}": value for name, value in settings.items()}
    began = time.perf_counter()
    with subprocess.Popen(way, stderr=subprocess.PIPE, env=environment, text=True, cwd=ROOT) as server:
        assert server.stderr is not None
        try:
            said = ""
            while not (listening := LISTENING.search(said)):
                line = server.stderr.readline()
                if not line:
                    raise SystemExit(said)
                said += line
            listened = time.perf_counter()
            _step(listening[1])
            answered = time.perf_counter()
            cpu = cpu_seconds(server_processes(address(listening[1])))
        finally:
            server.terminate()
    return Start(listened - began, sum(map(float, _LOADED.findall(said))), answered - began, cpu)


def _step(url: str) -> None:
    connection = HTTPConnection(urlsplit(url).netloc)

    def post(path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        assert answer.status in (200, 201), told
        return told

    session = post("/v1/sessions", {"model": "language"})
    post(f"/v1/sessions/{session['id']}/steps", {"inputs": [1]})
    connection.close()


def imports() -> Counter[str]:
    """Microseconds that the modules of each package take by themselves when the server is imported."""
    program = [sys.executable, "-X", "importtime", "-c", "import service.__main__, service.app, service.server"]
    told = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT).stderr
    taken: Counter[str] = Counter()
    for us, module in _IMPORT.findall(told):
        top = module.split(".")[0]
        taken["the standard library" if top in sys.stdlib_module_names else top] += int(us)
    return taken


def main() -> None:
    """Measure, and print two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="starts of each way; the first one does not count")
    rounds = parser.parse_args().rounds
    starts: dict[str, list[Start]] = {name: [] for name in WAYS}
    for _ in range(rounds + 1):
        for name, way in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                starts[name].append(start(way, folder))
    print("| started by | listens, s | of which models, s | first step answered, s | slowest, s | CPU, s |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, all_of_them in starts.items():
        counted = all_of_them[1:]
        listened, models, answered, cpu = (
            statistics.median(getattr(s, field) for s in counted) for field in ("listened", "models", "answered", "cpu")
        )
        slowest = max(s.answered for s in counted)
        print(f"| `{name}` | {listened:.2f} | {models:.2f} | {answered:.2f} | {slowest:.2f} | {cpu:.2f} |")
    taken = imports()
    shown = taken.most_common(_SHOWN)
    print("\n| imports | ms |\n|---|---:|")
    for package, us in [*shown, ("others", taken.total() - sum(us for _, us in shown)), ("all", taken.total())]:
        print(f"| {package} | {us / 1000:.0f} |")


if __name__ == "__main__":
    main()
