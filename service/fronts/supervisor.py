"""The parent of all processes: it starts them, starts anew whichever ends, and ends them in order.

One process has the engine and the sessions, so that all of them share ticks; the others speak HTTP. Losing any of them
loses nothing: what is acknowledged is committed, and a client whose connection broke repeats with ``position``.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress

from service.fronts.paths import BEAT_S, READY, RETIRE
from service.settings import PREFIX, Settings
from service.sockets import bind, url

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 5.0  # before a process is started again, doubled while it ends at once
_SETTLED_S = 10.0  # a process that ran so long did not end at once
_SILENT_BEATS = 12  # in a row, so after 60 s, a process hangs and is killed
_GRACE_S = 5.0  # beyond drain_s, before a process that does not end is killed


def supervise(settings: Settings) -> None:
    """Serve with ``http_workers`` front ends until SIGTERM or SIGINT.

    Raises:
        SettingsError: the address cannot be had.
        SystemExit: a process refused to start, and has said why.
    """
    bind(settings.host, settings.port).close()  # refuses an address that somebody else listens on
    # Taken but not listened on: the front ends share it, and a port that was picked stays ours.
    with (
        tempfile.TemporaryDirectory(prefix="lstm-serve-") as folder,
        bind(settings.host, settings.port, shared=True) as reserved,
    ):
        status = asyncio.run(Supervisor(settings, folder, reserved).run())
    if status:
        sys.exit(status)
    log.info("closed")


class Supervisor:
    """Mutable state: ``_stopping``, and ``_status``, the exit status of a process that refused to start."""

    def __init__(self, settings: Settings, folder: str, reserved: socket.socket) -> None:
        self._lame_duck_s, self._drain_s, self._url = settings.lame_duck_s, settings.drain_s, url(reserved)
        environment = _environment(settings, port=reserved.getsockname()[1])
        names = ["engine", *(f"front-{number}" for number in range(settings.http_workers))]
        self._engine, *self._fronts = (Kept(name, folder, environment, self._stop) for name in names)
        self._stopping = asyncio.Event()
        self._status = 0

    def _stop(self, status: int = 0) -> None:
        self._status = self._status or status
        self._stopping.set()

    async def run(self) -> int:
        """Start all, keep them running, end them; 0, or the exit status of a process that refused to start."""
        for sign in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(sign, self._stop)
        starting = asyncio.create_task(self._start())
        await self._stopping.wait()
        if self._lame_duck_s and starting.done():
            await self._serve_on()
        starting.cancel()
        await self._end()
        return self._status

    async def _start(self) -> None:
        everybody = [self._engine, *self._fronts]
        for kept in everybody:
            kept.start()
        for kept in everybody:
            await kept.ready.wait()
        log.info("listening on %s", self._url)

    async def _serve_on(self) -> None:
        """For a while, not ready any more; told to end once more, or where a process cannot start, not longer."""
        self._engine.retire()
        self._stopping.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._lame_duck_s)

    async def _end(self) -> None:
        """Front ends first, so that nobody is left waiting; those that do not come to an end are killed."""
        everybody = [self._engine, *self._fronts]
        for sign, some, limit_s in (
            (signal.SIGTERM, self._fronts, self._drain_s),
            (signal.SIGTERM, everybody, self._drain_s + _GRACE_S),
            (signal.SIGKILL, everybody, None),
        ):
            running = [task for kept in some if (task := kept.end(sign)) is not None]
            if running:
                await asyncio.wait(running, timeout=limit_s)


class Kept:
    """A process that is started again whenever it ends, until it is to end.

    Mutable state: ``_process`` (the latest), ``_task`` (who waits for it), ``_ending``, ``_retired``.
    """

    def __init__(self, name: str, folder: str, environment: Mapping[str, str], refused: Callable[[int], None]) -> None:
        """``refused`` is called with the exit status of a process that was never ready."""
        self.name = name
        self.ready = asyncio.Event()  # for the first time
        self._command = (sys.executable, "-m", f"service.fronts.{name.partition('-')[0]}", folder)
        self._environment = environment
        self._refused = refused
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._retired = False

    def start(self) -> None:
        """Have it run."""
        self._task = asyncio.create_task(self._keep())

    def end(self, sign: signal.Signals) -> "asyncio.Task[None] | None":
        """Have it end, by this signal; what is done once it has, None where it was never started."""
        self._ending.set()
        self.tell(sign)
        return self._task

    def retire(self) -> None:
        """Have it say that it is not ready any more, also when it is started again."""
        self._retired = True
        self.tell(RETIRE)

    def tell(self, sign: signal.Signals) -> None:
        """Send it this signal, where it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(sign)

    async def _keep(self) -> None:
        loop, wait_s = asyncio.get_running_loop(), _FIRST_WAIT_S
        while not self._ending.is_set():
            started = loop.time()
            try:
                status = await self._run()
            except OSError as error:  # there may be room for a process again in a while
                log.error("the process %s cannot be started: %s", self.name, error)
                status = 1
            if self._ending.is_set():
                return
            if not self.ready.is_set():
                self._refused(status or 1)
                return
            log.warning("the process %s ended with status %d and is started again", self.name, status)
            wait_s = _FIRST_WAIT_S if loop.time() - started > _SETTLED_S else min(2 * wait_s, _LONGEST_WAIT_S)
            await asyncio.wait([ending := asyncio.create_task(self._ending.wait())], timeout=wait_s)
            ending.cancel()

    async def _run(self) -> int:
        """Run it once; the exit status.

        Its standard input stays open as long as this process lives, and so tells it when that has gone.
        """
        pipe = asyncio.subprocess.PIPE
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=pipe,
            stdout=pipe,
            start_new_session=True,  # Ctrl-C in a terminal comes to this process only, which ends all in order
        )
        if self._ending.is_set():  # it was told while there was nobody to tell
            self.tell(signal.SIGTERM)
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        if await process.stdout.readline() == READY:
            self.ready.set()
            if self._retired:
                self.tell(RETIRE)
            await self._listen(process, process.stdout)
        return await process.wait()

    async def _listen(self, process: asyncio.subprocess.Process, told: asyncio.StreamReader) -> None:
        """Until it ends, or hangs: then it is killed, which loses nothing that was acknowledged.

        Beats are counted, not seconds: where all processes were stopped together, each has its time anew.
        """
        silent = 0
        while silent < _SILENT_BEATS:
            try:
                async with asyncio.timeout(BEAT_S):
                    if not await told.readline():
                        return
                silent = 0
            except TimeoutError:
                silent += 1
        log.error("the process %s has been silent for %g s: it hangs, and is killed", self.name, silent * BEAT_S)
        process.kill()


def _environment(settings: Settings, **others: object) -> dict[str, str]:
    """The settings as a child reads them: they may hold secrets, which do not belong on a command line.

    What nobody has chosen is left out, because tuning may choose it.
    """
    chosen = settings.model_dump(mode="json", exclude_none=True, exclude_unset=True) | others
    told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in chosen.items()}
    return os.environ | {PREFIX + name.upper(): value for name, value in told.items()}
