"""Run the server: ``python -m service``, or ``lstm-serve serve``."""

import logging

from service import logs
from service.settings import Settings, load_settings

log = logging.getLogger(__name__)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then stop accepting, finish what was accepted, close, and return."""
    logs.set_up(settings.log_level)
    if settings.http_workers:
        from service.fronts.supervisor import supervise

        supervise(settings)
        return
    from service.app import build
    from service.server import Server, end_when_told
    from service.sockets import listen, url

    listener = listen(settings.host, settings.port)
    server = Server(build(settings), settings)
    end_when_told(server)
    log.info("listening on %s", url(listener))
    server.run(sockets=[listener])
    log.info("closed")


if __name__ == "__main__":
    run(load_settings())
