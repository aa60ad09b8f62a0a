"""What the processes that a supervisor starts have in common: how they begin and end."""

import asyncio
import fcntl
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
import uvloop

from service import logs
from service.errors import ServiceError
from service.fronts.paths import BEAT, BEAT_S, READY, REFUSED
from service.server import end_when_told
from service.settings import Settings, load_settings


def run(serve: Callable[[Settings, Path], Awaitable[None]]) -> None:
    """Be such a process: ``python -m service.fronts.KIND FOLDER``, the settings in the environment."""
    settings = load_settings()
    logs.set_up(settings.log_level)
    folder = Path(sys.argv[1])
    try:
        with _tidied_by_the_last(folder):
            uvloop.run(serve(settings, folder))  # type: ignore[arg-type]  # a coroutine
    except ServiceError as error:
        sys.stderr.write(f"lstm-serve: {error}\n")
        sys.exit(REFUSED)


@contextmanager
def _tidied_by_the_last(folder: Path) -> Iterator[None]:
    """The supervisor removes the folder at its end; where it was killed, the last of its processes does.

    Each of them holds a share of a lock, and whoever can have it for itself is the last.
    """
    supervisor, held = os.getppid(), -1
    with suppress(OSError):  # somebody may have tidied up where temporary files are
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if held >= 0 and os.getppid() != supervisor:
            with suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def end_in_order(server: uvicorn.Server) -> None:
    """Have the server end when it is told to, or when the supervisor has gone."""
    end_when_told(server)
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _end_when_orphaned, server)


def _end_when_orphaned(server: uvicorn.Server) -> None:
    """Standard input is open as long as the supervisor lives; nothing is ever written there."""
    if not os.read(sys.stdin.fileno(), 1):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        server.should_exit = True


def tell_ready() -> None:
    """Requests can be taken; from now on the supervisor hears now and then that the event loop goes round."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    _beat()


def _beat() -> None:
    with suppress(OSError):  # the supervisor has gone
        os.write(sys.stdout.fileno(), BEAT)
        asyncio.get_running_loop().call_later(BEAT_S, _beat)
