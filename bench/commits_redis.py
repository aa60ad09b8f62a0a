"""What a commit to Redis costs, beside one to SQLite: CPU time here and there, bytes on the wire, bytes kept.

    python -m bench.commits_redis --url redis://127.0.0.1:6379 [--ticks 1,16,64,256] [--sessions 20000] [--seconds 1]

The Redis must have nothing else to do; its sessions are those of a model of 2 x 128 cells, and they are removed. Both
stores take the same ticks in turns; medians of the rounds are told, in microseconds of CPU time per step.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter, thread_time

import redis
from msgspec.structs import replace

from bench.filling import ROW_BYTES, Sessions
from bench.options import counts
from service.state import Record
from service.store_url import parse
from service.stores.base import Store
from service.stores.opening import open_store

_AT_ONCE = 500
COUNTED = ("used_cpu_user", "used_cpu_sys", "total_net_input_bytes", "total_net_output_bytes")


class Counters:
    """What a Redis counts of itself."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def now(self) -> dict[str, float]:
        """Seconds of CPU time and bytes since it was started."""
        told: Mapping[str, float] = self._client.info()
        return {name: float(told[name]) for name in COUNTED}


class Active:
    """Sessions of a store, stepped in ticks, all in turn."""

    def __init__(self, store: Store, records: Sequence[Record]) -> None:
        self._store = store
        self._records = list(records)
        self._at = 0

    def run(self, tick: int, seconds: float) -> tuple[int, float]:
        """So many steps were committed, and the CPU time that this thread took for that, in seconds."""
        steps, spent, until = 0, 0.0, perf_counter() + seconds
        while perf_counter() < until:
            places = [(self._at + n) % len(self._records) for n in range(tick)]
            self._at += tick
            records = [_next(self._records[i]) for i in places]
            began = thread_time()
            kept = self._store.commit(records)
            spent += thread_time() - began
            assert all(flag is True for flag in kept)
            for i, record in zip(places, records, strict=True):
                self._records[i] = record
            steps += tick
        return steps, spent


def _next(record: Record) -> Record:
    (answer,) = record.answers
    answer = replace(answer, start=record.position)
    return replace(record, position=record.position + 1, revision=record.revision + 1, answers=(answer,))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--ticks", default="1,16,64,256")
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    o = parser.parse_args()
    made = Sessions("f" * 64)
    records = [made.record(f"{n:032x}") for n in range(o.sessions)]
    place = parse(o.url)
    ((host, port),) = place.nodes
    client = redis.Redis(host=host, port=port, db=place.db, username=place.user, password=place.password)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_store(parse(f"sqlite:{Path(folder, 's.db')}"), "commit")) as sqlite,
        closing(open_store(place, "commit")) as far,
        closing(client),
    ):
        kept_bytes = _filled(far, sqlite, records, client)
        print(f"row {ROW_BYTES} bytes; a session in Redis: {kept_bytes:.0f} bytes, indices included\n")
        print(
            "| rows of a tick | SQLite | Redis, here | Redis, there | bytes to it | bytes back |\n" + "|---:" * 6 + "|"
        )
        near, away, counters = Active(sqlite, records), Active(far, records), Counters(client)
        for tick in counts(o.ticks):
            rounds = [_round(near, away, counters, tick, o.seconds) for _ in range(o.rounds)]
            middle = [statistics.median(column) for column in zip(*rounds, strict=True)]
            print(f"| {tick} | {' | '.join(f'{value:.1f}' for value in middle)} |", flush=True)
        for record in records:
            far.end(record.identity.id, "deleted", 0.0)
        while far.forget(1.0, _AT_ONCE):
            pass


def _filled(far: Store, near: Store, records: Sequence[Record], client: redis.Redis) -> float:
    """Fill both stores: bytes that one session takes in Redis."""
    before = client.info("memory")["used_memory"]
    for start in range(0, len(records), _AT_ONCE):
        for store in (far, near):
            store.create(records[start : start + _AT_ONCE])
    grown: float = client.info("memory")["used_memory"] - before
    return grown / len(records)


def _round(near: Active, away: Active, counters: Counters, tick: int, seconds: float) -> tuple[float, ...]:
    """Per step: µs here with SQLite, µs here with Redis, µs there, bytes to it and back."""
    steps, spent = near.run(tick, seconds)
    sqlite_us = spent / steps * 1e6
    before = counters.now()
    steps, spent = away.run(tick, seconds)
    after = counters.now()
    grown = {name: (after[name] - before[name]) / steps for name in COUNTED}
    there_us = (grown["used_cpu_user"] + grown["used_cpu_sys"]) * 1e6
    return sqlite_us, spent / steps * 1e6, there_us, grown["total_net_input_bytes"], grown["total_net_output_bytes"]


if __name__ == "__main__":
    main()
