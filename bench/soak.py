"""A long run: a server of our own at half of its capacity, with sessions that come and go, looked at all the time.

    python -m bench.soak [--minutes 60] [--store URL] [--durability commit] [--http-workers 0] [--share 0.5]
                         [--out report.json] [--plot soak.png]

The load is an open loop (Poisson arrivals); every answer is compared with the exact sum of what its session was sent.
At the end the server is stopped in order, started, killed, and started again on what is left: one more step of every
session tells whether all before it are there. Exit status 1 where something was lost, or is not flat after the warm-up
(a sixth of the time). Ctrl-C ends in order, with the report so far.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import sys
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path

import uvloop

from bench import witness_model
from bench.errors import BenchError
from bench.figures import Tally
from bench.population import Plan, Population
from bench.processor import server_processes
from bench.serving import Server, serving
from bench.soak_report import MB, Sample, Soak, draw, line, table, verdict
from bench.vitals import Vitals, look
from service.store_url import parse

MAX_LIVE = 1_000  # fewer than there are, so that sessions go to rest and come back
TOMBSTONE_S = 60.0  # the memory of ended sessions is part of what has to become steady
FLYING = 64  # sessions with a step in flight when the capacity is measured
ROUNDS, ROUND_S = 5, 8.0  # of that measurement; the least counts, as a machine's pace may swing
WARM_UP = 1 / 6  # of the time
HELP = {
    "hot": "sessions that step all the time, from the beginning to the end",
    "cold": "sessions that rest most of the time",
    "cold_rate": "requests per second of all cold ones together",
    "births": "sessions per second that are created besides",
    "life_s": "mean time in which those take steps",
    "ttl_s": "of the half of them that is left to expire",
}
_PAGE_BYTES = 4_096
_TELL_S = 30.0
_WORK = 50_000


class Watch:
    """Looks at a server again and again while a population lives on it."""

    def __init__(self, server: Server, database: Path | None, soak: Soak, every_s: float) -> None:
        self._server = server
        self._database = database
        self._soak = soak
        self._every_s = every_s
        self._processes = server_processes(server.address)
        self._told = -math.inf

    async def run(self, population: Population, load: asyncio.Task[None]) -> None:
        """Until the load has ended."""
        began = time.perf_counter()
        before, at, busy, own = await self._look(), began, _machine_busy(), time.process_time()
        population.window()
        while not load.done():
            await asyncio.wait([load], timeout=self._every_s)
            pace_ms = _pace_ms()
            vitals, now, busy_now = await self._look(), time.perf_counter(), _machine_busy()
            counted = population.window()
            ours = vitals.cpu_s - before.cpu_s + time.process_time() - own
            sample = _sample(vitals, vitals.cpu_s - before.cpu_s, counted, now - at)
            self._soak.samples.append(
                replace(sample, at_s=now - began, pace_ms=pace_ms, stepping=population.stepping,
                        others=max(0.0, (busy_now - busy - ours) / (now - at)))
            )  # fmt: skip
            self._soak.requests += counted.requests
            before, at, busy, own = vitals, now, busy_now, time.process_time()
            if now - self._told >= _TELL_S:
                self._told = now
                say(line(self._soak.samples[-1]))

    async def _look(self) -> Vitals:
        return await asyncio.to_thread(look, self._server.address, self._processes, self._database)


def _sample(vitals: Vitals, cpu_s: float, counted: Tally, seconds: float) -> Sample:
    """What is left out is added by whoever knows it."""
    p50, p99 = (counted.latencies.quantile(share) * 1e3 for share in (0.5, 0.99))
    return Sample(
        at_s=0.0,
        memory_mb=vitals.memory / MB,
        files=vitals.files,
        threads=vitals.threads,
        database_mb=vitals.database / MB,
        log_mb=vitals.log / MB,
        uncopied_mb=vitals.uncopied * _PAGE_BYTES / MB,
        live=vitals.live,
        stored=vitals.live + vitals.resting,
        stepping=0,
        requests_per_s=counted.requests / seconds,
        p50_ms=p50,
        p99_ms=p99,
        late_ms=counted.late.quantile(0.99) * 1e3,
        longest_ms=counted.latencies.longest * 1e3,
        cpu_us=cpu_s / max(1, counted.requests) * 1e6,
        others=0.0,
        pace_ms=0.0,
        problems=sum(counted.problems.values()),
    )


def _pace_ms() -> float:
    """CPU time of a fixed piece of work: the machine's own pace, which swings where others share it."""
    began = time.thread_time()
    sum(range(_WORK))
    return (time.thread_time() - began) * 1e3


