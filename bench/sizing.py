"""How much it takes to serve so many sessions: replicas, Redis masters, memory, traffic. Arithmetic on measured costs.

    python -m bench.sizing --sessions 1e6 [--installations 1] [--active 0.1] [--steps-per-minute 6] [--row-bytes 2048]
    python -m bench.sizing --docs docs/operation.md

The costs are those of docs/performance.md and docs/operation.md: a 2x128 LSTM over 96 symbols, single steps over HTTP,
on one machine. Where the model or the processor is another one, measure anew and change the constants here.
``--docs`` writes the table of docs/operation.md, between marks. An installation has a Redis of its own, and sessions of
its own; more of them share nothing but the image.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MARKS = ("<!-- table: python -m bench.sizing writes it -->", "<!-- end of the table -->")
LIVE_BYTES = 300  # beside its row, a live session that is packed (docs/performance.md)
READY, READY_BYTES = 1024, 2900  # the sessions used last are kept ready
PROCESS_BYTES = 121e6  # a server with both shipped models, before its first session
WIRE_BYTES = 768  # of a step to Redis, beside its row: output, answer, identity, protocol
KEPT_BYTES = 1713  # of a session in Redis, beside its row: output, answer, key, indices
HTTP_BYTES = 395  # of a step, request and answer
BALANCER_US = 50  # of CPU time per step in HAProxy


@dataclass(frozen=True)
class Cost:
    """Microseconds of CPU time per step: ``each``, and ``call`` for what rows share that go together."""

    each: float
    call: float

    def us(self, rows: float) -> float:
        """Of a step that goes with so many rows, itself counted."""
        return self.each + self.call / rows


# Fitted to measurements at 1 to 64 rows per call, with an append-only file synced every second.
SERVING = Cost(76, 532)  # the server without its commit
COMMIT_ONE, COMMIT_CLUSTER = Cost(13, 144), Cost(32, 137)  # the commit, in the server
REDIS_ONE, REDIS_CLUSTER = Cost(14.3, 88.7), Cost(29, 77)  # the commit, in Redis


@dataclass(frozen=True)
class Load:
    """What is asked. ``active``: the share of sessions that take steps now, so many per minute each."""

    sessions: float
    active: float = 0.1
    steps_per_minute: float = 6.0
    row_bytes: float = 2048.0

    @property
    def steps_s(self) -> float:
        """Steps per second of all sessions."""
        return self.sessions * self.active * self.steps_per_minute / 60


@dataclass(frozen=True)
class Plan:
    """What is planned for: how busy a core may be, and how full a master."""

    busy: float = 0.5  # so that peaks of twice the load are served
    tick_rows: float = 16.0  # rows that share a tick then: fewer than under full load
    master_bytes: float = 16e9  # of sessions in one master
    room: float = 1.5  # memory of a master per byte of sessions: copies while the log is rewritten
    replicas: int = 3  # at least
    balancers: int = 2  # at least


@dataclass(frozen=True)
class Size:
    """What it takes."""

    load: Load
    masters: int
    replicas: int
    balancers: int
    step_us: float  # CPU time of a step in the server
    redis_us: float  # and in Redis
    replica_bytes: float  # memory of one replica
    redis_bytes: float  # memory of all masters
    store_bytes_s: float  # from all replicas to all masters


def size(load: Load, plan: Plan = Plan()) -> Size:
    """What ``load`` takes."""
    redis_bytes = load.sessions * (load.row_bytes + KEPT_BYTES)
    masters = max(1, math.ceil(redis_bytes / plan.master_bytes))
    while (needed := _cores(load, plan, _redis(masters).us(_rows(plan, masters)))) > masters:
        masters = needed  # a tick is cut among more of them, so that a step costs more: again
    commit = COMMIT_ONE if masters == 1 else COMMIT_CLUSTER
    step_us = SERVING.us(plan.tick_rows) + commit.us(_rows(plan, masters))
    replicas = max(plan.replicas, _cores(load, plan, step_us))
    live = load.sessions * load.active / replicas
    return Size(
        load=load,
        masters=masters,
        replicas=replicas,
        balancers=max(plan.balancers, _cores(load, plan, BALANCER_US)),
        step_us=step_us,
        redis_us=_redis(masters).us(_rows(plan, masters)),
        replica_bytes=PROCESS_BYTES + live * (load.row_bytes + LIVE_BYTES) + READY * READY_BYTES,
        redis_bytes=redis_bytes * plan.room,
        store_bytes_s=load.steps_s * (load.row_bytes + WIRE_BYTES),
    )


def _cores(load: Load, plan: Plan, us: float) -> int:
    """Cores, none busier than planned, for so many microseconds per step."""
    return math.ceil(load.steps_s * us / 1e6 / plan.busy)


def _redis(masters: int) -> Cost:
    return REDIS_ONE if masters == 1 else REDIS_CLUSTER


def _rows(plan: Plan, masters: int) -> float:
    """Rows of a tick that go to one master together."""
    return max(1.0, plan.tick_rows / masters)


def table(columns: Sequence[tuple[Load, int]]) -> str:
    """The sizes as a Markdown table, a column for each load and number of installations that share it equally."""
    sizes = [(size(Load(at.sessions / n, at.active, at.steps_per_minute, at.row_bytes)), n) for at, n in columns]
    rows: list[tuple[str, Callable[[Size, int], str]]] = [
        ("installations", lambda _, n: f"{n:,}"),
        ("sessions", lambda s, n: f"{s.load.sessions * n:,.0f}"),
        ("of them active", lambda s, n: f"{s.load.sessions * s.load.active * n:,.0f}"),
        ("steps per second", lambda s, n: f"{s.load.steps_s * n:,.0f}"),
        ("CPU of a step in a replica, µs", lambda s, _: f"{s.step_us:.0f}"),
        ("replicas of one core", lambda s, n: f"{s.replicas * n:,}"),
        ("memory of a replica, MB", lambda s, _: f"{s.replica_bytes / 1e6:,.0f}"),
        ("balancers of one core", lambda s, n: f"{s.balancers * n:,}"),
        ("CPU of a step in Redis, µs", lambda s, _: f"{s.redis_us:.0f}"),
        ("Redis masters", lambda s, n: f"{s.masters * n:,}"),
        ("memory of all masters, GB", lambda s, n: f"{s.redis_bytes * n / 1e9:,.1f}"),
        ("memory of one master, GB", lambda s, _: f"{s.redis_bytes / s.masters / 1e9:,.1f}"),
        ("to the store, MB/s", lambda s, n: f"{s.store_bytes_s * n / 1e6:,.1f}"),
        ("to one master, MB/s", lambda s, _: f"{s.store_bytes_s / s.masters / 1e6:,.1f}"),
        ("clients, both ways, MB/s", lambda s, n: f"{s.load.steps_s * HTTP_BYTES * n / 1e6:,.1f}"),
    ]
    (first, head), *others = rows
    lines = [_line(first, [head(*one) for one in sizes]), "|---|" + "---:|" * len(sizes)]
    return "\n".join(lines + [_line(name, [tell(*one) for one in sizes]) for name, tell in others])


def _line(name: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


DOCS = ((Load(1e6), 1), (Load(1e8), 1), (Load(1e8), 100))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write that of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=_positive, default=1e6)
    parser.add_argument("--installations", type=int, choices=range(1, 10_001), metavar="N", default=1)
    parser.add_argument("--active", type=_share, default=Load.active)
    parser.add_argument("--steps-per-minute", type=_positive, default=Load.steps_per_minute)
    parser.add_argument("--row-bytes", type=_positive, default=Load.row_bytes)
    parser.add_argument("--docs", type=Path)
    o = parser.parse_args(arguments)
    if o.docs is None:
        print(table([(Load(o.sessions, o.active, o.steps_per_minute, o.row_bytes), o.installations)]))
        return
    between = re.compile(f"(?<={re.escape(MARKS[0])}\n).*(?={re.escape(MARKS[1])})", re.DOTALL)
    o.docs.write_text(between.sub(table(DOCS) + "\n", o.docs.read_text()))


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _share(text: str) -> float:
    value = _positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: at most 1")
    return value


if __name__ == "__main__":
    main()
