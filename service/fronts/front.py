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
from service.fronts.link import RemoteSessions
from service.fronts.paths import HTTP, LINK
from service.fronts.relay import Relay
from service.server import configuration
from service.settings import Settings
from service.sockets import bind

_LATER_S = 3.0  # than drain_s: by then the engine's process has been told to end, and tells those who still wait


class FrontServer(uvicorn.Server):
    """uvicorn that says when it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``."""
        await super().startup(sockets)
        tell_ready()


async def serve(settings: Settings, folder: Path) -> None:
    """Serve until SIGTERM, or until the supervisor has gone."""
    sessions = RemoteSessions(folder / LINK)
    steps = StepsEndpoint(sessions, sessions, settings.max_body_bytes, settings.max_steps)
    drain_s = settings.drain_s + _LATER_S
    limits = Limits(settings.max_body_bytes, settings.max_steps, settings.max_session_queue)
    relay = Relay(folder / HTTP, steps, Streams(sessions, sessions, limits))
    server = FrontServer(configuration(relay, settings, drain_s=drain_s, lifespan="off"))
    end_in_order(server)
    await sessions.connect()
    link = asyncio.create_task(sessions.keep_connected())
    await server.serve(sockets=[bind(settings.host, settings.port, shared=True)])
    link.cancel()


if __name__ == "__main__":
    run(serve)
