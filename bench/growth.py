"""Does it matter how many sessions rest in the store? The server with stores of several sizes, side by side.

    python -m bench.growth [--sizes 1000,100000,1000000] [--active 64] [--rounds 9] [--seconds 3] [--live 30000]
                           [--starts 5] [--out report.json]

A language model with a 2x128 LSTM, SQLite commits, stores in a folder of the temporary directory (4.3 kB a session; a
million takes about a minute to make). Three parts:

- start: from the start of the process to its first answered step, with an empty store and with the largest, in turn;
- steps: each round drives every server in turn, forth and back, with sessions chosen anew; medians are told;
- memory: growth of the largest store's server per session that becomes live; and per session that rests, from how much
  more it holds than the smallest store's: SQLite's cache of pages, which has a limit, is fuller there.
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop

from bench import untrained
from bench.filling import HIDDEN, LAYERS, MODEL, ROW_BYTES, Sessions, fill, some_ids
from bench.http import Link
from bench.inputs import chunks
from bench.loops import ClosedLoop, Times
from bench.options import Address, counts
from bench.processor import cpu_seconds
from bench.running import describe
from bench.serving import Server, serving
from bench.session import Session
from bench.weighing import weighed

WARM_UP_S = 1.5
SETTLED = 6_000  # sessions that are made live before memory is measured: the pages of SQLite's cache are filled then
KB_A_SESSION = 4.4
NUMBERS = (  # options, what each is unless told, and its help
    ("active", 64, "sessions that are stepped, out of each store"),
    ("rounds", 9, "rounds, in each of which every store has its turn; medians are told"),
    ("live", 30_000, "sessions that are made live to weigh them"),
    ("starts", 5, "starts with no sessions, and with the most; medians are told"),
    ("seed", 0, "seed of the sessions and of which are stepped"),
)


class Stock:
    """A store of so many sessions, and the server that stands on it."""

    def __init__(self, folder: Path, sessions: int, made: Sessions) -> None:
        self.sessions = sessions
        self.store = folder / f"{sessions}.db"
        self.rounds: list[dict[str, float]] = []
        began = time.perf_counter()
        fill(self.store, sessions, made)
        size = self.store.stat().st_size if sessions else 0
        say(f"{sessions} sessions: {size / 1e6:.0f} MB in {time.perf_counter() - began:.1f} s")


def say(sentence: str) -> None:
    """A line of the result."""
    print(sentence, flush=True)


# ---- start


def starts(models: Path, empty: Stock, full: Stock, rounds: int) -> dict[str, Any]:
    """Seconds from the start of the process to its first answered step: medians, and their ratio."""
    seen: dict[str, list[tuple[float, float]]] = {"none": [], "most": []}
    for _ in range(rounds):
        for name, stock in (("none", empty), ("most", full)):
            began = time.perf_counter()
            with serving(models, stock.store) as server:
                asyncio.run(first_step(server.address))
                seen[name].append((time.perf_counter() - began, cpu_seconds([server.process.pid])))
    wall = {name: statistics.median(wall for wall, _ in told) for name, told in seen.items()}
    cpu = {name: statistics.median(cpu for _, cpu in told) for name, told in seen.items()}
    report = {
        "wall_s": wall,
        "cpu_s": cpu,
        "ratio": wall["most"] / wall["none"],
        "cpu_ratio": cpu["most"] / cpu["none"],
    }
    say(f"start to first answer, none / {full.sessions}: {wall['none']:.2f} / {wall['most']:.2f} s wall, "
        f"{cpu['none']:.2f} / {cpu['most']:.2f} s CPU; {report['ratio']:.2f} x")  # fmt: skip
    return report


async def first_step(address: Address) -> None:
    """Create a session and step it."""
    link = Link(address)
    _, told = await link.call(b"POST", b"/v1/sessions", json.dumps({"model": MODEL}).encode())
    await _step(link, json.loads(told)["id"])
    link.close()


async def _step(link: Link, id: str) -> None:
    status, body = await link.call(b"POST", f"/v1/sessions/{id}/steps".encode(), b'{"inputs":[17],"top_k":1}')
    assert status == 200, body


# ---- steps


async def drive(server: Server, ids: Sequence[str], seconds: float) -> dict[str, float]:
    """One round at one server: each session has one step in flight."""
    made = chunks(describe(server.address, MODEL), 1, 0)
    sessions = [Session(server.address, MODEL, made, 1, i % len(made)) for i in range(len(ids))]
    await asyncio.gather(*(session.attach(id) for session, id in zip(sessions, ids, strict=True)))
    begin = time.perf_counter() + 0.01
    times = Times(begin, begin + WARM_UP_S, begin + WARM_UP_S + seconds)
    loop = ClosedLoop(sessions, times)
    for session in sessions:
        session.done = loop.done
    looks = asyncio.gather(*(_look(server.process.pid, at) for at in (times.measure, times.end)))
    tally = await loop.run()
    before, after = await looks
    for session in sessions:
        session.hang_up()
    assert not tally.problems, tally.problems
    return {
        "steps_per_s": tally.requests / tally.seconds,
        "cpu_us": (after - before) / tally.requests * 1e6,
        "p50_ms": tally.latencies.quantile(0.5) * 1e3,
        "p99_ms": tally.latencies.quantile(0.99) * 1e3,
    }


async def _look(pid: int, at: float) -> float:
    await asyncio.sleep(at - time.perf_counter())
    return cpu_seconds([pid])


def told(stocks: Sequence[Stock]) -> dict[str, Any]:
    """Medians of each store, and how far apart they are: by the ratios within each round."""
    say("\n| sessions in the store | CPU, µs per step | p50, ms | p99, ms | steps/s |\n|---:|---:|---:|---:|---:|")
    report: dict[str, Any] = {}
    for stock in stocks:
        middle = {name: statistics.median(r[name] for r in stock.rounds) for name in stock.rounds[0]}
        report[str(stock.sessions)] = middle | {"rounds": stock.rounds}
        say(f"| {stock.sessions:,} | {middle['cpu_us']:.1f} | {middle['p50_ms']:.2f} | {middle['p99_ms']:.2f} "
            f"| {middle['steps_per_s']:,.0f} |")  # fmt: skip
    for name in ("cpu_us", "p99_ms"):
        against = [statistics.median(r[name] / first[name] for r, first in zip(s.rounds, stocks[0].rounds, strict=True))
                   for s in stocks]  # fmt: skip
        report[f"{name}_ratios"] = against
        say(f"{name} beside the smallest store: " + ", ".join(f"{ratio:.2f} x" for ratio in against))
    return report


# ---- memory


async def make_live(server: Server, ids: Sequence[str], lanes: int = 64) -> None:
    """Step each of the sessions once."""

    async def lane(start: int) -> None:
        link = Link(server.address)
        for id in ids[start::lanes]:
            await _step(link, id)
        link.close()

    await asyncio.gather(*map(lane, range(lanes)))


def memory(server: Server, small: int, stock: Stock, small_rss: int, live: int) -> dict[str, Any]:
    """Bytes per live and per resting session, and what the record of a live session is made of."""
    resting = (server.rss() - small_rss) / (stock.sessions - small)
    ids = some_ids(stock.store, SETTLED + live, random.Random(9))
    uvloop.run(make_live(server, ids[:SETTLED]))
    before = server.rss()
    uvloop.run(make_live(server, ids[SETTLED:]))
    each = (server.rss() - before) / live
    parts = weighed(stock.store, ids[:1_000])
    say(f"\nper resting session {resting:.2f} bytes; per live session {each:.0f} bytes, {each - ROW_BYTES:.0f} beside "
        f"its row of {ROW_BYTES}; its record as loaded: "
        + ", ".join(f"{name} {size:.0f}" for name, size in parts.items()))  # fmt: skip
    return {"resting_bytes": resting, "live_bytes": each, "row_bytes": ROW_BYTES, "record": parts}


# ---- all of it


@contextmanager
def _folder(sessions: int) -> Iterator[Path]:
    """A fresh folder with room for so many sessions; it is deleted at the end."""
    needed, free = sessions * KB_A_SESSION * 1e3 * 1.2, shutil.disk_usage(tempfile.gettempdir()).free
    if free < needed:
        raise SystemExit(f"{tempfile.gettempdir()} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed")
    with tempfile.TemporaryDirectory(prefix="lstm-serve-growth-") as folder:
        yield Path(folder)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All three parts, as a report."""
    sizes = sorted(counts(options.sizes))
    if sizes[0] < options.active or sizes[-1] < SETTLED + options.live:
        raise SystemExit(f"--sizes: from {options.active} (--active) to {SETTLED + options.live} (--live) or more")
    chance = random.Random(options.seed)
    with _folder(sum(sizes)) as folder, ExitStack() as stack:
        models = folder / "models"
        made = Sessions(untrained.write(models / MODEL / "1" / "model.onnx", LAYERS, HIDDEN), options.seed)
        stocks = [Stock(folder, size, made) for size in sizes]
        report: dict[str, Any] = {"start": starts(models, Stock(folder, 0, made), stocks[-1], options.starts)}
        servers = [stack.enter_context(serving(models, stock.store)) for stock in stocks]
        for i in range(options.rounds):
            for stock, server in list(zip(stocks, servers, strict=True))[:: -1 if i % 2 else 1]:
                ids = some_ids(stock.store, options.active, chance)
                stock.rounds.append(uvloop.run(drive(server, ids, options.seconds)))
        report["steps"] = told(stocks)
        report["memory"] = memory(servers[-1], sizes[0], stocks[-1], servers[0].rss(), options.live)
    return report


def main() -> None:
    """Measure, tell, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,100000,1000000", help="numbers of sessions in a store, with commas")
    for name, default, told in NUMBERS:
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{told} (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds of a round (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON report to write")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in order: the servers are stopped, the folder deleted
    report = measure(options)
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
