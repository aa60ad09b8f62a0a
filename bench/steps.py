"""Steps per second, latency and server CPU of one service on this machine: one token per request, SQLite commits on.

    python -m bench.steps [--seconds 5] [--sessions 1,16,64,256] [--model language]

Each session keeps one connection with one request in flight. The server's CPU time is the operating system's own
account of its process, over the measured seconds only. Machines are noisy: compare figures of one run with each other.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.server import Server, create

TICKS_PER_S = 100  # of /proc/PID/stat, on every Linux
WARM_UP_S = 1.0


class Load:
    """Closed-loop clients on raw sockets: cheap beside what they measure."""

    def __init__(self, server: Server, token: int) -> None:
        self._token = token
        self._port = int(server.url.rsplit(":", 1)[1])
        self.measuring = False
        self.stopping = False
        self.latencies: list[float] = []

    async def client(self, path: str) -> None:
        """One session: a step, its answer, the next step."""
        body = json.dumps({"inputs": [self._token], "top_k": 1}).encode()
        head = f"POST {path}/steps HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while not self.stopping:
            started = time.perf_counter()
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer.decode())
            length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            if self.measuring:
                self.latencies.append(time.perf_counter() - started)
        writer.close()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def measure(server: Server, model: str, sessions: int, seconds: float) -> dict[str, float]:
    """The figures at so many sessions."""
    with server.client() as client:
        paths = [create(client, model) for _ in range(sessions)]
    load = Load(server, token=1)
    clients = [asyncio.create_task(load.client(path)) for path in paths]
    await asyncio.sleep(WARM_UP_S)
    cpu, started, load.measuring = cpu_seconds(server.pid), time.perf_counter(), True
    await asyncio.sleep(seconds)
    load.measuring, load.stopping = False, True
    cpu, taken = cpu_seconds(server.pid) - cpu, time.perf_counter() - started
    await asyncio.gather(*clients)
    quantiles = statistics.quantiles(load.latencies, n=100)
    steps = len(load.latencies)
    return {"steps_s": steps / taken, "p50": quantiles[49], "p99": quantiles[98], "cpu": cpu / steps}


def main() -> None:
    """Start a server on a fresh data folder, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds at each number of sessions")
    parser.add_argument("--sessions", default="1,16,64,256", help="numbers of sessions")
    parser.add_argument("--model", default="language", help="a language model of the repository")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    options = parser.parse_args()
    repository = options.model_repository.resolve()
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), repository) as server:
        print(f"{'sessions':>8} {'steps/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'server CPU µs/step':>19}", flush=True)
        for sessions in map(int, options.sessions.split(",")):
            r = asyncio.run(measure(server, options.model, sessions, options.seconds))
            figures = f"{r['steps_s']:9.0f} {r['p50'] * 1e3:8.2f} {r['p99'] * 1e3:8.2f} {r['cpu'] * 1e6:19.1f}"
            print(f"{sessions:8d} {figures}", flush=True)


if __name__ == "__main__":
    main()
