"""The processes of the load generator, together: one stage after the other, and the sum of what they counted."""

import math
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Self

from bench.errors import BenchError
from bench.figures import Tally, together
from bench.inputs import chunks
from bench.loops import Times
from bench.messages import Binary, Json
from bench.options import Address, Options
from bench.processor import cpu_seconds, server_processes
from bench.stream_session import Way
from bench.worker import Close, Prepare, Run, Stop, Target, work

DIED = "a process of the load generator has died: the machine may be short of memory"
_LEAD_S = 0.05  # from telling the processes of a stage to its begin
_LOOK_S = 0.1


@dataclass(frozen=True)
class Stage:
    """What was counted with so many sessions; ``server_busy``: the cores that the server needed, None where it is
    not on this machine."""

    sessions: int
    tally: Tally
    server_busy: float | None


class Crew:
    """Processes that last for all stages; used as a context manager. Ctrl-C ends a stage, and sets ``interrupted``."""

    def __init__(self, address: Address, model: Mapping[str, Any], options: Options) -> None:
        self._options = options
        self._address = address
        made = chunks(model, options.steps, options.seed, binary=options.binary)
        way = Way(options.in_flight, Binary() if options.binary else Json()) if options.transport != "http" else None
        target = Target(address, model["name"], made, options.steps, options.seed, way)
        self._targets = [replace(target, seed=options.seed + i) for i in range(options.processes)]
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._server: list[int] = []
        self.interrupted = False
        self.problems: Counter[str] = Counter()  # of ending the sessions

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        # Ctrl-C reaches the whole group: what is ignored here, they ignore from their first moment on.
        self._before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for target in self._targets:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, target), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=5.0)
            process.kill()

    def run(self, sessions: int, show: Callable[[int, Tally], None]) -> Stage:
        """One stage; ``show`` is called with what has been counted so far. BenchError where sessions are refused."""
        o = self._options
        shares = [sessions // o.processes + (i < sessions % o.processes) for i in range(o.processes)]
        refused = [answer for answer in self._ask([Prepare(n) for n in shares]) if answer is not None]
        if refused:
            raise refused[0]
        self._server = server_processes(self._address)  # anew: it may have been started again
        begin = time.perf_counter() + _LEAD_S
        times = Times(begin, begin + o.warm_up, begin + o.warm_up + o.seconds)
        for pipe, n in zip(self._pipes, shares, strict=True):
            self._tell(pipe, Run(n, times, o.rate))
        return self._gather(sessions, times, show)

    def close(self) -> None:
        """End all sessions, and count what is wrong with them."""
        for problems in self._ask([Close()] * len(self._pipes)):
            self.problems.update(problems)

    def _gather(self, sessions: int, times: Times, show: Callable[[int, Tally], None]) -> Stage:
        """Listen until every process has told its last; look at the server's CPU time at both ends of measuring."""
        latest = dict.fromkeys(self._pipes, Tally())
        running, looks, end = set(self._pipes), list[tuple[float, float]](), times.end
        while running:
            now = time.perf_counter()
            if self.interrupted and end > now:
                end = now
                for pipe in running:
                    self._tell(pipe, Stop())
            edges = [times.measure, end]
            if len(looks) < len(edges) and now >= edges[len(looks)]:
                looks.append((now, cpu_seconds(self._server)))
                continue
            ahead = edges[len(looks)] - now if len(looks) < len(edges) else _LOOK_S
            for ready in wait(running, timeout=min(_LOOK_S, ahead)):
                assert isinstance(ready, Connection)
                told = self._receive(ready)
                if isinstance(told, tuple):
                    running.discard(ready)
                    (told,) = told
                latest[ready] = told
                show(sessions, together(latest.values()))
        if len(looks) == 1:  # the processes' last words came first
            looks.append((time.perf_counter(), cpu_seconds(self._server)))
        return Stage(sessions, together(latest.values()), _busy(looks) if self._server else None)

    def _ask(self, questions: Sequence[object]) -> list[Any]:
        for pipe, question in zip(self._pipes, questions, strict=True):
            self._tell(pipe, question)
        return [self._receive(pipe) for pipe in self._pipes]

    def _tell(self, pipe: Connection, command: object) -> None:
        try:
            pipe.send(command)
        except OSError:
            raise BenchError(DIED) from None

    def _receive(self, pipe: Connection) -> Any:  # noqa: ANN401 - an answer of worker's
        try:
            return pipe.recv()
        except (EOFError, OSError):
            raise BenchError(DIED) from None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """End in order; whoever has no patience for that presses Ctrl-C once more."""
        self.interrupted = True
        signal.signal(signal.SIGINT, self._before)


def _busy(looks: list[tuple[float, float]]) -> float:
    """CPU seconds per second between two looks; NaN where the stage ended before the second."""
    if len(looks) < 2 or looks[1][0] <= looks[0][0]:
        return math.nan
    (began, before), (ended, after) = looks
    return (after - before) / (ended - began)
