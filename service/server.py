"""What every process that listens has in common: its socket, uvicorn as we run it, and how it is told to end."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from service.api.asgi import App
from service.api.connection import Connection
from service.errors import SettingsError
from service.settings import Settings


def configuration(app: App, settings: Settings, **further: Any) -> uvicorn.Config:  # noqa: ANN401 - uvicorn's own
    """uvicorn as we run it."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=Connection,
        access_log=False,
        log_config=None,
        proxy_headers=False,
        timeout_keep_alive=75,  # longer than clients keep idle connections, so that they do not meet a closed one
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        **further,
    )


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket (``shared``: one of several for the address); SettingsError where it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, reuse_port=shared)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}", field="port") from error


def end_when_told(server: uvicorn.Server) -> None:
    """Have SIGTERM and SIGINT end the server in order.

    uvicorn takes the signals while it runs, and raises them again once it has shut down in order. Before and after they
    come here: one that comes early is not lost, and one that is raised again leaves the exit status 0.
    """

    def stop(*_: object) -> None:
        server.should_exit = True

    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, stop)


def end_when_orphaned(ended: Callable[[], None]) -> None:
    """Call ``ended`` when standard input is closed: whoever started this process has gone, and it is not wanted."""

    def read() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            ended()

    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), read)
