"""What every process that serves HTTP has in common: uvicorn as we run it, and how it is told to end."""

import signal
from math import inf
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn

from service.api.asgi import App
from service.api.connection import Connection
from service.api.edge import Edge
from service.api.stream import Stream
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


class Server(uvicorn.Server):
    """uvicorn that serves on for ``lame_duck_s`` when it is told to end, and says so to whoever asks if it is ready.

    Told once more, it ends at once. Mutable state: ``_until``, when to end.
    """

    def __init__(self, app: Edge, settings: Settings) -> None:
        super().__init__(configuration(app, settings))
        self._retire, self._lame_duck_s = app.retire, settings.lame_duck_s
        self._until = inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See ``uvicorn.Server``."""
        if self._lame_duck_s and self._until == inf:
            self._until = monotonic() + self._lame_duck_s
            self._retire()
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """See ``uvicorn.Server``, which asks ten times a second whether to end."""
        return await super().on_tick(counter) or monotonic() >= self._until


def end_when_told(server: uvicorn.Server) -> None:
    """Have SIGTERM and SIGINT end the server in order.

    uvicorn takes the signals while it runs, and raises them again once it has shut down in order. Before and after they
    come here: one that comes early is not lost, and one that is raised again leaves the exit status 0.
    """

    def stop(*_: object) -> None:
        server.should_exit = True

    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, stop)
