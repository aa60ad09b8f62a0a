"""Run the server: ``python -m service``, or ``lstm-serve serve``."""

import logging
import signal

import uvicorn

from service import logs
from service.app import build
from service.settings import Settings, load_settings

log = logging.getLogger(__name__)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then stop accepting, finish what was accepted, close, and return."""
    logs.set_up(settings.log_level)
    config = uvicorn.Config(
        build(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )
    # uvicorn raises the signal again once it has shut down in order; taken by a handler of ours, the exit status is 0.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: None)
    uvicorn.Server(config).run()
    log.info("closed")


if __name__ == "__main__":
    run(load_settings())
