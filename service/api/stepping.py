"""What the transports of steps need of the rest: sessions that may be in this process or in another, and who counts."""

from typing import Any, Protocol

from service.artifact import Signature
from service.sessions.requests import Advance
from service.work import Reply


class HasSignature(Protocol):
    """What is needed of a model."""

    @property
    def signature(self) -> Signature:
        """What its inputs have to look like."""
        ...


class Stepping(Protocol):
    """What is needed of the sessions: ``Sessions`` itself, or a front end's link to the process that has them."""

    def at_hand(self, id: str, owner: str) -> Any:  # noqa: ANN401 - its model is a HasSignature
        """A session that can be advanced at once; None where it has to be looked for."""
        ...

    async def model_of(self, id: str, owner: str) -> HasSignature:
        """The model that a session is pinned to."""
        ...

    def advance_live(self, live: Any, request: Advance, reply: Reply) -> None:  # noqa: ANN401 - from ``at_hand``
        """``submit`` for a session that is ``at_hand``."""
        ...

    def submit(self, id: str, request: Advance, owner: str, reply: Reply) -> None:
        """Take a request; the reply gets (answer, whether it repeats an earlier one) or the error."""
        ...

    def leave(self, reply: Reply) -> None:
        """Nobody waits for this reply any more: it is done."""
        ...


class Counts(Protocol):
    """What the endpoint reports."""

    def refused(self, reason: str, status: int) -> None:
        """A request was answered with a problem of this type."""
        ...

    def answered(self, status: int, seconds: float) -> None:
        """A request was answered after so long (status 0: nobody was left to be answered)."""
        ...
