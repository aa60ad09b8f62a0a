"""What the processes that a supervisor starts have in common: how they begin and end."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn
import uvloop

from service import logs
from service.errors import ServiceError
from service.fronts.paths import READY, REFUSED
from service.server import end_when_told
from service.settings import Settings, load_settings


def run(serve: Callable[[Settings, Path], Awaitable[None]]) -> None:
    """Be such a process: ``python -m service.fronts.KIND FOLDER``, the settings in the environment."""
    settings = load_settings()
    logs.set_up(settings.log_level)
    try:
        uvloop.run(serve(settings, Path(sys.argv[1])))  # type: ignore[arg-type]  # a coroutine
    except ServiceError as error:
        sys.stderr.write(f"lstm-serve: {error}\n")
        sys.exit(REFUSED)


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
    """Requests can be taken."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
