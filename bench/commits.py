"""What a commit to SQLite costs in CPU time, per row, and where it goes; in process, without a server.

    python -m bench.commits [--ticks 1,16,64,256] [--rows 2048,32768] [--sessions 2000] [--seconds 1] [--rounds 3]

A tick commits the next records of as many sessions, chosen anew among the active ones: 64, or as many as the tick has.
Ticks of all sizes take turns; medians of the rounds are told. `written down` is the encoding of answers, the checksum
and the parameters; `update` the statement; `log` what COMMIT writes; `the rest` BEGIN, locks and the look whether the
files are still there; `checkpoint` is the housekeeping's share, which a thread of its own does in the server.
"""

import argparse
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

from msgspec.structs import replace

from bench.filling import Sessions
from bench.options import counts
from service.state import Record
from service.stores import sqlite
from service.stores.sqlite import SqliteStore

ACTIVE = 64
PARTS = ("written down", "update", "log", "the rest", "checkpoint")
_STATEMENTS = {"UPDATE": "update", "COMMIT": "log"}
_MAINTAIN_BYTES = 2**23  # of rows between two looks of the housekeeping


class Timed:
    """A connection, and how many seconds of CPU time it took over statements of each kind."""

    def __init__(self, connection: Any) -> None:  # noqa: ANN401 - stands in for sqlite3's
        self._connection = connection
        self.spent: dict[str, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._connection, name)

    def execute(self, *words: Any) -> Any:  # noqa: ANN401
        """The connection's own."""
        return self._timed(self._connection.execute, words)

    def executemany(self, *words: Any) -> Any:  # noqa: ANN401
        """The connection's own."""
        return self._timed(self._connection.executemany, words)

    def _timed(self, call: Callable[..., Any], words: tuple[Any, ...]) -> Any:  # noqa: ANN401
        began = thread_time()
        try:
            return call(*words)
        finally:
            self.spent[_STATEMENTS.get(words[0].split()[0], "the rest")] += thread_time() - began


class Bench:
    """A store with sessions, of which a few at a time are active."""

    def __init__(self, store: SqliteStore, sessions: int, row_bytes: int) -> None:
        made = Sessions("f" * 64)
        self._store = store
        self._chance = random.Random(0)
        self._records = [made.record(f"{self._chance.getrandbits(128):032x}", row_bytes) for _ in range(sessions)]
        self._rows = [record.row for record in self._records]
        store.create(self._records)
        self._timed = store._writer = Timed(store._writer)  # type: ignore[assignment]  # it does all that is asked

    def run(self, tick: int, seconds: float) -> dict[str, float]:
        """Microseconds per row of each part."""
        active = self._chance.sample(range(len(self._records)), max(ACTIVE, tick))
        spent, rows, whole, until, loose = self._timed.spent, 0, 0.0, perf_counter() + seconds, 0
        spent.clear()
        while perf_counter() < until:
            chosen = self._chance.sample(active, tick)
            records = [self._next(self._records[i]) for i in chosen]
            began = thread_time()
            kept = self._store.commit(records)
            whole += thread_time() - began
            assert all(kept)
            began = thread_time()
            for record in records:  # what the commit did, once more and by itself
                sqlite._update(record)
            spent["written down"] += thread_time() - began
            for i, record in zip(chosen, records, strict=True):
                self._records[i] = record
            rows, loose = rows + tick, loose + sum(len(record.row) for record in records)
            if loose > _MAINTAIN_BYTES:
                began = thread_time()
                self._store.maintain()
                spent["checkpoint"] += thread_time() - began
                loose = 0
        spent["the rest"] = whole - spent["written down"] - spent["update"] - spent["log"]
        return {name: spent[name] / rows * 1e6 for name in PARTS}

    def _next(self, record: Record) -> Record:
        (answer,) = record.answers
        answer = replace(answer, start=record.position)
        position, revision, row = record.position + 1, record.revision + 1, self._chance.choice(self._rows)
        return replace(record, position=position, revision=revision, row=row, answers=(answer,))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", default="1,16,64,256")
    parser.add_argument("--rows", default="2048,32768")
    parser.add_argument("--sessions", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    o = parser.parse_args()
    print(f"| row, bytes | rows of a tick | µs per row | {' | '.join(PARTS)} |\n|" + "---:|" * (3 + len(PARTS)))
    for row_bytes in counts(o.rows):
        with tempfile.TemporaryDirectory() as folder, closing(SqliteStore(Path(folder, "s.db"), fsync=False)) as store:
            bench, ticks = Bench(store, o.sessions, row_bytes), counts(o.ticks)
            rounds = [{tick: bench.run(tick, o.seconds) for tick in ticks} for _ in range(o.rounds)]
        for tick in ticks:
            middle = {name: statistics.median(told[tick][name] for told in rounds) for name in PARTS}
            parts = " | ".join(f"{middle[name]:.1f}" for name in PARTS)
            print(f"| {row_bytes} | {tick} | {sum(middle.values()):.1f} | {parts} |", flush=True)


if __name__ == "__main__":
    main()
