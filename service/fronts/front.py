"""The process of a front end: ``python -m service.fronts.front FOLDER``, started by the supervisor.

It listens for HTTP, validates steps and speaks of them with the engine in batches; everything else it relays.
"""

import asyncio
import socket
from contextlib import suppress
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

_LOOK_S = 0.1  # between two looks whether to end, before there is an engine
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
        """See ``uvicorn.Server``; nobody is accepted before there has been an engine, unless it is to end."""
        self._connecting = asyncio.create_task(self._sessions.keep_connected())
        while not (self._sessions.connected.is_set() or self.should_exit):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._sessions.connected.wait(), _LOOK_S)
        if not self.should_exit:
            await super().startup(sockets)
            tell_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``."""
        await super().shutdown(sockets)
        self._connecting.cancel()


async def serve(settings: Settings, folder: Path) -> None:
    """Serve until SIGTERM, or until the supervisor has gone."""
    server = FrontServer(settings, folder)
    end_in_order(server)
    await server.serve(sockets=[bind(settings.host, settings.port, shared=True)])


if __name__ == "__main__":
    run(serve)
