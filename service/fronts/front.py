"""The process of a front end: ``python -m service.fronts.front FOLDER PORT``, started by the supervisor.

It listens for HTTP, validates steps and speaks of them with the engine in batches; everything else it relays.
"""

import asyncio
import sys
from pathlib import Path

import uvicorn
import uvloop

from service import logs
from service.api.steps import StepsEndpoint
from service.fronts.link import RemoteSessions
from service.fronts.paths import HTTP, LINK
from service.fronts.relay import Relay
from service.server import configuration, end_when_orphaned, end_when_told, listen
from service.settings import Settings, load_settings


async def serve(settings: Settings, folder: Path, port: int) -> None:
    """Serve until SIGTERM, or until the supervisor has gone."""
    sessions = RemoteSessions(folder / LINK)
    steps = StepsEndpoint(sessions, sessions, settings.max_body_bytes, settings.max_steps)
    server = uvicorn.Server(configuration(Relay(folder / HTTP, steps), settings, lifespan="off"))
    end_when_told(server)
    end_when_orphaned(lambda: setattr(server, "should_exit", True))
    link = asyncio.create_task(sessions.keep_connected())
    await server.serve(sockets=[listen(settings.host, port, shared=True)])
    link.cancel()


if __name__ == "__main__":
    chosen = load_settings()
    logs.set_up(chosen.log_level)
    uvloop.run(serve(chosen, Path(sys.argv[1]), int(sys.argv[2])))
