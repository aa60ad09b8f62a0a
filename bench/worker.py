"""A process of the load generator: makes sessions, runs a stage, tells what it counted, ends its sessions.

Owns the process's side of the talk with its parent (`crew`). Where the parent is gone, it ends its sessions by itself.
"""

import asyncio
import random
import resource
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar

import uvloop

from bench.errors import BenchError
from bench.loops import ClosedLoop, Loop, OpenLoop, Times
from bench.options import Address
from bench.session import Session
from bench.stream_session import StreamSession, Way

T = TypeVar("T")

TELL_S = 0.5
_AT_ONCE = 64  # sessions that are made or ended at the same time


@dataclass(frozen=True)
class Target:
    """What is loaded, with what, and how (``way``: on streams); ``seed`` differs from process to process."""

    address: Address
    model: str
    chunks: Sequence[bytes]
    steps: int
    seed: int
    way: Way | None = None

    def session(self, chance: random.Random) -> Session:
        """A new one, that begins at some chunk."""
        told = self.address, self.model, self.chunks, self.steps, chance.randrange(len(self.chunks))
        return Session(*told) if self.way is None else StreamSession(*told, self.way)


@dataclass(frozen=True)
class Prepare:
    """Have so many sessions. Answered with None, or with a BenchError."""

    sessions: int


@dataclass(frozen=True)
class Run:
    """Load the first so many of them. Answered with a Tally now and then, and at the end with (Tally,)."""

    sessions: int
    times: Times
    rate: float | None


@dataclass(frozen=True)
class Stop:
    """End the stage now. Not answered."""


@dataclass(frozen=True)
class Close:
    """End all sessions. Answered with the problems."""


def work(pipe: Connection, target: Target) -> None:
    """The process."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Worker(pipe, target).listen())


class Worker:
    """One command after the other."""

    def __init__(self, pipe: Connection, target: Target) -> None:
        self._pipe = pipe
        self._target = target
        self._random = random.Random(target.seed)
        self._sessions: list[Session] = []
        self._loop: Loop | None = None
        self._commands: asyncio.Queue[object] = asyncio.Queue()

    async def listen(self) -> None:
        """Until all is to be closed, or the parent has hung up."""
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._hear)
        while not isinstance(command := await self._commands.get(), Close):
            match command:
                case Prepare(sessions):
                    self._say(await self._prepare(sessions))
                case Run():
                    self._say((await self._run(command),))
        self._say(await self._close())

    def _hear(self) -> None:
        try:
            command = self._pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            command = Close()
        if self._loop is not None and isinstance(command, Close | Stop):
            self._loop.stop()
        if not isinstance(command, Stop):
            self._commands.put_nowait(command)

    def _say(self, answer: object) -> None:
        with suppress(OSError):  # nobody listens any more
            self._pipe.send(answer)

    async def _prepare(self, sessions: int) -> BenchError | None:
        new = [self._target.session(self._random) for _ in range(sessions - len(self._sessions))]
        self._sessions += new
        try:
            await a_few_at_once([session.create() for session in new])
        except OSError as error:
            return BenchError(f"the server takes no connection more for session {len(self._sessions)}: {error}")
        except BenchError as error:
            return error
        return None

    async def _run(self, command: Run) -> object:
        sessions = self._sessions[: command.sessions]
        if command.rate is None:
            self._loop = ClosedLoop(sessions, command.times)
        else:
            self._loop = OpenLoop(sessions, command.times, command.rate, self._random)
        for session in sessions:
            session.done = self._loop.done
        telling = asyncio.create_task(self._tell(self._loop))
        try:
            return await self._loop.run()
        finally:
            telling.cancel()
            self._loop = None

    async def _tell(self, loop: Loop) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            self._say(loop.tally)

    async def _close(self) -> Counter[str]:
        ended = await a_few_at_once([session.delete() for session in self._sessions])
        return Counter(problem for problem in ended if problem is not None)


async def a_few_at_once(coroutines: Iterable[Awaitable[T]]) -> list[T]:
    """What they return; the first error, when all have ended."""
    few = asyncio.Semaphore(_AT_ONCE)

    async def one(coroutine: Awaitable[T]) -> T:
        async with few:
            return await coroutine

    done = await asyncio.gather(*map(one, coroutines), return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return [result for result in done if not isinstance(result, BaseException)]
