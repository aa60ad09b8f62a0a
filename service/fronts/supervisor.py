"""The parent of all processes: it starts them, starts anew whichever ends, and ends them in order.

One process has the engine and the sessions, so that all of them share ticks; the others speak HTTP. Losing any of them
loses nothing: what is acknowledged is committed, and a client whose connection broke repeats with ``position``.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

from service.fronts.paths import READY
from service.server import listen
from service.settings import PREFIX, Settings

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 5.0  # before a process is started again, doubled while it ends at once
_SETTLED_S = 10.0  # a process that ran so long did not end at once
_GRACE_S = 5.0  # beyond drain_s, before a process that does not end is killed


def supervise(settings: Settings) -> None:
    """Serve with ``http_workers`` front ends until SIGTERM or SIGINT."""
    listen(settings.host, settings.port).close()  # refuses an address that somebody else has
    with tempfile.TemporaryDirectory(prefix="lstm-serve-") as folder, _reserved(settings) as reserved:
        asyncio.run(Supervisor(settings, Path(folder), reserved).run())
    log.info("closed")


def _reserved(settings: Settings) -> socket.socket:
    """The address, taken but not listened on: the front ends share it, and a port that was picked stays ours."""
    reserved = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((settings.host, settings.port))
    return reserved


class Supervisor:
    """Mutable state: ``_running``, the processes by name, and ``_stopping``."""

    def __init__(self, settings: Settings, folder: Path, reserved: socket.socket) -> None:
        self._settings = settings
        self._folder = str(folder)
        self._address = reserved.getsockname()[:2]
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Start all, keep them running, and end them in order: front ends first, so that nobody is left waiting."""
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, self._stopping.set)
        engine = asyncio.create_task(self._keep("engine", [self._folder], first=await self._first_engine()))
        port = str(self._address[1])
        names = [f"front-{number}" for number in range(self._settings.http_workers)]
        fronts = [asyncio.create_task(self._keep(name, [self._folder, port])) for name in names]
        log.info("listening on http://%s:%d", *self._address)
        await self._stopping.wait()
        await self._end(names, fronts)
        await self._end(["engine"], [engine])

    async def _first_engine(self) -> asyncio.subprocess.Process:
        """The engine's process, ready; where it refuses to start it has said why, and so ends everything."""
        process = await self._start("engine", [self._folder])
        if await _ready(process) or self._stopping.is_set():
            return process
        sys.exit(await process.wait() or 1)

    async def _keep(self, name: str, arguments: list[str], first: asyncio.subprocess.Process | None = None) -> None:
        """Have a process of this name run until everything ends."""
        loop, wait_s = asyncio.get_running_loop(), _FIRST_WAIT_S
        while not self._stopping.is_set():
            started, process = loop.time(), first or await self._start(name, arguments)
            first = None
            status = await process.wait()
            if self._stopping.is_set():
                return
            log.warning("the process %s ended with status %d and is started again", name, status)
            wait_s = _FIRST_WAIT_S if loop.time() - started > _SETTLED_S else min(2 * wait_s, _LONGEST_WAIT_S)
            await asyncio.sleep(wait_s)

    async def _start(self, name: str, arguments: list[str]) -> asyncio.subprocess.Process:
        """Standard input stays open as long as this process lives, and so tells the child when it has gone."""
        kind = name.partition("-")[0]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"service.fronts.{kind}", *arguments),
            env=_environment(self._settings),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if kind == "engine" else None,
            start_new_session=True,  # Ctrl-C in a terminal comes here only, and from here in order
        )
        self._running[name] = process
        return process

    async def _end(self, names: list[str], tasks: "list[asyncio.Task[None]]") -> None:
        """Have processes finish what they accepted; kill those that do not come to an end."""
        for sign, limit_s in ((signal.SIGTERM, self._settings.drain_s + _GRACE_S), (signal.SIGKILL, None)):
            for name in names:
                if self._running[name].returncode is None:
                    self._running[name].send_signal(sign)
            _, pending = await asyncio.wait(tasks, timeout=limit_s)
            if not pending:
                return


async def _ready(process: asyncio.subprocess.Process) -> bool:
    assert process.stdout is not None  # noqa: S101 - the engine's is a pipe
    return await process.stdout.readline() == READY


def _environment(settings: Settings) -> dict[str, str]:
    """The settings as a child reads them: secrets do not belong on a command line."""
    chosen = settings.model_dump(mode="json")
    return os.environ | {PREFIX + name.upper(): str(value) for name, value in chosen.items()}