def _machine_busy() -> float:
    """CPU seconds that all programs of the machine have used."""
    user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + sum(rest[:2])) / os.sysconf("SC_CLK_TCK")


def say(sentence: str) -> None:
    """A line of the result."""
    print(sentence, flush=True)


# ---- the run


async def load(
    server: Server, database: Path | None, plan: Plan, soak: Soak, options: argparse.Namespace
) -> Population:
    """Measure the capacity, then load the server with a share of it."""
    population = Population(server.address, plan, options.seed)
    await population.settle()
    round_s = min(ROUND_S, options.minutes * 6)
    soak.capacity = [await population.capacity(FLYING, round_s) for _ in range(ROUNDS)]
    soak.rate = options.share * min(soak.capacity)
    told = ", ".join(f"{reached:,.0f}" for reached in sorted(soak.capacity))
    say(f"capacity {told} requests/s with {FLYING} in flight; load {soak.rate:,.0f}/s")

    def stop() -> None:
        soak.interrupted = True
        population.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    living = asyncio.create_task(population.live(soak.rate, options.minutes * 60))
    await Watch(server, database, soak, options.every_s).run(population, living)
    await living
    return population


async def audit(population: Population, soak: Soak, server: Server) -> None:
    """Kill every process of the server's at once, when each session that is left has made one more step."""
    soak.audited = await population.audit()
    for pid in server_processes(server.address):
        os.kill(pid, signal.SIGKILL)


def soaked(options: argparse.Namespace, plan: Plan, folder: Path) -> Soak:
    """The whole run, in a folder of its own."""
    models, store = folder / "models", options.store or f"sqlite:{folder}/sessions.db"
    witness_model.write(models / witness_model.MODEL / "1" / "model.onnx")
    place = parse(store)
    database = Path(place.path) if place.kind == "sqlite" else None
    settings = {"max_live": MAX_LIVE, "tombstone_s": TOMBSTONE_S, "durability": options.durability,
                "http_workers": options.http_workers}  # fmt: skip
    further = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    soak = Soak({"store": place.kind, **settings}, warm_up_s=options.minutes * 60 * WARM_UP)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        with serving(models, store, further) as server:
            population = runner.run(load(server, database, plan, soak, options))
        if database is not None and (log := database.with_name(f"{database.name}-wal")).exists():
            soak.log_left_mb = log.stat().st_size / MB
        for after in ("an orderly end", "SIGKILL"):
            with serving(models, store, [*further, "--port", f"{server.address.port}"]) as again:
                runner.run(audit(population, soak, again))
                say(f"after {after}: {soak.audited} sessions went on")
    counts = population.counts
    soak.created, soak.deleted, soak.expired = counts.created, counts.deleted, counts.expired
    soak.problems = dict(counts.problems)
    return soak


def main() -> int:
    """Run, tell, and write the report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--store")
    parser.add_argument("--durability", default="commit", choices=("commit", "fsync"))
    parser.add_argument("--http-workers", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-s", type=float, default=4.0, help="seconds between two looks")
    for each in fields(Plan):
        kind = type(each.default)
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=kind, default=each.default, help=HELP[each.name])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    plan = Plan(**{each.name: getattr(options, each.name) for each in fields(Plan)})
    for path in (options.out, options.plot):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="lstm-serve-soak-") as folder:
            soak = soaked(options, plan, Path(folder))
        say(table(soak))
        say(verdict(soak))
    except (BenchError, ValueError) as error:
        raise SystemExit(f"soak: {error}") from None
    if options.out is not None:
        options.out.write_text(json.dumps(soak.to_json(), indent=1) + "\n")
    if options.plot is not None:
        draw(options.plot, soak)
    return 1 if soak.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
