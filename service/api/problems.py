"""The one table from error to answer: RFC 9457 ``application/problem+json`` with a stable type.

An error that is not in the table leaves as a neutral 500 with a request id; its reason goes to the log.
"""

import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from service import errors
from service.errors import InvalidInput, MalformedBody, ServiceError

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

_TYPE = "urn:lstm-serve:problem:"
# class: (status, the stable end of the type, title)
TABLE: dict[type[ServiceError], tuple[int, str, str]] = {
    errors.MalformedBody: (400, "malformed-body", "The body is not JSON"),
    errors.BadHandshake: (400, "bad-handshake", "The WebSocket handshake is not valid"),
    errors.UnknownModel: (404, "unknown-model", "No such model"),
    errors.UnknownSession: (404, "unknown-session", "No such session"),
    errors.UnknownPath: (404, "unknown-path", "No such path"),
    errors.WrongMethod: (405, "wrong-method", "The path has no such method"),
    errors.PositionConflict: (409, "position-conflict", "The session is at another position"),
    errors.AlreadyApplied: (409, "already-applied", "The request was applied already"),
    errors.NothingToContinue: (409, "nothing-to-continue", "The session has consumed no step"),
    errors.WriteConflict: (409, "write-conflict", "Another replica moved the session"),
    errors.ModelNotLoaded: (409, "model-not-loaded", "The session's model is not loaded"),
    errors.SessionEnded: (410, "session-ended", "The session is over"),
    errors.TooLarge: (413, "too-large", "Beyond a limit"),
    errors.InvalidInput: (422, "invalid-input", "The request does not fit"),
    errors.NotFinite: (422, "not-finite", "The model's answer is not finite"),
    errors.UnsupportedTask: (422, "unsupported-task", "The model cannot do this"),
    errors.GatesNotKept: (422, "gates-not-kept", "The session keeps no gates"),
    errors.UpgradeRequired: (426, "upgrade-required", "A stream is opened by a WebSocket handshake"),
    errors.UndecodableState: (500, "undecodable-state", "The stored state cannot be decoded"),
    errors.Overloaded: (503, "overloaded", "Too many requests are waiting"),
    errors.DeadlineExceeded: (503, "deadline-exceeded", "The request waited too long"),
    errors.ShuttingDown: (503, "shutting-down", "The service is shutting down"),
    errors.EngineUnavailable: (503, "engine-unavailable", "The engine is starting"),
    errors.StoreUnavailable: (503, "store-unavailable", "The session store cannot commit or load"),
    errors.OutcomeUnknown: (503, "outcome-unknown", "It is not known whether the session store has committed it"),
}
_RETRY_AFTER_S = 1
_MOST_FAULTS = 1000  # pydantic writes out all of a body's faults or none
INTERNAL, UNAVAILABLE, UPGRADE = 500, 503, 426
_TO_UPGRADE = [(b"upgrade", b"websocket"), (b"connection", b"upgrade"), (b"sec-websocket-version", b"13")]


def problem(error: BaseException) -> tuple[int, bytes, Headers]:
    """Status, body and headers of an error's answer."""
    status, document = problem_document(error)
    headers = [(b"content-type", b"application/problem+json")]
    if status == UNAVAILABLE:
        headers.append((b"retry-after", str(document.get("retry_after_s", _RETRY_AFTER_S)).encode()))
    if status == UPGRADE:
        headers += _TO_UPGRADE
    return status, orjson.dumps(document), headers


def problem_document(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and RFC 9457 members of an error."""
    if isinstance(error, ValidationError):
        error = unfit(error)
    known = TABLE.get(type(error)) if isinstance(error, ServiceError) else None
    if known is None or not isinstance(error, ServiceError):
        return 500, _neutral(error)
    status, kind, title = known
    if status == INTERNAL:
        log.error("%s: %s", kind, error.detail)
    document: dict[str, Any] = {"type": _TYPE + kind, "title": title, "status": status, "detail": error.detail}
    if error.field is not None:
        document["field"] = error.field
    return status, {name: _encodable(value) for name, value in (document | error.facts).items()}


def reason(error: BaseException) -> str:
    """The short name of an error's type, for metrics."""
    if isinstance(error, ValidationError):
        return "invalid-input"
    known = TABLE.get(type(error)) if isinstance(error, ServiceError) else None
    return known[1] if known is not None else "internal-error"


def unfit(error: ValidationError) -> InvalidInput | MalformedBody:
    """What pydantic found wrong with a body, as one of our errors, in bounded time however many faults it has."""
    if (faults := error.error_count()) > _MOST_FAULTS:
        return InvalidInput(f"the body does not fit: it has {faults} faults")
    return invalid(error.errors(include_url=False))


def invalid(found: Sequence[Mapping[str, Any]]) -> InvalidInput | MalformedBody:
    """What pydantic found wrong, as one of our errors: the first fault, by the name of its field."""
    first = found[0]
    if first["type"] == "json_invalid":
        return MalformedBody(f"the body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if first["loc"] == ("body",):
        if first["type"] == "missing":
            return MalformedBody("the body is empty: expected a JSON object")
        return InvalidInput("the body is not a JSON object with the header content-type: application/json")
    field = field_name([part for part in first["loc"] if part != "body"])
    return InvalidInput(f"{field}: {first['msg']}" if field else first["msg"], field=field or None)


def field_name(loc: Sequence[str | int]) -> str:
    """A pydantic location as it would be written: ``inputs[3][0]``."""
    name = ""
    for part in loc:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def _encodable(value: object) -> object:
    """What a client sent may be told back to it; half a surrogate pair has no place in UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _neutral(error: BaseException) -> dict[str, Any]:
    request_id = secrets.token_hex(8)
    log.error("request %s failed", request_id, exc_info=error)
    return {
        "type": _TYPE + "internal-error",
        "title": "Something went wrong inside the service",
        "status": 500,
        "detail": "the log says more under the request id",
        "request_id": request_id,
    }
