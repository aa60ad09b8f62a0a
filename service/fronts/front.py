"""The process of a front end: ``python -m service.fronts.front FOLDER``, started by the supervisor.

It listens for HTTP, validates steps and speaks of them with the engine in batches; everything else it relays.
"""

import asyncio
import socket
from pathlib import Path

import uvicorn

from service.api.steps import StepsEndpoint
from service.api.streams import Limits, Streams
from service.fronts.child import end_in_order, run, tell_ready
from service.fronts.link import RemoteSessions, StreamCounts
from service.fronts.paths import HTTP, LINK
from service.fronts.relay import Relay
from service.server import configuration
from service.settings import Settings
from service.sockets import bind

_LATER_S = 3.0  # than drain_s: by then the engine's process has been told to end, and tells those who still wait


class FrontServer(uvicorn.Server):
    """uvicorn with the link to the engine beside it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._sessions = sessions = RemoteSessions(folder / LINK)
        steps = StepsEndpoint(sessions, sessions, settings.max_body_bytes, settings.max_steps)
        limits = Limits(settings.max_body_bytes, settings.max_steps, settings.max_session_queue)
        relay = Relay(folder / HTTP, steps, Streams(sessions, StreamCounts(sessions), limits), sessions.unavailable)
        super().__init__(configuration(relay, settings, drain_s=settings.drain_s + _LATER_S, lifespan="off"))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``; ready once there is an engine, until then every answer is 503."""
        await self._sessions.connect()
        self._tasks = [asyncio.create_task(work) for work in (self._sessions.keep_connected(), self._tell_ready())]
        await super().startup(sockets)

    async def _tell_ready(self) -> None:
        await self._sessions.connected.wait()
        tell_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``."""
        await super().shutdown(sockets)
        for task in self._tasks:
            task.cancel()


async def serve(settings: Settings, folder: Path) -> None:
    """Serve until SIGTERM, or until the supervisor has gone."""
    server = FrontServer(settings, folder)
    end_in_order(server)
    await server.serve(sockets=[bind(settings.host, settings.port, shared=True)])


if __name__ == "__main__":
    run(serve)
