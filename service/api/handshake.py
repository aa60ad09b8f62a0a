"""The opening handshake of a stream (RFC 6455, section 4.2): from an HTTP request to an accepted or refused stream."""

import base64
import hashlib
from binascii import Error as NotBase64
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

from service.api.problems import Headers
from service.errors import BadHandshake, InvalidInput, UnknownPath, UpgradeRequired, WrongMethod

BEFORE, AFTER = "/v1/sessions/", "/stream"
PATH = f"{BEFORE}{{id}}{AFTER}"
USUAL_IN_FLIGHT = 16
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a client asks for: the session ``id``, at most ``in_flight`` messages unanswered; ``accept`` answers it."""

    id: str
    in_flight: int
    accept: bytes


def read(request: bytes, most_in_flight: int) -> Handshake:
    """The handshake of a whole request head.

    Raises:
        UnknownPath, WrongMethod, UpgradeRequired, BadHandshake, InvalidInput.
    """
    line, *lines = request.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, _ = line.split(b" ")
    headers = {name.lower(): value.strip() for name, _, value in (header.partition(b":") for header in lines)}
    path, _, query = target.decode("ascii", "replace").partition("?")
    if not (path.startswith(BEFORE) and path.endswith(AFTER)) or path.count("/") != BEFORE.count("/") + 1:
        raise UnknownPath("Not Found")
    if method != b"GET":
        raise WrongMethod("Method Not Allowed")
    if headers.get(b"sec-websocket-version") != b"13":
        raise UpgradeRequired("the stream speaks version 13 of WebSocket", field="sec-websocket-version")
    id = unquote(path[len(BEFORE) : -len(AFTER)])
    return Handshake(id, _in_flight(query, most_in_flight), _accept(headers.get(b"sec-websocket-key", b"")))


def _accept(key: bytes) -> bytes:
    try:
        sound = len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except NotBase64:
        sound = False
    if not sound:
        raise BadHandshake("expected 16 bytes in base64", field="sec-websocket-key")
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - the protocol's, and not for secrecy


def _in_flight(query: str, most: int) -> int:
    usual = min(USUAL_IN_FLIGHT, most)
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name != "in_flight":
            raise InvalidInput(f"there is no parameter {name!r}, but in_flight", field=name)
        if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= most):
            raise InvalidInput(f"in_flight is a number from 1 to {most} (max_session_queue)", field="in_flight")
        usual = int(value)
    return usual


def accepted(accept: bytes) -> bytes:
    """The answer that opens the stream."""
    upgrade = b"upgrade: websocket\r\nconnection: Upgrade\r\n"
    return b"HTTP/1.1 101 Switching Protocols\r\n%bsec-websocket-accept: %b\r\n\r\n" % (upgrade, accept)


def refused(status: int, headers: Headers, body: bytes) -> bytes:
    """The answer that opens none, after which the connection is closed."""
    told = [*headers, (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    lines = b"".join(b"%b: %b\r\n" % line for line in told)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, HTTPStatus(status).phrase.encode(), lines, body)
