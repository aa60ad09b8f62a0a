"""Run the server: ``python -m service``, or ``lstm-serve serve``."""

import logging
import signal
import socket

import uvicorn

from service import logs
from service.api.connection import Connection
from service.app import build
from service.errors import SettingsError
from service.settings import Settings, load_settings

log = logging.getLogger(__name__)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then stop accepting, finish what was accepted, close, and return."""
    logs.set_up(settings.log_level)
    listener = listen(settings.host, settings.port)
    config = uvicorn.Config(
        build(settings),
        loop="uvloop",
        http=Connection,
        access_log=False,
        log_config=None,
        proxy_headers=False,
        timeout_keep_alive=75,  # longer than clients keep idle connections, so that they do not meet a closed one
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn takes the signals while it runs, and raises them again once it has shut down in order. Before and after
    # they come here: one that comes early is not lost, and one that is raised again leaves the exit status 0.
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, stop)
    log.info("listening on http://%s:%d", *listener.getsockname()[:2])
    server.run(sockets=[listener])
    log.info("closed")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; SettingsError where the address cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}", field="port") from error


if __name__ == "__main__":
    run(load_settings())
