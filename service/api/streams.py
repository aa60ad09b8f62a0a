"""What all streams share: their limits, their metrics, and the route that tells of them in the OpenAPI document."""

from dataclasses import dataclass

from fastapi import APIRouter

from service.api.handshake import PATH, USUAL_IN_FLIGHT
from service.api.problems import Headers, problem, reason
from service.api.stepping import Counts, Stepping
from service.errors import UpgradeRequired


@dataclass(frozen=True, slots=True)
class Limits:
    """``message_bytes`` and ``steps`` of one message, ``in_flight`` messages of one stream, at most."""

    message_bytes: int
    steps: int
    in_flight: int


class Streams:
    """What a stream needs of the service. ``counts`` are told of handshakes (101, or as refused) and of messages."""

    def __init__(self, sessions: Stepping, counts: Counts, limits: Limits) -> None:
        self.sessions = sessions
        self.counts = counts
        self.limits = limits

    def refusal(self, error: BaseException) -> tuple[int, bytes, Headers]:
        """Status, problem document and headers of what was refused or failed; counted."""
        status, body, headers = problem(error)
        self.counts.refused(reason(error), status)
        return status, body, headers


def router() -> APIRouter:
    """The route of a request that opens no stream; those that do never come to be requests of the app."""
    routes = APIRouter(tags=["sessions"])

    @routes.get(PATH, status_code=101, name="stream")
    async def stream(id: str, in_flight: int = USUAL_IN_FLIGHT) -> None:
        """Open a stream of steps (a WebSocket): one message per chunk in, one per answer out, in order.

        A text message is the body of `POST .../steps`, and is answered by one with the same members (a repeat's also
        has `"replayed": true`), or by a problem; then the stream goes on. A binary message is a header and the inputs
        as raw numbers, and is answered in the same way, little-endian; its problems are text. Up to `in_flight`
        messages may be unanswered, and so many last answers are kept: after a lost connection, open another stream and
        send again, with the same `position`, what was not answered. The README has the layouts and the close codes.
        """
        raise UpgradeRequired("this path is opened by a WebSocket handshake")

    return routes
