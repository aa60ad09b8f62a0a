"""The process of the engine: ``python -m service.fronts.engine FOLDER``, started by the supervisor.

The whole service as in a process of its own, but for its address: it listens on two Unix sockets in the folder.
"""

import asyncio
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from service import logs
from service.api.edge import Edge
from service.app import build
from service.errors import ServiceError
from service.fronts.hub import Hub
from service.fronts.paths import HTTP, LINK, READY
from service.server import configuration, end_when_orphaned, end_when_told
from service.settings import Settings, load_settings


class EngineServer(uvicorn.Server):
    """uvicorn with the hub beside it: open while the app is."""

    def __init__(self, app: Edge, settings: Settings, folder: Path) -> None:
        super().__init__(configuration(app, settings, uds=str(folder / HTTP)))
        self._steps = app.steps
        self._link = folder / LINK
        self._hubs: list[Hub] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``."""
        await super().startup(sockets)
        self._server = await asyncio.get_running_loop().create_unix_server(self._hub, str(self._link))
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()

    def _hub(self) -> Hub:
        self._hubs.append(hub := Hub(self._steps))
        return hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``; what the app answers at its end still reaches the front ends."""
        self._server.close()
        await super().shutdown(sockets)
        for hub in self._hubs:
            hub.flush()
            if hub.transport is not None:
                hub.transport.close()


async def serve(settings: Settings, folder: Path) -> None:
    """Serve until SIGTERM, or until the supervisor has gone."""
    for name in (HTTP, LINK):
        (folder / name).unlink(missing_ok=True)  # of a process that was killed
    server = EngineServer(build(settings), settings, folder)
    end_when_told(server)
    end_when_orphaned(lambda: setattr(server, "should_exit", True))
    await server.serve()


if __name__ == "__main__":
    chosen = load_settings()
    logs.set_up(chosen.log_level)
    try:
        uvloop.run(serve(chosen, Path(sys.argv[1])))
    except ServiceError as error:
        sys.exit(f"lstm-serve: {error}")
