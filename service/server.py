"""What every process that listens has in common: its socket, uvicorn as we run it, and how it is told to end."""

import signal
import socket
from typing import Any

import uvicorn

from service.api.asgi import App
from service.api.connection import Connection
from service.api.stream import Stream
from service.errors import SettingsError
from service.settings import Settings


def configuration(app: App, settings: Settings, *, drain_s: float | None = None, **further: Any) -> uvicorn.Config:  # noqa: ANN401 - uvicorn's own
    """uvicorn as we run it; ``drain_s``: another one than the settings'."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=Connection,
        ws=Stream,
        access_log=False,
        log_config=None,
        proxy_headers=False,
        timeout_keep_alive=75,  # longer than clients keep idle connections, so that they do not meet a closed one
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s if drain_s is None else drain_s)),
        **further,
    )


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket of the address (``shared``: one of several for it); SettingsError where it cannot be had."""
    bound = socket.socket(family := socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}", field="port") from error
    return bound


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; SettingsError where it cannot be had."""
    listener = bind(host, port)
    listener.listen()
    return listener


def url(bound: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def end_when_told(server: uvicorn.Server) -> None:
    """Have SIGTERM and SIGINT end the server in order.

    uvicorn takes the signals while it runs, and raises them again once it has shut down in order. Before and after they
    come here: one that comes early is not lost, and one that is raised again leaves the exit status 0.
    """

    def stop(*_: object) -> None:
        server.should_exit = True

    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, stop)
