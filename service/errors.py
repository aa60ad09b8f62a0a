"""Every error that the service names.

Owns the classes and their sentences; knows nothing of HTTP (``api/problems.py`` has the one table of status codes).
``detail`` is written for the client; ``field`` names the part of the request that was wrong.
"""


class ServiceError(Exception):
    """The base of everything that is told by name; anything else leaves the service as a neutral 500."""

    def __init__(self, detail: str, *, field: str | None = None, **facts: str | int | float | None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.facts = facts


class SettingsError(ServiceError):
    """A setting, or a combination of settings, that the service refuses to start with."""


class ArtifactError(ServiceError):
    """An ONNX file that cannot be served, with the reason."""


class InvalidInput(ServiceError):
    """The request does not fit the model; ``field`` says where."""


class TooLarge(ServiceError):
    """A body, chunk or batch beyond a limit that the settings name."""


class NotFinite(ServiceError):
    """The model answered NaN or infinity for this row; the session keeps the state it had."""


class UnsupportedTask(ServiceError):
    """The model's task has no such operation."""


class GatesNotKept(ServiceError):
    """The session was not created to show its gates."""


class UnknownModel(ServiceError):
    """No such model or version in the repository."""


class UnknownSession(ServiceError):
    """No session has this id, or it belongs to somebody else."""


class SessionEnded(ServiceError):
    """The session was deleted or its ttl ran out."""


class ModelNotLoaded(ServiceError):
    """The session is pinned to a model fingerprint that the repository no longer holds; its state is kept."""


class UndecodableState(ServiceError):
    """A stored row cannot be decoded; it is left as it is, never replaced by zeros.

    ``owner``: whose it is, as far as the store can tell, so that its owner, and nobody else, can still end it.
    """

    def __init__(self, detail: str, owner: str = "") -> None:
        super().__init__(detail)
        self.owner = owner


class PositionConflict(ServiceError):
    """The request names another position than the session's, and repeats no request whose answer is kept."""

    def __init__(self, position: int, named: int) -> None:
        super().__init__(
            f"the session is at position {position}, the request applies at {named}",
            field="position",
            position=position,
        )


class AlreadyApplied(ServiceError):
    """The request repeats one that was applied, but its answer was too large to keep."""

    def __init__(self, position: int) -> None:
        super().__init__(
            "this request was applied already; its answer was too large to keep", field="position", position=position
        )


class NothingToContinue(ServiceError):
    """Generation continues what the model has seen, and the session has consumed no step yet."""


class WriteConflict(ServiceError):
    """Another replica kept moving the session while this request was tried."""


class Overloaded(ServiceError):
    """The queue is full; nothing of the request was applied."""


class DeadlineExceeded(ServiceError):
    """The request waited longer than the settings allow and was dropped before it ran."""


class ShuttingDown(ServiceError):
    """The service has stopped accepting requests."""


class EngineUnavailable(ServiceError):
    """The engine's process is starting, for the first time or again; nothing was applied."""


class StoreUnavailable(ServiceError):
    """The store could not commit or load; nothing was acknowledged."""


class OutcomeUnknown(StoreUnavailable):
    """The store was lost, or we ended, before it had answered: what was asked may have been applied, or not.

    Nothing was acknowledged; a repeat that names its position is safe, whichever it was.
    """


class MalformedBody(ServiceError):
    """The body is not JSON."""


class BadHandshake(ServiceError):
    """A request to open a stream that is no WebSocket handshake."""


class UpgradeRequired(ServiceError):
    """A request for a stream that does not ask to open one, or not in the version that is spoken."""


class UnknownPath(ServiceError):
    """Nothing is served at this path."""


class WrongMethod(ServiceError):
    """The path is served, but not with this method."""
