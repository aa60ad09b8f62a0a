"""Models of four sizes: what the server makes of ONNX Runtime's own speed, tuned and with the fixed settings.

    python -m bench.models [--sizes 1x64,2x128,2x512,4x1024] [--sessions 64,256] [--steps 1] [-- OPTIONS OF serve]

Untrained language models of 96 symbols, LAYERSxWIDTH. A server with SQLite commits serves each, the load generator of
`lstm-serve bench` drives it, and in turn with every measurement ONNX Runtime runs the same file alone: 64 rows, as many
threads. Machines are shared and their speed swings: medians of the rounds are told, and shares are of one round.

Columns: `of its speed` is steps per second to those of ONNX Runtime alone; `in ONNX Runtime` the share of wall time in
which the server ran ticks (its metric run_seconds); `of its CPU` the CPU time of ONNX Runtime alone to the server's.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

from bench import untrained
from bench.crew import Crew
from bench.options import Address, Options, counts
from bench.report import rows
from bench.running import describe
from bench.serving import serving
from bench.untrained import SYMBOLS
from export.graph import LENGTHS
from service.engine.providers import open_session
from service.settings import load_settings

SIZES = "1x64,2x128,2x512,4x1024"
BATCH = 64
WAYS = {"fixed": ["--no-tune"], "tuned": ["--tune"]}
HEAD = (
    "| model | settings | threads | sessions | steps/s | p99, ms | CPU, µs per step | rows of a tick "
    "| ONNX Runtime alone, steps/s | of its speed | in ONNX Runtime | of its CPU |"
)


@dataclass(frozen=True)
class Figures:
    """Of one round. Rates per second, CPU in microseconds per step."""

    steps: float
    p99_ms: float
    cpu_us: float
    rows: float
    alone: float
    alone_cpu_us: float
    inside: float  # share of wall time


class Alone:
    """ONNX Runtime with a feed that stands ready, as fast as it goes."""

    def __init__(self, path: Path, threads: int, steps: int) -> None:
        self._session = open_session(str(path), load_settings(provider="cpu", threads=threads))
        layers, _, hidden = next(i.shape for i in self._session.get_inputs() if i.name == "h")
        state = np.zeros((layers, BATCH, hidden), np.float32)
        tokens = np.random.default_rng(0).integers(0, SYMBOLS, (BATCH, steps))
        self._feed = {"tokens": tokens, LENGTHS: np.full(BATCH, steps, np.int32), "h": state, "c": state}
        self._steps = steps

    def measure(self, seconds: float) -> tuple[float, float]:
        """Steps per second, and CPU microseconds per step."""
        self._session.run(None, self._feed)
        began, cpu, calls = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() < began + seconds:
            self._session.run(None, self._feed)
            calls += 1
        steps = calls * BATCH * self._steps
        return steps / (time.perf_counter() - began), (time.process_time() - cpu) / steps * 1e6


class Served:
    """A server with one model, and the load on it."""

    def __init__(self, where: Address, options: Options) -> None:
        self._where, self._options = where, options
        self.crew = Crew(where, describe(where, None), options)
        self.threads = int(re.findall(r'model_info{.*threads="(\d+)"', self._metrics())[0])

    def measure(self, sessions: int, alone: Alone) -> Figures:
        """One round: ONNX Runtime alone, then the server."""
        speed, alone_cpu_us = alone.measure(self._options.seconds / 2)
        before = self._ticks()
        told = rows(self.crew.run(sessions, lambda *_: None), self._options)
        run_s, ticks, tick_rows = (b - a for a, b in zip(before, self._ticks(), strict=True))
        inside = run_s / (tick_rows * self._options.steps) * told["steps_per_s"]  # the warm-up left out
        assert not told["problems"], told["problems"]
        return Figures(
            *(told["steps_per_s"], told["latency_ms"]["p99"], told["server_cpu_us_per_step"], tick_rows / ticks),
            *(speed, alone_cpu_us, inside),
        )

    def _ticks(self) -> list[float]:
        """Seconds in ONNX Runtime, ticks and their rows so far."""
        text = self._metrics()
        names = ("run_seconds_sum", "run_seconds_count", "tick_rows_sum")
        return [sum(map(float, re.findall(rf"^lstm_serve_{name}{{.*}} (\S+)", text, re.MULTILINE))) for name in names]

    def _metrics(self) -> str:
        connection = HTTPConnection(self._where.host, self._where.port)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return text


def measure(size: str, options: Options, rounds: int, further: Sequence[str]) -> None:
    """All of one size; prints its lines of the table."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        scratch = Path(folder)
        path = scratch / "models" / f"lstm-{size}" / "1" / "model.onnx"
        untrained.write(path, *map(int, size.split("x")))
        served: dict[str, Served] = {}
        for way, option in WAYS.items():
            server = stack.enter_context(serving(scratch / "models", scratch / f"{way}.db", [*option, *further]))
            served[way] = Served(server.address, options)
            stack.enter_context(served[way].crew)
        alone = {threads: Alone(path, threads, options.steps) for threads in {s.threads for s in served.values()}}
        for sessions in options.sessions:
            found: dict[str, list[Figures]] = {way: [] for way in served}
            for _ in range(rounds):
                for way, one in served.items():
                    found[way].append(one.measure(sessions, alone[one.threads]))
            for way, figures in found.items():
                print(_line(size, f"{way} | {served[way].threads} | {sessions}", figures), flush=True)
        for one in served.values():
            one.crew.close()


def _line(size: str, how: str, rounds: Sequence[Figures]) -> str:
    def middle(value: Callable[[Figures], float]) -> float:
        return statistics.median(map(value, rounds))

    return (
        f"| {size} | {how} | {middle(lambda f: f.steps):,.0f} | {middle(lambda f: f.p99_ms):.0f} "
        f"| {middle(lambda f: f.cpu_us):.0f} | {middle(lambda f: f.rows):.0f} | {middle(lambda f: f.alone):,.0f} "
        f"| {middle(lambda f: f.steps / f.alone):.0%} | {middle(lambda f: f.inside):.0%} "
        f"| {middle(lambda f: f.alone_cpu_us / f.cpu_us):.0%} |"
    )


def main() -> None:
    """Measure, and print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=SIZES, help="LAYERSxWIDTH, with commas between them")
    parser.add_argument("--sessions", default="64,256", help="numbers of sessions, with commas between them")
    parser.add_argument("--steps", type=int, default=1, help="steps of each request")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="in which all take turns; medians are told")
    parser.add_argument("further", nargs="*", metavar="OPTIONS OF serve", help="behind --")
    told = parser.parse_args()
    options = Options(
        sessions=counts(told.sessions), rate=None, steps=told.steps, seconds=told.seconds, warm_up=0.5, processes=1,
        seed=0, slo=None,
    )  # fmt: skip
    print(f"{HEAD}\n|---|---|{'---:|' * (HEAD.count('|') - 3)}", flush=True)
    for size in told.sizes.split(","):
        measure(size, options, told.rounds, told.further)


if __name__ == "__main__":
    main()
