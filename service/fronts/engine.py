"""The process of the engine: ``python -m service.fronts.engine FOLDER``, started by the supervisor.

The whole service as in a process of its own, but for its address: it listens on two Unix sockets in the folder.
"""

import asyncio
import socket
from pathlib import Path

import uvicorn

from service.api.edge import Edge
from service.app import build
from service.fronts.child import end_in_order, run, tell_ready
from service.fronts.hub import Hub
from service.fronts.paths import HTTP, LINK, RETIRE
from service.server import configuration
from service.settings import Settings

_CLOSING_S = 1.0  # for the last answers to reach the front ends


class EngineServer(uvicorn.Server):
    """uvicorn with the hubs beside it, open while the app is: one for each front end."""

    def __init__(self, app: Edge, settings: Settings, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)  # somebody may have tidied up where temporary files are
        # Who connects here are front ends, and those have had drain_s to finish when this process is told to end.
        super().__init__(configuration(app, settings, drain_s=0, uds=str(folder / HTTP)))
        self._steps, self._streams, self._retire = app.steps, app.streams.counts, app.retire
        self._path = folder / LINK
        self._hubs: set[Hub] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        self._link = await loop.create_unix_server(self._hub, str(self._path))
        loop.add_signal_handler(RETIRE, self._retire)
        tell_ready()

    def _hub(self) -> Hub:
        return Hub(self._steps, self._streams, self._hubs)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``; what the app answers at its end still reaches the front ends."""
        self._link.close()
        await super().shutdown(sockets)
        closing = [asyncio.create_task(hub.close()) for hub in self._hubs]
        if closing:
            await asyncio.wait(closing, timeout=_CLOSING_S)


async def serve(settings: Settings, folder: Path) -> None:
    """Serve until SIGTERM, or until the supervisor has gone."""
    for name in (HTTP, LINK):
        (folder / name).unlink(missing_ok=True)  # of a process that was killed
    server = EngineServer(build(settings), settings, folder)
    end_in_order(server)
    await server.serve()


if __name__ == "__main__":
    run(serve)
